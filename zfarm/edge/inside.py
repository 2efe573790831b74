"""What code in a child can ask about it: its realm, its call, its way to the farm; it runs no call itself.

``current()`` is None everywhere but in a child, and in processes that a task forks.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from zfarm.edge import wire
from zfarm.edge.emitter import Emitter
from zfarm.edge.outcomes import encode_value
from zfarm.edge.page import ChildPage
from zfarm.edge.pipe import Frames, Outbox, Reader, send_all
from zfarm.messages import Blob, Message, Released, Setup, Waits
from zfarm.settings import settings

__all__ = ["Inside", "TunnelPort", "current"]


class Pipe:
    """A child's side of its pipe: any thread may send, the main thread receives.

    So may what runs when garbage is collected, in between anywhere, also while this very thread sends: that
    goes after.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = Reader()
        self._lock = threading.RLock()
        self._sending = False
        self._next: deque[Sequence[Blob]] = deque()
        self._poll: select.poll | None = None

    def send(self, message: Message, payload: Sequence[Blob] = ()) -> None:
        """Write one message, waiting for the worker to take it. Raises OSError."""
        frames = wire.encode(message, payload)
        with self._lock:
            self._next.append(frames)
            if self._sending:
                return
            self._sending = True
            try:
                while self._next:
                    send_all(self._sock, self._next.popleft())
            finally:
                self._sending = False

    def is_quiet(self, seconds: float) -> bool:
        """Whether nothing comes within so many seconds. Raises OSError."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._sock, select.POLLIN)
        return not self._poll.poll(seconds * 1000)

    def receive(self) -> list[Frames] | None:
        """Wait for messages; None when the worker has closed its side. Raises OSError, Malformed."""
        return self._reader.read(self._sock)

    def close(self) -> None:
        """Close this side."""
        self._sock.close()


class TunnelPort:
    """A client in a task speaks to the broker through here. One thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._reader: Reader | None = None
        self._outbox = Outbox(sock)

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._sock.fileno()

    def send(self, frames: Sequence[Blob]) -> bool:
        """Send one message as far as there is room now; False if some of it waits for ``flush``. Raises
        OSError."""
        return self._outbox.add(frames)

    def flush(self) -> bool:
        """Send what waits, as far as there is room; True if nothing waits any more. Raises OSError."""
        return self._outbox.flush()

    def receive(self) -> list[Frames] | None:
        """The messages that are there, perhaps none; None when the worker has closed its side. Raises
        OSError."""
        if self._reader is None:
            self._reader = Reader()
        try:
            return self._reader.read(self._sock)
        except BlockingIOError:
            return []

    def close(self) -> None:
        """Close this side; there is no other tunnel in this child."""
        self._sock.close()


class Inside:
    """Facts about the child that this process is."""

    def __init__(self, pipe: Pipe, tunnel: TunnelPort, page: ChildPage) -> None:
        self.pid = os.getpid()
        self.setup: Setup | None = None
        self.page = page
        self.tunnel = tunnel
        self.emitter = Emitter(pipe.send)
        self.filer = Emitter(pipe.send, files=True)
        self.encode = encode_value
        """What makes the blob of a value that is emitted."""
        self.endings: list[Callable[[], None]] = []
        """What is to be done when the running call has ended, before that is told."""
        self.store = ""
        """Where the files are that calls here have needed; empty: none has."""
        self.worker = ""
        """With it: whose child this is, as HOST/PID."""
        self.blob_max = settings.payload_bytes_max
        """Bytes of a blob that may travel."""
        self.batch = False
        """The call that runs is one of a map's batches."""
        self._pipe = pipe
        self._lock = threading.RLock()
        self._waiting = 0

    @property
    def realm(self) -> str:
        """The realm that this child serves; empty before its first call."""
        return self.setup.realm if self.setup is not None else ""

    @property
    def seq(self) -> int:
        """The number of the call that runs."""
        return self.page.entered

    def finish(self) -> None:
        """The running call has ended: see to it that what it has emitted and sent is on its way."""
        while self.endings:
            self.endings.pop()()
        self.emitter.flush()
        self.filer.flush()

    def release(self, notes: bytes) -> None:
        """Tell the worker of results in shared memory that a client here does not need any more."""
        with suppress(OSError):  # it is gone, and so is the memory
            self._pipe.send(Released(notes))

    @contextmanager
    def waits(self) -> Iterator[None]:
        """While in this block, the running call waits for other tasks: its slot is free for them."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, step: int) -> None:
        with self._lock:  # reentrant: the wait of a coroutine may end when that is collected, in here
            before, self._waiting = self._waiting, self._waiting + step
            if bool(before) != bool(self._waiting):
                self._pipe.send(Waits(bool(self._waiting)))


_current: Inside | None = None


def current() -> Inside | None:
    """The child that this process is, or None."""
    return _current


def become(inside: Inside | None) -> None:
    """Make this process that child; None: it is none (any more)."""
    global _current
    _current = inside
