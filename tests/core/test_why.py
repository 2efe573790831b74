"""Each reason why a task is where it is, read from the books of a broker."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.core.rigs import (
    EPOCH,
    FIRST,
    HELLO,
    JOIN,
    LIMITS,
    SETUP,
    VERSIONS,
    BrokerRig,
    ClientRig,
    sent,
    submit,
)
from tests.core.test_placing import GPU, TWO, ZONE, demanding, join, met, report
from zfarm.core.broker import Broker
from zfarm.core.why import amount_text, wish
from zfarm.messages import (
    AGAIN,
    Append,
    Beat,
    Began,
    Call,
    Cancel,
    Demand,
    Explained,
    Hello,
    Look,
    Picture,
    Reason,
    Report,
    Reports,
    Room,
    Submit,
    Why,
)


def why(
    rig: BrokerRig, task: int, peer: str = "C", owner: str | None = None, principal: str = "local"
) -> Reason:
    """What the broker answers; without an owner to one who asks for a task of its own."""
    asked = Why(7, task) if owner is None else Why(7, task, owner, True)
    rig.machine.receive(peer, asked, (), rig.now, principal)
    (reason,) = [message for message in sent(rig.turn(), peer) if isinstance(message, Reason)]
    assert (reason.number, reason.task) == (7, task)
    return reason


def said(rig: BrokerRig, task: int) -> tuple[str, str]:
    reason = why(rig, task)
    return reason.code, reason.text


def test_without_a_worker() -> None:
    rig = BrokerRig()
    rig.say("C", HELLO)
    rig.say("C", *submit(1))

    assert said(rig, 1) == ("no-workers", "no worker is there: start one with `zfarm worker`")


def test_in_the_queue_with_the_number_of_those_before_it() -> None:
    rig = BrokerRig().met()
    rig.say("C", *submit(*range(1, 9)))
    rig.say("D", Hello("d", VERSIONS))
    rig.say("D", *submit(1))

    code, text = said(rig, 8)
    assert code == "slots"
    assert (
        text == "all 2 slots of 1 workers are taken; 5 calls of this client go before it, and 1 other client "
        "takes turns with it"
    )


def test_granted_then_running_then_waiting_for_nested_calls_then_ended() -> None:
    rig = BrokerRig().met()
    rig.say("C", *submit(1))
    assert said(rig, 1)[0] == "starting"

    rig.say("W", Began([FIRST]))
    rig.turn(1.5)
    assert said(rig, 1) == ("running", "it runs on host-w (worker host-w/22), granted 1.5 s ago")
    rig.say("C", Cancel([1], True, 5_000_000))
    assert said(rig, 1)[1].endswith("and is being cancelled")

    rig.say("W", Room(3, [FIRST]))
    assert said(rig, 1)[0] == "nested"
    rig.say("W", Beat(2, [FIRST], 2))
    assert said(rig, 1)[0] == "running"

    rig.say("W", *report(FIRST))
    assert said(rig, 1) == ("ended", "it has ended with a value, and its client was told so")


def test_a_worker_that_is_silent_is_said_to_be() -> None:
    rig = BrokerRig().met()
    rig.say("C", *submit(1))
    rig.say("W", Began([FIRST]))
    rig.turn(3.0)

    assert "that worker is silent for 3.0 s, and lost after 5 s" in said(rig, 1)[1]


def test_granted_ahead_behind_another_call() -> None:
    rig = met(("W", join(slots=1)))
    rig.say("C", *submit(1))
    rig.say("W", *report(FIRST, run_us=10))
    rig.say("C", *submit(2, 3, 4))

    assert said(rig, 4)[0] == "behind"
    assert "behind 2 calls that were granted before it" in said(rig, 4)[1]


def test_workers_that_take_nothing_are_named() -> None:
    rig = BrokerRig().met()
    rig.say("W", Room(0, draining=True))
    rig.say("C", *submit(1))

    assert said(rig, 1) == ("closed", "none of the 1 workers takes calls now: host-w/22 drains")
    rig.machine.gone("W", rig.now)
    assert "host-w/22 has lost its link" in said(rig, 1)[1]
    worker = rig.machine.workers["w"]
    worker.aside_until = rig.now + 12.0
    assert "host-w/22 is set aside for 12.0 s, since its children keep dying" in said(rig, 1)[1]


def test_what_no_worker_has_and_what_is_taken() -> None:
    rig = met(("W", join(gpus=1500, slots=4)), ("V", join("v", 2, 0, ("zone=a",))))
    both = Demand((("gpu", 1000),), ("zone=a",))
    more = Demand((("tpu", 500),))
    rig.say("C", *demanding((1, GPU), (2, GPU), (3, TWO), (4, more), (5, Demand((), ("ssd",))), (6, both)))

    assert said(rig, 2) == (
        "resources", "it takes gpu=1, and that is not free: host-w/22 has 1 of 1.5 gpu taken by 1 calls",
    )  # fmt: skip
    assert said(rig, 3)[1].startswith("it takes gpu=2, and no worker has more than 1.5; it waits")
    assert said(rig, 4)[1].startswith("it takes tpu=0.5, and no worker has any; it waits")
    assert said(rig, 5)[1].startswith("it needs label ssd, and no worker has it; it waits")
    assert said(rig, 6)[1].startswith("it needs gpu=1, zone=a, and no worker has all of that together; it")
    assert {said(rig, task)[0] for task in (3, 4, 5, 6)} == {"unmet"}


def test_a_slot_of_those_that_suit() -> None:
    rig = met(("W", join(slots=1, labels=("zone=a",))), ("V", join("v", 4)))
    rig.say("C", *demanding((1, ZONE), (2, ZONE), (3, ZONE)))

    assert said(rig, 3) == (
        "slots", "all 1 slots of 1 workers that have zone=a are taken; 1 call of this client goes before it",
    )  # fmt: skip


def test_waiting_to_be_run_again() -> None:
    rig = BrokerRig().met()
    rig.say("C", *submit(1))
    rig.say("W", Reports([Report(FIRST, AGAIN, 10)]), [b"e"])

    code, text = said(rig, 1)
    assert code == "backoff"
    assert "run 2 of at most 3 begins in" in text


def restarted(attempts: int) -> BrokerRig:
    """A broker with one granted task in its journal, which comes back."""
    rig = BrokerRig()
    rig.machine = Broker(EPOCH, VERSIONS, rig.now, LIMITS, journal=True)
    records = []
    for peer, message, payload in (
        ("C", HELLO, ()), ("W", JOIN, ()), ("C", *submit(1, attempts=attempts)),
    ):  # fmt: skip
        actions = rig.say(peer, message, payload)
        records += [pair for action in actions if isinstance(action, Append) for pair in action.records]
    rig.machine = Broker(EPOCH + 1, VERSIONS, rig.now, LIMITS, journal=True)
    rig.machine.restore(records, rig.now)
    rig.say("C", HELLO)
    return rig


def test_held_after_a_restart_of_the_broker() -> None:
    assert said(restarted(3), 1)[0] == "restart"
    code, text = said(restarted(1), 1)
    assert code == "in-doubt"
    assert "for up to 4.0 s a worker may come back with it" in text


def test_what_the_broker_does_not_know_and_does_not_take() -> None:
    rig = BrokerRig().met()
    assert said(rig, 9)[0] == "unknown"

    rig.machine.refusing = "the disk is full"
    assert "takes no new tasks: the disk is full" in said(rig, 9)[1]


def test_who_may_ask_about_whom() -> None:
    rig = BrokerRig()
    for peer, session, principal in (("A", "aa", "client:ann"), ("B", "bb", "client:bob")):
        rig.machine.receive(
            peer, Hello(session, VERSIONS, "host", 5, f"{session}.py"), (), rig.now, principal
        )
        rig.turn()
        rig.say(peer, *submit(1))

    assert why(rig, 1, "A", None, "client:ann").owner == "aa"
    assert why(rig, 1, "A", "bb", "client:ann").code == "unknown"
    assert why(rig, 1, "X", "", "client:ann").owner == "aa"
    assert why(rig, 1, "X", None, "client:ann").code == "unknown"
    assert why(rig, 1, "M", "bb", "monitor:eve").owner == "bb"
    assert why(rig, 1, "M", "aa.py", "admin:root").owner == "aa"
    assert why(rig, 1, "M", "cc", "monitor:eve").code == "unknown"
    assert why(rig, 1, "K", "bb", "worker:w").code == "unknown"
    ambiguous = why(rig, 1, "M", "", "monitor:eve")
    assert ambiguous.code == "ambiguous"
    assert "aa/1, bb/1" in ambiguous.text


def test_a_client_is_told_once_that_nobody_can_run_its_calls() -> None:
    rig = met(("W", join()))
    reasons: list[Any] = []
    notes: list[str] = []
    rig.say("C", *demanding((1, GPU)))
    for _ in range(12):
        rig.say("W", Beat(9, [], 2))
        actions = rig.turn(0.3)
        reasons += [message for message in sent(actions, "C") if isinstance(message, Reason)]
        notes += [action.text for action in actions if hasattr(action, "text")]

    assert [(reason.number, reason.task, reason.code) for reason in reasons] == [(0, 1, "unmet")]
    assert reasons[0].text == "f waits: it takes gpu=1, and no worker has any"
    assert reasons[0].text in notes
    (picture,) = [m for m in sent(rig.say("M", Look()), "M") if isinstance(m, Picture)]
    assert picture.unmet == {"it takes gpu=1, and no worker has any": 1}
    assert picture.queue == {"f": 1}
    assert picture.first == {"f": "c/1"}


def test_a_client_asks_only_over_a_link_and_says_what_it_hears() -> None:
    rig = ClientRig()
    rig.machine.why(1, 1)
    assert rig.machine.heard(rig.now) == (False, 0.0)

    rig.connected()
    assert rig.machine.heard(rig.now + 2.0) == (True, 2.0)
    rig.machine.why(2, 1)
    assert [message for message in sent(rig.turn()) if isinstance(message, Why)] == [Why(2, 1)]
    reason = Reason(2, 1, "slots", "text")
    assert Explained(reason) in rig.say(reason)


@pytest.mark.parametrize(("thousandths", "text"), [(1000, "1"), (1500, "1.5"), (1, "0.001"), (250, "0.25")])
def test_amounts_are_said_as_users_write_them(thousandths: int, text: str) -> None:
    assert amount_text(thousandths) == text


def test_a_wish_names_resources_and_labels() -> None:
    assert wish(Demand((("gpu", 500),), ("ssd", "zone=a"))) == "gpu=0.5, ssd, zone=a"


def test_the_place_in_a_queue_counts_the_priorities_before_it() -> None:
    rig = met(("W", join(slots=1)), limits=dataclasses.replace(LIMITS))
    rig.say("C", *submit(1))
    for task, priority in ((2, 0), (3, 5), (4, -1), (5, 0)):
        rig.say(
            "C", Submit([Call(task, 0, 0, 0, 3, 0, priority)], ["f"], 1, [], 1), [b"function", SETUP, b""]
        )

    assert [said(rig, task)[1].split("; ")[1] for task in (3, 2, 5, 4)] == [
        "it is the next one of this client",
        "1 call of this client goes before it",
        "2 calls of this client go before it",
        "3 calls of this client go before it",
    ]
