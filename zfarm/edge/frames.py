"""Messages as frames of a socket: read and sent whole, kept while nobody takes them; it knows no peer's role.

Frames of more than ``KEEP_FROM`` bytes stay in the library's buffers, and are relayed from there without a
copy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from heapq import heappushpop
from typing import Any, Final

import zmq

from zfarm.edge.sockets import Socket
from zfarm.edge.wire import Frame
from zfarm.settings import settings

__all__ = ["FRAMES_MAX", "KEEP_FROM", "OVERHEAD", "Outbox", "receive_rest", "send_frames"]

KEEP_FROM: Final = 64 * 1024
FRAMES_MAX: Final = settings.blobs_max + 2
MESSAGE_BYTES_MAX: Final = settings.message_bytes_max
LARGE_FRAMES: Final = 3
"""Frames of one message that are limited each for itself: a function, its setup, and a call or result."""
OUTBOX_MESSAGES_MAX: Final = settings.outbox_messages_max
OUTBOX_BYTES_MAX: Final = settings.outbox_bytes_max
OVERHEAD: Final = 64 * 1024
"""Bytes that encryption and headers may add to a blob."""

_DONTWAIT: Final = int(zmq.DONTWAIT)
_MORE: Final = int(zmq.DONTWAIT | zmq.SNDMORE)


def _frame_of(part: zmq.Frame) -> Frame:
    return part.bytes if len(part) <= KEEP_FROM else part.buffer


def receive_rest(socket: Socket, part: zmq.Frame, most: int) -> list[Frame] | None:
    """``part`` and all after it of the same message; None, and nothing is kept, if there are more than
    ``most``, or more bytes than ``MESSAGE_BYTES_MAX`` beside the largest ones."""
    frames = [_frame_of(part)]
    if not part.more:
        return frames
    largest = [0] * (LARGE_FRAMES - 1) + [len(part)]  # a heap: its smallest is on top
    beside = 0
    while True:
        part = socket.recv(_DONTWAIT, copy=False)
        beside += heappushpop(largest, len(part))
        if len(frames) >= most or beside > MESSAGE_BYTES_MAX:
            del part  # before the next one comes, not after
            frames.clear()
            _drop_rest(socket)
            return None
        frames.append(_frame_of(part))
        if not part.more:
            return frames


def _drop_rest(socket: Socket) -> None:
    """Read the rest of a message that nobody may see, and keep none of it."""
    while socket.getsockopt(zmq.RCVMORE):
        socket.recv(_DONTWAIT, copy=False)


def send_frames(socket: Socket, frames: Sequence[Frame]) -> None:
    """Send, whole or not at all. A view of a frame that was received goes out as that frame, uncopied."""
    last = len(frames) - 1
    for number, frame in enumerate(frames):
        data: Any = frame
        if (
            isinstance(frame, memoryview)
            and isinstance(frame.obj, zmq.Frame)
            and len(frame) == len(frame.obj)
        ):
            data = frame.obj
        socket.send(data, _MORE if number < last else _DONTWAIT)


def _size(frames: Sequence[Frame]) -> int:
    return sum(map(len, frames))


class Outbox:
    """Messages that one peer cannot take yet."""

    __slots__ = ("bytes", "messages")

    def __init__(self) -> None:
        self.messages: deque[list[Frame]] = deque()
        self.bytes = 0

    def add(self, frames: list[Frame]) -> bool:
        """Keep ``frames`` for later; False if there is no room for them."""
        size = _size(frames)
        full = len(self.messages) >= OUTBOX_MESSAGES_MAX or self.bytes + size > OUTBOX_BYTES_MAX
        if full and self.messages:  # a single one may be of any size
            return False
        self.keep(frames)
        return True

    def keep(self, frames: list[Frame]) -> None:
        """Keep ``frames`` for later, whatever there is already."""
        self.messages.append(frames)
        self.bytes += _size(frames)

    def sent(self) -> None:
        """The first message has gone."""
        self.bytes -= _size(self.messages.popleft())
