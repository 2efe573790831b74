"""``zfarm journal``: what it says about a journal, and its exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from pathlib import Path

import pytest

from tests.edge.journal_model import accepted, enrolled, forgotten, settled
from zfarm.edge.journal import Journal
from zfarm.face import cli


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.append([enrolled(), *(accepted(n, body=bytes(3000)) for n in range(500))])
        journal.append([settled(0), settled(1), forgotten(*range(3, 400))])
    return path


def test_check_says_that_all_is_well(path, capsys):
    assert cli.main(["journal", "check", str(path)]) == 0
    assert capsys.readouterr().out == f"{path} is whole: 106 records of 1 client, 101 open tasks, 2 ended\n"


@pytest.mark.parametrize("what", ["text", "empty", "database", "open to others"])
def test_what_is_no_journal_is_said_to_be_none_and_nothing_is_left_beside_it(what, tmp_path, capsys):
    path = tmp_path / "file"
    path.write_text("" if what == "empty" else '{"some": "file"}')
    if what == "database":
        path.unlink()
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE others (id)")
            database.commit()
    path.chmod(0o644 if what == "open to others" else 0o600)
    before = path.read_bytes()

    assert cli.main(["journal", "check", str(path)]) != 0

    said = " ".join(capsys.readouterr().err.split())
    assert ("is a database of something else" if what == "database" else "is no journal") in said
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == before


def test_stats_are_for_people_and_for_programs(path, capsys):
    assert cli.main(["journal", "stats", str(path)]) == 0
    text = capsys.readouterr().out
    for part in (str(path), "101 open, 2 ended", "the oldest for", "large blobs", "free"):
        assert part in text

    assert cli.main(["journal", "stats", "--json", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["clients"], found["queued"], found["ended"], found["functions"]) == (1, 101, 2, 2)
    assert found["database_bytes"] == path.stat().st_size


def test_compact_makes_it_smaller_and_keeps_what_lives(path, capsys):
    before = path.stat().st_size

    assert cli.main(["journal", "compact", str(path)]) == 0
    assert "before" in capsys.readouterr().out
    assert path.stat().st_size < before / 2
    assert cli.main(["journal", "check", str(path)]) == 0
    assert "106 records" in capsys.readouterr().out


def test_a_damaged_journal_is_65_and_says_where_and_what_to_do(path, capsys):
    data = bytearray(path.read_bytes())
    data[data.index(b"module.name")] ^= 1
    path.write_bytes(data)

    assert cli.main(["journal", "check", str(path)]) == 65
    text = " ".join(capsys.readouterr().err.split())
    for part in (str(path), "table tasks, row", "does not fit its checksum", "copy them away", ".recover"):
        assert part in text


def test_a_journal_in_use_or_missing_is_78_and_stays_so(path, tmp_path, capsys):
    with Journal(path):
        assert cli.main(["journal", "check", str(path)]) == 78
        assert f"in use by process {os.getpid()}" in capsys.readouterr().err
    for command in ("check", "stats", "compact"):
        assert cli.main(["journal", command, str(tmp_path / "none")]) == 78
        assert "there is no journal" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "none.lock").exists()


def test_a_disk_that_fails_is_74(path, monkeypatch, capsys):
    monkeypatch.setattr(Journal, "check", lambda journal: (_ for _ in ()).throw(disk_error(journal)))

    assert cli.main(["journal", "check", str(path)]) == 74
    assert "cannot be read: Input/output error" in capsys.readouterr().err


def disk_error(journal: Journal) -> Exception:
    return journal._vault.error(OSError(5, os.strerror(5)), "cannot be read")


def test_its_help_names_its_commands(capsys):
    assert cli.main(["journal", "--help"]) == 0
    text = capsys.readouterr().out
    for command in ("check", "stats", "compact"):
        assert command in text
