"""What somebody wants of blobs, read chunk by chunk, and told in messages of a size that delays nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from zfarm.messages import Blob, Chunk, Wanted

__all__ = ["Helping", "helpings"]

MESSAGE_BYTES: Final = 1024 * 1024
"""Bytes of small files after which a message is full."""


class Helping(NamedTuple):
    """What goes into one message."""

    chunks: list[Chunk]
    payload: list[Blob]
    size: int
    """Bytes of the payload."""


def helpings(
    wants: Iterable[Wanted], read: Callable[[Wanted, int], tuple[Chunk, Blob]], chunks_max: int
) -> Iterator[Helping]:
    """Read all that is wanted, up to ``chunks_max`` chunks for one message. ``read`` gives the chunk that
    begins there; one without data ends what is wanted of its blob."""
    chunks: list[Chunk] = []
    payload: list[Blob] = []
    size = 0
    for wanted in wants:
        at = wanted.at
        while at < wanted.upto:
            chunk, data = read(wanted, at)
            if chunks and (size + len(data) > MESSAGE_BYTES or len(chunks) >= chunks_max):
                yield Helping(chunks, payload, size)
                chunks, payload, size = [], [], 0
            chunks.append(chunk)
            payload.append(data)
            size += len(data)
            at += len(data)
            if not data:
                break
    if chunks:
        yield Helping(chunks, payload, size)
