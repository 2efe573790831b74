"""A broker with a journal: what it records, when, and that a broker restored from it knows the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from zfarm.core import reception
from zfarm.core.broker import Broker
from zfarm.messages import (
    AGAIN,
    CANCELLED,
    LOST,
    VALUE,
    Append,
    Ask,
    Beat,
    Booked,
    Bye,
    Call,
    Cancel,
    Ended,
    Fate,
    Forget,
    Grants,
    Held,
    Hello,
    Join,
    Report,
    Reports,
    Revoke,
    Send,
    Setup,
    Submit,
    Versions,
)
from zfarm.settings import settings

V = Versions(1, "0", "3.11.0")
SETUP = msgspec.msgpack.encode(Setup("realm", "/", ()))


def hello(session: str, job: str = "") -> Hello:
    return Hello(session, V, "host", 1, "", job)


def submit(*numbers: int, attempts: int = 3) -> tuple[Submit, list[bytes]]:
    calls = [Call(n, 0, 0, 0, attempts) for n in numbers]
    return Submit(calls, ["f"], 1), [b"function", SETUP, *(b"body %d" % n for n in numbers)]


class Rig:
    """A broker with a journal, a client ``c`` and a worker ``w``; the time stands still unless moved."""

    def __init__(self, broker: Broker | None = None, slots: int = 2) -> None:
        self.broker = broker or Broker(1, V, 0.0, journal=True)
        self.journal: list[Any] = []
        self.sent: list[tuple[Any, Any]] = []
        self.now = 0.0
        self.say("c", hello("client"))
        if slots:
            self.say("w", Join("worker", V, slots, "host", 2))

    def say(self, peer: str, message: Any, payload: Sequence[bytes] = ()) -> list[Any]:
        """Let ``peer`` say something, and return the actions."""
        self.broker.receive(peer, message, payload, self.now)
        actions: list[Any] = self.broker.advance(self.now)
        self.broker.check()
        for action in actions:
            if isinstance(action, Append):
                self.journal.extend(action.records)
            elif isinstance(action, Send):
                self.sent.append((action.peer, action.message))
        return actions

    def leases(self) -> list[int]:
        """All leases that were granted."""
        return [lease.lease for _, m in self.sent if isinstance(m, Grants) for lease in m.leases]

    def heard(self, kind: type) -> list[Any]:
        """All messages of a kind that were sent."""
        return [m for _, m in self.sent if isinstance(m, kind)]


def restored(journal: list[Any], now: float = 0.0) -> Broker:
    broker = Broker(2, V, now, journal=True)
    broker.restore(journal, now)
    broker.check()
    return broker


def facts(broker: Broker) -> dict[Any, Any]:
    """What must be the same after a restart."""
    return {
        session: (
            client.job,
            client.books,
            (client.life, client.lives),
            {
                n: (
                    t.function.blob,
                    t.kit.setup,
                    t.items,
                    t.max_attempts,
                    t.deaths,
                    t.tries,
                    t.outcome,
                    t.blob,
                    t.body,
                    t.spent if t.outcome is None else 0,
                )
                for n, t in client.tasks.items()
            },
        )
        for session, client in broker.clients.items()
    }


def test_nothing_is_said_before_it_is_recorded() -> None:
    rig = Rig()
    actions = rig.say("c", *submit(1))

    assert isinstance(actions[0], Append)
    assert [type(action) for action in actions].count(Append) == 1
    assert rig.heard(Booked) == [Booked([1])]

    actions = rig.say("w", Reports([Report(rig.leases()[0], VALUE)]), [b"v"])
    assert isinstance(actions[0], Append)
    assert rig.heard(Ended)[0].outcomes[0].kind == VALUE


def test_a_turn_without_records_syncs_nothing() -> None:
    rig = Rig()
    rig.say("c", *submit(1))

    assert not any(isinstance(action, Append) for action in rig.say("c", Ask([1])))


def test_a_broker_without_a_journal_records_nothing() -> None:
    rig = Rig(Broker(1, V, 0.0))
    actions = rig.say("c", *submit(1))

    assert not any(isinstance(action, Append) for action in actions)
    assert not rig.heard(Booked)


def test_any_history_replays_to_the_same_books() -> None:
    for seed in range(60):
        rng = random.Random(seed)
        rig = Rig()
        number = 0
        for _ in range(60):
            what = rng.randrange(7)
            open_leases = list(rig.broker.workers["worker"].leases)
            known = list(rig.broker.clients["client"].tasks)
            if what <= 1:
                more = range(number + 1, number + 1 + rng.randint(1, 4))
                number = more[-1]
                rig.say("c", *submit(*more, attempts=rng.randint(1, 3)))
            elif what == 2 and open_leases:
                rig.say("w", Reports([Report(rng.choice(open_leases), VALUE, 5)]), [b"value"])
            elif what == 3 and open_leases:
                fate = Fate("host", "w", 9, 0, "killed")
                rig.say("w", Reports([Report(rng.choice(open_leases), LOST, 0, fate)]), [b""])
            elif what == 6 and open_leases:
                rig.say("w", Reports([Report(rng.choice(open_leases), AGAIN, 5)]), [b"error"])
                rig.now += rng.random()
            elif what == 4 and known:
                rig.say("c", Cancel([rng.choice(known)]))
            elif known:
                rig.say("c", Forget(rng.sample(known, rng.randint(1, len(known)))))

            assert facts(restored(rig.journal)) == facts(rig.broker), f"seed {seed}"


def test_what_runs_during_a_restart_is_adopted_and_not_run_again() -> None:
    before = Rig(slots=1)
    before.say("c", *submit(1, 2))
    (lease,) = before.leases()
    after = Rig(restored(before.journal), slots=0)
    after.say("w", Join("worker", V, 1, "host", 2, [Held(lease, "client", 1, True)]))
    assert not after.leases(), "what waits is held until workers had time to return"

    after.say("w", Reports([Report(lease, VALUE)]), [b"v"])
    after.now = 4.5
    after.say("c", Ask([1, 2]))

    assert {o.task for m in after.heard(Ended) for o in m.outcomes if o.kind == VALUE} == {1}
    assert len(after.leases()) == 1, "and only the task that waited is granted"


def test_what_was_cancelled_before_its_worker_came_back_is_stopped_soon_when_it_comes() -> None:
    before = Rig(slots=1)
    before.say("c", *submit(1))
    (lease,) = before.leases()
    after = Rig(restored(before.journal), slots=0)
    after.say("c", Cancel([1], force=True, grace_us=1_000_000))
    after.say("c", Forget([1]))
    comes_back(after, lease)

    assert not after.heard(Revoke), "the books cannot be certain"
    for now in range(1, 1 + int(settings.restart_hold_s)):
        after.now = float(now)
        after.say("w", Beat(0, [lease], 0))
    assert [(m.leases, m.force) for m in after.heard(Revoke)] == [([lease], True)]
    assert not after.broker.orphans.leases()


def comes_back(rig: Rig, lease: int) -> None:
    """A worker comes to this broker with that lease on the first task."""
    rig.say("w", Join("worker", V, 1, "host", 2, [Held(lease, "client", 1, True)]))


def goes_on(rig: Rig, lease: int, attempts: int) -> bool:
    """Whether it still runs when its client has asked for it again."""
    message, payload = submit(1, attempts=attempts)
    calls = [msgspec.structs.replace(message.calls[0], begun=attempts == 1)]
    rig.say("c", msgspec.structs.replace(message, calls=calls), payload)
    return not rig.heard(Revoke) and lease in rig.broker.workers["worker"].leases


def test_what_was_granted_in_the_turn_that_a_full_disk_did_not_take_goes_on() -> None:
    before = Rig(slots=1)
    written = list(before.journal)
    before.say("c", *submit(1))
    (lease,) = before.leases()
    after = Rig(restored(written), slots=0)
    comes_back(after, lease)
    assert goes_on(after, lease, attempts=3)


def test_what_was_granted_before_its_client_was_given_up_and_came_back_goes_on() -> None:
    before = Rig(slots=1)
    before.say("c", *submit(1, attempts=1))
    (lease,) = before.leases()
    before.broker.drop_client(before.broker.clients["client"], before.now)
    before.say("c", hello("client"))
    after = Rig(restored(before.journal), slots=0)
    comes_back(after, lease)
    assert goes_on(after, lease, attempts=1)


def test_a_lease_of_a_broker_with_other_books_is_kept_for_as_long_as_any() -> None:
    rig = Rig(slots=0)
    lease = 5 << 32 | 1  # later than this one
    comes_back(rig, lease)
    rig.broker.orphans.sweep(settings.client_grace_s - 1.0)
    assert rig.broker.orphans.leases() == {lease}


def test_a_job_outlives_its_client_and_a_client_that_leaves_does_not() -> None:
    rig = Rig(slots=0)
    rig.say("j", hello("other", job="night"))
    rig.say("j", *submit(1))
    rig.say("c", *submit(1))
    rig.say("j", Bye())
    rig.say("c", Bye())

    assert set(rig.broker.clients) == {"other"}
    assert set(restored(rig.journal).clients) == {"other"}


def test_a_cancelled_task_stays_cancelled() -> None:
    rig = Rig(slots=0)
    rig.say("c", *submit(1))
    rig.say("c", Cancel([1]))
    after = Rig(restored(rig.journal))
    after.now = 4.5
    after.say("c", Ask([1]))

    assert [o.kind for m in after.heard(Ended) for o in m.outcomes] == [CANCELLED]
    assert not after.leases()
    assert not after.heard(Revoke)


def late() -> Hello:
    """What the client ``c`` said first, over a link that it has given up since."""
    return msgspec.structs.replace(hello("client"), number=1)


def test_an_earlier_link_of_a_client_is_not_heard_after_a_later_one() -> None:
    rig = Rig(slots=0)
    rig.say("c again", msgspec.structs.replace(hello("client"), number=2))
    rig.say("c again", *submit(1))
    rig.say("c again", Cancel([1]))
    rig.say("c again", Forget([1]))
    sent = len(rig.sent)
    rig.say("c late", late())
    assert len(rig.sent) == sent
    rig.say("c late", *submit(1))
    assert rig.broker.tasks == 0
    rig.say("c again", *submit(2))
    assert rig.broker.tasks == 1


def test_nobody_makes_the_broker_forget_who_of_another_key_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reception, "LEFT_MAX", 3)
    rig = Rig()

    def come(peer: str, session: str, number: int, principal: str) -> None:
        rig.broker.receive(peer, Hello(session, V, "host", 1, "", number=number), (), rig.now, principal)

    come("a", "one", 2, "client:alice")
    rig.broker.receive("a", Bye(), (), rig.now, "client:alice")
    for n in range(10):
        come("m", f"m{n}", 1, "client:mallory")
        rig.broker.receive("m", Bye(), (), rig.now, "client:mallory")
    come("late", "one", 1, "client:alice")
    assert list(rig.broker.clients) == ["client"]


def test_an_earlier_link_does_not_bring_back_a_client_that_has_left() -> None:
    rig = Rig(slots=0)
    rig.say("c again", msgspec.structs.replace(hello("client"), number=2))
    rig.say("c again", Bye())
    rig.say("c late", late())
    rig.say("c late", *submit(1))
    assert not rig.broker.clients


def test_who_was_given_up_comes_back_with_its_next_hello_and_not_with_an_earlier_one() -> None:
    rig = Rig(slots=0)
    rig.say("c again", msgspec.structs.replace(hello("client"), number=2))
    for _ in range(int(rig.broker.limits.client_lost_after_s + rig.broker.limits.client_grace_s) + 2):
        rig.now += 1.0
        rig.broker.advance(rig.now)
    assert not rig.broker.clients
    rig.say("c late", late())
    assert not rig.broker.clients
    rig.say("c at last", msgspec.structs.replace(hello("client"), number=3))
    assert rig.broker.clients
