"""What children put into the store of their worker: results that stay there, and what they were brought
from the stores of other hosts; it asks nobody for anything.

It is written, synced and named as a worker does it (zfarm.edge.store), so that whoever finds it by its name
may believe it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zfarm.edge.cargo import pack, parted, small
from zfarm.edge.names import file_name
from zfarm.edge.parcels import digest_of, digest_of_file, whole_digest
from zfarm.edge.stored import Stored, path_of
from zfarm.edge.storeroom import PART, READ, Storeroom
from zfarm.edge.trees import STORED_MODE
from zfarm.errors import DamagedFile, FarmError, TransferError
from zfarm.messages import CHUNK_BYTES
from zfarm.settings import settings

if TYPE_CHECKING:
    from zfarm.edge.inside import Inside

__all__ = ["Shelf", "keep"]

_NEW: Final = PART | os.O_EXCL
BIRTH_BYTES: Final = 12
"""Of the name that a kept result has until its handle is heard of."""
ROOM_WAIT_S: Final = 5.0
"""For so long a result waits for room: handles may be gone of which the store has not heard yet."""
LOOK_AGAIN_S: Final = 0.1


def keep(here: Inside, encode: Callable[..., bytes], value: Any) -> bytes:
    """The blob of a result whose large parts stay in the store; ``encode`` pickles it.

    Raises:
        TransferError: there is no room for them.
        OSError: this worker has no store.
    """
    blob, buffers = parted(encode, value)
    if not buffers and small(len(blob)):
        return blob
    birth = os.urandom(BIRTH_BYTES)
    with Shelf(here.store) as shelf:
        parts = [shelf.put(buffer, here.worker, birth) for buffer in buffers]
        return pack(parts, blob if small(len(blob)) else shelf.put(memoryview(blob), here.worker, birth))


class Shelf(Storeroom):
    """A child's hands on the store of its worker, for a moment."""

    def __init__(self, store: str) -> None:
        """Raises ConfigurationError, OSError: there is none."""
        if not store:
            raise FileNotFoundError("this worker has no store")
        super().__init__(Path(store), settings.store_bytes_max)
        self._held: list[int] = []  # descriptors that hold a shared lock

    def _sweep(self) -> None:
        """That is for workers: what another child has just begun is not locked yet."""

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *_exc: object) -> None:
        for fd in (*self._held, self._blobs, self._parts, self._trees, self._top):
            os.close(fd)

    def put(self, data: memoryview, at: str, birth: bytes) -> Stored:
        """Write this, and keep it until a handle is heard of. Raises TransferError: it cannot be written."""
        name = secrets.token_hex(12)
        try:
            self._wait_for_room(data.nbytes)
            fd = os.open(name, _NEW, 0o600, dir_fd=self._parts)
        except (OSError, FarmError) as error:
            raise self._no_room(data, error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            digests = bytearray()
            for start in range(0, data.nbytes, CHUNK_BYTES):
                chunk = data[start : start + CHUNK_BYTES]
                _write(fd, chunk, start)
                digests += digest_of(chunk)
            stored = Stored(whole_digest(digests), data.nbytes, at, birth)
            with self.pins.birth(birth.hex(), file_name(stored.digest, stored.size)):
                self._name(fd, name, stored)
        except OSError as error:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._parts)
            raise self._no_room(data, error) from error
        finally:
            os.close(fd)
        return stored

    def _wait_for_room(self, size: int) -> None:
        """Unlike what calls need, a result is refused that would make the store too full."""
        until = time.monotonic() + ROOM_WAIT_S
        while True:
            self._make_room(size)
            if self._bytes + size <= self._bytes_max:
                return
            if time.monotonic() >= until:
                raise TransferError(
                    f"it may have {self._bytes_max:,} bytes, of which {self.pinned_bytes:,} are kept results "
                    "that handles of programs name, and others are in use: let go of handles that nobody "
                    "needs (del), set ZFARM_STORE_BYTES_MAX for the worker"
                )
            time.sleep(LOOK_AGAIN_S)

    def _no_room(self, data: memoryview, error: OSError | FarmError) -> TransferError:
        why = str(error) if isinstance(error, FarmError) else os.strerror(error.errno or 0)
        return TransferError(
            f"a result of {data.nbytes:,} bytes cannot be kept in the store {self.root} of this worker: "
            f"{why}; make room there, or call without keep=True"
        )

    def bring(
        self,
        stored: Stored,
        pieces: Callable[[Stored, int], Iterable[bytes]],
        waits: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Have this blob here until the shelf is left, of which ``pieces`` gives what comes after so many
        bytes. If another process is at it, that is waited for, in the context ``waits``.

        Raises:
            DamagedFile: what came is something else.
            OSError: it cannot be written.
        """
        while not self._hold(stored):
            name = file_name(stored.digest, stored.size)
            fd = os.open(name, PART, 0o600, dir_fd=self._parts)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                try:
                    with waits():
                        fcntl.flock(fd, fcntl.LOCK_SH)  # shared: those who wait do not wait for each other
                finally:
                    os.close(fd)
                continue
            try:
                if os.fstat(fd).st_nlink and not os.path.exists(path_of(stored)):
                    self._bring(fd, name, stored, pieces)
            finally:
                os.close(fd)

    def _bring(
        self, fd: int, name: str, stored: Stored, pieces: Callable[[Stored, int], Iterable[bytes]]
    ) -> None:
        self._make_room(stored.size)
        at = min(os.fstat(fd).st_size, stored.size) // CHUNK_BYTES * CHUNK_BYTES
        os.ftruncate(fd, at)
        for piece in pieces(stored, at):
            _write(fd, memoryview(piece), at)
            at += len(piece)
        if at != stored.size or digest_of_file(fd, at, name) != stored.digest:
            os.unlink(name, dir_fd=self._parts)
            raise DamagedFile("a kept result came damaged from another host: its digest differs")
        self._name(fd, name, stored)

    def _hold(self, stored: Stored) -> bool:
        """Let nobody remove this from the store; False: it is not there."""
        try:
            fd = os.open(path_of(stored), READ)
        except FileNotFoundError:
            return False
        self._held.append(fd)
        fcntl.flock(fd, fcntl.LOCK_SH)
        return os.fstat(fd).st_nlink > 0

    def _name(self, fd: int, part: str, stored: Stored) -> None:
        os.fsync(fd)
        os.fchmod(fd, STORED_MODE)
        name = file_name(stored.digest, stored.size)
        os.rename(part, name, src_dir_fd=self._parts, dst_dir_fd=self._blobs)


def _write(fd: int, data: memoryview, at: int) -> None:
    while data:
        done = os.pwrite(fd, data, at)
        at += done
        data = data[done:]
