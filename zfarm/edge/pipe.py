"""Messages of many frames over a stream socket: cut and joined, uncopied when large; it knows no message.

On the stream a message is a header (magic, number of frames), the length of each frame, and the frames.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Final, TypeAlias

from zfarm.edge.checks import Malformed
from zfarm.edge.pages import room
from zfarm.messages import Blob
from zfarm.settings import settings

__all__ = ["PIPE_LOST", "READ_BYTES", "Frames", "Outbox", "Reader", "send_all"]

Frames: TypeAlias = list[Blob]

PIPE_LOST: Final = 112
"""Exit code of a child that cannot reach its worker any more."""

_MAGIC: Final = 0x7A50F1FE
_HEADER: Final = struct.Struct("<II")
READ_BYTES: Final = 256 * 1024
_FILLS_MAX: Final = 16
"""Of one large frame that is read in one go, so that others have their turn, too."""
_IOV_MAX: Final = 512
_FRAMES_MAX: Final = settings.blobs_max + 2
_FRAME_BYTES_MAX: Final = max(settings.payload_bytes_max, settings.batch_bytes_max * 2)
_LENGTH: Final = {n: struct.Struct(f"<II{n}Q") for n in range(1, 9)}


def packed(frames: Sequence[Blob]) -> list[Blob]:
    """The buffers to write for one message: small ones joined, large ones as they are."""
    count = len(frames)
    sizes = [frame.nbytes if isinstance(frame, memoryview) else len(frame) for frame in frames]
    form = _LENGTH.get(count) or struct.Struct(f"<II{count}Q")
    head = form.pack(_MAGIC, count, *sizes)
    if sum(sizes) <= READ_BYTES:
        return [b"".join((head, *frames))]
    return [head, *frames]


def send_all(sock: socket.socket, frames: Sequence[Blob]) -> None:
    """Write one message to a blocking socket. Raises OSError."""
    buffers = packed(frames)
    if len(buffers) == 1:
        sock.sendall(buffers[0])
        return
    outbox = Outbox(sock)
    outbox._buffers.extend(_bytewise(buffer) for buffer in buffers)
    while not outbox.flush():
        pass


class Outbox:
    """What waits to be written to a socket. ``waiting`` has its size in bytes."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffers: deque[memoryview | bytes] = deque()
        self.waiting = 0

    def add(self, frames: Sequence[Blob]) -> bool:
        """Write one message as far as the socket takes it; True if nothing waits. Raises OSError."""
        buffers = packed(frames)
        if not self._buffers and len(buffers) == 1:
            data = buffers[0]
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                sent = 0
            if sent == len(data):
                return True
            buffers = [memoryview(data)[sent:]]
        for buffer in buffers:
            view = _bytewise(buffer)
            self._buffers.append(view)
            self.waiting += len(view)
        return self.flush()

    def flush(self) -> bool:
        """Write what the socket takes now; True if nothing waits any more. Raises OSError."""
        buffers = self._buffers
        while buffers:
            try:
                sent = self._sock.sendmsg(list(islice(buffers, _IOV_MAX)))
            except BlockingIOError:
                return False
            self.waiting -= sent
            while buffers and sent >= len(buffers[0]):
                sent -= len(buffers.popleft())
            if sent:
                buffers[0] = memoryview(buffers[0])[sent:]
        self.waiting = 0
        return True


def _bytewise(buffer: Blob) -> memoryview | bytes:
    return buffer if isinstance(buffer, bytes) else memoryview(buffer).cast("B")


class Reader:
    """Cuts what comes from a socket into messages: small frames come as bytes, large ones as bytearrays."""

    def __init__(self, scratch: bytearray | None = None) -> None:
        """``scratch`` is room to read into; readers that are used by one thread may share it."""
        self._view = memoryview(bytearray(READ_BYTES) if scratch is None else scratch)
        self._rest = b""
        self._sizes: list[int] = []  # of the frames of this message that are still to come, the next one last
        self._frames: Frames = []
        self._large: bytearray | None = None
        self._filled = 0

    def read(self, sock: socket.socket) -> list[Frames] | None:
        """Read once, of a large frame what is there; the messages that are whole now, None at the end of the
        stream.

        Raises:
            BlockingIOError: a non-blocking socket has nothing.
            Malformed: this is no stream of messages.
            OSError: the socket is broken.
        """
        if self._large is not None:
            return self._fill(sock, self._large)
        # into a buffer that stays: a fresh one of this size costs a mapping and its first touch each time
        got = sock.recv_into(self._view)
        if not got:
            return None
        data = self._view[:got].tobytes()
        return self._cut(self._rest + data if self._rest else data)

    def _fill(self, sock: socket.socket, large: bytearray) -> list[Frames] | None:
        """Read more of a large frame: a turn of the loop for each bit of it would cost as much as it does."""
        with memoryview(large) as view:
            for n in range(_FILLS_MAX):
                try:
                    got = sock.recv_into(view[self._filled :], 0, socket.MSG_DONTWAIT if n else 0)
                except BlockingIOError:
                    if not n:
                        raise
                    return []
                if not got:
                    return None
                self._filled += got
                if self._filled == len(large):
                    self._frames.append(large)
                    self._large = None
                    return self._cut(b"")
        return []

    def _cut(self, data: bytes) -> list[Frames]:
        messages: list[Frames] = []
        at = 0
        while True:
            if not self._sizes:
                if self._frames:
                    messages.append(self._frames)
                    self._frames = []
                taken = self._begin(data, at)
                if not taken:
                    break
                at += taken
            size = self._sizes[-1]
            there = len(data) - at
            if there < size:
                if size > READ_BYTES:
                    self._begin_large(data, at, size)
                    at = len(data)
                break
            self._sizes.pop()
            self._frames.append(data[at : at + size])
            at += size
        self._rest = data[at:] if at < len(data) else b""
        return messages

    def _begin(self, data: bytes, at: int) -> int:
        """Read the head of a message; the bytes that it took, 0 if it is not whole yet."""
        if len(data) - at < 8:
            return 0
        magic, count = _HEADER.unpack_from(data, at)
        if magic != _MAGIC or not 0 < count <= _FRAMES_MAX:
            raise Malformed(f"garbage on the pipe: {bytes(data[at : at + 40])!r}")
        if len(data) - at < 8 + 8 * count:
            return 0
        sizes = list(struct.unpack_from(f"<{count}Q", data, at + 8))
        if max(sizes) > _FRAME_BYTES_MAX:
            raise Malformed(f"a frame of {max(sizes)} bytes, at most {_FRAME_BYTES_MAX} allowed")
        sizes.reverse()
        self._sizes = sizes
        return 8 + 8 * int(count)

    def _begin_large(self, data: bytes, at: int, size: int) -> None:
        self._sizes.pop()
        self._large = room(size)
        self._filled = len(data) - at
        with memoryview(data) as view:
            self._large[: self._filled] = view[at:]
