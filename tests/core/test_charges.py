"""What clients are charged with: the slots that their leases hold, however these end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.core.rigs import LIMITS, SETUP, VERSIONS, BrokerRig, WorkerRig, sent
from zfarm.core import accounts
from zfarm.messages import (
    BROKEN,
    CUT,
    LOST,
    MEMORY,
    VALUE,
    Action,
    Began,
    Bye,
    Call,
    Cancel,
    Done,
    Fate,
    Grants,
    Held,
    Hello,
    Join,
    Lease,
    Leave,
    Report,
    Reports,
    Return,
    RunCalls,
    Submit,
)

LEAST = LIMITS.charge_least_us
FATE = Fate("host-w", "host-w/22", 9, 0, "killed by SIGKILL")


class Rig(BrokerRig):
    """A client ``c`` and a worker ``W`` of two slots."""

    def __init__(self) -> None:
        super().__init__(LIMITS)
        self.met()
        self.account = self.machine.clients["c"].account
        self._next = 1

    def submit(self, calls: int, function: bytes = b"function", attempts: int = 3) -> None:
        numbers = range(self._next, self._next + calls)
        self._next += calls
        listed = [Call(number, 0, 0, 0, attempts) for number in numbers]
        self.say("C", Submit(listed, ["f"], 1, [], 1), [function, SETUP, *(b"body" for _ in numbers)])

    def leases(self) -> list[int]:
        return list(self.machine.workers["w"].leases)

    def report(self, *reports: Report) -> None:
        self.say("W", Reports(list(reports)), [b""] * len(reports))

    def paid_us(self) -> float:
        """What has been paid for leases that are over."""
        open_us = sum(
            max(task.expected_us, LEAST)
            for worker in self.machine.workers.values()
            for task in worker.leases.values()
        )
        return self.account.served_us - open_us

    def short(self, calls: int) -> None:
        """So many calls that are known to be short are leased, most of them ahead."""
        self.submit(1)
        self.report(Report(self.leases()[0], VALUE, 20))
        self.submit(calls)
        assert len(self.leases()) == calls
        self.paid_before = self.paid_us()


@pytest.mark.parametrize("kind", [LOST, CUT])
def test_a_call_that_dies_is_charged_with_the_time_it_had_its_child(kind: int) -> None:
    rig = Rig()
    rig.submit(1, attempts=1)
    rig.report(Report(rig.leases()[0], kind, fate=FATE, held_us=30_000))

    assert rig.paid_us() == 30_000


@pytest.mark.parametrize("kind", [BROKEN, MEMORY])
def test_a_call_that_never_began_or_was_killed_is_charged_too(kind: int) -> None:
    rig = Rig()
    rig.submit(1)
    rig.report(Report(rig.leases()[0], kind, fate=FATE, held_us=25_000))

    assert rig.paid_us() == 25_000


def test_each_attempt_is_charged() -> None:
    rig = Rig()
    rig.submit(1, attempts=3)
    for _ in range(3):
        rig.report(Report(rig.leases()[0], LOST, fate=FATE, held_us=10_000))

    assert not rig.leases()
    assert rig.paid_us() == 30_000


def test_a_call_that_takes_no_time_costs_what_the_farm_does_for_it() -> None:
    rig = Rig()
    rig.submit(1)
    rig.report(Report(rig.leases()[0], VALUE, 0))

    assert rig.paid_us() == LEAST


def test_the_start_of_a_child_belongs_to_the_call_that_caused_it() -> None:
    rig = Rig()
    rig.submit(1)
    rig.report(Report(rig.leases()[0], VALUE, 50, held_us=300_000))

    assert rig.paid_us() == 300_000
    assert rig.machine.clients["c"].tasks[1].function.mean_us == 50, "its run time is another thing"


def test_what_is_stopped_by_force_is_charged_with_the_time_since_it_was_granted() -> None:
    rig = Rig()
    rig.submit(1)
    rig.turn(after=0.25)
    rig.say("C", Cancel([1], force=True))

    assert rig.paid_us() == pytest.approx(250_000)


def test_a_client_that_leaves_pays_for_what_it_leaves_behind() -> None:
    rig = Rig()
    rig.say("D", Hello("d", VERSIONS, "host", 1, ""))
    account = rig.machine.clients["d"].account
    listed = [Call(1, 0, 0, 0, 3)]
    rig.say("D", Submit(listed, ["f"], 1, [], 1), [b"function", SETUP, b"body"])
    rig.turn(after=0.5)
    rig.say("D", Bye())

    assert account.served_us == pytest.approx(500_000)


def lose_the_worker(rig: Rig) -> int:
    """Its one call has begun, and nothing is heard of it any more; the lease."""
    rig.submit(1)
    rig.turn(after=0.1)
    (lease,) = rig.leases()
    rig.say("W", Began([lease]))
    for _ in range(8):
        rig.turn(after=1.0)
    return lease


def test_a_lost_worker_does_not_charge_for_its_silence() -> None:
    rig = Rig()
    lose_the_worker(rig)

    assert not rig.machine.workers
    assert rig.paid_us() == pytest.approx(100_000)


def test_a_worker_that_returns_is_not_charged_again_for_the_time_before_it_was_lost() -> None:
    rig = Rig()
    lease = lose_the_worker(rig)
    rig.say("X", Join("w", VERSIONS, 2, "host-w", 22, [Held(lease, "c", 1, True)], beat=2))
    assert rig.leases() == [lease]
    rig.say("X", Reports([Report(lease, VALUE, 8_200_000)]), [b"value"])

    assert rig.paid_us() == pytest.approx(8_200_000)


def test_a_lease_after_one_that_was_lost_is_paid_for_whole() -> None:
    rig = Rig()
    lose_the_worker(rig)
    rig.say("X", Join("x", VERSIONS, 2, "host-x", 22))
    (lease,) = rig.machine.workers["x"].leases
    rig.say("X", Reports([Report(lease, VALUE, 300_000)]), [b"value"])

    assert rig.paid_us() == pytest.approx(100_000 + 300_000)


KEY = "client:alice"


def served_us(rig: BrokerRig, key: str) -> float:
    account = rig.machine.accounts.of(key)
    assert account is not None
    return account.served_us


def test_who_leaves_with_a_debt_and_comes_back_as_another_client_still_owes_it() -> None:
    rig = BrokerRig(LIMITS).met()
    listed = [Call(1, 0, 0, 0, 3)]
    rig.machine.receive("D", Hello("d", VERSIONS, "host", 1, ""), (), rig.now, KEY)
    rig.say("D", Submit(listed, ["f"], 1, [], 1), [b"function", SETUP, b"body"])
    rig.turn(after=3.0)
    rig.say("D", Bye())
    assert rig.machine.accounts.of(KEY) is None
    rig.turn(after=1.0)
    rig.machine.receive("E", Hello("e", VERSIONS, "host", 1, ""), (), rig.now, KEY)
    back_us = served_us(rig, KEY)
    rig.say("E", Bye())
    rig.turn(after=4.0)
    rig.machine.receive("F", Hello("f", VERSIONS, "host", 1, ""), (), rig.now, KEY)

    assert back_us == pytest.approx(3_000_000)
    assert served_us(rig, KEY) == 0.0, "a debt does not last for longer than it is large"


def test_debts_of_those_who_left_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "DEBTS_MAX", 3)
    rig = BrokerRig(LIMITS).met()
    for number in range(8):
        rig.machine.receive("D", Hello("d", VERSIONS, "host", 1, ""), (), rig.now, f"client:{number}")
        account = rig.machine.accounts.of(f"client:{number}")
        assert account is not None
        account.served_us = 1e9
        rig.say("D", Bye())

    def owed_us(number: int) -> float:
        rig.machine.receive("D", Hello("its next", VERSIONS, "host", 1, ""), (), rig.now, f"client:{number}")
        return served_us(rig, f"client:{number}")

    assert [owed_us(4), owed_us(5)] == [0.0, 1e9]


def test_what_its_worker_gives_back_is_not_charged_and_what_its_client_takes_back_is() -> None:
    rig = Rig()
    rig.submit(2)
    rig.turn(after=0.2)
    _, second = rig.leases()
    rig.say("C", Cancel([2]))
    rig.say("W", Return([second], 1))
    paid = rig.paid_us()
    rig.say("W", Leave())

    assert paid == pytest.approx(200_000)
    assert rig.paid_us() == paid


def test_calls_that_wait_beside_each_other_share_the_slots_and_what_these_cost() -> None:
    rig = Rig()
    rig.short(100)
    rig.turn(after=0.01)
    rig.report(*(Report(lease, VALUE, 20) for lease in rig.leases()))

    assert rig.paid_us() - rig.paid_before == pytest.approx(2 * 10_000), "two slots for 10 ms, in all"


def test_short_calls_that_are_stopped_are_not_each_charged_for_the_whole_waiting() -> None:
    rig = Rig()
    rig.short(100)
    rig.turn(after=0.01)
    rig.say("C", Cancel(list(range(2, 102)), force=True))

    assert rig.paid_us() - rig.paid_before == pytest.approx(2 * 10_000)


def test_a_short_call_that_is_known_to_run_long_pays_for_all_of_it() -> None:
    rig = Rig()
    rig.short(100)
    rig.say("W", Began([rig.leases()[0]]))
    rig.turn(after=3.0)
    rig.say("C", Cancel([2], force=True))

    assert rig.paid_us() - rig.paid_before == pytest.approx(3_000_000)


def test_calls_that_die_take_turns_with_those_that_do_not() -> None:
    rig = Rig()
    rig.say("D", Hello("d", VERSIONS, "host", 1, ""))
    rig.submit(400, b"dies", attempts=1)
    listed = [Call(number, 0, 0, 0, 3) for number in range(1, 401)]
    rig.say("D", Submit(listed, ["f"], 1, [], 1), [b"works", SETUP, *(b"body" for _ in listed)])
    ended = {"c": 0, "d": 0}
    for _ in range(200):
        rig.turn(after=0.02)
        for lease, task in list(rig.machine.workers["w"].leases.items()):
            name = task.client.session
            ended[name] += 1
            died = Report(lease, LOST, fate=FATE, held_us=20_000)
            rig.report(died if name == "c" else Report(lease, VALUE, 20_000))

    assert 0.4 <= ended["d"] / sum(ended.values()) <= 0.6


def test_many_short_calls_do_not_wait_ahead_while_others_want_the_slots() -> None:
    rig = Rig()
    rig.say("D", Hello("d", VERSIONS, "host", 1, ""))
    rig.submit(1)
    rig.report(Report(rig.leases()[0], VALUE, 1))
    rig.submit(4000)
    alone = len(rig.leases())
    for _ in range(200):  # each of them holds a slot for 200 us, since so much has to be done for it
        rig.turn(after=0.0001)
        rig.report(Report(rig.leases()[0], VALUE, 1))
    listed = [Call(number, 0, 0, 0, 3) for number in range(1, 3)]
    rig.say("D", Submit(listed, ["f"], 1, [], 1), [b"works", SETUP, *(b"body" for _ in listed)])
    while not (
        of_d := [lease for lease, t in rig.machine.workers["w"].leases.items() if t.client.session == "d"]
    ):
        rig.turn(after=0.0001)
        rig.report(Report(rig.leases()[0], VALUE, 1))
    for lease in of_d:
        rig.turn(after=0.02)
        rig.report(Report(lease, VALUE, 20_000))

    assert alone > 500
    assert len(rig.leases()) < alone / 4


# ---------------------------------------------------------------- what the worker says


def held_us(actions: Sequence[Action]) -> dict[int, int]:
    """Of which leases the worker says that they have ended, and for how long they had their children."""
    return {
        report.lease: report.held_us
        for message in sent(actions)
        if isinstance(message, Reports)
        for report in message.reports
    }


def started(actions: Sequence[Action]) -> list[int]:
    """The children that were given calls."""
    return [action.child for action in actions if isinstance(action, RunCalls)]


def test_a_worker_says_for_how_long_a_call_had_the_child_that_died() -> None:
    rig = WorkerRig(slots=1).joined()
    (child,) = started(rig.granted(1, {11: 1}))
    rig.now += 0.4

    assert held_us(rig.died(child, 1)) == {11: pytest.approx(400_000, abs=2)}


def test_a_call_that_waited_behind_another_had_its_child_after_it() -> None:
    rig = WorkerRig(slots=1).joined()
    child, _ = started(rig.granted(1, {11: 1, 12: 2}, expected_us=100))
    rig.now += 0.4
    rig.done(child, 1)
    rig.now += 0.1

    assert held_us(rig.died(child, 2)) == {12: pytest.approx(100_000, abs=2)}


def test_what_ended_before_a_death_and_is_heard_of_with_it_does_not_shorten_it() -> None:
    rig = WorkerRig(slots=1).joined()
    (child,) = started(rig.granted(1, {10: 1}, expected_us=100))
    rig.done(child, 1)
    started(rig.granted(2, {11: 2, 12: 3}, expected_us=100))
    rig.now += 0.4
    rig.machine.child_reported(child, [Done(2, VALUE, 50)], [b"value"], rig.now)

    assert held_us(rig.died(child, 3))[12] == pytest.approx(400_000 - 50, abs=2)


def test_the_first_call_of_a_child_had_it_from_its_start() -> None:
    rig = WorkerRig(slots=1).joined()
    (child,) = started(rig.granted(1, {11: 1}))
    rig.now += 0.3
    first = held_us(rig.done(child, 1))
    assert started(rig.granted(2, {12: 2})) == [child]
    rig.now += 0.3

    assert first == {11: pytest.approx(300_000, abs=2)}
    assert held_us(rig.done(child, 2)) == {12: 0}


def test_an_initializer_that_dies_again_and_again_is_charged_each_time() -> None:
    rig = WorkerRig(slots=1).joined()
    (child,) = started(rig.granted(1, {11: 1}))
    said: dict[int, int] = {}
    for _ in range(LIMITS.initializer_deaths_max):
        rig.now += 0.2
        rig.machine.child_died(child, 0, 9, 0, "killed by SIGKILL", rig.now)
        actions = rig.turn()
        said |= held_us(actions)
        child = next(iter(started(actions)), 0)

    assert said == {11: pytest.approx(LIMITS.initializer_deaths_max * 200_000, abs=5)}


def test_a_call_that_is_stopped_at_its_timeout_had_its_child_for_longer() -> None:
    rig = WorkerRig(slots=1).joined()
    lease = Lease(11, 0, 1, 0, 0, 0, 0, timeout_us=200_000)
    actions = rig.say(Grants(1, [lease], ["c"], 1, 1, beat=1), [b"function", SETUP, b"body"])
    (child,) = started(actions)
    rig.now += 0.1  # until it starts
    rig.machine.child_starts(child, 1, rig.now)
    rig.turn()

    assert held_us(rig.turn(after=0.2)) == {11: pytest.approx(300_000, abs=2)}
