"""Where what clients say waits: who is heard at once, and who in his turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.core.rigs import EPOCH, LIMITS, SETUP, START, VERSIONS
from zfarm.core.broker import Broker
from zfarm.core.foyer import AT_ONCE, CALL_US, MESSAGE_US, TASK_US, Foyer, price_us
from zfarm.messages import Ask, Bye, Call, Cancel, Forget, Hello, Message, Payload, Pulse, Submit

KEYS = {"A": "client:alice", "B": "client:bob", "M": "client:mallory", "N": "client:mallory"}
LARGE = 2000


def submit(first: int, calls: int) -> tuple[Submit, list[bytes]]:
    listed = [Call(number, 0, 0, 0, 3) for number in range(first, first + calls)]
    return Submit(listed, ["f"], 1, [], 1), [b"function", SETUP, *(b"%d" % call.task for call in listed)]


class Rig:
    """A broker that four clients want, two of them with one key, and what it has heard of each."""

    def __init__(self) -> None:
        self.now = START
        self.machine = Broker(EPOCH, VERSIONS, self.now, LIMITS)
        self.foyer: Foyer = self.machine.foyer
        self.heard: list[tuple[str, Message | None, Payload]] = []
        self.number = 0
        for peer, key in KEYS.items():
            self.machine.receive(peer, Hello(peer.lower(), VERSIONS, "host", 1, ""), (), self.now, key)
        self.machine.accounts.contended_until = self.now + 1000.0
        self.machine.advance(self.now)

    def say(self, peer: str, message: Message, payload: Payload = ()) -> None:
        def hear(message: Message | None, payload: Payload, now: float) -> None:
            assert now == self.now
            self.heard.append((peer, message, payload))
            if message is not None:
                self.machine.receive(peer, message, payload, now, KEYS[peer])

        self.foyer.receive(peer, message, payload, self.now, hear)

    def flood(self, peer: str, calls: int = LARGE) -> None:
        self.say(peer, *submit(self.number + 1, calls))
        self.number += calls

    def turn(self, took_s: float = 0.0, call_s: float = 0.0) -> Counter[str]:
        """A turn that takes so long, or so long for each call; those that were heard in it, by peer."""
        before = len(self.heard)
        self.machine.advance(self.now)
        self.machine.check()
        heard = self.calls(before)
        took_s += call_s * heard.total()
        self.foyer.turned(self.now, took_s)
        self.now += took_s
        return heard

    def calls(self, since: int = 0) -> Counter[str]:
        calls: Counter[str] = Counter()
        for peer, message, _ in self.heard[since:]:
            if isinstance(message, Submit):
                calls[peer] += len(message.calls)
        return calls


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.foyer.check()


def test_who_is_alone_is_heard_at_once_however_much_it_says(rig: Rig) -> None:
    rig.machine.accounts.contended_until = rig.now
    for _ in range(100):
        rig.flood("M")

    assert rig.calls() == {"M": 100 * LARGE}


def test_beside_others_one_turn_hears_no_more_than_it_has_time_for(rig: Rig) -> None:
    for _ in range(10):
        rig.flood("M")
    heard = rig.turn()

    assert 0 < heard["M"] * CALL_US <= LIMITS.turn_us * (1 + 1 / AT_ONCE)
    assert "M" in rig.foyer


def test_who_says_little_does_not_wait_behind_who_says_much(rig: Rig) -> None:
    rig.flood("M", 20_000)
    rig.turn()
    rig.say("A", *submit(1, 1))

    assert rig.heard[-1][0] == "A"


def test_after_a_full_turn_the_rest_waits_for_as_long_again(rig: Rig) -> None:
    rig.flood("M", 20_000)
    rig.turn(took_s=0.008)

    assert not rig.turn()
    assert rig.machine.deadline == pytest.approx(rig.now + 0.008)
    rig.now += 0.007
    assert not rig.turn()
    rig.now += 0.002
    assert rig.turn()


def test_turns_that_take_longer_than_what_is_said_is_worth_hear_less(rig: Rig) -> None:
    rig.flood("M", 200_000)
    heard = 0
    for _ in range(60):
        heard = rig.turn(call_s=4e-6 * CALL_US)["M"]
        rig.now += 1.0

    assert heard * CALL_US * 4 == pytest.approx(LIMITS.turn_us, rel=0.3)


def test_those_who_wait_are_heard_alike_and_clients_of_one_key_as_one(rig: Rig) -> None:
    for peer in ("M", "N", "B"):
        rig.flood(peer, 20_000)
    for _ in range(30):
        rig.turn(call_s=1e-6 * CALL_US)
        rig.now += 1.0
    heard = rig.calls()

    assert heard["B"] == pytest.approx(heard["M"] + heard["N"], rel=0.1)
    assert heard["M"] == pytest.approx(heard["N"], rel=0.1)


def test_what_was_said_at_once_counts_too(rig: Rig) -> None:
    said = 0
    while "B" not in rig.foyer:
        rig.flood("B", 10)
        said += 1
        assert said < 20, "it says much, and never waits"


def test_a_submit_of_many_calls_is_heard_in_parts_that_are_the_whole(rig: Rig) -> None:
    message, payload = submit(1, LARGE)
    rig.foyer.receive("M", Pulse(1, 0), (), rig.now, lambda *_: None)
    rig.say("M", Submit(message.calls, ["f"], 1, [7, 8], 5, [], [], [b"name"]), payload)
    while "M" in rig.foyer:
        rig.turn()
    parts = [(one, blobs) for _, one, blobs in rig.heard if isinstance(one, Submit)]

    assert len(parts) > 5
    assert [call.task for one, _ in parts for call in one.calls] == list(range(1, LARGE + 1))
    assert [bytes(blob) for _, blobs in parts for blob in blobs[2:]] == [bytes(b) for b in payload[2:]]
    assert [one.forgets for one, _ in parts] == [[7, 8], *([] for _ in parts[1:])]
    assert [blobs[0] for _, blobs in parts] == [b"function", *(b"" for _ in parts[1:])], "it has a name"
    assert {bytes(blobs[1]) for _, blobs in parts} == {SETUP}
    assert {one.number for one, _ in parts} == {5}


def test_nothing_overtakes_what_its_peer_has_said_before(rig: Rig) -> None:
    rig.flood("M", 5000)
    rig.say("M", Cancel([1, 2]))
    rig.flood("M", 10)
    rig.foyer.gone("M", rig.now, lambda *_: rig.heard.append(("M", None, ())))
    rig.foyer.gone("M", rig.now, lambda *_: rig.heard.append(("M", None, ())))
    while "M" in rig.foyer:
        rig.turn()
    kinds = [type(message) for _, message, _ in rig.heard]

    assert kinds[-3:] == [Cancel, Submit, type(None)]
    assert kinds.count(type(None)) == 1


def test_the_end_of_a_link_of_which_nothing_waits_is_heard_at_once(rig: Rig) -> None:
    ended: list[float] = []
    rig.foyer.gone("A", rig.now, lambda _message, _payload, now: ended.append(now))

    assert ended == [rig.now]


def test_who_waits_is_not_taken_for_silent(rig: Rig) -> None:
    rig.flood("M", 20_000)
    rig.now += 5.0
    rig.say("M", Pulse(1, 0))

    assert rig.machine.clients["client:mallory/m"].heard_at == rig.now


def test_who_lost_its_key_is_not_heard_any_more(rig: Rig) -> None:
    rig.flood("M", 5000)
    rig.flood("B", 5000)
    rig.foyer.expel({"client:bob"})
    rig.turn()

    assert "M" not in rig.foyer
    assert "B" in rig.foyer


def test_what_clients_behind_a_lost_link_have_said_is_lost_with_it(rig: Rig) -> None:
    inner = ("W", 3)
    rig.machine.receive(inner, Hello("n", VERSIONS, "host", 1, ""), (), rig.now, KEYS["M"])
    rig.foyer.receive(inner, *submit(1, 5000), rig.now, lambda *_: None)
    assert inner in rig.foyer
    rig.foyer.gone("W", rig.now, lambda *_: None)

    assert inner not in rig.foyer


def test_what_waits_has_a_limit_of_bytes_beyond_which_turns_are_longer(rig: Rig) -> None:
    body = b"x" * (16 << 20)
    message, payload = submit(1, 1)
    for _ in range(80):
        rig.say("M", message, [*payload[:2], body])
    waiting = sum(peer == "M" for peer, *_ in rig.heard)
    rig.turn()

    assert waiting < 40
    assert sum(peer == "M" for peer, *_ in rig.heard) >= 80 - LIMITS.foyer_bytes_max // len(body) - 1


def test_a_foyer_forgets_what_was_said_once_nobody_contends(rig: Rig) -> None:
    rig.flood("M", 1000)
    while "M" in rig.foyer:
        rig.turn()
    rig.machine.accounts.contended_until = rig.now
    rig.foyer.sweep(rig.now)
    rig.machine.accounts.contended_until = rig.now + 1.0
    rig.say("M", *submit(1, 10))

    assert rig.heard[-1][0] == "M"
    assert "M" not in rig.foyer


def test_prices_count_calls_tasks_and_bytes() -> None:
    assert price_us(Bye(), ()) == MESSAGE_US
    assert price_us(None, ()) == MESSAGE_US
    for naming in (Forget([1, 2]), Cancel([1, 2]), Ask([1, 2])):
        assert price_us(naming, ()) == MESSAGE_US + 2 * TASK_US
    message, payload = submit(1, 10)
    cheap = price_us(message, payload)
    assert cheap >= MESSAGE_US + 10 * CALL_US
    assert price_us(message, [*payload, b"x" * 1_000_000]) > cheap + 1000


def test_who_is_known_no_more_is_heard_to_the_end_at_once_and_can_say_hello_again(rig: Rig) -> None:
    for _ in range(10):
        rig.flood("M")
    rig.turn()
    rig.machine.drop_client(rig.machine.clients["client:mallory/m"], rig.now)
    rig.say("M", Hello("m", VERSIONS, "host", 1, ""))
    assert "M" in rig.foyer
    rig.turn()

    assert "client:mallory/m" in rig.machine.clients
    assert "M" not in rig.foyer
