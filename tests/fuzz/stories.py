"""Stories that peers tell a broker, as bytes that a fuzzer can change: it knows frames and the broker's core.

A story is a list of entries ``[peer, frames]``: one byte for the peer, one for the number of frames, then for
each frame two bytes of length (big endian) and the frame. What is cut off in the middle ends there. So any
bytes are a story, and most changes of a byte change little of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.core.rigs import EPOCH, LIMITS, VERSIONS
from tests.simulation.run import simulate
from zfarm.core.broker import Broker
from zfarm.edge import wire
from zfarm.edge.checks import Malformed

PEERS = 4
DECODERS: Sequence[wire.Decoder[Any]] = (
    wire.from_client, wire.to_client, wire.from_worker, wire.from_monitor, wire.published, wire.to_worker,
    wire.to_child, wire.from_child,
)  # fmt: skip


def entries(story: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """The entries of a story, as far as it goes."""
    at = 0
    while at + 2 <= len(story):
        peer, count = story[at], story[at + 1]
        at += 2
        frames = []
        for _ in range(count):
            size = int.from_bytes(story[at : at + 2], "big")
            frames.append(story[at + 2 : at + 2 + size])
            at += 2 + size
        yield peer, frames


def written(entry: tuple[int, Sequence[bytes]]) -> bytes:
    """The bytes of one entry."""
    peer, frames = entry
    parts = [bytes((peer, len(frames)))]
    for frame in frames:
        parts += (len(frame).to_bytes(2, "big"), frame)
    return b"".join(parts)


def tell(story: bytes) -> int:
    """Tell a story to a new broker; the number of messages that it took.

    Raises:
        Exception: a decoder raised anything but Malformed, the core raised, or its books are wrong.
    """
    now = 1000.0
    broker = Broker(EPOCH, VERSIONS, now, LIMITS)
    taken = 0
    for peer, frames in entries(story):
        for decoder in DECODERS:
            try:
                decoder.decode(frames)
            except Malformed as error:
                assert str(error)
        try:
            message, blobs = wire.from_anyone.decode(frames)
        except Malformed:
            continue
        broker.receive(peer % PEERS, message, blobs, now)
        taken += 1
        now += (peer // PEERS) / 16  # up to four seconds
        broker.advance(now)
        broker.check()
    return taken


def recorded(seed: int, most: int = 60) -> bytes:
    """The story that the peers of a simulated farm tell its first broker."""
    heard: list[bytes] = []
    numbers: dict[Any, int] = {}
    first: list[Broker] = []
    receive = Broker.receive

    def note(broker: Broker, peer: Any, message: Any, payload: Any, now: float, *rest: Any) -> None:
        if broker is (first or [broker])[0] and len(heard) < most:
            first[:] = [broker]
            frames = [bytes(frame) for frame in wire.encode(message, payload)]
            if all(len(frame) < 1 << 16 for frame in frames):
                heard.append(written((numbers.setdefault(peer, len(numbers)) % PEERS + PEERS, frames)))
        receive(broker, peer, message, payload, now, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Broker, "receive", note)
        simulate(seed)
    return b"".join(heard)
