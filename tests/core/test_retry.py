"""Errors for which a call is run again: how often, when, and what is known after a restart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.core.rigs import EPOCH, FIRST, HELLO, JOIN, LIMITS, VERSIONS, BrokerRig, sent, submit
from zfarm.core.broker import Broker
from zfarm.messages import (
    AGAIN,
    CANCELLED,
    ERROR,
    LOST,
    MIXED,
    VALUE,
    Append,
    Ask,
    Cancel,
    Ended,
    Fate,
    Grants,
    Held,
    Join,
    Outcome,
    Report,
    Reports,
    Retried,
    Thanks,
)

BACKOFF = replace(LIMITS, retry_backoff_s=1.0, retry_backoff_max_s=4.0)


@pytest.fixture
def rig() -> BrokerRig:
    return BrokerRig(BACKOFF).met()


def raises(rig: BrokerRig, lease: int) -> list[Any]:
    return rig.say("W", Reports([Report(lease, AGAIN, 10)]), [b"error"])


def granted(actions: list[Any]) -> list[int]:
    return [lease.lease for m in sent(actions, "W") if isinstance(m, Grants) for lease in m.leases]


def wait_s(rig: BrokerRig) -> float:
    """How long until the next grant."""
    began = rig.now
    while not granted(rig.turn(after=0.01)):
        assert rig.now < began + 100
    return rig.now - began


def test_it_is_granted_again_later_and_each_time_much_later(rig: BrokerRig) -> None:
    rig.say("C", *submit(1, attempts=6))
    waits = []
    for n in range(5):
        assert not granted(raises(rig, FIRST + n))
        waits.append(wait_s(rig))

    for wait, longest in zip(waits, (1.0, 2.0, 4.0, 4.0, 4.0), strict=True):
        assert longest / 2 <= wait <= longest + 0.02


def test_those_that_fail_together_do_not_come_again_together(rig: BrokerRig) -> None:
    rig.say("V", Join("v", VERSIONS, 20, "host-v", 33))
    rig.say("C", *submit(*range(1, 21)))
    for worker in ("V", "W"):
        leases = list(rig.machine.workers["v" if worker == "V" else "w"].leases)
        rig.say(worker, Reports([Report(lease, AGAIN) for lease in leases]), [b"error"] * len(leases))

    waits = sorted(until - rig.now for until, _, _ in rig.machine.parked)
    assert len(waits) == 20
    assert waits[-1] - waits[0] > 0.35
    assert len({round(wait, 3) for wait in waits}) == 20


@pytest.mark.parametrize(("items", "kind"), [(0, ERROR), (1, MIXED)])
def test_the_last_error_is_the_outcome_and_tells_how_often_it_was_retried(
    rig: BrokerRig, items: int, kind: int
) -> None:
    rig.say("C", *submit(1, items=items, attempts=3))
    raises(rig, FIRST)
    wait_s(rig)
    raises(rig, FIRST + 1)
    wait_s(rig)

    assert sent(raises(rig, FIRST + 2), "C") == [Ended([Outcome(1, kind, 10, (), 2)])]


def test_a_value_after_errors_is_a_value(rig: BrokerRig) -> None:
    rig.say("C", *submit(1))
    raises(rig, FIRST)
    wait_s(rig)
    actions = rig.say("W", Reports([Report(FIRST + 1, VALUE, 10)]), [b"v"])

    assert sent(actions, "C") == [Ended([Outcome(1, VALUE, 10, (), 1)])]


def test_deaths_and_errors_use_up_the_same_attempts(rig: BrokerRig) -> None:
    fate = Fate("host-w", "w", 9)
    rig.say("C", *submit(1, attempts=2))
    raises(rig, FIRST)
    wait_s(rig)
    actions = rig.say("W", Reports([Report(FIRST + 1, LOST, 0, fate)]), [b""])
    assert sent(actions, "C") == [Ended([Outcome(1, LOST, 0, (fate,), 1)])]

    rig.say("C", *submit(2, attempts=2))
    rig.say("W", Reports([Report(FIRST + 2, LOST, 0, fate)]), [b""])
    assert sent(raises(rig, FIRST + 3), "C") == [Ended([Outcome(2, ERROR, 10, (fate,))])]


def test_a_call_that_waits_to_be_run_again_can_be_cancelled(rig: BrokerRig) -> None:
    rig.say("C", *submit(1))
    raises(rig, FIRST)

    assert sent(rig.say("C", Cancel([1])), "C") == [Ended([Outcome(1, CANCELLED)])]
    assert not granted(rig.turn(after=10.0))


def test_a_call_that_is_being_cancelled_is_not_run_again(rig: BrokerRig) -> None:
    rig.say("C", *submit(1))
    rig.say("C", Cancel([1]))

    assert sent(raises(rig, FIRST), "C") == [Ended([Outcome(1, ERROR, 10)])]


def test_others_go_on_meanwhile(rig: BrokerRig) -> None:
    rig.say("C", *submit(1, 2, 3))

    assert granted(raises(rig, FIRST)) == [FIRST + 2]


def test_a_call_of_one_attempt_is_not_run_again_whatever_its_child_says(rig: BrokerRig) -> None:
    rig.say("C", *submit(1, attempts=1))

    assert sent(raises(rig, FIRST), "C") == [Ended([Outcome(1, ERROR, 10)])]


class Durable:
    """A broker with a journal, a client and a worker."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.journal: list[Any] = []
        self.broker = Broker(EPOCH, VERSIONS, self.now, BACKOFF, journal=True)
        self.say("C", HELLO)

    def say(self, peer: str, message: Any, payload: Any = ()) -> list[Any]:
        self.broker.receive(peer, message, payload, self.now)
        return self.turn()

    def turn(self, after: float = 0.0) -> list[Any]:
        self.now += after
        actions = self.broker.advance(self.now)
        self.broker.check()
        self.journal += [pair for a in actions if isinstance(a, Append) for pair in a.records]
        return actions

    def restart(self) -> None:
        self.broker = Broker(self.broker.epoch + 1, VERSIONS, self.now, BACKOFF, journal=True)
        self.broker.restore(self.journal, self.now)
        self.broker.check()
        self.say("C", HELLO)


def test_errors_are_counted_over_restarts_and_the_wait_begins_anew() -> None:
    farm = Durable()
    farm.say("W", JOIN)
    farm.say("C", *submit(1, attempts=3))
    actions = farm.say("W", Reports([Report(FIRST, AGAIN)]), [b"error"])
    assert isinstance(actions[0], Append), "it is recorded before it is thanked for"
    (record,) = [record for record, _ in actions[0].records]
    assert record == Retried("c", 1, FIRST, record.delay_us)
    assert 500_000 <= record.delay_us <= 1_000_000
    assert not any(isinstance(m, Thanks) for m in sent(actions[:1], "W"))

    farm.restart()
    farm.say("W", Join("w2", VERSIONS, 1, "host-w", 23))
    assert not granted(farm.turn(after=0.4))
    assert len(granted(farm.turn(after=BACKOFF.restart_hold_s + 1))) == 1

    (second,) = farm.broker.workers["w2"].leases
    farm.say("W", Reports([Report(second, AGAIN)]), [b"error"])
    farm.turn(after=5.0)
    (third,) = farm.broker.workers["w2"].leases
    actions = farm.say("W", Reports([Report(third, AGAIN, 7)]), [b"error"])
    assert sent(actions, "C") == [Ended([Outcome(1, ERROR, 7, (), 2)])]


def test_what_runs_again_during_a_restart_is_taken_over() -> None:
    farm = Durable()
    farm.say("W", JOIN)
    farm.say("C", *submit(1, 2, attempts=3))
    farm.say("W", Reports([Report(FIRST, AGAIN)]), [b"error"])
    farm.turn(after=2.0)
    lease = FIRST + 2
    assert lease in farm.broker.workers["w"].leases

    farm.restart()
    farm.say("W2", Join("w", VERSIONS, 2, "host-w", 22, [Held(lease, "c", 1, True)]))
    farm.say("W2", Reports([Report(lease, AGAIN)]), [b"error"])
    assert farm.broker.clients["c"].tasks[1].tries == 2
    farm.say("C", Ask([1]))
    farm.turn(after=BACKOFF.restart_hold_s + 3)
    assert len(farm.broker.workers["w"].leases) == 2, "it is granted once more, and the other one too"
