"""A soak that is ended goes on where it was, and only with the code that it was begun with."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from tests.simulation.logbook import ROOT, Logbook, Tally, sources, state_of
from tests.simulation.run import simulate
from tests.simulation.soak import soak


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    path = tmp_path / "book.jsonl"
    book = Logbook(path)
    book.enter(100, Tally(5, 50, 2.0, 1.0, 0.5, Counter({"a birth": 3}), {103: "it broke"}))
    book.enter(110, Tally(5, 70, 3.0, 2.0, 0.5, Counter({"a birth": 1})))
    again = Logbook(path)
    assert again.total == book.total
    assert again.total == Tally(10, 120, 5.0, 2.0, 1.0, Counter({"a birth": 4}), {103: "it broke"})
    assert [*again.left(100, 18, 5)] == [range(105, 110), range(115, 118)]
    again.enter(115, Tally(3))
    assert [*again.left(100, 20, 5)] == [range(105, 110), range(118, 120)]


def test_a_line_that_was_cut_short_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "book.jsonl"
    book = Logbook(path)
    book.enter(0, Tally(5))
    book.enter(5, Tally(5))
    path.write_bytes(path.read_bytes()[:-4])
    again = Logbook(path)
    assert [*again.left(0, 10, 5)] == [range(5, 10)]
    again.enter(5, Tally(5))
    assert Logbook(path).total.seeds == 10


def test_a_soak_goes_on_with_what_is_left(tmp_path: Path) -> None:
    book = Logbook(tmp_path / "book.jsonl")
    book.enter(0, Tally(4, 1))
    soak(book, 0, 6, 2, Console(quiet=True))
    events = sum(simulate(seed).events for seed in (4, 5))
    assert (book.total.seeds, book.total.events) == (6, 1 + events)
    assert Logbook(book.path).total == book.total


@pytest.mark.parametrize("name", ["zfarm/core/broker.py", "zfarm/settings.py", "tests/simulation/faults.py"])
def test_other_code_is_another_soak(tmp_path: Path, name: str) -> None:
    for path in sources():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    before = state_of(tmp_path)
    assert before == state_of()
    with (tmp_path / name).open("a") as file:
        file.write("# another one\n")
    assert state_of(tmp_path) != before
