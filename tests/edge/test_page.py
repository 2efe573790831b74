"""The page between a worker and a child: what runs, what is void, what waits, in every order of the two."""

from __future__ import annotations

import threading

import pytest

from zfarm.edge.page import RESULTS_BYTES, ChildPage, Page
from zfarm.messages import ERROR, VALUE, Done


@pytest.fixture
def sides():
    page = Page()
    child = ChildPage(page.fd)
    yield page, child
    child.close()
    page.close()


def test_a_call_is_entered_before_it_runs(sides):
    page, child = sides
    assert page.started() == 0
    assert child.start(1)
    assert page.started() == child.entered == 1


def test_void_calls_do_not_start_and_later_ones_do(sides):
    page, child = sides
    child.start(3)
    page.void(7)
    assert page.settle() == 3
    assert [child.start(seq) for seq in range(4, 10)] == [False] * 4 + [True] * 2
    assert page.started() == 9


def test_nothing_is_void_when_all_have_started(sides):
    page, child = sides
    child.start(3)
    page.void(3)
    assert page.settle() == 3
    assert child.start(4)


def test_taking_back_twice(sides):
    page, child = sides
    child.start(1)
    page.void(3)
    page.settle()
    page.void(6)
    assert page.settle() == 1
    assert [child.start(seq) for seq in range(2, 8)] == [False] * 5 + [True]
    page.void(9)
    assert page.settle() == 7
    assert [child.start(seq) for seq in range(8, 11)] == [False, False, True]


class Between:
    """The words of the page, with something that happens after a number is entered."""

    def __init__(self, words, act):
        self._words = words
        self._act = act

    def __getitem__(self, at):
        return self._words[at]

    def __setitem__(self, at, value):
        self._words[at] = value
        act, self._act = self._act, lambda: None
        act()


def test_a_call_that_was_seen_as_started_runs_though_its_range_came_just_then(sides):
    """The worker reads the number before it is entered, and again, when it settles, afterwards."""
    page, child = sides
    child.start(1)
    real = child._words
    page.void(5)
    high, low = real[9], real[8]
    real[9] = real[8] = 0  # not visible yet

    def appear():
        real[9], real[8] = high, low

    child._words = Between(real, appear)
    settled: list[int] = []
    later = threading.Timer(0.05, lambda: settled.append(page.settle()))
    later.start()
    ran = child.start(2)
    later.join()
    child._words = real

    assert settled == [2]
    assert ran, "the worker was told that it has started"
    assert not child.start(3)


def test_a_call_that_was_not_seen_as_started_does_not_run(sides):
    """The worker settles before the entry; the child wakes up late."""
    page, child = sides
    child.start(1)
    real = child._words
    page.void(5)
    assert page.settle() == 1
    high, low = real[9], real[8]
    real[9] = real[8] = 0

    def appear():
        real[9], real[8] = high, low

    child._words = Between(real, appear)
    ran = child.start(2)
    child._words = real

    assert not ran
    assert page.started() == 1, "the entry was taken back"


def test_a_worker_and_a_child_always_agree(sides):
    """They race: what the child ran is what the worker believes, whatever the order."""
    page, child = sides
    ran: list[int] = []
    sent = 0
    over = False

    def run():
        seq = 0
        while not over or seq < sent:
            if seq < sent:
                seq += 1
                if child.start(seq):
                    ran.append(seq)

    thread = threading.Thread(target=run)
    thread.start()
    void: set[int] = set()
    for turn in range(60):
        sent += 1 + turn * 7 % 3000
        page.void(sent)
        thread.join(0.0015)
        void.update(range(page.settle() + 1, sent + 1))
    over = True
    thread.join()

    assert len(void) > 0
    assert set(ran).isdisjoint(void)
    assert set(ran) | void == set(range(1, sent + 1))


def test_results_are_found_until_they_are_cleared(sides):
    page, child = sides
    assert page.unsent(page.mark()) == []
    assert child.keep(1, VALUE, 10, b"one")
    assert child.keep(2, ERROR, 5_000_000_000, b"")
    assert page.unsent(page.mark()) == [(Done(1, VALUE, 10), b"one"), (Done(2, ERROR, 5_000_000_000), b"")]
    child.clear()
    assert page.unsent(page.mark()) == []


def test_a_mark_does_not_outlive_its_generation(sides):
    page, child = sides
    child.keep(1, VALUE, 1, b"one")
    mark = page.mark()
    child.keep(2, VALUE, 1, b"two")
    assert [done.seq for done, _ in page.unsent(mark)] == [1]
    child.clear()
    child.keep(3, VALUE, 1, b"three")
    assert page.unsent(mark) == []


def test_what_has_no_room_is_refused(sides):
    page, child = sides
    assert not child.keep(1, VALUE, 1, bytes(RESULTS_BYTES))
    count = 0
    while child.keep(count + 1, VALUE, 1, bytes(1000)):
        count += 1
    assert 50 < count < 70
    assert len(page.unsent(page.mark())) == count


def test_a_page_full_of_nonsense_gives_no_error(sides):
    page, child = sides
    child._map[:] = b"\xff" * len(child._map)
    assert page.unsent(page.mark()) == []
    child._words[2] = 100
    page.unsent(page.mark())
