"""The thread that reads the files which workers ask this client for, so that no disk holds up its link."""

from __future__ import annotations

import os
import platform
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from zfarm.edge.bales import Bale
from zfarm.edge.helpings import helpings
from zfarm.edge.holdings import FileHolding, TreeHolding
from zfarm.edge.parcels import digest_of
from zfarm.errors import FarmError, TransferError
from zfarm.messages import Blob, Chunk, Chunks, Give, Payload, Wanted
from zfarm.settings import settings

if TYPE_CHECKING:
    from zfarm.handles import FileHandle

__all__ = ["Giver"]

NEAR_FROM_BYTES: Final = 1
"""A file of so many bytes is not sent to a worker of this host: that is told where it lies."""


Handles: TypeAlias = "tuple[FileHandle | Bale, ...]"
"""What a call needs."""


class Giver:
    """Gives workers what they ask for, over one link."""

    def __init__(self, send: Callable[[Chunks, Payload], None], near: bool = True) -> None:
        """``send`` is called in the giver's thread."""
        self._send = send
        self._near = near
        self._queue: queue.SimpleQueue[tuple[Give, Handles] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._open: tuple[FileHolding | None, int] = (None, -1)
        self.given_bytes = 0
        """Bytes of chunks that were sent."""

    def give(self, give: Give, handles: Handles) -> None:
        """Send this soon."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="zfarm-giver", daemon=True)
            self._thread.start()
        self._queue.put((give, handles))

    def close(self) -> None:
        """Send nothing more, and wait until that is so."""
        if self._thread is not None:
            while not self._queue.empty():
                with suppress(queue.Empty):
                    self._queue.get_nowait()
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while True:
            if self._queue.empty():
                self._let_go()
            job = self._queue.get()
            if job is None:
                self._let_go()
                return
            self._serve(*job)
            job = None  # what it names may be released while nothing is asked for

    def _serve(self, give: Give, handles: tuple[FileHandle | Bale, ...]) -> None:
        def read(wanted: Wanted, at: int) -> tuple[Chunk, Blob]:
            return self._chunk(wanted, at, handles, give.host)

        for helping in helpings(give.wants, read, settings.batch_calls_max):
            self._send(Chunks(give.lease, give.task, helping.chunks), helping.payload)
            self.given_bytes += helping.size

    def _chunk(self, wanted: Wanted, at: int, handles: Handles, host: str) -> tuple[Chunk, bytes]:
        """One chunk of what a worker wants: or where it lies on this host, or why it cannot be had."""
        digest, size = wanted.digest, wanted.size
        try:
            found = _found(digest, handles)
            if found is None or found.need.size != size:
                return Chunk(digest, size, at, text="the call does not need this file"), b""
            if isinstance(found, Bale):
                if self._near and not wanted.far and host == platform.node():
                    return Chunk(digest, size, at, path=found.path), b""
                data, check = found.chunk(at)
                return Chunk(digest, size, at, check, text="" if data else "its calls have ended"), data
            if isinstance(found, TreeHolding):
                data = bytes(found.chunk(at))
                return Chunk(digest, size, at, digest_of(data)), data
            fd = self._opened(found)
            if self._near and not wanted.far and host == platform.node() and size >= NEAR_FROM_BYTES:
                return Chunk(digest, size, at, path=str(found.path)), b""
            data = found.read(fd, at)
            if not data:
                return Chunk(digest, size, at, text=f"{str(found.path)!r} got shorter"), b""
            return Chunk(digest, size, at, digest_of(data)), data
        except (OSError, FarmError) as error:
            self._let_go()
            return Chunk(digest, size, at, text=str(error)), b""

    def _opened(self, holding: FileHolding) -> int:
        """Each file is opened once for all chunks in a row, and looked at each time."""
        known, fd = self._open
        if known is holding and holding.unchanged(fd):
            return fd
        self._let_go()
        fd = holding.open()
        self._open = holding, fd
        return fd

    def _let_go(self) -> None:
        fd = self._open[1]
        self._open = (None, -1)
        if fd >= 0:
            os.close(fd)


def _found(digest: bytes, handles: Handles) -> Any:
    """What has this digest among what a call needs; None: it needs no such thing.

    Raises:
        TransferError: nothing of what is here has it, and some of it is not here.
    """
    from zfarm.handles import holding_of

    elsewhere: TransferError | None = None
    for handle in handles:
        try:
            found = holding_of(handle).blob(digest)
        except TransferError as error:  # the broker keeps it, or each worker has it: the others are ours
            elsewhere = elsewhere or error
            continue
        if found is not None:
            return found
    if elsewhere is not None:
        raise elsewhere
    return None
