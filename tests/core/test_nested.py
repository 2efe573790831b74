"""Clients inside children: in whose name they speak, what they may not ask for, and when they must end."""

from __future__ import annotations

import pytest

from tests.core.rigs import HELLO, JOIN, LIMITS, VERSIONS, BrokerRig, submit
from zfarm.messages import (
    Action,
    Attach,
    Bye,
    Echo,
    Hello,
    Look,
    Message,
    Picture,
    Pulse,
    Refused,
    Send,
    Stranger,
    Welcome,
)

NESTED = Hello("inner", VERSIONS, "host-w", 33)
ALICE = "client:alice"


@pytest.fixture
def rig() -> BrokerRig:
    """A worker with a key, and two clients with theirs: alice has a task on it, and bob waits."""
    rig = BrokerRig()
    for peer, message, principal in (
        ("W", JOIN, "worker:w"),
        ("A", HELLO, ALICE),
        ("B", HELLO, "client:bob"),
    ):
        rig.machine.receive(peer, message, (), rig.now, principal)
    rig.turn()
    rig.say("A", *submit(1))
    rig.say("B", *submit(1, 2, 3))
    return rig


def say(rig: BrokerRig, owner: str, message: Message, payload: list[bytes] | None = None) -> list[Message]:
    """What the broker answers to a client in child 1 of the worker that speaks in this name."""
    rig.machine.tunnelled("W", 1, owner, message, payload or [], rig.now)
    return [_said(action) for action in rig.turn() if isinstance(action, Send) and action.peer == ("W", 1)]


def _said(action: Action) -> Message:
    assert isinstance(action, Send)
    message: Message = action.message
    return message


def test_what_a_task_submits_is_its_clients_and_so_is_what_it_sees(rig: BrokerRig) -> None:
    (welcome,) = say(rig, f"{ALICE}/c", NESTED)
    assert isinstance(welcome, Welcome)
    rig.machine.tunnelled("W", 1, f"{ALICE}/c", *submit(7), rig.now)
    rig.turn()
    assert list(rig.machine.clients[f"{ALICE}/inner"].tasks) == [7]

    (picture,) = say(rig, f"{ALICE}/c", Look())
    assert isinstance(picture, Picture)
    assert len(picture.clients) == 2
    assert picture.queue == {"f": 1}, "and not what bob has there"
    assert picture.first == {"f": "inner/7"}


@pytest.mark.parametrize("message", [NESTED, Look(), submit(1)[0], Pulse(1, 1)])
def test_a_worker_that_was_given_no_call_cannot_speak_for_a_client(rig: BrokerRig, message: Message) -> None:
    for owner in ("", "c", "client:alice", "client:alice/guess", "worker:w/inner"):
        assert say(rig, owner, message) == [Stranger()]
    assert set(rig.machine.clients) == {f"{ALICE}/c", "client:bob/c"}


def test_nor_can_one_that_has_not_joined() -> None:
    rig = BrokerRig()
    rig.say("C", HELLO)

    assert say(rig, "c", NESTED) == [Stranger()]


@pytest.mark.parametrize(
    "message", [Attach("night", VERSIONS, "life"), Hello("inner", VERSIONS, job="night", life="inner")]
)
def test_a_task_has_no_jobs(rig: BrokerRig, message: Message) -> None:
    (refused,) = say(rig, f"{ALICE}/c", message)
    assert isinstance(refused, Refused)
    assert refused.code == "AccessDenied"


def test_who_was_welcome_goes_on_without_its_owner_and_a_new_one_is_to_come_later(rig: BrokerRig) -> None:
    say(rig, f"{ALICE}/c", NESTED)
    rig.say("A", Bye())
    assert isinstance(say(rig, f"{ALICE}/c", Pulse(1, 0))[0], Echo)
    rig.machine.gone(("W", 1), rig.now)
    assert isinstance(say(rig, f"{ALICE}/c", NESTED)[0], Welcome)

    rig.machine.gone(("W", 1), rig.now)
    rig.say("B", Bye())
    assert say(rig, "client:bob/c", NESTED) == [Stranger()], "a broker that is young may not know all clients"
    young = LIMITS.client_lost_after_s + LIMITS.client_grace_s
    rig.now += young
    rig.machine.receive("W", JOIN, (), rig.now, "worker:w")
    rig.machine.gone(("W", 1), rig.now)
    other = Hello("other", VERSIONS, "host-w", 33)
    assert say(rig, "client:bob/c", Pulse(1, 0)) == [Stranger()], "it may be known: that its Hello tells"
    assert say(rig, "client:bob/c", other) == [Stranger(later=True)]
    rig.machine.tunnelled("W", 1, "client:bob/c", other, [], rig.now)
    assert say(rig, "client:bob/c", Pulse(1, 0)) == [Stranger(later=True)], "in one turn as well"
    rig.machine.receive("B", Hello("next", VERSIONS, "host-b", 12), (), rig.now, "client:bob")
    assert isinstance(say(rig, "client:bob/next", other)[0], Welcome)
