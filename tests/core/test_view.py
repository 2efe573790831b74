"""The view: snapshots, numbered notes, gaps, restarts, rates and history."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import zfarm.core.view
from zfarm.core.view import HISTORY_MAX, TEXTS_MAX, View, worker_state
from zfarm.messages import (
    ClientPicture,
    FarmNote,
    FarmPicture,
    Picture,
    TaskPicture,
    TextNote,
    Vitals,
    WorkerPicture,
    WorkersNote,
)


def farm(
    number: int, uptime_s: float | None = None, epoch: int = 7, values: int = 0, **more: int
) -> FarmPicture:
    numbers = dict.fromkeys(
        ["queued", "leased", "errors", "cancelled", "lost", "retried", "workers", "slots", "clients"], 0
    )
    numbers.update(more)
    uptime_s = number / 2 if uptime_s is None else uptime_s
    return FarmPicture(number=number, uptime_s=uptime_s, epoch=epoch, values=values, refusing="", **numbers)


def worker(name: str = "w1", **more: object) -> WorkerPicture:
    facts: dict = {
        "host": "alpha", "pid": 10, "slots": 4, "room": 4, "leases": 0, "done": 0, "failed": 0, "deaths": 0,
        "draining": False, "last_seen_s": 0.1, "uptime_s": 5.0, "vitals": Vitals(),
    }  # fmt: skip
    return WorkerPicture(worker=name, **{**facts, **more})


def picture(number: int, names: tuple[str, ...] = ("w1",), **more: object) -> Picture:
    workers = [worker(name) for name in names]
    clients = [ClientPicture("c", "alpha", 1, "me", 0, 0, 0, False)]
    running = [TaskPicture("c", 1, "f", "w1", 1.0)]
    return Picture(farm(number, **more), workers, clients, running, {"f": 3})  # type: ignore[arg-type]


def note(number: int, **more: object) -> FarmNote:
    return FarmNote(farm(number, **more), [], {"g": number}, [])  # type: ignore[arg-type]


def test_a_fresh_view_is_stale_and_empty():
    view = View()

    assert view.stale
    assert view.farm is None
    assert view.age_s(10.0) == math.inf
    assert (view.ended_per_s, view.failed_per_s, view.room) == (0.0, 0.0, 0)


def test_a_picture_makes_it_current_and_is_shown_whole():
    view = View()

    view.take(picture(5, values=9), now=100.0)

    assert not view.stale
    assert view.farm is not None
    assert view.farm.values == 9
    assert [w.worker for w in view.workers] == ["w1"]
    assert [t.name for t in view.running] == ["f"]
    assert [c.name for c in view.clients] == ["me"]
    assert view.queue == {"f": 3}
    assert view.age_s(101.5) == 1.5


def test_notes_in_order_keep_it_current_and_replace_what_they_tell():
    view = View()
    view.take(picture(5), now=0.0)

    view.fold(WorkersNote(6, [worker("w2")]), now=0.5)
    view.fold(TextNote(7, "info", "worker w2 joined"), now=0.5)
    view.fold(note(8, values=3), now=1.0)

    assert not view.stale
    assert view.farm == farm(8, values=3)
    assert [w.worker for w in view.workers] == ["w2"]
    assert [said.text for said in view.texts] == ["worker w2 joined"]
    assert view.queue == {"g": 8}
    assert view.running == []


@pytest.mark.parametrize("late", [note(8), WorkersNote(8, []), TextNote(8, "info", "hm")])
def test_a_gap_makes_it_stale_until_the_next_picture(late: FarmNote | WorkersNote | TextNote):
    view = View()
    view.take(picture(5), now=0.0)

    view.fold(late, now=1.0)
    assert view.stale
    view.fold(note(9), now=1.5)
    assert view.stale
    view.take(picture(9, ("w3",)), now=1.6)

    assert not view.stale
    assert [w.worker for w in view.workers] == ["w3"]


def test_what_came_after_the_gap_is_shown_although_stale():
    view = View()
    view.take(picture(5), now=0.0)

    view.fold(note(8, values=77), now=1.0)

    assert view.stale
    assert view.farm is not None
    assert view.farm.values == 77


def test_a_picture_older_than_the_notes_closes_the_gap_and_changes_nothing_else():
    view = View()
    view.take(picture(5), now=0.0)
    view.fold(note(8), now=1.0)
    view.fold(note(9, values=9), now=1.5)
    assert view.stale

    view.take(picture(7, ("w7",), values=7), now=1.6)

    assert not view.stale
    assert view.farm == farm(9, values=9)
    assert [w.worker for w in view.workers] == ["w7"]  # no note had told about workers since


def test_a_picture_from_before_the_gap_closes_nothing():
    view = View()
    view.take(picture(5), now=0.0)
    view.fold(note(9), now=1.0)

    view.take(picture(6), now=1.1)

    assert view.stale
    assert view.farm == farm(9)


def test_notes_before_the_first_picture_wait_for_it():
    view = View()
    view.fold(note(3), now=0.0)
    view.fold(note(4, values=4), now=0.5)
    assert view.stale

    view.take(picture(3), now=0.6)

    assert not view.stale
    assert view.farm == farm(4, values=4)


def test_a_note_that_was_seen_already_changes_nothing():
    view = View()
    view.take(picture(5, values=5), now=0.0)
    view.fold(WorkersNote(6, [worker("w2")]), now=0.1)

    view.fold(note(5, values=4), now=0.2)
    view.fold(WorkersNote(6, []), now=0.2)

    assert not view.stale
    assert view.farm == farm(5, values=5)
    assert [w.worker for w in view.workers] == ["w2"]


def test_another_epoch_is_another_broker_and_starts_anew():
    view = View()
    view.take(picture(50, values=1000), now=0.0)
    view.fold(note(51, values=1100), now=0.5)

    view.fold(note(1, epoch=8, values=2), now=20.0)

    assert view.stale
    assert view.farm == farm(1, epoch=8, values=2)
    assert view.workers == []
    assert view.ended_per_s == 0.0
    assert [(said.level, said.text) for said in view.texts] == [("warning", "the broker was started anew")]
    view.take(picture(1, epoch=8, values=2), now=20.1)
    assert not view.stale
    assert view.ended_per_s == 0.0


def test_sentences_of_a_new_broker_are_kept_before_its_numbers_are_known():
    view = View()
    view.take(picture(50), now=0.0)

    view.fold(TextNote(1, "info", "worker w joined"), now=20.0)
    view.fold(note(2, epoch=8), now=20.5)

    assert [said.text for said in view.texts] == ["worker w joined", "the broker was started anew"]


def test_rates_follow_the_brokers_uptime_and_not_the_arrival():
    view = View()
    view.take(picture(1, uptime_s=10.0, values=0), now=0.0)
    for n in range(1, 21):  # half a second apart at the broker; all arrive at once
        view.fold(note(1 + n, uptime_s=10.0 + n / 2, values=50 * n, errors=n, lost=n), now=3.0)

    assert view.ended_per_s == pytest.approx(104.0)
    assert view.failed_per_s == pytest.approx(4.0)


def test_rates_forget_what_is_older_than_the_window():
    view = View()
    view.take(picture(1, uptime_s=0.0, values=0), now=0.0)
    view.fold(note(2, uptime_s=1.0, values=10_000), now=1.0)
    for n in range(3, 20):
        view.fold(note(n, uptime_s=n - 1.0, values=10_000), now=n - 1.0)

    assert view.ended_per_s == 0.0


def test_history_has_a_value_for_each_second_also_for_those_that_were_missed():
    view = View()
    view.take(picture(1, uptime_s=0.0, values=0), now=0.0)
    for n in range(1, 5):
        view.fold(note(1 + n, uptime_s=n / 2, values=5 * n), now=n / 2)
    assert list(view.history) == pytest.approx([10.0, 10.0])

    view.fold(note(9, uptime_s=6.0, values=20 + 400), now=6.0)

    assert list(view.history) == pytest.approx([10.0, 10.0, 100.0, 100.0, 100.0, 100.0])


def test_history_and_texts_are_bounded():
    view = View()
    view.take(picture(1, uptime_s=0.0), now=0.0)

    view.fold(note(2, uptime_s=1e6, values=10), now=1e6)
    for n in range(TEXTS_MAX + 5):
        view.fold(TextNote(2, "info", str(n)), now=1e6)

    assert len(view.history) == HISTORY_MAX
    assert len(view.texts) == TEXTS_MAX
    assert view.texts[-1].text == str(TEXTS_MAX + 4)


def test_room_counts_workers_that_take_work():
    view = View()
    view.take(Picture(farm(1), [worker(room=4), worker(room=6), worker(draining=True)], [], [], {}), now=0.0)

    assert view.room == 10


@pytest.mark.parametrize(
    ("facts", "later_s", "word"),
    [
        ({}, 0.0, "idle"),
        ({"leases": 3}, 0.0, "busy"),
        ({"leases": 4}, 0.0, "full"),
        ({"leases": 4, "room": 5}, 0.0, "busy"),
        ({"draining": True, "leases": 1}, 0.0, "draining"),
        ({"last_seen_s": 3.0, "draining": True}, 0.0, "silent"),
        ({"last_seen_s": 0.2}, 3.0, "silent"),
    ],
)
def test_a_workers_state_is_one_word(facts: dict, later_s: float, word: str):
    assert worker_state(worker(**facts), later_s) == word


@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "farm", "workers", "text"]), st.integers(0, 8), st.integers(1, 2))
    )
)
def test_any_order_ends_current_with_a_fresh_picture(arrivals: list[tuple[str, int, int]]):
    view = View()
    for kind, number, epoch in arrivals:
        if kind == "take":
            view.take(picture(number, epoch=epoch), now=0.0)
        elif kind == "farm":
            view.fold(note(number, epoch=epoch), now=0.0)
        else:
            view.fold(WorkersNote(number, []) if kind == "workers" else TextNote(number, "info", ""), now=0.0)
        assert view.ended_per_s >= 0.0

    view.take(picture(9, ("w9",), epoch=3), now=1.0)

    assert not view.stale
    assert view.farm == farm(9, epoch=3)
    assert [w.worker for w in view.workers] == ["w9"]


def test_it_imports_nothing_that_knows_the_time():
    tree = ast.parse(Path(zfarm.core.view.__file__).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}

    assert modules <= {"__future__", "collections", "dataclasses", "typing", "zfarm.messages"}
