"""A copy of a file on one host, and the digest of what was written, made in one go."""

from __future__ import annotations

import os
import threading

from zfarm.edge.handover import copy_some
from zfarm.edge.parcels import digest_of, whole_digest
from zfarm.messages import CHUNK_BYTES

__all__ = ["copied_digest"]


def copied_digest(source: int, target: int, size: int) -> bytes:
    """Copy so many bytes, and give the digest of what was written; nothing: there are not so many."""
    if os.fstat(source).st_size < size:  # memory has more room than it holds
        return b""
    if size > CHUNK_BYTES:
        return _Copier(source, target, size).digest()
    data = os.pread(source, size, 0)
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]
    return whole_digest(digest_of(data)) if len(data) == size else b""


class _Copier:
    """A thread that copies a large file, while what it has written is read for its digest."""

    def __init__(self, source: int, target: int, size: int) -> None:
        self._source, self._target, self._size = source, target, size
        self._written = threading.Semaphore(0)
        self._error: OSError | None = None
        self._stopped = False

    def digest(self) -> bytes:
        """Of what was written; nothing: there was less. Raises OSError."""
        thread = threading.Thread(target=self._copy, name="zfarm-copy")
        thread.start()
        digests = bytearray()
        buffer = bytearray(CHUNK_BYTES)
        try:
            for at in range(0, self._size, CHUNK_BYTES):
                self._written.acquire()
                if self._error is not None:
                    raise self._error
                with memoryview(buffer) as view:
                    part = view[: min(CHUNK_BYTES, self._size - at)]
                    if os.preadv(self._target, [part], at) != len(part):
                        return b""
                    digests += digest_of(part)
        finally:
            self._stopped = True
            thread.join()
        return whole_digest(digests)

    def _copy(self) -> None:
        at = 0
        try:
            while at < self._size and not self._stopped:
                upto = min(at + CHUNK_BYTES, self._size)
                while at < upto:
                    got = copy_some(self._source, self._target, upto - at, at)
                    if not got:
                        break  # it got shorter: what is missing will not be read
                    at += got
                self._written.release()
                if at < upto:
                    break
        except OSError as error:
            self._error = error
        finally:
            self._written.release(self._size // CHUNK_BYTES + 1)
