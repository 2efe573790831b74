"""Children that cannot be started, or die before their first call, as the worker's machine takes it."""

from __future__ import annotations

from collections.abc import Sequence

from tests.core.rigs import WorkerRig, sent
from tests.core.test_timing import Rig
from zfarm.messages import (
    LOST,
    Action,
    Lease,
    Report,
    Reports,
    Return,
    Room,
    RunCalls,
    Send,
    StartChild,
    Tell,
)


def test_a_child_that_cannot_be_started_costs_no_attempt_and_its_calls_go_elsewhere() -> None:
    rig = Rig()
    rig.grant(Lease(1, 0, 1, 0, 0))
    (run,) = rig.runs()
    rig.worker.child_unborn(run.child, "could not be started: Too many open files", rig.now)
    rig.turn()
    assert not rig.kinds(), "nobody is blamed"
    assert [a.text for a in rig.actions if isinstance(a, Tell)] == [
        "a child could not be started: Too many open files"
    ]
    assert rooms(rig) == [0]

    rig.now = 0.1
    rig.turn()
    sent = [a.message for a in rig.actions if isinstance(a, Send)]
    assert [m.leases for m in sent if isinstance(m, Return)] == [[1]]
    rig.now = 1.0
    rig.turn()
    assert not [a for a in rig.actions if isinstance(a, StartChild)]

    rig.now = 6.0
    rig.turn()
    assert rooms(rig) == [1], "it tries again"
    rig.grant(Lease(2, 0, 2, 0, 0))
    assert len(rig.runs()) == 1


def test_children_that_are_killed_at_once_before_they_read_their_calls_blame_nobody() -> None:
    """Each realm has some deaths before it counts as broken, one after the other, not all at one time."""
    rig = WorkerRig(slots=4).joined()
    rig.granted(1, {11: 1, 12: 2, 13: 3, 14: 4})
    for child in range(1, 5):
        rig.machine.child_died(child, 0, 9, 0, "killed by SIGKILL", rig.now)
    actions = rig.turn()
    assert not reported(actions)
    assert len([a for a in actions if isinstance(a, RunCalls)]) == 4, "all are given again"

    assert not reported(rig.died(5, 0)), "the second"
    assert not reported(rig.died(6, 0)), "started before the second was known"
    assert [one.kind for one in reported(rig.died(9, 0))] == [LOST], "the third"


def rooms(rig: Rig) -> list[int]:
    sent = [action.message for action in rig.actions if isinstance(action, Send)]
    return [message.room for message in sent if isinstance(message, Room)]


def reported(actions: Sequence[Action]) -> list[Report]:
    return [one for message in sent(actions) if isinstance(message, Reports) for one in message.reports]
