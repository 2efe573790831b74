"""Calls with a timeout, as the broker and the worker treat them."""

from __future__ import annotations

from tests.core.test_durable import SETUP, V
from zfarm.core.worker import Worker
from zfarm.messages import (
    LOST,
    TIMEOUT,
    VALUE,
    Action,
    Done,
    Grants,
    Lease,
    Reports,
    RunCalls,
    Send,
    StopChild,
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
