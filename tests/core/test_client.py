"""The client's machine, message by message: whole action lists, and what must change nothing."""

from __future__ import annotations

import dataclasses

import pytest
from msgspec import structs

from tests.core.rigs import EPOCH, FIRST, HELLO, LIMITS, SETUP, VERSIONS, ClientRig, sent, welcome
from zfarm.messages import (
    BROKER,
    CANCELLED,
    ERROR,
    LOST,
    VALUE,
    Ask,
    Began,
    Bye,
    Call,
    Cancel,
    Connected,
    Echo,
    Ended,
    Fate,
    Forget,
    Hello,
    Missed,
    Outcome,
    Pulse,
    Refused,
    Rejected,
    Resolve,
    Running,
    Send,
    Stranger,
    Streaming,
    Streams,
    Submit,
    Unknown,
    Welcome,
)


@pytest.fixture
def rig() -> ClientRig:
    return ClientRig().connected()


def test_it_says_hello_until_it_is_welcome() -> None:
    rig = ClientRig()

    assert rig.turn() == [Send(BROKER, HELLO)]
    assert rig.turn(after=0.5) == []
    assert rig.turn(after=0.5) == [Send(BROKER, structs.replace(HELLO, number=2))]
    assert rig.say(welcome(1, 2)) == [Connected(welcome(1, 2))]
    assert rig.machine.slots == 2


def test_nothing_is_submitted_before_the_welcome() -> None:
    rig = ClientRig()
    rig.submit("t1")

    assert sent(rig.turn()) == [HELLO]
    assert sent(rig.say(welcome(1, 2))) == [Submit([Call(1, 0, 0)], ["f"], 1, [], 1)]


def test_what_was_submitted_in_one_turn_goes_in_one_message(rig: ClientRig) -> None:
    assert (rig.submit("t1"), rig.submit("t2", items=5)) == (1, 2)

    calls = [Call(1, 0, 0), Call(2, 0, 0, 5)]
    payload = [b"function", SETUP, b"body 1", b"body 2"]
    assert rig.turn() == [Send(BROKER, Submit(calls, ["f"], 1, [], 1), payload)]
    assert rig.machine.open == 2


def test_a_message_holds_so_many_calls_and_bytes_at_most() -> None:
    rig = ClientRig(dataclasses.replace(LIMITS, batch_calls_max=2)).connected()
    for token in range(5):
        rig.submit(token)

    assert [len(submit.calls) for submit in sent(rig.turn())] == [2, 2, 1]


@pytest.mark.parametrize("kind", [VALUE, ERROR, LOST])
def test_an_outcome_resolves_its_task_once_and_is_forgotten(rig: ClientRig, kind: int) -> None:
    rig.submit("t1")
    rig.turn()
    outcome = Outcome(1, kind, 50, (Fate("h", "w", 9),) if kind == LOST else ())

    assert rig.say(Ended([outcome]), [b"blob"])[0] == Resolve("t1", outcome, b"blob")
    assert rig.say(Ended([outcome]), [b"blob"]) == []
    assert rig.machine.open == 0
    rig.submit("t2")
    (submit,) = sent(rig.turn())
    assert set(submit.forgets) == {1}


def test_forgets_go_with_the_beat_when_there_is_nothing_to_go_with(rig: ClientRig) -> None:
    rig.submit("t1")
    rig.turn()
    rig.say(Ended([Outcome(1, VALUE)]), [b""])

    assert sent(rig.turn(after=1.0)) == [Forget([1]), Pulse(1, 0)]


def test_outcomes_of_nobody_resolve_nothing(rig: ClientRig) -> None:
    assert [a for a in rig.say(Ended([Outcome(77, VALUE)]), [b""]) if isinstance(a, Resolve)] == []
    assert rig.say(Began([77])) == []
    assert rig.say(Unknown([77])) == []


# ---------------------------------------------------------------- repair


def test_on_a_new_welcome_it_asks_for_all_that_is_open(rig: ClientRig) -> None:
    for token in ("t1", "t2"):
        rig.submit(token)
    rig.turn()

    assert rig.say(Stranger()) == [Send(BROKER, structs.replace(HELLO, number=2))]
    again = Welcome(EPOCH + 1, VERSIONS, 1, 2)
    assert rig.say(again) == [Connected(again), Send(BROKER, Ask([1, 2]))]


def test_what_the_broker_does_not_know_is_submitted_again(rig: ClientRig) -> None:
    rig.submit("t1")
    rig.turn()
    rig.say(Stranger())
    rig.say(welcome(1, 2))

    assert sent(rig.say(Unknown([1], 0))) == [Submit([Call(1, 0, 0)], ["f"], 1, [], 2)]


def test_a_late_unknown_about_what_was_submitted_again_is_not_believed(rig: ClientRig) -> None:
    rig.submit("t1")
    rig.turn()
    rig.say(welcome(1, 2))
    rig.say(welcome(1, 2))  # asked twice, so answered twice
    rig.say(Unknown([1], 0))
    rig.machine.cancel(1)
    rig.turn()

    assert rig.say(Unknown([1], 0)) == []
    assert rig.machine.open == 1


def test_what_has_arrived_is_said_again_until_an_echo_confirms_it(rig: ClientRig) -> None:
    rig.submit("t1")
    rig.turn()
    rig.say(Ended([Outcome(1, VALUE)]), [b""])
    rig.turn(after=1.0)  # Forget, and Pulse 1

    rig.say(Stranger())
    assert Forget([1]) in sent([*rig.say(welcome(1, 2)), *rig.turn(after=1.0)])  # with Pulse 2
    rig.say(Echo(2))
    rig.say(Stranger())
    assert Forget([1]) not in sent([*rig.say(welcome(1, 2)), *rig.turn(after=1.0)])


def test_who_can_speak_for_nobody_now_keeps_silent_until_there_is_something_to_ask() -> None:
    rig = ClientRig(dataclasses.replace(LIMITS, broker_away_max_s=30.0)).connected()
    assert rig.say(Stranger(later=True)) == []
    assert rig.turn(after=100.0) == []
    assert rig.machine.heard(rig.now) == (False, 0.0)

    rig.submit("t1")
    assert rig.turn() == [Send(BROKER, structs.replace(HELLO, number=2))]
    assert Rejected("BrokerUnreachable", "the broker has not answered for 30 s") in rig.turn(after=31.0)


def test_who_keeps_silent_asks_once_more_for_a_stream_that_is_opened_late() -> None:
    rig = ClientRig().connected()
    task = rig.submit("t1")
    rig.turn()
    rig.say(Streams([Streaming(FIRST, "", task)]))
    rig.say(Ended([Outcome(task, VALUE, 1, (), 0, FIRST, 3)]), [b"value"])
    rig.say(Stranger())
    rig.say(Stranger(later=True))
    assert rig.turn(after=10.0) == []

    assert rig.machine.listen(task)
    assert [type(message) for message in sent(rig.turn())] == [Hello]
    gone = rig.say(Stranger(later=True)) + rig.turn()
    assert [(one.first, one.last) for one in gone if isinstance(one, Missed)] == [(1, 3)]


def test_who_has_something_open_goes_on_saying_hello(rig: ClientRig) -> None:
    rig.submit("t1")
    rig.turn()

    assert rig.say(Stranger(later=True)) == [Send(BROKER, structs.replace(HELLO, number=2))]
    assert rig.say(Stranger(later=True)) == []
    again = Send(BROKER, structs.replace(HELLO, number=3))
    assert rig.turn(after=LIMITS.beat_interval_s) == [again]


def test_a_broker_that_stays_away_ends_it() -> None:
    rig = ClientRig(dataclasses.replace(LIMITS, broker_away_max_s=30.0)).connected()
    rig.submit("t1")
    rig.turn()

    assert Rejected("BrokerUnreachable", "the broker has not answered for 30 s") in rig.turn(after=31.0)
    assert rig.machine.open == 0
    assert rig.say(Ended([Outcome(1, VALUE)]), [b""]) == []


def test_a_refusal_ends_it(rig: ClientRig) -> None:
    assert rig.say(Refused("VersionMismatch", "why")) == [Rejected("VersionMismatch", "why")]


# ---------------------------------------------------------------- cancel and goodbye


def test_a_task_that_was_not_sent_is_cancelled_here() -> None:
    rig = ClientRig()
    rig.machine.cancel(rig.submit("t1"))

    assert rig.turn() == [Resolve("t1", Outcome(1, CANCELLED), b""), Send(BROKER, HELLO)]
    assert sent(rig.say(welcome(1, 2))) == []


def test_a_task_that_was_sent_is_cancelled_by_the_broker_or_runs(rig: ClientRig) -> None:
    for token in ("t1", "t2"):
        rig.submit(token)
    rig.turn()
    rig.machine.cancel(1)
    rig.machine.cancel(2)
    rig.machine.cancel(99)

    assert sent(rig.turn()) == [Cancel([1, 2])]
    assert rig.say(Began([1])) == [Running("t1")]
    assert rig.say(Ended([Outcome(2, CANCELLED)]), [b""])[0] == Resolve("t2", Outcome(2, CANCELLED), b"")
    assert rig.machine.open == 1


def test_a_cancel_is_asked_again_after_a_new_welcome(rig: ClientRig) -> None:
    rig.submit("t1")
    rig.turn()
    rig.machine.cancel(1)
    rig.turn()

    rig.say(Stranger())
    assert sent(rig.say(welcome(1, 2))) == [Ask([1]), Cancel([1])]
    assert rig.say(Unknown([1], 0)) == [Resolve("t1", Outcome(1, CANCELLED), b"")]


def test_goodbye_is_the_last_word(rig: ClientRig) -> None:
    rig.submit("t1")
    rig.machine.leave()

    assert sent(rig.turn())[-1] == Bye()
    assert rig.machine.deadline == float("inf")
    assert rig.say(Ended([Outcome(1, VALUE)]), [b""]) == []
