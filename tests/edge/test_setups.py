"""Setups follow the directory and the path of the caller, and are the same bytes otherwise."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from zfarm.edge import setups, wire
from zfarm.edge.setups import Setups


def test_the_same_bytes_while_nothing_changes() -> None:
    made = Setups.fresh("session", b"initializer", 3)
    setup = wire.decode_setup(made.current())

    assert made.current() is made.current()
    assert (setup.cwd, setup.path, setup.prefix) == (os.getcwd(), tuple(sys.path), sys.prefix)
    assert (setup.initializer, setup.max_tasks_per_child) == (b"initializer", 3)


def test_a_realm_is_a_session_with_its_initializer() -> None:
    realms = {
        wire.decode_setup(Setups.fresh(session, initializer).current()).realm
        for session in ("one", "other")
        for initializer in (b"", b"x", b"y")
    }
    assert len(realms) == 6


@pytest.mark.parametrize("getcwd", [setups._getcwd, setups._getcwd_holding_the_lock()])
def test_the_directory_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, getcwd: object) -> None:
    monkeypatch.setattr(setups, "_here", getcwd)
    made = Setups.fresh("session")
    before = made.current()
    monkeypatch.chdir(tmp_path)
    assert wire.decode_setup(made.current()).cwd == str(tmp_path)
    monkeypatch.undo()

    assert made.current() == before


def test_the_path_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Setups.fresh("session")
    made.current()
    monkeypatch.setattr(sys, "path", ["/added", *sys.path])

    assert wire.decode_setup(made.current()).path[0] == "/added"


def test_changes_of_the_environment_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANGED", "before")
    monkeypatch.setenv("REMOVED", "before")
    made = Setups.fresh("session")
    before = made.current()
    assert wire.decode_setup(before).environment == {}
    monkeypatch.setenv("CHANGED", "after")
    monkeypatch.setenv("ADDED", "new")
    monkeypatch.delenv("REMOVED")
    changed = wire.decode_setup(made.current())
    assert changed.environment == {"CHANGED": "after", "ADDED": "new", "REMOVED": None}
    monkeypatch.setenv("CHANGED", "before")
    monkeypatch.setenv("REMOVED", "before")
    monkeypatch.delenv("ADDED")

    assert wire.decode_setup(made.current()).environment == {
        "CHANGED": "before",
        "ADDED": None,
        "REMOVED": "before",
    }
    assert wire.decode_setup(Setups(changed).current()).environment == changed.environment


def test_what_is_no_text_stays_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / os.fsdecode(b"odd\xff")
    odd.mkdir()
    monkeypatch.chdir(odd)
    monkeypatch.setattr(sys, "path", [str(odd), "/fine", odd])
    setup = wire.decode_setup(Setups.fresh("session").current())

    assert setup.cwd == ""
    assert setup.path == ("/fine",)


def test_a_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    assert wire.decode_setup(Setups.fresh("session").current()).realm
