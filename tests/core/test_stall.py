"""A journal that takes nothing for a while: what is said meanwhile, what waits, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import pytest
from msgspec import structs

from tests.core.test_durable import SETUP, V, hello, restored, submit
from zfarm.core.books import ANY_LEASE
from zfarm.core.broker import Broker
from zfarm.messages import (
    REFUSED,
    VALUE,
    Accepted,
    Append,
    Ask,
    Attach,
    Attached,
    Beat,
    Begun,
    Booked,
    Bye,
    Call,
    Cancel,
    Dropped,
    Echo,
    Ended,
    Enrolled,
    Forget,
    Forgotten,
    Grants,
    Join,
    Look,
    Outcome,
    Picture,
    Pulse,
    Reason,
    Refused,
    Report,
    Reports,
    Revoke,
    Send,
    Settled,
    Submit,
    Thanks,
    Welcome,
    Why,
)
from zfarm.settings import Settings

FULL = "the disk is full"
LIMITS = Settings(restart_hold_s=1.0)
VALUED = Outcome(1, VALUE)


class Rig:
    """A broker with a journal that can be full, a client ``c`` and a worker ``w`` of two slots."""

    def __init__(self, limits: Settings = LIMITS) -> None:
        self.broker = Broker(1, V, 0.0, limits, journal=True)
        self.journal: list[Any] = []
        self.full = False
        self.now = 0.0
        self.say("c", hello("client"))
        self.say("w", Join("worker", V, 2, "host", 2))

    def say(self, peer: str, message: Any, payload: Sequence[bytes] = ()) -> list[Any]:
        """What the broker says to anybody after this."""
        self.broker.receive(peer, message, payload, self.now)
        return self.turn()

    def turn(self, after: float = 0.0) -> list[Any]:
        self.now += after
        actions = self.broker.advance(self.now)
        self.broker.check()
        first = actions[0] if actions else None
        if isinstance(first, Append):
            if self.full:
                actions = self.broker.stall.begin(actions, FULL)
            else:
                self.journal.extend(first.records)
        assert not self.full or not any(isinstance(action, Append) for action in actions)
        return [action.message for action in actions if isinstance(action, Send)]

    def room(self) -> list[Any]:
        """There is room on the disk again."""
        self.full = False
        self.broker.stall.end()
        return self.turn()

    def recorded(self, kind: type) -> list[Any]:
        return [record for record, _ in self.journal if isinstance(record, kind)]

    def running(self) -> list[int]:
        """Two tasks run, and these are their leases; the disk is full from now on."""
        granted = [m for m in self.say("c", *submit(1, 2)) if isinstance(m, Grants)]
        self.full = True
        return [lease.lease for grants in granted for lease in grants.leases]


def only(kind: type, messages: list[Any]) -> Any:
    (found,) = [message for message in messages if isinstance(message, kind)]
    return found


def test_an_outcome_waits_for_the_disk_and_everybody_is_answered() -> None:
    rig = Rig()
    one, two = rig.running()

    assert rig.say("w", Reports([Report(one, VALUE)]), [b"one"]) == []
    assert rig.say("c", Pulse(3, 2)) == [Echo(3, 2, written=False)], (
        "of what was forgotten nothing is promised"
    )
    assert only(Picture, rig.say("m", Look())).farm.refusing == FULL
    ended, runs = (only(Reason, rig.say("c", Why(n, n))) for n in (1, 2))
    assert (ended.code, FULL in ended.text, FULL in runs.text) == ("unwritten", True, True)
    assert rig.say("w", Reports([Report(two, VALUE)]), [b"two"]) == []

    rig.turn(1.0)
    said = rig.room()
    assert [one.task for one in only(Ended, said).outcomes] == [1, 2]
    assert [record.outcome.task for record in rig.recorded(Settled)] == [1, 2]
    assert only(Thanks, rig.turn(1.0)).leases == [one, two]
    assert rig.say("c", Pulse(4, 0)) == [Echo(4, 2)]


def test_the_turn_that_was_not_taken_is_taken_later_and_what_it_said_waits() -> None:
    rig = Rig()
    rig.full = True

    said = rig.say("c", *submit(1, 2))
    assert [type(message) for message in said] == [Grants], "what is granted may begin again some day"
    said = rig.room()
    assert only(Booked, said).tasks == [1, 2]
    assert len(rig.recorded(Accepted)) == 2


def test_new_tasks_are_refused_at_once() -> None:
    rig = Rig()
    one, _ = rig.running()
    rig.say("w", Reports([Report(one, VALUE)]), [b"one"])

    refused = only(Ended, rig.say("c", *submit(7)))
    assert [(one.task, one.kind, one.deaths[0].text) for one in refused.outcomes] == [(7, REFUSED, FULL)]
    rig.room()
    assert only(Booked, rig.say("c", *submit(7))).tasks == [7]


def test_what_may_begin_once_only_is_not_granted_before_that_is_written() -> None:
    rig = Rig()
    one, _ = rig.running()
    rig.full = False
    rig.say("c", *submit(5, attempts=1))
    rig.full = True

    assert rig.say("w", Reports([Report(one, VALUE)]), [b"one"]) == []
    rig.turn(1.0)
    assert rig.say("w", Beat(rig.broker.workers["worker"].grants_number, [one, one + 1], 2)) == []
    said = rig.room()
    assert [lease.task for lease in only(Grants, said).leases] == [5]


def test_what_may_begin_once_only_waits_for_its_own_records_alone() -> None:
    rig = Rig()
    rig.full = True
    rig.say("c", *submit(5, attempts=1))
    written = rig.broker.stall.pick()
    rig.broker.stall.wrote()
    assert Begun in [type(record) for record, _ in written]
    said = rig.say("c", *submit(6, attempts=1))
    assert [lease.task for lease in only(Grants, said).leases] == [5]


def test_what_was_never_granted_is_not_lost_with_its_worker() -> None:
    rig = Rig()
    rig.full = True
    rig.say("c", *submit(5, attempts=1))
    rig.say("v", Join("other", V, 2, "host", 3))
    rig.broker.drop_worker(rig.broker.workers["worker"], "it was lost", rig.now)
    said = rig.turn() + rig.room()
    assert [lease.task for lease in only(Grants, said).leases] == [5]
    assert not any(isinstance(message, Ended) for message in said)


def test_what_was_written_in_the_turn_in_which_a_link_dies_was_not_granted() -> None:
    rig = Rig()
    rig.full = True
    rig.say("c", *submit(5, attempts=1))
    rig.broker.stall.pick()
    rig.broker.stall.wrote()
    rig.broker.gone("w", rig.now)
    rig.full = False
    said = rig.say("v", Join("other", V, 2, "host", 3))
    assert [lease.task for lease in only(Grants, said).leases] == [5]


def test_who_comes_over_another_link_while_a_grant_waits_is_granted_it_there() -> None:
    rig = Rig()
    rig.full = True
    rig.say("c", *submit(5, attempts=1))
    rig.say("v", Join("worker", V, 2, "host", 2, beat=1))
    assert not rig.broker.workers["worker"].repeated
    assert [lease.task for lease in only(Grants, rig.room()).leases] == [5]


def test_what_is_cancelled_while_its_grant_waits_is_never_granted() -> None:
    rig = Rig()
    rig.full = True
    calls = Submit([Call(1, 0, 0, 0, 1)], ["f"], 1)

    assert rig.say("c", calls, [b"function", SETUP, b"body"]) == []
    said = rig.say("c", Cancel([1], force=True))
    assert [type(message) for message in said] == [Revoke]
    said = rig.room()
    assert not any(isinstance(message, Grants) for message in said)
    assert [one.task for one in only(Ended, said).outcomes] == [1]


def test_clients_that_come_and_go_meanwhile_leave_no_record() -> None:
    rig = Rig()
    one, _ = rig.running()
    rig.say("w", Reports([Report(one, VALUE)]), [b"one"])
    waiting = len(rig.broker.records)

    for n in range(5):
        assert only(Welcome, rig.say(f"c{n}", hello(f"client{n}")))
        rig.say(f"c{n}", Bye())
    rig.say("d", hello("stays"))
    assert len(rig.broker.records) == waiting
    rig.room()
    assert [record.client for record in rig.recorded(Enrolled)] == ["client", "stays"]
    assert not rig.recorded(Dropped)


NIGHT = structs.replace(hello("job", job="night"), life="a")


def full_of_its_outcomes() -> Rig:
    """A job has an outcome that is written and one that waits, and nobody who takes them."""
    rig = Rig()
    rig.say("j", NIGHT)
    leases = [lease for m in rig.say("j", *submit(1, 2)) for lease in granted_of(m)]
    rig.say("w", Reports([Report(leases[0], VALUE)]), [bytes(5000)])
    rig.full = True
    rig.say("w", Reports([Report(leases[1], VALUE)]), [bytes(5000)])
    return rig


def test_a_job_whose_outcomes_fill_the_disk_is_taken_over_and_gives_the_room_back() -> None:
    rig = full_of_its_outcomes()
    attach = Attach("night", V, "b")
    assert rig.say("k", attach) == [], "it is not written who has the job"
    records, said = write(rig, room=9000, spare=8000)
    assert [type(record) for record in records] == [Enrolled], "the outcome has no room"
    assert said == []
    told = only(Attached, rig.say("k", attach))
    assert sorted(task.task for task in told.tasks) == [1, 2]
    rig.say("k", structs.replace(hello("job", job="night"), life="b"))
    assert [one.task for one in only(Ended, rig.say("k", Ask([1, 2]))).outcomes] == [1]
    rig.say("k", Forget([1]))
    assert [type(record) for record in write(rig, room=9000, spare=8000)[0]] == [Forgotten]
    assert [one.task for one in only(Ended, rig.room()).outcomes] == [2]
    assert restored(rig.journal).clients["job"].life == "b"


def test_a_job_is_not_taken_over_without_room_for_that() -> None:
    rig = full_of_its_outcomes()
    rig.broker.headroom.see(-rig.broker.limits.journal_floor_bytes, FULL)
    assert only(Refused, rig.say("k", Attach("night", V, "b"))).code == "FarmBusy"
    assert rig.broker.clients["job"].life == "a"
    rig.broker.headroom.see(0, FULL)
    assert rig.say("k", Attach("night", V, "c")) == []
    assert write(rig, room=4000)[0] == []
    for life in ("c", "d"):
        assert only(Refused, rig.say("k", Attach("night", V, life))).code == "FarmBusy"
    assert only(Refused, rig.say("k", Attach("day", V, "e"))).code == "FarmBusy"
    rig.room()
    assert only(Attached, rig.say("k", Attach("night", V, "d"))).job == "night"


def test_who_takes_a_job_over_in_the_turn_that_is_not_written_is_told_when_it_is() -> None:
    rig = Rig()
    rig.say("j", NIGHT)
    rig.full = True
    attach = Attach("night", V, "b")
    assert rig.say("k", attach) == []
    rig.room()
    assert only(Attached, rig.say("k", attach)).job == "night"


def test_too_much_that_waits_ends_the_granting() -> None:
    rig = Rig(Settings(journal_backlog_bytes=2000))
    rig.say("c", *submit(*range(1, 9)))
    rig.full = True
    granted: list[int] = []
    for _ in range(8):
        for lease in list(rig.broker.workers["worker"].leases):
            rig.say("w", Reports([Report(lease, VALUE, 90_000)]), [b"x" * 500])
            granted.append(lease)
    assert len(granted) < 6, "the rest waits"
    assert only(Reason, rig.say("c", Why(1, 8))).code == "journal"
    assert only(Ended, rig.room())
    assert rig.broker.workers["worker"].leases


@pytest.mark.parametrize("again", [False, True])
def test_who_dies_meanwhile_loses_nothing_that_was_told(again: bool) -> None:
    rig = Rig()
    one, _ = rig.running()
    rig.say("w", Reports([Report(one, VALUE)]), [b"one"])
    if again:
        rig.broker.stall.end()
        assert rig.turn() == [], "it is still full"
    rig.say("c", Forget([1]))

    after = restored(rig.journal)
    assert sorted(after.clients["client"].tasks) == [1, 2]
    assert not after.clients["client"].unforgotten


def settle_all(rig: Rig, count: int, size: int) -> None:
    """Run so many calls on a worker while the disk is full: each outcome has ``size`` bytes, and waits."""
    leases = [lease for m in rig.say("c", *submit(*range(1, count + 1))) for lease in granted_of(m)]
    rig.full = True
    assert len(leases) == count
    for lease in leases:
        rig.say("w", Reports([Report(lease, VALUE)]), [bytes(size)])


def granted_of(message: Any) -> list[int]:
    return [lease.lease for lease in message.leases] if isinstance(message, Grants) else []


def write(rig: Rig, room: float, spare: float = 0) -> tuple[list[Any], list[int]]:
    """What goes to a disk with so much room, and the outcomes that are said then."""
    stall = rig.broker.stall
    picked = stall.pick(room, spare)
    rig.journal.extend(picked)
    stall.wrote()
    said = [m for m in rig.turn() if isinstance(m, Ended)]
    return [record for record, _ in picked], [one.task for m in said for one in m.outcomes]


def test_a_disk_that_its_outcomes_would_fill_gets_them_bit_by_bit() -> None:
    rig = Rig()
    settle_all(rig, 2, 50_000)
    rig.say("c", Pulse(1, 0))
    cost = rig.broker.headroom.price_of(*rig.broker.records[0])

    assert write(rig, cost - 1) == ([], [])
    records, told = write(rig, 1.5 * cost)
    assert [type(record) for record in records] == [Settled]
    assert told == [records[0].outcome.task], "what is written is said, and nothing else"
    assert rig.broker.stalled

    rig.say("c", Forget(told))
    assert write(rig, cost / 2 + 10_000, cost / 2) == ([Forgotten("client", told)], []), "this frees room"
    rig.full = False
    _, rest = write(rig, 2 * cost)
    assert sorted(told + rest) == [1, 2]
    assert not rig.broker.stalled


def test_records_of_a_task_and_the_end_of_a_client_keep_their_order() -> None:
    rig = Rig()
    settle_all(rig, 2, 50_000)
    (first, _), (second, _) = rig.broker.records
    cost = rig.broker.headroom.price_of(*rig.broker.records[0])
    rig.broker.records[0] = (first, [bytes(500_000)])  # it does not fit
    rig.say("c", Forget([1, 2]))
    rig.say("c", Bye())

    picked = [record for record, _ in rig.broker.stall.pick(3 * cost)]

    assert picked == [second], "what was forgotten and who has left wait for the outcome before them"
    assert [type(record) for record, _ in rig.broker.records] == [Settled, Forgotten, Dropped]


def test_what_could_not_be_written_goes_back_to_its_place() -> None:
    rig = Rig()
    settle_all(rig, 2, 100)
    before = list(rig.broker.records)
    rig.broker.stall.put_back(rig.broker.stall.pick())
    assert rig.broker.records == before
    rig.full = False
    assert sorted(write(rig, inf)[1]) == [1, 2]


def test_what_is_recorded_in_the_turn_of_a_try_that_fails_waits_as_well() -> None:
    rig = Rig()
    one, two = rig.running()
    assert rig.say("w", Reports([Report(one, VALUE)]), [b"one"]) == []
    rig.broker.receive("w", Reports([Report(two, VALUE)]), [b"two"], rig.now)
    rig.broker.stall.put_back(rig.broker.stall.pick())

    assert rig.turn() == [], "neither is written, and neither is said"


def test_a_start_that_must_be_written_is_written_last() -> None:
    rig = Rig()
    rig.running()
    rig.broker.stall.begin([Append([(Begun("client", 2, 7), ()), (Settled("client", VALUED), [b""])])], FULL)

    picked = [record for record, _ in rig.broker.stall.pick(6000)]
    assert picked == [Settled("client", VALUED)]
    assert [record for record, _ in rig.broker.records] == [Begun("client", 2, 7)]


def test_that_a_call_may_have_begun_is_written_with_it_or_not_at_all() -> None:
    rig = Rig()
    rig.running()
    accepted = [Accepted("client", n, "f", max_attempts=1) for n in (3, 4, 5)]
    doubts = [Begun("client", n, ANY_LEASE) for n in (3, 4, 5)]
    body = [b"function", b"setup", b"body"]
    pairs: list[Any] = []
    for call, doubt in zip(accepted, doubts, strict=True):
        pairs += [(call, body), (doubt, [])]
    rig.broker.stall.begin([Append([*pairs, (Begun("client", 4, 7), ())])], FULL)
    costs = [rig.broker.headroom.price_of(*pair) for pair in pairs]

    picked = [record for record, _ in rig.broker.stall.pick(sum(costs[:5]))]
    assert picked == [accepted[0], doubts[0], accepted[1], doubts[1]], "room for the third call alone is none"
    assert [record for record, _ in rig.broker.records] == [accepted[2], doubts[2], Begun("client", 4, 7)]
