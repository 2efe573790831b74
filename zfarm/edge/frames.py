"""Messages as frames of a socket: read and sent whole, kept while nobody takes them; it knows no peer's role.

Frames of more than ``KEEP_FROM`` bytes stay in the library's buffers, and are relayed from there without a
copy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import zmq

from zfarm.edge.sockets import Socket
from zfarm.edge.wire import Frame
from zfarm.settings import settings

__all__ = ["FRAMES_MAX", "KEEP_FROM", "OVERHEAD", "Outbox", "receive_rest", "send_frames"]

KEEP_FROM: Final = 64 * 1024
FRAMES_MAX: Final = settings.blobs_max + 2
OUTBOX_MESSAGES_MAX: Final = 4096
OUTBOX_BYTES_MAX: Final = 256 * 1024 * 1024
OVERHEAD: Final = 64 * 1024
"""Bytes that encryption and headers may add to a blob."""

_DONTWAIT: Final = int(zmq.DONTWAIT)
_MORE: Final = int(zmq.DONTWAIT | zmq.SNDMORE)


def _frame_of(part: zmq.Frame) -> Frame:
    return part.bytes if len(part) <= KEEP_FROM else part.buffer


def receive_rest(socket: Socket, part: zmq.Frame, most: int) -> list[Frame] | None:
    """``part`` and all after it of the same message; None if there are more than ``most``."""
    frames = [_frame_of(part)]
    while part.more:
        part = socket.recv(_DONTWAIT, copy=False)
        if len(frames) < most:
            frames.append(_frame_of(part))
        else:
            frames[most:] = [b""]
    return frames if len(frames) <= most else None


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
