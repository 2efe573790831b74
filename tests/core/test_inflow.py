"""What a client reads of a stream: what is behind is waited for, what is lost is fetched."""

from __future__ import annotations

from zfarm.core.inflow import Inflow
from zfarm.messages import VALUE, Action, Fetch, Items, Missed, Outcome, Send, Sent, Streaming, Streams
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


def missed(inflow: Inflow, now: float) -> list[Action]:
    actions: list[Action] = []
    inflow.advance(now, True, actions)
    return [action for action in actions if isinstance(action, Missed)]


BEAT_S = 0.5


def waiting_for_the_rest() -> tuple[Inflow, float]:
    """A task has ended, and one item of its stream has not come; it is asked for again and again. The broker
    has heard it all."""
    inflow = reading()
    inflow.ended(TASK, object(), Outcome(task=TASK, kind=VALUE, lease=LEASE, emitted=1))
    now = 0.0
    while now + 2 * BEAT_S < settings.stream_given_up_s:
        assert not missed(inflow, now)
        now += BEAT_S
        inflow.pulse(1, now)
        inflow.echo(1)
    assert not missed(inflow, now)
    return inflow, now


def test_the_rest_of_a_stream_is_given_up_after_a_while() -> None:
    inflow, now = waiting_for_the_rest()
    found: list[Action] = []
    while not found:
        now += BEAT_S
        inflow.pulse(2, now)
        inflow.echo(2)
        found = missed(inflow, now)
    assert settings.stream_given_up_s <= now < settings.stream_given_up_s + 2 * BEAT_S


def test_the_rest_of_a_stream_is_not_given_up_while_the_broker_is_behind() -> None:
    inflow, now = waiting_for_the_rest()
    for number in range(2, 100):
        now += BEAT_S
        inflow.pulse(number, now)
        assert not missed(inflow, now)
    inflow.echo(2)  # and now it has come to what was said long ago
    assert not missed(inflow, now)
    inflow.echo(99)
    assert missed(inflow, now)


def test_an_echo_without_a_number_is_that_of_the_next_pulse() -> None:
    inflow, now = waiting_for_the_rest()
    inflow.pulse(2, now)
    inflow.pulse(3, 2 * settings.stream_given_up_s)
    inflow.echo(0)
    assert not missed(inflow, now + BEAT_S)
    inflow.echo(0)
    assert missed(inflow, now + 2 * BEAT_S)


def test_time_in_which_the_client_was_stopped_is_no_patience() -> None:
    inflow, now = waiting_for_the_rest()
    assert not missed(inflow, now + 60.0)
    assert not missed(inflow, now + 60.5)
