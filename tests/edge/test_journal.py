"""The journal: what is appended comes back, once and in order; who may open it; large blobs; idempotence."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.edge.journal_model import (
    Model,
    accepted,
    begun,
    dropped,
    enrolled,
    forgotten,
    per_client,
    retried,
    settled,
    struck,
)
from zfarm.edge import sealed, vault
from zfarm.edge.journal import TASK_NUMBER_MAX, Journal
from zfarm.errors import ConfigurationError, JournalCorrupt
from zfarm.messages import Accepted, Enrolled, Fate, Struck
from zfarm.settings import settings

SMALL = replace(settings, journal_file_from_bytes=1000, journal_checkpoint_bytes=100_000)
LIFE = [
    [enrolled("c", host="h"), enrolled("d", job="night run")],
    [accepted(1), accepted(2, function=b"g"), accepted(3), accepted(1, "d")],
    [struck(2), settled(1), struck(2), accepted(4, body=b"")],
    [settled(2), forgotten(1), settled(3, blob=b""), struck(1, "d")],
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def filled(path: Path, turns=LIFE) -> Model:
    model = Model()
    with Journal(path, SMALL) as journal:
        for turn in turns:
            journal.append(turn)
            model.apply(turn)
    return model


def replayed(path: Path):
    with Journal(path, SMALL) as journal:
        journal.check()
        return per_client(journal.replay())


def test_what_was_appended_is_replayed_in_order(path):
    model = filled(path)

    assert replayed(path) == model.expected()
    with Journal(path) as journal:
        kinds = [type(record).__name__ for record, _payload in journal.replay()]
    assert kinds[:2] == ["Enrolled", "Enrolled"]


def test_a_replay_applied_to_a_new_journal_gives_the_same_replay(path, tmp_path):
    model = filled(path)
    with Journal(path) as journal, Journal(tmp_path / "other") as other:
        pairs = list(journal.replay())
        other.append(pairs)
        deaths_apart = [pair for pair in pairs if not isinstance(pair[0], Struck)]  # each counts
        other.append(deaths_apart)

        assert per_client(other.replay()) == model.expected()


@pytest.mark.parametrize(
    "again",
    [
        forgotten(1),
        forgotten(77),
        forgotten(1, client="nobody"),
        forgotten(TASK_NUMBER_MAX + 1),
        dropped("nobody"),
        settled(2, blob=b"other"),
        settled(1),
        settled(77),
        settled(1, "nobody"),
        struck(2),  # it has ended
        struck(77),
        begun(2),  # it has ended
        begun(77),
        retried(2),  # it has ended
        retried(77),
        accepted(2, function=b"other"),
        accepted(4, body=b"other"),
    ],
    ids=str,
)
def test_what_is_known_already_or_unknown_changes_nothing(path, again):
    model = filled(path)
    with Journal(path, SMALL) as journal:
        journal.append([again])
        journal.append([again, again])

    assert replayed(path) == model.expected()


def test_one_turn_may_hold_a_whole_life(path):
    turn = [
        enrolled(),
        accepted(1),
        struck(1),
        settled(1),
        accepted(2),
        begun(2),
        retried(2),
        struck(2),
        forgotten(1),
        accepted(1, body=b"2nd"),
    ]
    turn += [settled(1, blob=b"2nd"), dropped(), enrolled(), accepted(9), settled(9), struck(9), settled(9)]

    assert replayed(path) == {}
    model = filled(path, [turn])
    assert replayed(path) == model.expected()
    assert len(model.expected()["c"]) == 3


def test_a_task_needs_a_client_and_a_number_that_fits(path):
    with Journal(path) as journal:
        journal.append([enrolled()])
        for bad in (accepted(1, "nobody"), accepted(TASK_NUMBER_MAX + 1), accepted(-1)):
            with pytest.raises(ValueError, match=r"nobody|no task number"):
                journal.append([accepted(5), bad])
        journal.append([accepted(TASK_NUMBER_MAX)])

        assert len(list(journal.replay())) == 2


def test_a_dropped_clients_number_is_not_mixed_up_with_the_next_ones(path):
    turns = [[enrolled("a"), accepted(7, "a")], [dropped("a"), enrolled("b")], [accepted(3, "b")]]
    turns += [[enrolled("a"), accepted(1, "a"), accepted(8, "b")], [dropped("b")]]
    model = filled(path, turns)

    assert replayed(path) == model.expected()


def test_functions_and_setups_leave_with_their_last_task(path):
    with Journal(path) as journal:
        journal.append(
            [enrolled(), *(accepted(n, function=b"one") for n in range(1, 4)), accepted(4, function=b"two")]
        )
        assert journal.stats().functions == 3
        journal.append([settled(1), settled(2), forgotten(4)])
        assert journal.stats().functions == 2
        journal.append([settled(3)])
        assert journal.stats().functions == 0
        journal.append([accepted(5, function=b"one")])
        assert per_client(journal.replay())["c"][-1][1] == (b"one", b"setup", b"b")
    with Journal(path) as journal:
        journal.append([forgotten(5)])
        assert journal.stats().functions == 0


def test_each_opening_gives_a_larger_epoch(path):
    epochs = []
    for _ in range(3):
        with Journal(path) as journal:
            epochs.append(journal.epoch())

    assert epochs == [epochs[0], epochs[0] + 1, epochs[0] + 2]
    assert 0 < epochs[0] < epochs[2] < 2**31


def test_the_epoch_survives_a_process_that_is_killed(path):
    code = "import os, sys; from zfarm.edge.journal import Journal"
    code += "; print(Journal(sys.argv[1]).epoch(), flush=True); os._exit(9)"
    first = int(
        subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=False).stdout
    )

    with Journal(path) as journal:
        assert journal.epoch() == first + 1


def test_stats_tell_what_is_in_it(path):
    filled(path)
    with Journal(path) as journal:
        stats = journal.stats()

    assert (stats.clients, stats.queued, stats.ended, stats.functions) == (2, 2, 2, 2)
    assert stats.database_bytes == path.stat().st_size
    assert 0 <= stats.oldest_s < 1000


def test_a_closed_journal_says_so_and_leaves_one_file_of_its_log(path):
    with Journal(path) as journal:
        journal.append([enrolled()])
    journal.close()

    with pytest.raises(ValueError, match="closed"):
        journal.append([enrolled()])
    assert not Path(f"{path}-wal").exists()


# ---------------------------------------------------------------- the file


def test_churn_does_not_grow_the_file(path):
    with Journal(path, SMALL) as journal:
        journal.append([enrolled(), accepted(0, body=b"kept")])
        sizes = []
        for burst in range(4):
            numbers = range(burst * 1000 + 1, burst * 1000 + 1001)
            journal.append([accepted(n, body=bytes(500)) for n in numbers])
            journal.append([settled(n) for n in numbers])
            journal.append([forgotten(*numbers)])
            sizes.append(path.stat().st_size)
        assert max(sizes) <= 1.2 * sizes[0]
        journal.compact()
        assert path.stat().st_size < 50_000
        assert Path(f"{path}-wal").stat().st_size == 0
    assert len(replayed(path)["c"]) == 2


def test_pages_without_content_go_back_to_the_disk(path):
    with Journal(path, SMALL) as journal:
        journal.append([enrolled(), *(accepted(n, body=bytes(900)) for n in range(12_000))])
        journal.append([forgotten(*range(12_000))])
        full = path.stat().st_size
        for turn in range(200):
            journal.append([accepted(turn, body=bytes(900)), forgotten(turn)])
        assert path.stat().st_size < full / 2


def test_files_are_private_whatever_the_umask(path):
    before = os.umask(0)
    try:
        with Journal(path, SMALL) as journal:
            journal.append([enrolled(), accepted(1, body=bytes(5000))])
            modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.rglob("*")}
    finally:
        os.umask(before)

    blobs = modes.pop("journal.blobs")
    assert blobs == 0o700
    assert set(modes.values()) == {0o600}
    assert len(modes) == 5, modes  # journal, -wal, .lock, .mark, and one blob


@pytest.mark.parametrize(("mode", "where"), [(0o777, "directory"), (0o644, "journal")])
def test_what_is_open_to_others_is_refused(path, mode, where):
    filled(path)
    os.chmod(path.parent if where == "directory" else path, mode)

    with pytest.raises(ConfigurationError, match="chmod"):
        Journal(path)
    os.chmod(path.parent, 0o700)


def test_a_missing_directory_is_made_and_a_missing_journal_only_on_demand(tmp_path):
    path = tmp_path / "new" / "journal"
    with pytest.raises(ConfigurationError, match="there is no journal"):
        Journal(path, create=False)
    assert not path.parent.exists()
    with Journal(path):
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_other_things_are_not_taken_for_a_journal(tmp_path):
    text = tmp_path / "text"
    text.write_bytes(b"no database at all" * 100)
    text.chmod(0o600)
    other = tmp_path / "other"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE mine (x)")
    db.close()
    other.chmod(0o600)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)

    for path in (text, other, fifo, tmp_path):
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(ConfigurationError, match="name another"):
            Journal(path)
        assert not before or path.read_bytes() == before


# ---------------------------------------------------------------- who may open it

OPENER = """
import sys
from zfarm.edge.journal import Journal
from zfarm.errors import ConfigurationError
try:
    Journal(sys.argv[1])
except ConfigurationError as error:
    print(error)
"""


def opened_elsewhere(path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", OPENER, str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def test_a_second_opener_is_refused_and_told_who_has_it(path, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(path)
    directory_link = tmp_path / "dirlink"
    directory_link.symlink_to(tmp_path)
    with Journal(link) as journal:
        journal.append([enrolled()])
        for way in (path, link, directory_link / "journal"):
            assert f"in use by process {os.getpid()}:" in opened_elsewhere(way)
            with pytest.raises(ConfigurationError, match=f"in use by process {os.getpid()}:"):
                Journal(way)
        journal.append([accepted(1)])  # it is unaffected

    assert opened_elsewhere(path) == ""
    assert len(replayed(path)["c"]) == 2


def test_a_journal_with_two_names_is_refused(path, tmp_path):
    hard = tmp_path / "hard"
    with Journal(path) as journal:
        os.link(path, hard)
        assert "hard links" in opened_elsewhere(hard)
        journal.append([enrolled()])
    with pytest.raises(ConfigurationError, match="hard links"):
        Journal(hard)


def test_a_lock_left_by_a_process_that_is_gone_is_free(path):
    filled(path, LIFE[:1])
    Path(f"{path}.lock").write_text("1\n")

    assert set(replayed(path)) == {"c", "d"}


def test_another_program_on_the_database_is_seen(path):
    filled(path)
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConfigurationError, match="in use by another program"):
            Journal(path)
    finally:
        db.close()


# ---------------------------------------------------------------- versions


def rewrite_about(path: Path, **changes) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    (row,) = db.execute("SELECT row FROM about WHERE id = 0").fetchone()
    about = sealed.decode(vault.READ_ABOUT, row, 0)
    for name, value in changes.items():
        setattr(about, name, value)
    db.execute("UPDATE about SET row = ? WHERE id = 0", (sealed.sealed(about, 0),))
    db.close()


def test_a_journal_of_a_newer_zfarm_is_refused_untouched(path):
    filled(path)
    rewrite_about(path, version=sealed.SCHEMA_VERSION + 1)
    before = path.read_bytes()

    with pytest.raises(ConfigurationError, match="newer zfarm") as caught:
        Journal(path)
    assert f"schema is {sealed.SCHEMA_VERSION + 1}" in str(caught.value)
    assert path.read_bytes() == before


def test_an_older_journal_is_brought_up_to_date_or_left_as_it_is(path, monkeypatch):
    model = filled(path)
    new = dict(sealed.SCHEMA, extra="CREATE TABLE extra (id INTEGER PRIMARY KEY)")
    for module in (sealed, vault):
        monkeypatch.setattr(module, "SCHEMA_VERSION", sealed.SCHEMA_VERSION + (module is sealed))
        monkeypatch.setattr(module, "SCHEMA", new)
    monkeypatch.setattr(vault, "SCHEMA_VERSION", sealed.SCHEMA_VERSION)
    steps: dict[int, tuple[str, ...]] = {sealed.SCHEMA_VERSION - 1: (new["extra"], "CREATE nonsense")}
    monkeypatch.setattr(vault, "MIGRATIONS", steps)
    with pytest.raises(JournalCorrupt):
        Journal(path)
    steps[sealed.SCHEMA_VERSION - 1] = (new["extra"],)

    assert replayed(path) == model.expected()
    assert replayed(path) == model.expected()


def test_records_with_fields_of_tomorrow_and_yesterday_are_read(path):
    """Fields are only appended: a journal written before one was added gives its default."""
    with Journal(path) as journal:
        journal.append([(Enrolled("c"), ()), (Accepted("c", 1, "n"), (b"f", b"", b"b"))])

    with Journal(path) as journal:
        (_, (record, payload)) = journal.replay()
    assert record == Accepted("c", 1, "n", 0, 3)
    assert payload == (b"f", b"", b"b")


# ---------------------------------------------------------------- large blobs


def blobs(path: Path) -> list[str]:
    return sorted(os.listdir(f"{path}.blobs"))


def test_large_blobs_live_in_files_as_long_as_they_are_needed(path):
    big = os.urandom(5000)
    with Journal(path, SMALL) as journal:
        journal.append([enrolled(), accepted(1, function=big, body=big[1:]), accepted(2, function=big)])
        assert len(blobs(path)) == 2
        assert path.stat().st_size + Path(f"{path}-wal").stat().st_size > 0
    assert replayed(path)["c"][1][1] == (big, b"setup", big[1:])
    with Journal(path, SMALL) as journal:
        journal.append([settled(1, blob=memoryview(big[2:]))])  # type: ignore[arg-type]
        assert len(blobs(path)) == 2  # the function is needed still, the call is not
        assert journal.stats().blob_bytes == 5000 + 4998
    assert replayed(path)["c"][2][1] == (big[2:],)
    with Journal(path, SMALL) as journal:
        journal.append([settled(2), forgotten(2), forgotten(1)])
        assert blobs(path) == []


def test_a_dropped_client_takes_its_blobs_along(path):
    with Journal(path, SMALL) as journal:
        journal.append([enrolled(), accepted(1, body=bytes(5000)), accepted(2), settled(2, blob=bytes(6000))])
        journal.append([dropped()])
        assert blobs(path) == []
        assert journal.stats().functions == 0


def test_a_turn_that_is_refused_leaves_no_blob(path):
    with Journal(path, SMALL) as journal:
        journal.append([enrolled()])
        with pytest.raises(ValueError, match="nobody"):
            journal.append([accepted(1, body=bytes(5000)), accepted(1, "nobody")])
        assert blobs(path) == []


def test_orphans_are_swept_and_strangers_are_not(path):
    with Journal(path, SMALL) as journal:
        journal.append([enrolled(), accepted(1, body=bytes(5000))])
    (kept,) = blobs(path)
    for name in ("0123456789abcdef", "0123456789abcde0.part", "README"):
        Path(f"{path}.blobs", name).write_bytes(b"x")

    assert len(replayed(path)["c"]) == 2
    assert blobs(path) == sorted([kept, "README"])


@pytest.mark.parametrize("damage", ["missing", "shorter", "flipped"])
def test_a_damaged_blob_is_found(path, damage):
    with Journal(path, SMALL) as journal:
        journal.append([enrolled(), accepted(1, body=bytes(5000))])
    (name,) = blobs(path)
    file = Path(f"{path}.blobs", name)
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(bytes(4999) if damage == "shorter" else bytes(4999) + b"\1")

    with Journal(path, SMALL) as journal, pytest.raises(JournalCorrupt, match=name) as caught:
        list(journal.replay())
    assert caught.value.path == str(path)
    assert name in caught.value.where
    assert caught.value.file == str(file)
    assert caught.value.kept


def test_a_journal_from_before_tasks_that_begin_once_is_brought_up_to_date(path):
    model = filled(path)
    rewrite_about(path, version=1)

    turn = [accepted(8), begun(8)]
    model.apply(turn)
    with Journal(path) as journal:
        journal.append(turn)
    assert replayed(path) == model.expected()


def test_only_the_latest_attempts_keep_the_last_words_of_their_children(path):
    fates = [Fate("h", "h/1", 11, 0, "killed", f"words {n}", n) for n in range(6)]
    filled(path, [[enrolled(), accepted(1)], *([(Struck("c", 1, fate, 0), ())] for fate in fates)])

    with Journal(path, SMALL) as journal:
        told = [record.fate for record, _ in journal.replay() if isinstance(record, Struck)]
    assert [fate.peak_bytes for fate in told] == list(range(6))
    assert [fate.stderr for fate in told] == ["", "", "", "words 3", "words 4", "words 5"]
