"""Functions that travel once: to a broker, to a worker and to a child, and again to whoever lacks them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.rigs import SETUP, VERSIONS, BrokerRig, ClientRig, WorkerRig, sent, welcome
from zfarm.core.feeding import _named
from zfarm.core.kids import Kid
from zfarm.core.named import Bodies, digest_of
from zfarm.messages import (
    BROKER,
    VALUE,
    Blob,
    Call,
    Forget,
    Grants,
    Hello,
    Join,
    Lease,
    Named,
    Refused,
    Report,
    Reports,
    Return,
    RunCalls,
    Send,
    Stranger,
    Submit,
    Unknown,
)
from zfarm.settings import Settings


def named(body: bytes) -> Named:
    known = Named(body)
    known.digest = digest_of(body)
    return known


LARGE = named(b"function " * 1000)
OTHER = named(b"another " * 1000)


def payloads(actions: Any, kind: type) -> list[list[Blob]]:
    return [list(one.payload) for one in actions if isinstance(one, Send) and type(one.message) is kind]


# ---------------------------------------------------------------- the client


def ask(rig: ClientRig, function: bytes = LARGE) -> Any:
    rig.machine.submit("token", "f", function, SETUP, b"body")
    return rig.turn()


def test_a_client_sends_a_large_function_once_over_a_link() -> None:
    rig = ClientRig().connected()

    first, again = ask(rig), ask(rig)

    assert payloads(first, Submit) == [[LARGE, SETUP, b"body"]]
    assert payloads(again, Submit) == [[b"", SETUP, b"body"]]
    assert [message.digests for message in sent(again)] == [[LARGE.digest]]
    assert sent(ask(rig, b"small"))[0].digests == []


def test_a_client_sends_it_again_over_a_new_link() -> None:
    rig = ClientRig().connected()
    ask(rig)
    rig.say(Stranger())
    rig.say(welcome(1, 2))

    assert payloads(ask(rig), Submit) == [[LARGE, SETUP, b"body"]]


def test_a_client_sends_it_again_to_who_lacks_it() -> None:
    rig = ClientRig().connected()
    ask(rig)
    ask(rig)

    assert payloads(rig.say(Unknown([2], 2, [LARGE.digest])), Submit) == [[LARGE, SETUP, b"body"]]


def test_what_is_on_its_way_is_not_sent_again() -> None:
    rig = ClientRig().connected()
    for _ in range(3):
        ask(rig)
    rig.say(Unknown([2], 2, [LARGE.digest]))  # it goes with the fourth

    assert payloads(rig.say(Unknown([3], 3, [LARGE.digest])), Submit) == [[b"", SETUP, b"body"]]


def test_calls_of_one_message_share_it_under_different_names() -> None:
    rig = ClientRig().connected()
    rig.machine.submit(1, "f", LARGE, SETUP, b"one")
    rig.machine.submit(2, "g", LARGE, SETUP, b"two")

    assert payloads(rig.turn(), Submit) == [[LARGE, b"", SETUP, b"one", b"two"]]


# ---------------------------------------------------------------- the broker


def submit(task: int, function: bytes, digest: bytes = b"", number: int = 1, name: str = "f") -> Any:
    digests = [digest or getattr(function, "digest", LARGE.digest)]
    return Submit([Call(task, 0, 0)], [name], 1, [], number, [], [], digests), [function, SETUP, b"body"]


def test_a_broker_knows_a_function_by_its_name_and_after_its_last_task() -> None:
    rig = BrokerRig().met()
    (grants,) = sent(rig.say("C", *submit(1, LARGE)), "W")
    rig.say("W", Reports([Report(grants.leases[0].lease, VALUE, 50)]), [b"v"])
    rig.say("C", Forget([1]))

    again = rig.say("C", *submit(2, b"", number=2))

    assert payloads(again, Grants) == [[b"", SETUP, b"body"]], "and so does its worker"
    assert [m.digests for m in sent(again, "W") if isinstance(m, Grants)] == [[LARGE.digest]]
    assert rig.machine.clients["c"].tasks[2].function.blob == LARGE


def test_a_broker_says_what_it_lacks_and_takes_no_such_call() -> None:
    rig = BrokerRig().met()

    assert sent(rig.say("C", *submit(1, b"")), "C") == [Unknown([1], 1, [LARGE.digest])]
    assert not rig.machine.clients["c"].tasks
    rig.say("C", *submit(1, LARGE, number=2))
    assert rig.machine.clients["c"].tasks[1].function.blob == LARGE


def test_nobody_names_what_another_client_has_sent() -> None:
    rig = BrokerRig().met()
    rig.say("C", *submit(1, LARGE))
    rig.say("D", Hello("d", VERSIONS))

    assert sent(rig.say("D", *submit(1, b"")), "D") == [Unknown([1], 1, [LARGE.digest])]


def test_who_lies_about_a_name_is_refused() -> None:
    rig = BrokerRig().met()

    (refused,) = sent(rig.say("C", *submit(1, OTHER, LARGE.digest)), "C")

    assert isinstance(refused, Refused)
    assert refused.code == "ProtocolError"
    assert not rig.machine.clients["c"].tasks


def test_a_named_function_counts_once_and_goes_when_room_is_needed() -> None:
    limits = Settings(client_bytes_max=len(LARGE) + 500)
    rig = BrokerRig(limits).met()
    (grants,) = sent(rig.say("C", *submit(1, LARGE)), "W")
    rig.say("C", *submit(2, b"", number=2))
    size = len(LARGE) + len(SETUP)
    assert rig.machine.accounts.bytes == size + 8
    for message in (grants, None):
        lease = message.leases[0].lease if message else grants.leases[0].lease + 1
        rig.say("W", Reports([Report(lease, VALUE, 50)]), [b""])
    rig.say("C", Forget([1, 2]))
    assert rig.machine.accounts.bytes == len(LARGE), "it may be named again"

    rig.say("C", *submit(3, OTHER, number=3))

    assert list(rig.machine.clients["c"].names) == [OTHER.digest]
    assert set(rig.machine.clients["c"].tasks) == {3}
    assert rig.machine.accounts.bytes == len(OTHER) + len(SETUP) + 4


def test_a_broker_keeps_what_was_named_last() -> None:
    rig = BrokerRig(Settings(named_kept_bytes=len(LARGE) + 1)).met()
    rig.say("C", *submit(1, LARGE))
    rig.say("C", *submit(2, OTHER, number=2))

    assert list(rig.machine.clients["c"].names) == [OTHER.digest]
    assert rig.machine.clients["c"].tasks[1].function.blob == LARGE, "a task keeps what it needs"


def test_a_worker_is_sent_a_function_again_when_it_lacks_it() -> None:
    rig = BrokerRig().met()
    rig.say("C", *submit(1, LARGE))
    (grants,) = sent(rig.say("C", *submit(2, b"", number=2)), "W")

    again = rig.say("W", Return([grants.leases[0].lease], grants.number, [LARGE.digest]))

    assert payloads(again, Grants) == [[LARGE, SETUP, b"body"]]


def test_a_worker_is_sent_it_again_over_a_new_link() -> None:
    rig = BrokerRig().met()
    (grants,) = sent(rig.say("C", *submit(1, LARGE)), "W")
    assert grants.digests == [LARGE.digest]

    again = rig.say("W2", Join("w", VERSIONS, 2, "host-w", 22, beat=2))

    assert payloads(again, Grants) == [[LARGE, SETUP, b"body"]]


# ---------------------------------------------------------------- the worker


def grant(rig: WorkerRig, number: int, function: bytes, digest: bytes = LARGE.digest) -> Any:
    grants = Grants(number, [Lease(number, 0, number, 0, 0)], ["c"], 1, 1, digests=[digest])
    return rig.say(grants, [function, SETUP, b"body"])


def test_a_child_is_given_a_function_once() -> None:
    rig = WorkerRig(1).joined()
    (first,) = grant(rig, 1, LARGE)
    rig.done(1, 1)

    (again,) = grant(rig, 2, b"")

    assert isinstance(first, RunCalls)
    assert first.payload == [LARGE, SETUP, b"body"]
    assert isinstance(again, RunCalls)
    assert again.payload == [b"", b"body"]
    assert again.run.digests == [LARGE.digest]


def test_a_worker_returns_what_names_a_function_that_it_lacks() -> None:
    rig = WorkerRig().joined()

    assert grant(rig, 1, b"") == [Send(BROKER, Return([1], 1, [LARGE.digest]))]
    (run,) = grant(rig, 2, LARGE)
    assert isinstance(run, RunCalls)
    assert run.payload[0] == LARGE


def test_bodies_are_bounded_and_the_last_one_stays() -> None:
    bodies = Bodies(10)
    for body in (b"four", b"five5", b"more than ten bytes"):
        assert bodies.take(digest_of(body), body) == body
        bodies.check()

    assert bodies.take(digest_of(b"four"), b"") is None
    assert bodies.take(digest_of(b"more than ten bytes"), b"") == b"more than ten bytes"
    assert bodies.bytes == len(b"more than ten bytes")


@pytest.mark.parametrize("most", [len(LARGE), 100])
def test_a_child_drops_what_is_too_much(most: int) -> None:
    kid = Kid(1)
    carried, digests, drops = _named(kid, [LARGE, b"small"], most)
    assert carried == [LARGE, b"small"]
    assert drops == []
    if most < len(LARGE):
        assert digests == [b"", b""], "what a child cannot keep has no name there"
        return
    assert digests == [LARGE.digest, b""]
    assert _named(kid, [OTHER], most) == ([OTHER], [OTHER.digest], [LARGE.digest])
    assert _named(kid, [LARGE], most)[0] == [LARGE]


def test_what_a_message_names_goes_after_it_and_is_sent_once() -> None:
    kid, most = Kid(1), len(LARGE)
    assert _named(kid, [LARGE], most)[0] == [LARGE]
    carried, _, drops = _named(kid, [OTHER, LARGE], most)
    assert carried == [OTHER, b""], "the child still has the second one while it reads this"
    assert drops == [OTHER.digest]
    assert _named(kid, [LARGE], most) == ([b""], [LARGE.digest], [])
