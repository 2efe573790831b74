"""What a client reads of a stream: what is behind is waited for, what is lost is fetched."""

from __future__ import annotations

from zfarm.core.inflow import Inflow
from zfarm.messages import (
    VALUE,
    Action,
    Fetch,
    Items,
    Listen,
    Missed,
    Outcome,
    Send,
    Sent,
    Streaming,
    Streams,
)
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


class Waiting:
    """A task has ended, and one item of its stream has not come; it is asked for again and again."""

    def __init__(self) -> None:
        self.inflow = reading()
        self.inflow.ended(TASK, object(), Outcome(task=TASK, kind=VALUE, lease=LEASE, emitted=1))
        self.now = 0.0
        self.beats = 0

    def beat(self, heard: bool) -> list[Action]:
        """Half a second later; what it has said before is ``heard`` by the broker at once, or not yet."""
        found = missed(self.inflow, self.now)
        self.now += BEAT_S
        self.beats += 1
        self.inflow.pulse(self.beats, self.now)
        if heard:
            self.inflow.echo(self.beats)
        return found

    def given_up_after(self) -> float:
        """How long until it is given up by a client that is heard."""
        began = self.now
        while not self.beat(heard=True):
            assert self.now < began + 100.0
        return self.now - began


def test_the_rest_of_a_stream_is_given_up_after_a_while() -> None:
    waiting = Waiting()
    assert settings.stream_given_up_s <= waiting.given_up_after() <= settings.stream_given_up_s + 4 * BEAT_S


def test_the_rest_of_a_stream_is_not_given_up_while_the_broker_is_behind() -> None:
    waiting = Waiting()
    for _ in range(100):
        assert not waiting.beat(heard=False)
    waiting.inflow.echo(2)  # and now it comes to what was said long ago, and the answer has a long way
    assert not waiting.beat(heard=False)
    waiting.inflow.echo(100)
    assert not waiting.beat(heard=False)
    assert waiting.given_up_after() >= settings.stream_given_up_s - 4 * BEAT_S


def test_patience_begins_anew_when_a_worker_says_that_it_has_the_rest() -> None:
    waiting = Waiting()
    while waiting.now + 2 * BEAT_S < settings.stream_given_up_s:
        assert not waiting.beat(heard=True)
    waiting.inflow.sent(Sent(LEASE, 1), waiting.now)  # a long way: it was asked when the task had ended
    assert waiting.given_up_after() >= settings.stream_given_up_s
    heard_again = Waiting()
    for _ in range(10):
        assert not heard_again.beat(heard=True)
        heard_again.inflow.sent(Sent(LEASE, 1), heard_again.now)  # the same once more is no news
    assert heard_again.given_up_after() <= settings.stream_given_up_s


def test_a_broker_that_is_behind_is_not_asked_the_same_again() -> None:
    inflow = reading()
    inflow.sent(Sent(LEASE, 3), 0.0)
    asked: list[Action] = []
    for number in range(1, 40):
        inflow.advance(number * BEAT_S, True, asked)
        inflow.pulse(number, number * BEAT_S)
    assert len(asked) < 10
    inflow.echo(39)
    again: list[Action] = []
    inflow.advance(20.5, True, again)
    assert [type(one.message) for one in again if isinstance(one, Send)] == [Listen, Fetch]


def test_what_is_behind_once_more_is_no_patience() -> None:
    waiting = Waiting()
    for _ in range(5):
        assert not waiting.beat(heard=True)
    for _ in range(100):
        assert not waiting.beat(heard=False)


def test_time_in_which_the_client_was_stopped_is_no_patience() -> None:
    waiting = Waiting()
    while waiting.now + 2 * BEAT_S < settings.stream_given_up_s:
        assert not waiting.beat(heard=True)
    waiting.now += 60.0
    assert not waiting.beat(heard=True)
    assert not waiting.beat(heard=True)


def behind_a_hole_of_a_lost_worker() -> Inflow:
    """Its worker counts as lost, but was only cut off: what it publishes comes before it is welcome again."""
    inflow = reading()
    inflow.items(Items(LEASE, 1, 1), [b"1"], 1.0)
    inflow.streams(Streams([], [LEASE]), {})
    inflow.items(Items(LEASE, 3, 3), [b"3"], 20.0)
    assert missed(inflow, 20.0) == []
    return inflow


def test_what_a_lost_worker_has_kept_is_fetched_when_it_is_welcome_again() -> None:
    inflow = behind_a_hole_of_a_lost_worker()
    inflow.streams(Streams([Streaming(LEASE, "c", TASK, 1)]), {})
    assert advance(inflow, 21.0) == [Fetch(LEASE, 2, 2)]
    assert missed(inflow, 20.0 + 2 * settings.stream_given_up_s) == []
    inflow.items(Items(LEASE, 2, 2), [b"2"], 22.0)
    assert missed(inflow, 22.0) == []


def test_what_a_lost_worker_had_is_told_to_be_missing_if_it_is_not_welcome_again() -> None:
    inflow = behind_a_hole_of_a_lost_worker()
    enough = 20.0 + settings.stream_given_up_s
    assert inflow.deadline <= enough
    assert missed(inflow, enough - 0.1) == []
    (told,) = missed(inflow, enough)
    assert isinstance(told, Missed)
    assert (told.first, told.last) == (2, 2)
