"""Children that cannot be started, as the worker's machine takes it."""

from __future__ import annotations

from tests.core.test_timing import Rig
from zfarm.messages import Lease, Return, Room, Send, StartChild, Tell


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


def rooms(rig: Rig) -> list[int]:
    sent = [action.message for action in rig.actions if isinstance(action, Send)]
    return [message.room for message in sent if isinstance(message, Room)]
