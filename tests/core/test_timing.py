"""Calls with a timeout and calls that are stopped, as the broker and the worker treat them."""

from __future__ import annotations

import random

import pytest

from tests.core.test_durable import SETUP, V, submit
from tests.core.test_durable import Rig as BrokerRig
from zfarm.core.worker import Worker
from zfarm.messages import (
    CANCELLED,
    CUT,
    LOST,
    TIMEOUT,
    VALUE,
    Action,
    Began,
    Call,
    Cancel,
    Done,
    Ended,
    Fate,
    Grants,
    InterruptChild,
    Lease,
    Report,
    Reports,
    Return,
    Revoke,
    RunCalls,
    Send,
    StopChild,
    Submit,
    TakeBack,
    Welcome,
)


class Rig:
    """A worker with one slot that a broker has welcomed."""

    def __init__(self) -> None:
        self.worker = Worker("worker", V, 1, "host", 2, 0.0)
        self.now = 0.0
        self.actions: list[Action] = []
        self.worker.receive("broker", Welcome(1, V), (), self.now)
        self.turn()

    def turn(self) -> None:
        self.actions = self.worker.advance(self.now)
        self.worker.check()

    def grant(self, *leases: Lease) -> None:
        grants = Grants(1, list(leases), ["owner"], 1, 1)
        payload = [b"function", SETUP, *(b"body" for _ in leases)]
        self.worker.receive("broker", grants, payload, self.now)
        self.turn()

    def runs(self) -> list[RunCalls]:
        return [action for action in self.actions if isinstance(action, RunCalls)]

    def kinds(self) -> list[int]:
        """Of what is reported in this turn."""
        sent = [action.message for action in self.actions if isinstance(action, Send)]
        return [report.kind for message in sent if isinstance(message, Reports) for report in message.reports]

    def killed(self) -> list[int]:
        return [a.child for a in self.actions if isinstance(a, StopChild) and a.kill]


def timed(lease: int, timeout_us: int, expected_us: int = 10) -> Lease:
    return Lease(lease, 0, lease, 0, 0, 0, expected_us, timeout_us)


def test_a_call_with_a_timeout_travels_alone_and_is_announced() -> None:
    rig = Rig()
    rig.grant(timed(1, 1000), timed(2, 1000), Lease(3, 0, 3, 0, 0, 0, 10))

    (run,) = rig.runs()
    assert [call.timed for call in run.run.calls] == [True]

    rig.worker.child_reported(run.child, [Done(1, VALUE, 5)], [b"v"], rig.now)
    rig.turn()
    (run,) = rig.runs()
    assert [call.timed for call in run.run.calls] == [True]

    rig.worker.child_reported(run.child, [Done(2, VALUE, 5)], [b"v"], rig.now)
    rig.turn()
    (run,) = rig.runs()
    assert [call.timed for call in run.run.calls] == [False]


def test_the_time_counts_from_the_start_in_the_child_and_then_the_child_is_killed() -> None:
    rig = Rig()
    rig.grant(timed(1, 500_000))
    (run,) = rig.runs()
    rig.now = 60.0
    rig.turn()
    assert not rig.kinds(), "the child has not even started it"

    rig.worker.child_starts(run.child, 1, rig.now)
    rig.turn()
    assert rig.worker.deadline <= 60.5
    rig.now = 60.49
    rig.turn()
    assert not rig.kinds()
    rig.now = 60.5
    rig.turn()
    assert rig.kinds() == [TIMEOUT]
    assert rig.killed() == [run.child]

    rig.worker.child_died(run.child, 1, 9, 0, "killed", rig.now)
    rig.turn()
    assert LOST not in rig.kinds(), "it has ended already"


def test_a_result_in_the_same_turn_is_better_than_a_timeout() -> None:
    rig = Rig()
    rig.grant(timed(1, 1000))
    (run,) = rig.runs()
    rig.worker.child_starts(run.child, 1, rig.now)
    rig.now = 5.0
    rig.worker.child_reported(run.child, [Done(1, VALUE, 5)], [b"v"], rig.now)
    rig.turn()

    assert rig.kinds() == [VALUE]
    assert not rig.killed()
    rig.now = 10.0
    rig.turn()
    assert not rig.killed(), "and the next call has its own time"


def test_a_queued_call_takes_the_slot_of_one_that_was_stopped() -> None:
    rig = Rig()
    rig.grant(timed(1, 1000), Lease(2, 0, 2, 0, 0))
    (run,) = rig.runs()
    rig.worker.child_starts(run.child, 1, rig.now)
    rig.now = 0.005
    rig.turn()
    assert not rig.runs()
    rig.worker.child_died(run.child, 1, 9, 0, "killed", rig.now)
    rig.turn()

    (other,) = rig.runs()
    assert other.child != run.child


# ---------------------------------------------------------------- stopping


def kinds(rig: BrokerRig) -> list[int]:
    """Of the outcomes that the client heard."""
    return [outcome.kind for ended in rig.heard(Ended) for outcome in ended.outcomes]


def test_a_forced_cancel_without_grace_is_settled_at_once_and_kills() -> None:
    rig = BrokerRig(slots=1)
    rig.say("c", *submit(1, 2))
    rig.say("w", Began([rig.leases()[0]]))
    rig.say("c", Cancel([1]))
    assert not kinds(rig), "the plain one leaves alone what runs"

    rig.say("c", Cancel([1, 2], True))
    assert kinds(rig) == [CANCELLED, CANCELLED]
    assert [m for m in rig.heard(Revoke) if m.force] == [Revoke([rig.leases()[0]], True)]


def test_a_forced_cancel_with_grace_waits_for_what_the_call_gives() -> None:
    for kind in (VALUE, CANCELLED):
        rig = BrokerRig(slots=1)
        rig.say("c", *submit(1))
        (lease,) = rig.leases()
        rig.say("c", Cancel([1], True, 5000))
        assert rig.heard(Revoke) == [Revoke([lease], True, 5000)]
        rig.say("w", Began([lease]))  # it was on its way
        assert not kinds(rig)
        rig.say("w", Reports([Report(lease, kind)]), [b""])
        assert kinds(rig) == [kind]


@pytest.mark.parametrize("reply", [Return, None])
def test_a_call_that_never_started_or_died_while_it_was_stopped_is_cancelled(reply: type | None) -> None:
    rig = BrokerRig(slots=1)
    rig.say("c", *submit(1))
    (lease,) = rig.leases()
    rig.say("c", Cancel([1], True, 5000))
    if reply is Return:
        rig.say("w", Return([lease], rig.heard(Grants)[-1].number))
    else:
        rig.say("w", Reports([Report(lease, LOST, 0, Fate("h", "w", 9))]), [b""])

    assert kinds(rig) == [CANCELLED]


def stopping(grace_us: int) -> tuple[Rig, RunCalls]:
    """A worker that was told to stop the call that runs."""
    rig = Rig()
    rig.grant(Lease(1, 0, 1, 0, 0))
    (run,) = rig.runs()
    rig.worker.receive("broker", Revoke([1], True, grace_us), (), rig.now)
    rig.turn()
    assert any(isinstance(action, TakeBack) for action in rig.actions)
    rig.worker.child_took_back(run.child, 1, rig.now)
    rig.turn()
    return rig, run


def interrupted(rig: Rig) -> list[int]:
    return [action.child for action in rig.actions if isinstance(action, InterruptChild)]


def test_without_grace_the_child_is_killed_and_nothing_is_said() -> None:
    rig, run = stopping(0)

    assert rig.killed() == [run.child]
    assert not interrupted(rig)
    rig.worker.child_died(run.child, 1, 9, 0, "killed", rig.now)
    rig.turn()
    assert not rig.kinds()


def test_with_grace_the_call_is_interrupted_and_may_end() -> None:
    rig, run = stopping(500_000)

    assert interrupted(rig) == [run.child]
    assert not rig.killed()
    rig.now = 0.4
    rig.worker.child_reported(run.child, [Done(1, VALUE, 5)], [b"best so far"], rig.now)
    rig.turn()
    assert rig.kinds() == [VALUE]
    assert [a.child for a in rig.actions if isinstance(a, StopChild)] == [run.child], "a fresh one follows"


def test_a_call_that_ends_its_child_when_it_is_interrupted_tells_nothing_of_the_worker() -> None:
    rig, run = stopping(500_000)
    rig.worker.child_died(run.child, 1, 2, 0, "killed by SIGINT", rig.now)
    rig.turn()

    assert rig.kinds() == [CUT]


def test_after_the_grace_the_child_is_killed() -> None:
    rig, run = stopping(500_000)
    rig.now = 0.5
    rig.turn()

    assert rig.kinds() == [CANCELLED]
    assert rig.killed() == [run.child]


def test_what_waits_behind_a_stopped_call_goes_elsewhere_unharmed() -> None:
    rig = Rig()
    rig.grant(Lease(1, 0, 1, 0, 0, 0, 10), Lease(2, 0, 2, 0, 0, 0, 10))
    run = rig.runs()[0]
    rig.worker.receive("broker", Revoke([1], True), (), rig.now)
    rig.turn()
    rig.worker.child_took_back(run.child, 1, rig.now)
    rig.turn()
    rig.worker.child_died(run.child, 1, 9, 0, "killed", rig.now)
    rig.turn()

    assert [len(other.run.calls) for other in rig.runs()] == [1]
    assert LOST not in rig.kinds()


# ---------------------------------------------------------------- priorities


def test_any_mix_of_priorities_is_granted_in_order() -> None:
    for seed in range(40):
        rng = random.Random(seed)
        rig = BrokerRig(slots=1)
        waiting: list[tuple[int, int]] = []
        granted: list[tuple[int, int]] = []
        for number in range(1, 40):
            if rng.random() < 0.7:
                priority = rng.choice((0, 0, 0, 5, -5, 9))
                waiting.append((-priority, number))
                rig.say("c", Submit([Call(number, 0, 0, 0, 3, 0, priority)], ["f"], 1), [b"f", SETUP, b"x"])
            else:
                rig.say(
                    "w",
                    Reports([Report(lease, VALUE, 10**6) for lease in rig.leases()[-1:]]),
                    [b""][: len(rig.leases())],
                )
            new = [lease.task for _, m in rig.sent if isinstance(m, Grants) for lease in m.leases][
                len(granted) :
            ]
            for task in new:
                best = min(waiting)
                assert best[1] == task, f"seed {seed}"
                waiting.remove(best)
                granted.append(best)
