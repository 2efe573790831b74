"""Results that were kept in the store of another host, and how they come from there: as calls that are bound
to a worker of that host, so that the broker keeps nothing of them.

In a task they are calls within a call: it waits without its slot, so that tasks of two hosts may need what is
on the other one.
"""

from __future__ import annotations

import os
import pickle
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from msgspec import structs

from zfarm.broadcast import watched
from zfarm.edge import inside
from zfarm.edge.cargo import stored_of, unpacked
from zfarm.edge.parcels import digest_of, whole_digest
from zfarm.edge.stored import Stored, path_of
from zfarm.errors import DamagedFile, TaskLost, TransferError
from zfarm.handles import FileHandle
from zfarm.messages import CHUNK_BYTES, Demand, Need
from zfarm.settings import settings
from zfarm.terms import PLAIN
from zfarm.views import View

if TYPE_CHECKING:
    from zfarm.api import Executor
    from zfarm.futures import Future

__all__ = ["STORE", "brought", "fetched", "store_near"]

STORE: Final = FileHandle("the empty blob", Need(whole_digest(b""), 0), 0o400)
"""What a call needs that needs a store, whatever is in it: every worker makes it itself."""
PIECE_BYTES: Final = 16 * CHUNK_BYTES
"""Brought by one call: so much is in messages at once, twice."""
AHEAD: Final = 2
LOOKS: Final = 5
"""So many beats in a row a worker must be missing: it may come back to a new broker."""


def store_near(blob: bytes) -> FileHandle:
    """The same, and where the largest part of a kept result is: the call rather runs on that host."""
    largest = max(stored_of(blob), key=lambda part: part.size)
    return FileHandle(
        STORE.name, structs.replace(STORE._need, near=largest.at.rpartition("/")[0]), STORE.mode
    )


def brought(blob: bytes) -> Any:
    """In a task: a result that was kept, from the store here; what is not there is brought there first.

    Raises:
        TransferError: no worker has it any more.
    """
    from zfarm.api import current_farm
    from zfarm.edge.keeping import Shelf

    here = inside.current()
    if here is None or not here.store:
        return fetched(current_farm(), blob)
    from zfarm.edge.shared import open_kept

    with Shelf(here.store) as shelf:
        for part in stored_of(blob):
            shelf.bring(part, lambda stored, at: _pieces(current_farm(), stored, at), here.waits)
        return open_kept(blob)


def fetched(farm: Executor, blob: bytes) -> Any:
    """A result that was kept, in memory of this process.

    Raises:
        TransferError: no worker has it any more.
        Others: as ``submit``.
    """
    _, parts, data = unpacked(blob)
    buffers = [_whole(farm, part) if isinstance(part, Stored) else bytearray(_plain(part)) for part in parts]
    whole = _whole(farm, data) if isinstance(data, Stored) else _plain(data)
    return pickle.loads(whole, buffers=buffers)


def _plain(part: Any) -> bytes:
    assert isinstance(part, bytes), "what a child keeps refers to no memory"
    return part


def _whole(farm: Executor, stored: Stored) -> bytearray:
    found = bytearray(stored.size)
    at = 0
    for piece in _pieces(farm, stored, 0):
        found[at : at + len(piece)] = piece
        at += len(piece)
    with memoryview(found) as view:
        digests = b"".join(digest_of(view[at : at + CHUNK_BYTES]) for at in range(0, len(view), CHUNK_BYTES))
    if at != stored.size or whole_digest(digests) != stored.digest:
        raise DamagedFile("a kept result came damaged: its digest differs")
    return found


def _pieces(farm: Executor, stored: Stored, at: int) -> Iterator[bytes]:
    """What comes after so many bytes of it, from a worker that has it."""
    bound = _bound(farm, stored)
    futures: deque[Future[bytes]] = deque()
    starts = iter(range(at, stored.size, PIECE_BYTES))
    try:
        while True:
            for start in starts:
                future = bound.submit(_piece, stored, start, min(PIECE_BYTES, stored.size - start))
                futures.append(future)
                watched(farm, {stored.at: future})
                if len(futures) >= AHEAD:
                    break
            if not futures:
                return
            try:
                yield futures.popleft().result()
            except TaskLost as error:
                raise _lost(stored) from error
    finally:
        for future in futures:
            future.cancel()


def _piece(stored: Stored, at: int, size: int) -> bytes:
    """In a task where it was kept: a part of it."""
    try:
        with open(path_of(stored), "rb") as file:
            return os.pread(file.fileno(), size, at)
    except OSError as error:
        raise TransferError(
            f"a kept result of {stored.size:,} bytes is not in the store of worker {stored.at} any more: "
            "it was removed there, or its handle is gone, or nothing was heard of its program for longer "
            "than ZFARM_PINS_KEPT_S; let the call that made it run again"
        ) from error


def _bound(farm: Executor, stored: Stored) -> View:
    """Where its worker, or another one of that host, runs what is submitted. Raises TransferError: there is
    none."""
    host, _, pid = stored.at.rpartition("/")
    for look in range(LOOKS):
        if look:
            time.sleep(settings.beat_interval_s)
        there = [worker for worker in farm.workers() if worker.open and worker.host == host]
        for worker in sorted(there, key=lambda worker: str(worker.pid) != pid):
            demand = Demand((), (worker.label,))
            return View(farm, replace(PLAIN, demand=demand, handles=(STORE,)))
    raise _lost(stored)


def _lost(stored: Stored) -> TransferError:
    return TransferError(
        f"a kept result of {stored.size:,} bytes is lost: worker {stored.at}, which had it, has left the "
        "farm and no other one of that host is there; let the call that made it run again"
    )
