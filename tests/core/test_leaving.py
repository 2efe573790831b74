"""A worker that drains while its calls wait for calls of their own: it takes those, and no others."""

from __future__ import annotations

import pytest
from msgspec import structs

from tests.core.rigs import (
    FIRST,
    HELLO,
    JOIN,
    SETUP,
    VERSIONS,
    BrokerRig,
    WorkerRig,
    grants,
    sent,
    submit,
)
from zfarm.core.why import explain
from zfarm.messages import (
    VALUE,
    Beat,
    Began,
    Demand,
    Finished,
    Grants,
    Hello,
    Join,
    Leave,
    Report,
    Reports,
    Return,
    Room,
    RunCalls,
    Send,
    Thanks,
)

DRAINS = Room(0, [FIRST], True, 2, [1])
"""A worker of one slot that drains, and the call in its child 1 waits."""


@pytest.fixture
def rig() -> BrokerRig:
    """A worker of one slot that drains: its one call, in child 1, waits for calls; the client has another."""
    rig = BrokerRig()
    rig.say("C", HELLO)
    rig.say("W", structs.replace(JOIN, slots=1, labels=["ssd"]))
    rig.say("C", *submit(1, 2))
    rig.say("W", Began([FIRST]))
    rig.say(("W", 1), Hello("inner", VERSIONS, "host-w", 33))
    rig.say("W", DRAINS)
    return rig


def granted(rig: BrokerRig, *numbers: int, child: int = 1, demand: Demand | None = None) -> list[Grants]:
    """What is granted when the client in that child submits these."""
    message, payload = submit(*numbers)
    if demand is not None:
        calls = [structs.replace(call, demand=1) for call in message.calls]
        message = structs.replace(message, calls=calls, demands=[demand])
    said = [a.message for a in rig.say(("W", child), message, payload) if isinstance(a, Send)]
    return [message for message in said if isinstance(message, Grants)]


def test_it_is_granted_what_its_own_call_waits_for_as_far_as_it_has_room(rig: BrokerRig) -> None:
    (grants,) = granted(rig, 7, 8)

    assert [(grants.owners[lease.owner], lease.task) for lease in grants.leases] == [("inner", 7)]
    assert grants.own == [grants.leases[0].lease]
    done = rig.say("W", Reports([Report(grants.leases[0].lease, VALUE, 5)]), [b"value"])
    (message,) = [a.message for a in done if isinstance(a, Send) and isinstance(a.message, Grants)]
    assert [lease.task for lease in message.leases] == [8]


def test_it_is_granted_nothing_for_a_child_whose_call_does_not_wait(rig: BrokerRig) -> None:
    rig.say(("W", 2), Hello("idle", VERSIONS, "host-w", 44))
    assert not granted(rig, 7, child=2)

    rig.say("W", Room(0, draining=True))
    assert not granted(rig, 7)
    assert rig.machine.clients["inner"].tasks[7].worker is None


@pytest.mark.parametrize(("label", "fits"), [("ssd", True), ("gpu", False)])
def test_only_what_it_suits(rig: BrokerRig, label: str, fits: bool) -> None:
    assert len(granted(rig, 7, demand=Demand((), (label,)))) == fits


def test_another_worker_with_room_takes_it_first(rig: BrokerRig) -> None:
    rig.say("X", Join("x", VERSIONS, 2, "host-x", 55))
    rig.say(("W", 1), *submit(7))

    assert rig.machine.clients["inner"].tasks[7].worker is rig.machine.workers["x"]


def test_each_call_is_told_why_it_waits_there(rig: BrokerRig) -> None:
    granted(rig, 7, 8)

    tasks = rig.machine.clients["inner"].tasks
    outer = rig.machine.clients["c"].tasks
    assert explain(rig.machine, outer[1], rig.now)[0] == "nested"
    code, text = explain(rig.machine, outer[2], rig.now)
    assert code == "closed"
    assert "host-w/22 drains, and takes only what its own calls wait for" in text
    assert explain(rig.machine, tasks[7], rig.now)[0] == "starting"
    assert explain(rig.machine, tasks[8], rig.now)[0] == "slots"


def test_nothing_is_left_of_it_when_it_has_gone(rig: BrokerRig) -> None:
    rig.say("W", Leave([FIRST]))

    assert not rig.machine.leaving


def test_the_worker_runs_what_its_call_waits_for_returns_the_rest_and_leaves() -> None:
    rig = WorkerRig(slots=1).joined()
    rig.granted(1, {FIRST: 1})
    rig.machine.child_waits(1, True, rig.now)
    rig.turn()
    rig.machine.drain(rig.now)
    assert sent(rig.turn()) == [DRAINS]

    both = structs.replace(grants(2, {FIRST + 1: 2, FIRST + 2: 7}), own=[FIRST + 2])
    actions = rig.say(both, [b"function", SETUP, b"body 2", b"body 7"])
    assert sent(actions) == [Return([FIRST + 1], 2)]
    (run,) = [action for action in actions if isinstance(action, RunCalls)]
    assert bytes(run.payload[-1]) == b"body 7"

    rig.machine.child_waits(1, False, rig.now)
    assert Room(0, draining=True) in sent(rig.done(run.child, 1))
    assert sent(rig.done(1, 1)) == [Reports([Report(FIRST, VALUE, 50)])]
    assert rig.say(Thanks([FIRST, FIRST + 2])) == [Send("broker", Leave()), Finished()]


def test_a_worker_that_has_no_child_to_spare_does_not_drain() -> None:
    rig = BrokerRig().met()
    rig.say("W", Room(0))
    assert not rig.machine.workers["w"].draining

    rig.say("W", Beat(1, [], 2))
    assert rig.machine.workers["w"].room == 2
