"""Exclusive calls: when a worker without a broker stops them, and when a broker grants them again."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from tests.core.test_durable import SETUP, V
from zfarm.core.broker import Broker
from zfarm.core.greeting import LOCAL
from zfarm.core.owners import expel
from zfarm.core.tether import SHARE
from zfarm.core.worker import Worker
from zfarm.messages import (
    CUT,
    VALUE,
    Accepted,
    Action,
    Append,
    Beat,
    Call,
    Demand,
    Done,
    DoomChild,
    Enrolled,
    Fate,
    Grants,
    Hello,
    Join,
    Lease,
    Left,
    Message,
    Noted,
    Report,
    Reports,
    Return,
    RunCalls,
    Send,
    StopChild,
    Submit,
    Welcome,
)
from zfarm.settings import settings

DOOMED = Left(doomed=True)
SILENCE_S = 4.0


class Rig:
    """A worker with one slot that beats once a second."""

    def __init__(self, slots: int = 1) -> None:
        self.worker = Worker("worker", V, slots, "host", 2, 0.0)
        self.now = 0.0
        self.actions: list[Action] = []
        self.turn()
        (join,) = self.sent(Join)
        assert isinstance(join, Join)
        self.hear(Welcome(1, V, silence_us=int(SILENCE_S * 1e6)))
        self.grants = 0
        self.beat = self.last_beat()

    def turn(self, at: float | None = None) -> None:
        self.now = self.now if at is None else at
        self.actions = self.worker.advance(self.now)
        self.worker.check()

    def hear(self, message: Message, payload: tuple[bytes, ...] = ()) -> None:
        self.worker.receive("broker", message, payload, self.now)
        self.turn()

    def grant(self, *leases: int, exclusive: bool = True, memory_bytes: int = 0) -> None:
        self.grants += 1
        given = [Lease(n, 0, n, 0, 0, 0, 10, demand=1, memory_bytes=memory_bytes) for n in leases]
        demands = [Demand(exclusive=exclusive)]
        grants = Grants(self.grants, given, ["owner"], 1, 1, demands, beat=self.beat)
        self.hear(grants, (b"function", SETUP, *(b"body" for _ in leases)))

    def sent(self, kind: type[Message]) -> list[Message]:
        return [a.message for a in self.actions if isinstance(a, Send) and isinstance(a.message, kind)]

    def last_beat(self) -> int:
        (beat,) = self.sent(Beat)
        assert isinstance(beat, Beat)
        return beat.beat

    def running(self) -> int:
        (run,) = [action for action in self.actions if isinstance(action, RunCalls)]
        return run.child

    def killed(self) -> list[int]:
        return [a.child for a in self.actions if isinstance(a, StopChild) and a.kill]

    def dooms(self) -> list[tuple[int, float | None]]:
        return [(a.child, a.at) for a in self.actions if isinstance(a, DoomChild)]

    def reported(self) -> list[tuple[int, int]]:
        return [(r.lease, r.kind) for m in self.sent(Reports) if isinstance(m, Reports) for r in m.reports]


def test_without_an_answer_exclusive_calls_are_stopped_in_time_and_told() -> None:
    rig = Rig()
    rig.grant(7)
    child = rig.running()
    assert rig.dooms() == [(child, SILENCE_S * SHARE)], "its nursery knows it, should the worker be stopped"
    rig.turn(SILENCE_S * SHARE - 0.01)
    assert not rig.killed()

    rig.turn(SILENCE_S * SHARE)
    assert rig.killed() == [child]
    assert rig.reported() == [(7, CUT)]
    assert rig.worker.tether.deadline == inf


def test_the_time_counts_from_when_the_answered_beat_was_sent() -> None:
    rig = Rig()
    rig.grant(7)
    child = rig.running()
    rig.turn(1.0)
    answered = rig.last_beat()
    rig.turn(2.0)
    assert rig.last_beat() > answered

    rig.now = 2.9
    rig.hear(Noted(answered))
    assert rig.worker.tether.deadline == 1.0 + SILENCE_S * SHARE
    assert rig.dooms() == [(child, 1.0 + SILENCE_S * SHARE)]
    rig.hear(Noted(answered - 1))
    assert rig.worker.tether.deadline == 1.0 + SILENCE_S * SHARE, "an older answer takes nothing back"


def test_a_new_welcome_alone_puts_nothing_off() -> None:
    rig = Rig()
    rig.grant(7)
    rig.now = 2.5
    rig.hear(Welcome(2, V, silence_us=int(SILENCE_S * 1e6)))
    assert rig.worker.tether.deadline == SILENCE_S * SHARE, "what it was to stop may have been lost"

    rig.hear(Noted(rig.last_beat()))
    assert rig.worker.tether.deadline == 2.5 + SILENCE_S * SHARE


def test_what_waits_for_a_child_is_given_back_and_what_is_granted_late_never_starts() -> None:
    rig = Rig()
    rig.grant(7, 8)
    rig.turn(SILENCE_S * SHARE)
    assert [m.leases for m in rig.sent(Return) if isinstance(m, Return)] == [[8]]

    rig.grant(9)
    assert not [action for action in rig.actions if isinstance(action, RunCalls)]
    assert [m.leases for m in rig.sent(Return) if isinstance(m, Return)] == [[9]]


@pytest.mark.parametrize("exclusive", [False, True])
def test_other_calls_and_those_that_have_ended_are_left_alone(exclusive: bool) -> None:
    rig = Rig()
    rig.grant(7, exclusive=exclusive)
    child = rig.running()
    if exclusive:
        rig.worker.child_reported(child, [Done(1, VALUE, 5)], [b"v"], rig.now)
        rig.turn()
        assert rig.dooms() == [(child, None)]
    rig.turn(3600.0)
    assert not rig.killed()
    assert rig.worker.tether.deadline == inf


def test_a_child_that_its_nursery_has_killed_is_told_as_cut_off_and_not_as_dead() -> None:
    rig = Rig()
    rig.grant(7)
    child = rig.running()
    rig.now = 60.0
    rig.worker.child_died(child, 1, 9, 0, "killed by signal 9", rig.now, DOOMED)
    rig.turn()
    assert rig.reported() == [(7, CUT)]


def test_what_its_nursery_has_killed_in_time_was_cut_off_whatever_was_heard_since() -> None:
    rig = Rig()
    rig.grant(7)
    child = rig.running()
    rig.turn(1.0)
    answered = rig.last_beat()
    rig.now = SILENCE_S * SHARE
    rig.worker.receive("broker", Noted(answered), (), rig.now)
    rig.turn()
    assert rig.dooms()[-1] == (child, 1.0 + SILENCE_S * SHARE), "which comes too late"
    rig.worker.child_died(child, 1, 9, 0, "killed by signal 9", rig.now, DOOMED)
    rig.turn()
    assert rig.reported() == [(7, CUT)]


def test_a_call_with_a_memory_limit_that_its_nursery_has_killed_was_cut_off_whatever_it_had_written() -> None:
    rig = Rig()
    rig.grant(7, memory_bytes=1 << 30)
    child = rig.running()
    words = Left(stderr="MemoryError, and another way was found", starved=True, doomed=True)
    rig.worker.child_died(child, 1, 9, 0, "killed by signal 9", rig.now, words)
    rig.turn()
    assert rig.reported() == [(7, CUT)]
    (reports,) = rig.sent(Reports)
    assert isinstance(reports, Reports)
    (report,) = reports.reports
    assert report.fate is not None
    assert "memory" not in report.fate.text


def test_what_had_ended_before_its_worker_woke_up_is_reported_though_another_child_died_before() -> None:
    rig = Rig(slots=2)
    rig.grant(8, exclusive=False)
    first = rig.running()
    rig.grant(9)
    second = rig.running()
    rig.now = 60.0
    rig.worker.child_died(first, 1, 11, 0, "killed by signal 11", rig.now)
    rig.worker.child_reported(second, [Done(1, VALUE, 5)], [b"v"], rig.now)
    rig.worker.child_died(second, 1, 9, 0, "killed by signal 9", rig.now, DOOMED)
    rig.turn()
    assert (9, VALUE) in rig.reported()
    assert CUT not in [kind for _, kind in rig.reported()]


def test_in_one_process_with_its_broker_nothing_is_stopped() -> None:
    rig = Rig()
    rig.worker.tether.needless = True
    rig.grant(7)
    rig.turn(3600.0)
    assert not rig.killed()
    assert not rig.dooms()


def test_only_beats_of_those_that_hold_exclusive_calls_want_an_answer() -> None:
    rig = Rig()
    rig.grant(7)
    rig.turn(1.0)
    (beat,) = rig.sent(Beat)
    assert isinstance(beat, Beat)
    assert beat.answer

    idle = Rig()
    idle.turn(1.0)
    (beat,) = idle.sent(Beat)
    assert isinstance(beat, Beat)
    assert not beat.answer


@pytest.mark.parametrize("silence_s", [2.5, SILENCE_S])
def test_an_exclusive_call_that_crosses_a_beat_asks_for_an_answer_if_the_next_one_is_late(
    silence_s: float,
) -> None:
    rig = Rig()
    rig.hear(Welcome(2, V, silence_us=int(silence_s * 1e6)))
    rig.beat = rig.last_beat()
    rig.turn(1.0)
    (crossed,) = rig.sent(Beat)
    assert isinstance(crossed, Beat)
    assert not crossed.answer

    rig.now = 1.01
    rig.grant(7)  # by a broker that has not heard that beat
    assert rig.worker.tether.deadline == silence_s * SHARE
    asked = rig.sent(Beat)
    if silence_s == SILENCE_S:
        assert not asked, "there is time until the next one is answered"
        return
    (beat,) = asked
    assert isinstance(beat, Beat)
    assert beat.answer
    rig.hear(Noted(beat.beat))
    assert rig.worker.tether.deadline == 1.01 + silence_s * SHARE

    rig.beat = beat.beat
    rig.grant(8)
    assert not rig.sent(Beat), "it has heard all"


# ---------------------------------------------------------------- the broker


class Farm:
    """A broker with one client and two workers of one slot."""

    def __init__(self, epoch: int = 1, principal: str = LOCAL, records: Any = ()) -> None:
        self.broker = Broker(epoch, V, 0.0, journal=True)
        self.broker.restore(records, 0.0)
        self.journal: list[Any] = list(records)
        self.now = 0.0
        self.welcomes = [
            m for n in "12" for m in self.say(n, Join(f"w{n}", V, 1, "h", 2, beat=3), who=principal)
        ]
        self.say("c", Hello("c", V))

    def say(self, peer: str, message: Message, payload: Any = (), who: str = LOCAL) -> list[Any]:
        self.broker.receive(peer, message, payload, self.now, who)
        return self.turn()

    def turn(self, at: float | None = None) -> list[Any]:
        self.now = self.now if at is None else at
        actions = self.broker.advance(self.now)
        self.broker.check()
        for action in actions:
            if isinstance(action, Append):
                self.journal.extend(action.records)
        return [action.message for action in actions if isinstance(action, Send)]

    def submit(self, begun: bool = False) -> list[Lease]:
        call = Call(1, 0, 0, 0, 2, demand=1, begun=begun)
        message = Submit([call], ["f"], 1, number=1, demands=[Demand(exclusive=True)])
        return granted(self.say("c", message, [b"function", SETUP, b"body"]))


def granted(said: list[Any]) -> list[Lease]:
    return [lease for m in said if isinstance(m, Grants) for lease in m.leases]


def test_the_broker_says_how_long_a_worker_may_be_silent_and_answers_its_beats() -> None:
    farm = Farm()
    (welcome, *_) = [m for m in farm.welcomes if isinstance(m, Welcome)]
    assert welcome.silence_us == settings.worker_lost_after_s * 1e6
    assert len(farm.submit()) == 1
    assert farm.say("1", Beat(0, [], 1, beat=4)) == []
    assert Noted(5) in farm.say("1", Beat(0, [], 1, beat=5, answer=True))


def test_what_was_cut_off_runs_again_and_nothing_is_wrong_with_its_worker() -> None:
    farm = Farm()
    (lease,) = farm.submit()
    (holder,) = [worker for worker in farm.broker.workers.values() if worker.leases]
    assert isinstance(holder.peer, str)
    (again,) = granted(farm.say(holder.peer, Reports([Report(lease.lease, CUT, fate=Fate("h", "w"))]), [b""]))
    assert again.lease != lease.lease
    assert not holder.suspects
    assert not holder.deaths


def test_a_broker_that_was_started_anew_waits_until_whoever_has_it_must_have_stopped_it() -> None:
    before = Farm()
    before.submit()
    kept = [one for one in before.journal if isinstance(one[0], Enrolled | Accepted)]
    after = Farm(2, records=kept)
    least = settings.worker_lost_after_s
    assert least > settings.restart_hold_s
    assert not granted(after.turn(least - 0.1))
    for peer in "12":
        after.say(peer, Beat(0, [], 1))
    assert len(granted(after.turn(least + 0.1))) == 1


def test_what_may_have_begun_elsewhere_waits_and_is_not_lost() -> None:
    farm = Farm()
    assert not farm.submit(begun=True)
    assert len(granted(farm.turn(settings.worker_lost_after_s))) == 1


def test_the_exclusive_calls_of_a_revoked_worker_wait_until_it_must_have_stopped_them() -> None:
    farm = Farm(principal="worker:w:1")
    farm.submit()
    expel(farm.broker, {LOCAL}, farm.now)
    assert not granted(farm.turn())
    farm.say("3", Join("w3", V, 1, "h", 2))
    assert len(granted(farm.turn(settings.worker_lost_after_s))) == 1
