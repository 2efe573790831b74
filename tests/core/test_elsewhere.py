"""Where a call that has killed its child runs next: on another worker, if one can have it soon."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.core.rigs import HELLO, LIMITS, BrokerRig, submit
from tests.core.test_placing import ZONE, demanding, join, report
from tests.core.test_why import said
from zfarm.messages import LOST, VALUE, Demand

WAIT_S = 2.0
STEP_S = 0.25
STRICT = replace(LIMITS, elsewhere_wait_s=WAIT_S, worker_deaths_max=100, worker_lost_after_s=1000.0)


class Rig(BrokerRig):
    """A client ``C`` with two workers ``W`` and ``V`` of one slot each."""

    def __init__(self, slots: int = 1, others: bool = True) -> None:
        super().__init__(STRICT)
        self.say("C", HELLO)
        self.say("W", join("w", slots, labels=("zone=a",)))
        if others:
            self.say("V", join("v", slots, labels=("zone=a",)))

    def runs(self, peer: str) -> list[int]:
        """The tasks that this worker has."""
        return [task.number for task in self.machine.workers[peer.lower()].leases.values()]

    def ends(self, peer: str, task: int, kind: int = VALUE, run_us: int = 50_000) -> None:
        leases = self.machine.workers[peer.lower()].leases
        lease = next(lease for lease, one in leases.items() if one.number == task)
        self.say(peer, *report(lease, kind, run_us))

    def pass_time(self, seconds: float) -> None:
        """So long nothing is said."""
        for _ in range(round(seconds / STEP_S)):
            self.turn(after=STEP_S)


@pytest.mark.parametrize("demand", [None, ZONE], ids=["anywhere", "demanding"])
def test_it_goes_to_another_worker_though_that_has_more_to_do(demand: Demand | None) -> None:
    rig = Rig(slots=3)
    rig.say("C", *demanding((1, demand), (2, demand), (3, demand)))
    at, other = ("W", "V") if 1 in rig.runs("W") else ("V", "W")
    for task in rig.runs(at):
        if task != 1:
            rig.ends(at, task)
    assert rig.runs(other)
    rig.ends(at, 1, LOST)

    assert 1 in rig.runs(other)


@pytest.mark.parametrize("demand", [None, ZONE], ids=["anywhere", "demanding"])
def test_it_waits_for_a_slot_there_and_no_longer_than_a_moment(demand: Demand | None) -> None:
    rig = Rig()
    rig.say("C", *demanding((1, demand), (2, demand)))
    assert (rig.runs("W"), rig.runs("V")) == ([1], [2])
    rig.ends("W", 1, LOST)
    code, text = said(rig, 1)
    assert code == "elsewhere"
    assert "for a slot of another worker" in text

    rig.pass_time(WAIT_S - STEP_S)
    assert (rig.runs("W"), rig.runs("V")) == ([], [2])
    rig.pass_time(2 * STEP_S)
    assert (rig.runs("W"), rig.runs("V")) == ([1], [2])


@pytest.mark.parametrize("demand", [None, ZONE], ids=["anywhere", "demanding"])
def test_it_gets_the_slot_that_is_free_there_in_time(demand: Demand | None) -> None:
    rig = Rig()
    rig.say("C", *demanding((1, demand), (2, demand)))
    rig.ends("W", 1, LOST)
    rig.pass_time(1.0)
    rig.ends("V", 2)
    rig.pass_time(STEP_S)

    assert (rig.runs("W"), rig.runs("V")) == ([], [1])


def test_others_pass_it_meanwhile() -> None:
    rig = Rig()
    rig.say("C", *submit(*range(1, 8)))
    rig.ends("W", 1, LOST)
    while rig.runs("W"):
        assert 1 not in rig.runs("W")
        rig.ends("W", rig.runs("W")[0])
    rig.ends("V", 2)
    rig.pass_time(STEP_S)

    assert rig.runs("V") == [1]


def test_a_slot_that_is_free_there_is_rather_for_it_than_for_what_came_later() -> None:
    rig = Rig()
    rig.say("C", *submit(*range(1, 8)))
    rig.ends("W", 1, LOST)
    rig.ends("W", rig.runs("W")[0])  # the first of those that go before it
    rig.ends("V", 2)

    assert rig.runs("V") == [1]


def test_alone_it_runs_again_at_once() -> None:
    rig = Rig(others=False)
    rig.say("C", *submit(1))
    rig.ends("W", 1, LOST)

    assert rig.runs("W") == [1]


def test_it_does_not_wait_for_workers_that_take_nothing() -> None:
    rig = Rig()
    rig.say("C", *submit(1))
    at, other = ("W", "V") if rig.runs("W") else ("V", "W")
    rig.machine.workers[other.lower()].aside_until = rig.now + 1000
    rig.ends(at, 1, LOST)

    assert rig.runs(at) == [1]


def test_it_does_not_wait_for_workers_that_do_not_suit() -> None:
    rig = Rig(others=False)
    rig.say("V", join("v", 1))
    rig.say("C", *demanding((1, ZONE)))
    rig.ends("W", 1, LOST)

    assert rig.runs("W") == [1]


def test_nor_is_it_granted_ahead_where_it_has_died() -> None:
    rig = Rig()
    rig.say("C", *submit(1, 2))
    for peer, task in (("W", 1), ("V", 2)):
        rig.ends(peer, task, run_us=100)  # now calls of this function are known to be short
    rig.say("C", *submit(*range(11, 15)))
    assert len(rig.runs("W")) > 1, "some are granted ahead"
    dead = rig.runs("W")[0]
    rig.ends("W", dead, LOST)

    assert dead in rig.runs("V")
