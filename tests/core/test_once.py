"""Tasks of one attempt: what may have begun is never granted again, whoever dies or is started anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import structs

from tests.core.rigs import (
    BOOKS,
    EPOCH,
    FIRST,
    HELLO,
    JOIN,
    LIMITS,
    SAID,
    VERSIONS,
    ClientRig,
    sent,
    submit,
    welcome,
)
from zfarm.core.broker import Broker
from zfarm.messages import (
    CANCELLED,
    LOST,
    VALUE,
    Accepted,
    Append,
    Ask,
    Beat,
    Began,
    Begun,
    Call,
    Cancel,
    Demand,
    Ended,
    Fate,
    Grants,
    Held,
    Join,
    Outcome,
    Report,
    Reports,
    Resolve,
    Return,
    Revoke,
    Send,
    Submit,
    Unknown,
    Welcome,
)

HOLD_S = LIMITS.restart_hold_s


class Rig:
    """A broker with one client ``C``, and what it has recorded and sent so far."""

    def __init__(self, broker: Broker, journal: Sequence[Any] = ()) -> None:
        self.now = 1000.0
        self.machine = broker
        self.journal = list(journal)
        self.sent: list[tuple[Any, Any]] = []
        self.say("C", HELLO)

    def say(self, peer: str, message: Any, payload: Sequence[Any] = ()) -> list[Any]:
        self.machine.receive(peer, message, payload, self.now)
        return self.turn()

    def turn(self, after: float = 0.0) -> list[Any]:
        self.now += after
        actions = self.machine.advance(self.now)
        self.machine.check()
        for action in actions:
            if isinstance(action, Append):
                self.journal.extend(action.records)
            elif isinstance(action, Send):
                self.sent.append((action.peer, action.message))
        return actions

    def submit(self, *tasks: int, begun: bool = False) -> list[Any]:
        message, payload = submit(*tasks, attempts=1)
        calls = [Call(task, 0, 0, 0, 1, begun=begun) for task in tasks]
        return self.say("C", Submit(calls, message.names, 1, [], 1), [bytes(blob) for blob in payload])

    def again(self, epoch: int = EPOCH + 1) -> Rig:
        """The broker was killed and started again with its journal."""
        broker = Broker(epoch, VERSIONS, 1000.0, LIMITS, journal=True)
        broker.restore(self.journal, 1000.0)
        broker.check()
        return Rig(broker, self.journal)

    def grants(self) -> list[int]:
        return [lease.lease for _, m in self.sent if isinstance(m, Grants) for lease in m.leases]

    def outcomes(self) -> list[Outcome]:
        return [outcome for _, m in self.sent if isinstance(m, Ended) for outcome in m.outcomes]

    def begun(self) -> list[Begun]:
        return [record for record, _ in self.journal if isinstance(record, Begun)]


def broker(journal: bool = True, epoch: int = EPOCH) -> Broker:
    return Broker(epoch, VERSIONS, 1000.0, LIMITS, journal=journal)


def with_worker(journal: bool = True) -> Rig:
    rig = Rig(broker(journal))
    rig.say("W", JOIN)
    return rig


def holding(lease: int, task: int = 1, started: bool = True) -> Join:
    return Join("w", VERSIONS, 2, "host-w", 22, [Held(lease, "c", task, started)])


def test_its_start_is_recorded_before_its_grant_is_sent() -> None:
    rig = with_worker()
    first, *others = rig.submit(1)

    assert [type(record) for record, _ in first.records] == [Accepted, Begun]
    assert rig.begun() == [Begun("c", 1, FIRST)]
    assert [type(action.message) for action in others if action.peer == "W"] == [Grants]


def test_a_join_that_comes_late_from_an_old_link_takes_nothing_away() -> None:
    rig = Rig(broker())
    rig.say("W1", structs.replace(JOIN, beat=1))
    rig.say("W3", structs.replace(JOIN, beat=3))
    rig.submit(1)

    assert rig.say("W2", structs.replace(JOIN, beat=2)) == []
    assert not rig.outcomes(), "it said that nothing is held, before anything was granted"
    assert rig.say("W3", Beat(SAID + 2, [FIRST], 1, beat=4)) == []


def test_a_task_of_more_attempts_costs_no_record() -> None:
    rig = with_worker()
    rig.say("C", *submit(1, attempts=2))

    assert rig.grants()
    assert not rig.begun()


def test_after_a_restart_it_is_lost_when_no_worker_came_back_with_it() -> None:
    before = with_worker()
    before.submit(1)
    after = before.again()
    after.say("V", Join("v", VERSIONS, 2, "host-v", 33))
    after.turn(after=HOLD_S - 0.1)
    assert not after.outcomes(), "its worker may still come back"

    after.turn(after=0.2)
    (outcome,) = after.outcomes()
    assert (outcome.task, outcome.kind, len(outcome.deaths)) == (1, LOST, 1)
    assert not after.grants()


def test_after_a_restart_its_worker_goes_on_with_it() -> None:
    before = with_worker()
    before.submit(1)
    after = before.again()
    after.say("W", holding(FIRST))
    after.turn(after=2 * HOLD_S)
    after.say("W", Reports([Report(FIRST, VALUE)]), [b"v"])

    assert [outcome.kind for outcome in after.outcomes()] == [VALUE]
    assert not after.grants()


def test_after_two_restarts_it_is_still_not_granted() -> None:
    before = with_worker()
    before.submit(1)
    after = before.again().again(EPOCH + 2)
    after.say("V", Join("v", VERSIONS, 2, "host-v", 33))
    after.turn(after=2 * HOLD_S)

    assert [outcome.kind for outcome in after.outcomes()] == [LOST]
    assert not after.grants()


def test_a_worker_that_comes_too_late_is_stopped() -> None:
    before = with_worker()
    before.submit(1)
    after = before.again()
    after.turn(after=HOLD_S + 0.1)
    after.say("W", holding(FIRST))

    assert (("W", Revoke([FIRST], True))) in after.sent
    assert [outcome.kind for outcome in after.outcomes()] == [LOST]


def test_what_waited_in_the_queue_is_granted_after_the_restart() -> None:
    before = Rig(broker())
    before.submit(1)
    after = before.again()
    after.say("V", Join("v", VERSIONS, 2, "host-v", 33))
    after.turn(after=HOLD_S + 1)

    assert len(after.grants()) == 1
    assert not after.outcomes()


def test_what_was_returned_has_not_begun() -> None:
    before = with_worker()
    before.submit(1)
    before.say("W", Return([FIRST], SAID + 2))
    assert before.begun() == [Begun("c", 1, FIRST), Begun("c", 1, 0), Begun("c", 1, FIRST + 1)]

    before.journal.pop()  # killed before the second lease was recorded, and so before it was granted
    after = before.again()
    after.say("V", Join("v", VERSIONS, 2, "host-v", 33))
    after.turn(after=HOLD_S + 1)
    assert len(after.grants()) == 1


def test_it_is_lost_with_its_worker() -> None:
    rig = with_worker()
    rig.submit(1)
    rig.say("V", Join("v", VERSIONS, 2, "host-v", 33))
    for _ in range(8):
        rig.turn(after=1.0)
        rig.say("V", Beat(0, [], 2))

    assert [outcome.kind for outcome in rig.outcomes()] == [LOST]
    assert rig.grants() == [FIRST]


def test_a_cancel_in_doubt_is_answered_by_the_worker_that_comes_back() -> None:
    before = with_worker()
    before.submit(1)
    after = before.again()
    after.say("C", Cancel([1]))
    assert not after.outcomes(), "nobody knows yet whether it has begun"

    after.say("W", holding(FIRST))
    assert ("W", Revoke([FIRST])) in after.sent
    after.say("W", Began([FIRST]))
    assert ("C", Began([1])) in after.sent


def test_a_forced_cancel_in_doubt_stops_it_wherever_it_is() -> None:
    before = with_worker()
    before.submit(1)
    after = before.again()
    after.say("C", Cancel([1], True))
    after.say("W", holding(FIRST))

    assert [outcome.kind for outcome in after.outcomes()] == [CANCELLED]
    assert ("W", Revoke([FIRST], True)) in after.sent


def test_what_was_stopped_at_a_worker_is_not_granted_there_again() -> None:
    """A lease that a worker has said to run, and holds no more, is repeated for others; here it is over."""
    rig = with_worker()
    rig.submit(1)
    rig.say("W", Began([FIRST]))
    rig.say("W", Beat(SAID + 2, [], 2))

    assert [outcome.kind for outcome in rig.outcomes()] == [LOST]
    assert rig.grants() == [FIRST]


def test_a_lease_that_did_not_arrive_is_repeated() -> None:
    rig = with_worker()
    rig.submit(1)
    rig.say("W", Beat(SAID + 2, [], 2))

    assert rig.grants() == [FIRST, FIRST]


# ---------------------------------------------------------------- without a journal


def test_a_client_marks_what_it_had_given_to_books_that_are_no_more() -> None:
    rig = ClientRig()
    rig.turn()
    rig.say(welcome(1, 2, books=BOOKS))
    rig.machine.submit("token", "f", b"function", b"setup", b"body", max_attempts=1)
    rig.machine.submit("other", "f", b"function", b"setup", b"body", max_attempts=2)
    rig.turn()
    rig.say(Welcome(EPOCH + 1, VERSIONS, 1, 2, books=(EPOCH + 1) << 32 | 1))
    (again,) = (m for m in sent(rig.say(Unknown([1, 2], 0))) if isinstance(m, Submit))
    assert [call.begun for call in again.calls] == [True, False]

    rig.say(Welcome(EPOCH + 1, VERSIONS, 1, 2, books=(EPOCH + 1) << 32 | 1))  # and that was lost on the way
    (again,) = (m for m in sent(rig.say(Unknown([1, 2], 1))) if isinstance(m, Submit))
    assert [call.begun for call in again.calls] == [True, False]


def test_a_client_submits_as_new_what_the_same_books_have_never_seen() -> None:
    rig = ClientRig()
    rig.turn()
    rig.say(welcome(1, 2, books=BOOKS))
    rig.machine.submit("token", "f", b"function", b"setup", b"body", max_attempts=1)
    rig.turn()
    rig.say(Welcome(EPOCH + 1, VERSIONS, 1, 2, books=BOOKS))  # a journal knows them over restarts
    (again,) = (m for m in sent(rig.say(Unknown([1], 0))) if isinstance(m, Submit))

    assert [call.begun for call in again.calls] == [False]


def test_a_cancel_in_doubt_is_not_taken_for_granted() -> None:
    rig = ClientRig()
    rig.turn()
    rig.say(welcome(1, 2, books=BOOKS))
    rig.machine.submit("token", "f", b"function", b"setup", b"body", max_attempts=1)
    rig.turn()
    rig.machine.cancel(1)
    rig.turn()
    rig.say(Welcome(EPOCH + 1, VERSIONS, 1, 2, books=BOOKS + (1 << 32)))
    actions = rig.say(Unknown([1], 0))

    assert not any(isinstance(action, Resolve) for action in actions)
    assert [type(m) for m in sent(actions)] == [Submit, Cancel]


def test_what_may_have_begun_elsewhere_waits_for_its_worker_and_is_lost_without() -> None:
    rig = Rig(broker(journal=False))
    rig.say("V", Join("v", VERSIONS, 2, "host-v", 33))
    rig.submit(1, 2, begun=True)
    rig.say("W", holding(FIRST - (1 << 32)))
    assert not rig.grants()
    assert not rig.outcomes()

    rig.turn(after=HOLD_S + 0.1)
    assert [(outcome.task, outcome.kind) for outcome in rig.outcomes()] == [(2, LOST)]
    rig.say("W", Reports([Report(FIRST - (1 << 32), VALUE)]), [b"v"])
    assert [(outcome.task, outcome.kind) for outcome in rig.outcomes()][1:] == [(1, VALUE)]
    assert not rig.grants()


def test_a_worker_that_came_back_before_its_client_goes_on_with_it() -> None:
    rig = Rig(broker(journal=False))
    lease = FIRST - (1 << 32)
    rig.say("W", holding(lease))
    rig.say("W", Reports([Report(lease, VALUE)]), [b"v"])
    rig.submit(1, begun=True)

    assert [(outcome.task, outcome.kind) for outcome in rig.outcomes()] == [(1, VALUE)]


def test_what_this_very_broker_had_given_up_is_stopped_and_not_taken_over() -> None:
    """The order to stop it may be on its way still."""
    rig = Rig(broker(journal=False))
    rig.submit(1, begun=True)
    rig.say("W", holding(FIRST))

    assert ("W", Revoke([FIRST], True)) in rig.sent
    rig.turn(after=HOLD_S + 0.1)
    assert [outcome.kind for outcome in rig.outcomes()] == [LOST]


def test_what_may_have_begun_stays_in_doubt_in_the_journal() -> None:
    before = Rig(broker())
    before.submit(1, begun=True)
    assert before.begun() == [Begun("c", 1, -1)]

    after = before.again()
    after.say("V", Join("v", VERSIONS, 2, "host-v", 33))
    after.say("C", Ask([1]))
    after.turn(after=HOLD_S + 0.1)
    assert [outcome.kind for outcome in after.outcomes()] == [LOST]
    assert not after.grants()


def test_an_exclusive_call_that_an_earlier_broker_granted_waits_though_one_run_of_it_has_ended() -> None:
    """The broker before may have granted it once more, to somebody who has not come back yet."""
    rig = with_worker()
    message, payload = submit(1)
    calls = [Call(1, 0, 0, 0, 3, demand=1)]
    rig.say("C", Submit(calls, message.names, 1, number=1, demands=[Demand(exclusive=True)]), list(payload))
    assert rig.grants() == [FIRST]

    after = rig.again()
    after.say("W", holding(FIRST))
    after.say("V", Join("v", VERSIONS, 1, "host-v", 33))
    after.say("W", Reports([Report(FIRST, LOST, fate=Fate("host-w", "w", 9, 0, "killed"))]), [b""])
    waited = 0.0
    while not after.grants():
        waited += 0.25
        assert waited < 60
        for peer in "WV":
            after.say(peer, Beat(0, [], 1))
        after.turn(after=0.25)
    assert waited >= max(HOLD_S, LIMITS.worker_lost_after_s)
