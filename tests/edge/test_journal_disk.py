"""A journal on a bad disk: full, failing to write, failing to sync; and tables that somebody changed."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.edge.journal_model import Model, accepted, enrolled, forgotten, per_client, settled
from zfarm.core.headroom import price
from zfarm.edge.journal import Journal
from zfarm.errors import JournalCorrupt, JournalError
from zfarm.messages import Accepted
from zfarm.settings import settings

ROOT = Path(__file__).parents[2]
SMALL = replace(settings, journal_file_from_bytes=20_000, journal_checkpoint_bytes=50_000)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir(mode=0o700)
    options = ["-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs"]
    done = subprocess.run(["mount", *options, str(place)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(place: Path, leave: int) -> Path:
    """A file that leaves so much room."""
    filler = place / "filler"
    room = os.statvfs(place)
    filler.write_bytes(bytes(max(0, room.f_bavail * room.f_bsize - leave)))
    return filler


@pytest.mark.parametrize("size", [300, 25_000], ids=["in the tables", "in files"])
def test_a_full_disk_refuses_turns_until_there_is_room(small_disk, size):
    path = small_disk / "journal"
    model = Model()
    with Journal(path, SMALL) as journal:
        journal.append([enrolled()])
        model.apply([enrolled()])
        filler = fill(small_disk, 200_000)
        refused = 0
        for number in range(2000):
            turn = [accepted(number * 2, body=bytes(size)), accepted(number * 2 + 1)]
            try:
                journal.append(turn)
            except JournalError as error:
                assert (error.errno, error.fatal) == (errno.ENOSPC, False)
                assert str(path.name) in str(error)
                assert "space" in str(error)
                refused += 1
                if refused == 5:
                    break
            else:
                model.apply(turn)
        assert refused == 5
        assert per_client(journal.replay()) == model.expected()
        blobs = len(list(Path(f"{path}.blobs").glob("*")))
        assert (
            blobs
            == journal.stats().blob_files
            == (
                0
                if size == 300
                else sum(len(payload[2]) == size for _record, payload in journal.replay() if payload)
            )
        )

        filler.unlink()
        later = [accepted(9000, body=bytes(size)), settled(0), forgotten(2, 3)]
        journal.append(later)
        model.apply(later)
        journal.check()
    with Journal(path, SMALL) as journal:
        assert per_client(journal.replay()) == model.expected()


def test_a_disk_that_is_full_at_the_opening_is_said_and_harms_nothing(small_disk):
    path = small_disk / "journal"
    with Journal(path, SMALL) as journal:
        journal.append([enrolled(), *(accepted(n) for n in range(10))])
        before = per_client(journal.replay())
    filler = fill(small_disk, 0)
    with pytest.raises(JournalError) as caught:
        Journal(path, SMALL)
    assert not isinstance(caught.value, JournalCorrupt)
    assert caught.value.errno == errno.ENOSPC

    filler.unlink()
    with Journal(path, SMALL) as journal:
        assert per_client(journal.replay()) == before


def killed(path: Path, count: int = 20) -> None:
    """Leave a journal as a broker does that is killed with so many tasks in its log."""
    code = (
        "import os, sys; from tests.edge.journal_model import accepted, enrolled\n"
        "from zfarm.edge.journal import Journal\n"
        "journal = Journal(sys.argv[1]); journal.append([enrolled()])\n"
        "journal.append([accepted(n, body=bytes(10_000)) for n in range(int(sys.argv[2]))]); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path), str(count)], cwd=ROOT, check=False)
    assert done.returncode == 9


def test_a_journal_on_a_full_disk_can_be_read_and_the_remedy_is_said(small_disk):
    path = small_disk / "journal"
    killed(path)
    fill(small_disk, 0)
    for text in ("check", "stats"):
        with Journal(path, create=False, write=False) as journal:
            found = journal.check() if text == "check" else journal.stats().queued
        assert found == (21 if text == "check" else 20)
    for _ in range(2):
        with pytest.raises(JournalError) as caught:
            Journal(path)
        assert caught.value.errno == errno.ENOSPC
        assert f"Free at least 2 MiB on the file system of {small_disk}" in str(caught.value)

    (small_disk / "filler").unlink()
    with Journal(path) as journal:
        assert len(list(journal.replay())) == 21


def test_who_only_reads_a_journal_begins_no_new_life_in_it(tmp_path):
    path = tmp_path / "journal"
    killed(path)
    with Journal(path, write=False) as journal:
        epoch = journal.epoch()
        assert journal.check() == 21
    with Journal(path, write=False) as journal:
        assert journal.epoch() == epoch
    with Journal(path) as journal:
        assert journal.epoch() == epoch + 1


def test_a_log_without_room_to_move_is_told_before_the_tables_take_the_last_of_it(small_disk):
    path = small_disk / "journal"
    with Journal(path) as journal:
        journal.append([enrolled(), *(accepted(n, body=bytes(10_000)) for n in range(20))])
        filler = fill(small_disk, 100_000)
        assert journal.room.left() < 0
        size = path.stat().st_size
        journal.relieve()
        assert path.stat().st_size == size
        filler.unlink()


def test_a_journal_gives_room_back_to_a_disk_that_has_little(tmp_path):
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.append([enrolled(), *(accepted(n, body=bytes(10_000)) for n in range(500))])
        journal.append([settled(n) for n in range(500)])
        journal.append([forgotten(*range(500))])
        assert journal.room.spare() > 9_000_000
        for _ in range(5):
            journal.relieve()
        assert journal.room.spare() < 100_000
        assert path.stat().st_size + Path(f"{path}-wal").stat().st_size < 200_000
        journal.append([accepted(1000)])
        assert journal.check() == 2


def test_what_is_left_of_a_disk_is_without_what_the_tables_will_take(small_disk):
    path = small_disk / "journal"
    with Journal(path) as journal:
        journal.relieve()
        before = journal.room.left()
        journal.append([enrolled(), *(accepted(n, body=bytes(10_000)) for n in range(20))])
        taken = before - journal.room.left()
        assert 2 * 200_000 < taken <= 21 * price(1, 10_000)
        journal.relieve()
        assert 200_000 < before - journal.room.left() < 300_000, "the log has moved"


def test_a_table_that_may_not_grow_refuses_the_turn(tmp_path):
    """The same without a mount: SQLite's own limit."""
    path = tmp_path / "journal"
    with Journal(path, SMALL) as journal:
        journal.append([enrolled()])
        (pages,) = journal._db.execute("PRAGMA page_count").fetchone()
        journal._db.execute(f"PRAGMA max_page_count = {pages + 5}").fetchone()
        with pytest.raises(JournalError) as caught:
            journal.append([accepted(n, body=bytes(3000)) for n in range(50)])
        assert (caught.value.errno, caught.value.fatal) == (errno.ENOSPC, False)
        assert len(list(journal.replay())) == 1
        assert journal.stats().functions == 0
        journal._db.execute("PRAGMA max_page_count = 100000").fetchone()
        journal.append([accepted(n, body=bytes(3000)) for n in range(50)])
        assert len(list(journal.replay())) == 51


# ---------------------------------------------------------------- calls that fail

SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
static int fails(const char *call) {
    const char *path = getenv("FAILING");
    char name[4096];
    if (!path) return 0;
    int n = 0;
    for (; path[n] && n < 4000; n++) name[n] = path[n];
    name[n++] = '.';
    for (int i = 0; call[i]; i++) name[n++] = call[i];
    name[n] = 0;
    if (access(name, F_OK)) return 0;
    errno = EIO;
    return 1;
}
#define WRAP(NAME, KIND, RESULT, DECLARED, PASSED) \\
    RESULT NAME DECLARED { \\
        static RESULT (*real) DECLARED; \\
        if (!real) real = dlsym(RTLD_NEXT, #NAME); \\
        return fails(KIND) ? -1 : real PASSED; \\
    }
WRAP(fsync, "sync", int, (int fd), (fd))
WRAP(fdatasync, "sync", int, (int fd), (fd))
WRAP(pwrite, "write", ssize_t, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o))
WRAP(pwrite64, "write", ssize_t, (int fd, const void *b, size_t n, off64_t o), (fd, b, n, o))
"""

FAILING = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.edge.journal_model import accepted, enrolled
from zfarm.edge.journal import Journal
from zfarm.errors import JournalError
from zfarm.settings import settings

def tell(error):
    print(error.errno, error.fatal)
    assert f"The disk under {Path(sys.argv[1]).parent} fails" in str(error)
    assert ("is there when the journal is opened again" in str(error)) == error.fatal

call, flag, at_checkpoint = sys.argv[2], Path(sys.argv[3]), sys.argv[4] == "checkpoint"
journal = Journal(sys.argv[1], replace(settings, journal_checkpoint_bytes=1 if at_checkpoint else 10**9))
journal.append([enrolled(), accepted(1)])
if at_checkpoint:
    tidy = journal._tidy
    journal._tidy = lambda: (flag.touch(), tidy())
else:
    flag.touch()
for number in (2, 3):
    try:
        journal.append([accepted(number)])
        print("appended")
    except JournalError as error:
        tell(error)
flag.unlink()
try:
    journal.append([accepted(4)])
    print("appended")
except JournalError as error:
    tell(error)
journal.close()
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler, and Linux's way of overriding calls")
    place = tmp_path_factory.mktemp("shim")
    (place / "shim.c").write_text(SHIM)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", place / "shim.so", place / "shim.c", "-ldl"], check=True
    )
    return place / "shim.so"


@pytest.mark.parametrize(
    ("call", "when", "said", "tasks"),
    [
        ("sync", "turn", ["5 True", "5 True", "5 True"], ({1}, {1, 2})),
        ("write", "turn", ["5 False", "5 False", "appended"], ({1, 4},)),
        ("sync", "checkpoint", ["5 True", "5 True", "5 True"], ({1, 2},)),
        ("write", "checkpoint", ["appended", "5 False", "appended"], ({1, 2, 4},)),
    ],
)
def test_a_failed_write_may_pass_and_a_failed_sync_is_the_end(tmp_path, shim, call, when, said, tasks):
    path, flags = tmp_path / "journal", tmp_path / "failing"
    environment = {**os.environ, "LD_PRELOAD": str(shim), "FAILING": str(flags)}
    done = subprocess.run(
        [sys.executable, "-c", FAILING, str(path), call, f"{flags}.{call}", when],
        capture_output=True, text=True, cwd=ROOT, env=environment, check=False, timeout=60,
    )  # fmt: skip

    assert done.stdout.split("\n")[:-1] == said, done.stderr
    with Journal(path) as journal:
        journal.check()
        found = {record.task for record, _payload in journal.replay() if isinstance(record, Accepted)}
    assert found in tasks


# ---------------------------------------------------------------- changed by others

CHANGES = {
    "a task is gone": "DELETE FROM tasks WHERE id = (SELECT min(id) FROM tasks)",
    "a task came back": "INSERT INTO tasks SELECT id + 1000, row, body FROM tasks LIMIT 1",
    "a task moved": "UPDATE tasks SET id = id + 1000 WHERE id = (SELECT min(id) FROM tasks)",
    "two bodies swapped": "UPDATE tasks SET body = (SELECT max(body) FROM tasks)",
    "a row is text": "UPDATE tasks SET row = 'text' WHERE id = (SELECT min(id) FROM tasks)",
    "a client is gone": "DELETE FROM clients",
    "a function is gone": "DELETE FROM shared WHERE id = 1",
    "a function is another": "UPDATE shared SET body = X'00' WHERE id = 1",
    "the books are gone": "DELETE FROM about WHERE id = 1",
    "the books are older": "UPDATE about SET row = old.row FROM old WHERE about.id = old.id",
    "it says nothing about itself": "DELETE FROM about WHERE id = 0",
    "there is a trigger": "CREATE TRIGGER t AFTER INSERT ON tasks BEGIN DELETE FROM clients; END",
    "a table is gone": "DROP TABLE shared",
    "a table is another": "DROP TABLE shared; CREATE TABLE shared (id INTEGER PRIMARY KEY, row, body)",
}


@pytest.mark.parametrize("change", CHANGES)
def test_tables_that_somebody_changed_are_refused(tmp_path, change):
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.append([enrolled(), *(accepted(n, body=bytes([n])) for n in range(5))])
        older = journal._db.execute("SELECT row FROM about WHERE id = 1").fetchone()[0]
        journal.append([settled(1), forgotten(2)])
    db = sqlite3.connect(path)
    db.execute("CREATE TEMP TABLE old (id, row)")
    db.execute("INSERT INTO old VALUES (1, ?)", (older,))
    db.commit()
    db.executescript(CHANGES[change])
    db.close()

    with pytest.raises(JournalCorrupt), Journal(path) as journal:
        list(journal.replay())
