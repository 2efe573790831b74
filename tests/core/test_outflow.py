"""What a worker keeps of its streams and sends, step by step."""

from __future__ import annotations

from tests.core.rigs import LIMITS, sent
from zfarm.core.outflow import Outflow
from zfarm.messages import Action, Fetch, Items, Listening, Progress, PublishItems, Send

LEASE = 7


def turn(outflow: Outflow, now: float = 1000.0) -> list[Action]:
    """All that it wants done now."""
    actions: list[Action] = []
    outflow.advance(now, actions)
    outflow.check()
    return actions


def flowing(*chunks: list[bytes], read: int = 1) -> Outflow:
    """A stream of these items, read and used below ``read``, all of it published."""
    outflow = Outflow(LIMITS)
    for blobs in chunks:
        outflow.emitted(LEASE, "c", 1, blobs, 1000.0)
    listening = Listening(LEASE, next=1, seen=0, reading=True, subscribed=True, ask=False)
    outflow.listen([listening], 1000.0)
    published = [action.items for action in turn(outflow) if isinstance(action, PublishItems)]
    assert published[-1].last == sum(map(len, chunks))
    outflow.listen([Listening(LEASE, next=read, seen=0, reading=True, subscribed=True, ask=False)], 1000.0)
    turn(outflow)
    return outflow


def test_what_is_fetched_and_kept_is_sent_again_and_nothing_else_is_said() -> None:
    outflow = flowing([b"1", b"2", b"3"], [b"4"], [b"5", b"6"])
    outflow.fetch(Fetch(LEASE, 2, 5))

    assert turn(outflow) == [
        Send("broker", Items(LEASE, 2, 3), [b"2", b"3"]),
        Send("broker", Items(LEASE, 4, 4), [b"4"]),
        Send("broker", Items(LEASE, 5, 5), [b"5"]),
    ]


def test_what_is_fetched_and_gone_is_said_to_be_gone() -> None:
    outflow = flowing([b"1", b"2", b"3"], [b"4"], [b"5", b"6"], read=4)
    outflow.fetch(Fetch(LEASE, 2, 4))

    assert turn(outflow) == [
        Send("broker", Items(LEASE, 2, 3)),
        Send("broker", Items(LEASE, 4, 4), [b"4"]),
    ]


def test_what_is_fetched_of_an_unknown_stream_is_gone_as_a_whole() -> None:
    outflow = flowing([b"1"])
    outflow.fetch(Fetch(LEASE + 1, 1, 1))

    (message,) = sent(turn(outflow))
    assert message.gone == [LEASE + 1]


def gauge(outflow: Outflow, blob: bytes) -> None:
    """Emit one of which only the latest counts."""
    outflow.emitted(LEASE, "c", 1, [blob], 1000.0, latest=True)


def published(actions: list[Action]) -> list[tuple[int, int, list[bytes]]]:
    """What was published: first and last number, and the items."""
    return [
        (action.items.first, action.items.last, list(map(bytes, action.payload)))
        for action in actions
        if isinstance(action, PublishItems)
    ]


def read(outflow: Outflow, below: int) -> None:
    """The reader has used all below this number."""
    outflow.listen([Listening(LEASE, next=below, seen=0, reading=True, subscribed=True, ask=False)], 1000.0)


def test_of_a_gauge_one_is_on_its_way_and_the_newest_waits() -> None:
    outflow = flowing([b"1"])
    for blob in (b"a", b"b", b"c", b"d"):
        gauge(outflow, blob)
        if blob == b"b":
            assert published(turn(outflow)) == [(2, 2, [b"b"])]  # a was replaced before it could go
    assert published(turn(outflow)) == []
    read(outflow, 3)

    assert published(turn(outflow)) == [(3, 3, [b"d"])]


def test_a_gauge_never_makes_its_task_wait() -> None:
    outflow = Outflow(LIMITS)
    for n in range(LIMITS.stream_buffer_items * 2):
        gauge(outflow, b"%d" % n)
    turn(outflow)

    assert list(outflow.pauses(1000.0)) == []
    read(outflow, 1)
    assert published(turn(outflow)) == [(1, 1, [b"%d" % (LIMITS.stream_buffer_items * 2 - 1)])]


def test_items_after_a_gauge_do_not_wait_for_its_reader() -> None:
    outflow = flowing([b"1"])
    gauge(outflow, b"a")
    turn(outflow)
    gauge(outflow, b"b")
    outflow.emitted(LEASE, "c", 1, [b"2", b"3"], 1000.0)
    gauge(outflow, b"c")

    assert published(turn(outflow)) == [(3, 3, [b"b"]), (4, 5, [b"2", b"3"])]
    assert outflow.end(LEASE, died=False) == 6
    read(outflow, 6)
    assert published(turn(outflow)) == [(6, 6, [b"c"])]


def test_progress_is_due_at_once_and_then_at_intervals() -> None:
    outflow = Outflow(LIMITS)
    turn(outflow)
    outflow.advanced(LEASE, Progress(3, 1.0, 2.0))
    assert outflow.deadline <= 1000.0
    assert sent(turn(outflow)) == [Progress(LEASE, 1.0, 2.0)]
    outflow.advanced(LEASE, Progress(3, 2.0, 2.0))
    assert outflow.deadline == 1000.0 + LIMITS.progress_interval_s
    assert sent(turn(outflow)) == []
    assert sent(turn(outflow, outflow.deadline)) == [Progress(LEASE, 2.0, 2.0)]


def test_a_result_waits_for_its_client_for_however_long_and_is_delivered_when_that_has_used_it() -> None:
    outflow = Outflow(LIMITS)
    outflow.deliver(LEASE, "c", 1, False, 1000.0)
    piece = bytes(LIMITS.batch_bytes_max)
    for _ in range(2 * LIMITS.files_buffer_bytes // len(piece)):
        outflow.emitted(-LEASE, "c", -1, [piece], 1000.0)
    outflow.deliver(LEASE, "c", 1, True, 1000.0)
    turn(outflow)
    much_later = 1000.0 + 10 * (LIMITS.stream_grace_s + LIMITS.stream_patience_s)

    assert list(outflow.pauses(1000.0)) == [(LEASE, True)]
    assert list(outflow.pauses(much_later)) == [], "its task goes on"
    assert outflow.deadline > much_later, "nothing but its client ends the wait"
    count = 2 * LIMITS.files_buffer_bytes // len(piece)
    for used in range(count):
        assert not outflow.delivered
        outflow.listen(
            [Listening(-LEASE, used + 1, used, reading=True, subscribed=True, ask=False)], much_later
        )
        assert sum(isinstance(action, PublishItems) for action in turn(outflow, much_later)) <= 5
    outflow.listen(
        [Listening(-LEASE, count + 1, count, reading=True, subscribed=True, ask=False)], much_later
    )
    turn(outflow, much_later)
    assert outflow.delivered == [LEASE]


def test_little_of_a_result_is_on_its_way_through_the_broker_before_it_is_published() -> None:
    outflow = Outflow(LIMITS)
    outflow.deliver(LEASE, "c", 1, False, 1000.0)
    for _ in range(8):
        outflow.emitted(-LEASE, "c", -1, [bytes(LIMITS.batch_bytes_max // 2)], 1000.0)

    def told(used: int, subscribed: bool) -> list[int]:
        outflow.listen([Listening(-LEASE, used + 1, used, True, subscribed, ask=False)], 1000.0)
        actions = turn(outflow)
        items = [action.items for action in actions if isinstance(action, PublishItems)]
        return [one.last for one in [*items, *sent(actions)] if isinstance(one, Items)]

    assert told(used=0, subscribed=False) == [1], "nobody has asked for more"
    assert told(used=1, subscribed=False) == [2, 3]
    assert told(used=1, subscribed=True) == [4, 5]
    assert told(used=5, subscribed=True) == [6, 7, 8]
