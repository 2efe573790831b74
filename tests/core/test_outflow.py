"""What a worker keeps of its streams and sends, step by step."""

from __future__ import annotations

from tests.core.rigs import LIMITS, sent
from zfarm.core.outflow import Outflow
from zfarm.messages import Action, Fetch, Items, Listening, PublishItems, Send

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
