"""What a client reads of a stream: what is behind is waited for, what is lost is fetched."""

from __future__ import annotations

from zfarm.core.inflow import Inflow
from zfarm.messages import Action, Fetch, Items, Send, Sent, Streaming, Streams
from zfarm.settings import settings

TASK, LEASE = 5, 9
WAIT_S = settings.stream_retry_s / 5


def reading() -> Inflow:
    inflow = Inflow(settings)
    inflow.listen(TASK, object())
    inflow.streams(Streams([Streaming(LEASE, "c", TASK)]), {})
    advance(inflow, 0.0)
    return inflow


def advance(inflow: Inflow, now: float) -> list[Fetch]:
    actions: list[Action] = []
    inflow.advance(now, True, actions)
    inflow.check()
    said = [action.message for action in actions if isinstance(action, Send)]
    return [message for message in said if isinstance(message, Fetch)]


def test_what_was_sent_and_does_not_come_is_fetched() -> None:
    inflow = reading()
    inflow.items(Items(LEASE, 1, 2), [b"1", b"2"], 1.0)
    inflow.sent(Sent(LEASE, 4), 1.0)
    assert advance(inflow, 1.0) == []
    assert inflow.deadline <= 1.0 + WAIT_S + 1e-9
    assert advance(inflow, 1.0 + WAIT_S) == [Fetch(LEASE, 3, 4)]


def test_what_is_behind_is_not_fetched_while_items_come() -> None:
    inflow = reading()
    inflow.sent(Sent(LEASE, 100), 1.0)
    now = 1.0
    for number in range(1, 100):
        inflow.items(Items(LEASE, number, number), [b"x"], now)
        assert advance(inflow, now) == [], "it would come twice"
        now += WAIT_S / 2
    assert advance(inflow, now + WAIT_S) == [Fetch(LEASE, 100, 100)]


def test_a_hole_is_fetched_at_once() -> None:
    inflow = reading()
    inflow.items(Items(LEASE, 1, 1), [b"1"], 1.0)
    inflow.items(Items(LEASE, 3, 3), [b"3"], 1.0)
    assert advance(inflow, 1.0) == [Fetch(LEASE, 2, 2)]
