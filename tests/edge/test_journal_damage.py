"""A journal that was cut, flipped or left by a killed process: all that was committed, or a refusal; never
anything else."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.edge.journal_model import Model, Pairs, accepted, enrolled, forgotten, per_client, settled, struck
from zfarm.edge.journal import Journal
from zfarm.errors import JournalCorrupt

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for thousands of openings: in memory, where that can be."""
    memory = Path("/dev/shm")
    directory = tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None)
    yield Path(directory)
    shutil.rmtree(directory)


def turn_of(number: int) -> Pairs:
    """What the writer appends as its turn ``number``: tasks come, die, end and go."""
    if not number:
        return [enrolled("c", host="h"), enrolled("d", job="j")]
    client = "cd"[number % 2]
    first = number * 10
    pairs = [accepted(first + n, client, f"function {n % 3}".encode(), bytes([n]) * 70) for n in range(8)]
    pairs += [struck(first - 20, client), settled(first - 20, client, b"ended"), settled(first - 19, client)]
    pairs.append(forgotten(*range(first - 60, first - 45), client=client))
    return pairs


def model_of(turns: int) -> Model:
    model = Model()
    for number in range(turns):
        model.apply(turn_of(number))
    return model


@dataclass
class Files:
    """The bytes of a journal's files, to be put back damaged."""

    contents: dict[str, bytes]
    turns: int

    def restore(self, directory: Path, **changed: bytes) -> Path:
        for name, data in {**self.contents, **{f"journal{k}": v for k, v in changed.items()}}.items():
            file = directory / name
            file.write_bytes(data)
            file.chmod(0o600)
        for file in directory.glob("journal-wal*"):
            if file.name not in self.contents:
                file.unlink()
        return directory / "journal"


def files_of(directory: Path, turns: int) -> Files:
    contents = {file.name: file.read_bytes() for file in directory.iterdir() if file.is_file()}
    contents.pop("journal.lock")
    return Files(contents, turns)


def killed(place: Path, turns: int = 40, checkpointed: int = 25) -> Files:
    """The files as kill -9 leaves them: some turns in the tables, some in the log."""
    directory = place / "made"
    directory.mkdir(mode=0o700)
    with Journal(directory / "journal") as journal:
        for number in range(turns):
            journal.append(turn_of(number))
            if number == checkpointed:
                journal.compact()
        return files_of(directory, turns)


def closed(place: Path, turns: int = 40) -> Files:
    directory = place / "made"
    directory.mkdir(mode=0o700)
    with Journal(directory / "journal") as journal:
        for number in range(turns):
            journal.append(turn_of(number))
    return files_of(directory, turns)


def contents_or_refusal(path: Path) -> dict[str, list] | None:
    """What a replay gives; None: refused as it should be."""
    try:
        with Journal(path) as journal:
            return per_client(journal.replay())
    except JournalCorrupt as error:
        assert error.path == str(path)
        assert error.where
        assert error.kept
        assert error.offset == 0 or error.offset <= os.path.getsize(error.file)
        assert "damaged" in str(error)
        return None


# ---------------------------------------------------------------- cut


@pytest.mark.parametrize(
    "step",
    [pytest.param(1, marks=pytest.mark.slow), 37],
)
def test_a_log_cut_anywhere_in_its_last_4_kib_is_refused(place, step):
    files = killed(place, turns=29)
    log = files.contents["journal-wal"]
    assert len(log) > 4096
    assert contents_or_refusal(files.restore(place / "made")) == model_of(files.turns).expected()

    for cut in range(1, 4097, step):
        path = files.restore(place / "made", **{"-wal": log[:-cut]})
        assert contents_or_refusal(path) is None, f"{cut} bytes cut off"


def test_a_log_cut_by_a_power_cut_opens_with_whole_turns(place):
    """Then the mark is old, too: it was never synced. The turns after it were said to nobody."""
    files = killed(place)
    log = files.contents["journal-wal"]
    (place / "made" / "journal.mark").unlink()
    del files.contents["journal.mark"]
    possible = [model_of(turns).expected() for turns in range(files.turns + 1)]

    found = set()
    for cut in range(0, len(log), len(log) // 60):
        (place / "made" / "journal.mark").unlink(missing_ok=True)
        contents = contents_or_refusal(files.restore(place / "made", **{"-wal": log[: len(log) - cut]}))
        assert contents in possible
        found.add(possible.index(contents))
    assert len(found) > 5
    assert max(found) == files.turns


@pytest.mark.parametrize("gone", ["journal", "journal-wal"])
def test_a_file_that_is_empty_or_missing_is_refused(place, gone):
    files = killed(place)

    assert contents_or_refusal(files.restore(place / "made", **{gone[7:]: b""})) is None
    files.restore(place / "made")
    (place / "made" / gone).unlink()
    assert contents_or_refusal(place / "made" / "journal") is None


@pytest.mark.parametrize("tables", [b"", None], ids=["empty", "missing"])
def test_a_log_without_its_tables_is_refused_and_kept(place, tables):
    files = killed(place, checkpointed=99)  # the log has all of it
    path = files.restore(place / "made", **{"": tables or b""})
    if tables is None:
        path.unlink()

    for _ in range(2):
        refused = refusal(path)
        assert "it is empty or missing, and its log is there" in str(refused)
        assert refused.kept.startswith("nothing was removed")
        assert "SQLite removes journal-wal" in str(refused)
        assert ".recover" not in str(refused), "it would remove it"
    assert (place / "made" / "journal-wal").read_bytes() == files.contents["journal-wal"]
    assert contents_or_refusal(files.restore(place / "made")) == model_of(files.turns).expected()


@pytest.mark.parametrize("make", [killed, closed])
def test_tables_cut_anywhere_are_whole_or_refused(place, make):
    files = make(place)
    tables = files.contents["journal"]
    expected = model_of(files.turns).expected()

    refused = 0
    for cut in {1, 100, 4095, 4096, *range(0, len(tables), max(1, len(tables) // 80))}:
        contents = contents_or_refusal(files.restore(place / "made", **{"": tables[: len(tables) - cut]}))
        assert contents in (None, expected), f"{cut} bytes cut off"
        refused += contents is None
    assert refused > 10


def test_a_refusal_keeps_the_log(place):
    files = killed(place)
    log = files.contents["journal-wal"]
    flipped = bytearray(log)
    flipped[len(log) // 2] ^= 4
    path = files.restore(place / "made", **{"-wal": bytes(flipped)})

    for _ in range(2):
        assert contents_or_refusal(path) is None
    kept = [file.read_bytes() for file in path.parent.glob("journal-wal*")]
    assert bytes(flipped) in kept


# ---------------------------------------------------------------- flipped


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("make", "which"),
    [(killed, "journal"), (killed, "journal-wal"), (closed, "journal"), (killed, "journal.mark")],
)
def test_a_flipped_bit_anywhere_is_harmless_or_refused(place, make, which, seed):
    files = make(place)
    chance = random.Random(seed)
    whole = files.contents[which]
    expected = model_of(files.turns).expected()
    later = model_of(files.turns + 1).expected()

    refused = 0
    for _ in range(200 if seed == 1 else 1000):
        position = chance.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[position] ^= 1 << chance.randrange(8)
        path = files.restore(place / "made", **{which[7:]: bytes(damaged)})
        contents = contents_or_refusal(path)
        assert contents in (None, expected), f"position {position}"
        refused += contents is None
        if contents is not None:  # nor does it do harm later
            with Journal(path) as journal:
                journal.append(turn_of(files.turns))
            assert contents_or_refusal(path) in (None, later), f"position {position}"
    assert refused or which == "journal.mark"


def refusal(path: Path) -> JournalCorrupt:
    with pytest.raises(JournalCorrupt) as caught, Journal(path) as journal:
        list(journal.replay())
    return caught.value


def test_a_damaged_log_is_told_by_the_byte_where_its_whole_frames_end(place):
    files = killed(place)
    log = files.contents["journal-wal"]
    chance = random.Random(3)
    frame_bytes = 24 + int.from_bytes(log[8:12], "big")
    frames = (len(log) - 32) // frame_bytes

    for number in range(0, frames, max(1, frames // 20)):
        begins = 32 + number * frame_bytes
        damaged = bytearray(log)
        damaged[begins + chance.randrange(frame_bytes)] ^= 1 << chance.randrange(8)
        error = refusal(files.restore(place / "made", **{"-wal": bytes(damaged)}))
        assert error.offset == begins
        assert Path(error.file).read_bytes() == damaged, "it is kept, whatever SQLite does with it"
        assert f"byte {begins} of {Path(error.file).name}" in str(error)
    error = refusal(files.restore(place / "made", **{"-wal": b"x" + log[1:]}))
    assert "journal-wal" in error.file
    assert error.offset == 0


@pytest.mark.parametrize(("make", "which"), [(closed, "journal"), (killed, "journal-wal")])
def test_a_damaged_row_is_told_by_the_byte_where_it_begins(place, make, which):
    """Somebody has edited the database: SQLite finds nothing wrong with it."""
    files = make(place)
    path = files.restore(place / "made")
    with sqlite3.connect(path, isolation_level=None) as database:
        database.execute("PRAGMA wal_autocheckpoint = 0")
        key, row = database.execute("SELECT id, row FROM tasks ORDER BY id DESC").fetchone()
        edited = bytes([row[0], row[1] ^ 1]) + row[2:]
        database.execute("UPDATE tasks SET row = ? WHERE id = ?", (edited, key))
        if which == "journal":
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        else:
            files = files_of(path.parent, files.turns)
    database.close()
    if which != "journal":
        path = files.restore(place / "made")

    error = refusal(path)
    assert f"row {key}" in error.where
    assert Path(error.file).name.partition(".")[0] == which
    assert Path(error.file).read_bytes()[error.offset :].startswith(edited)


def test_the_mark_of_another_journal_is_refused(place):
    files = killed(place)
    with Journal(place / "other") as other:
        other.append(turn_of(0))
        mark = Path(f"{other.path}.mark").read_bytes()

    assert contents_or_refusal(files.restore(place / "made", **{".mark": mark})) is None


def test_an_older_copy_put_back_is_refused_until_that_is_meant(place):
    files = killed(place)
    path = files.restore(place / "made")
    with Journal(path) as journal:
        journal.append(turn_of(files.turns))
    mark = Path(f"{path}.mark").read_bytes()
    files.restore(place / "made", **{".mark": mark})

    assert contents_or_refusal(path) is None
    files.restore(place / "made")
    Path(f"{path}.mark").unlink()
    assert contents_or_refusal(path) == model_of(files.turns).expected()


# ---------------------------------------------------------------- killed

WRITER = """
import sys
from dataclasses import replace
from tests.edge.test_journal_damage import turn_of
from zfarm.edge.journal import Journal
from zfarm.settings import settings
first = int(sys.argv[2])
journal = Journal(sys.argv[1], replace(settings, journal_checkpoint_bytes=60_000, journal_file_from_bytes=70))
print("open", flush=True)
for number in range(first, first + 100_000):
    journal.append(turn_of(number))
    print(number, flush=True)
"""


def write_until_killed(path: Path, first: int, lines: int) -> int:
    """Let a process append turns, kill it somewhere after that many; the number of turns that returned."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(first)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    with writer.stdout as output:
        assert output.readline() == "open\n"
        for _ in range(lines):
            assert output.readline()
        writer.send_signal(signal.SIGKILL)
        rest = output.read().splitlines()
    writer.wait()
    last = [line for line in rest if line.isdigit()]
    return int(last[-1]) + 1 if last else first + lines


@pytest.mark.parametrize("rounds", [8, pytest.param(25, marks=pytest.mark.slow)])
def test_a_killed_writer_leaves_every_turn_that_returned_and_no_half_one(tmp_path, rounds):
    path = tmp_path / "journal"
    chance = random.Random(rounds)
    turns = 0
    for _ in range(rounds):
        returned = write_until_killed(path, turns, chance.randrange(40))
        with Journal(path) as journal:
            journal.check()
            contents = per_client(journal.replay())
            files = journal.stats().blob_files
            assert files == len(list(Path(f"{path}.blobs").glob("*")))
        if contents == model_of(returned).expected():
            turns = returned
        else:
            turns = returned + 1  # it was committed, and nobody was told
            assert contents == model_of(turns).expected()
    assert turns > rounds
