"""Results that stay in shared memory until somebody wants them: ``options(keep=True)``; it knows no message.

The client holds their descriptors, so they outlive the child and the farm that made them; no byte is copied
and none is touched here. Over TCP they stay in the store of the worker's host (zfarm.edge.keeping).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from zfarm.edge.cargo import Cargo, Part, is_cargo, pack, stored_of, unpacked
from zfarm.edge.segments import Ref, Slice, open_ref
from zfarm.edge.shared import open_kept
from zfarm.edge.stored import Stored
from zfarm.edge.stowage import KEEP
from zfarm.errors import FarmClosed
from zfarm.handles import note
from zfarm.messages import Blob

if TYPE_CHECKING:
    from zfarm.edge.stowage import Hold
    from zfarm.link import Link

__all__ = ["Arrived", "Kept"]


class Kept:
    """Stands for the result of a call: as an argument of another call of its farm it becomes the result."""

    def __init__(
        self, blob: bytes, descriptors: list[int], nbytes: int, link: Link, tokens: list[bytes]
    ) -> None:
        """Only executors make these: ``farm.options(keep=True)``."""
        self.nbytes = nbytes
        """Bytes of the result's pickle."""
        self._blob = blob
        stored = stored_of(blob)
        self._far = bool(stored)
        self._farm = link.executor
        if stored and link.harbour is not None:
            link.harbour.hold(stored)
        weakref.finalize(self, _retire, weakref.ref(link), descriptors, stored, tokens).atexit = False

    def get(self) -> Any:
        """The result: a private copy, of which nothing is copied before it is written to; over TCP it comes
        from the host that has it.

        Raises:
            NotPortable: it cannot be unpickled here.
            OSError: it cannot be mapped here.
            TransferError: no worker has it any more.
            FarmClosed: it is on another host, and its executor was shut down.
        """
        if not self._far:
            return open_kept(self._blob)
        from zfarm.bringing import fetched

        farm = self._farm()
        if farm is None:
            raise FarmClosed("the executor is gone whose workers have this result")
        return fetched(farm, self._blob)

    def __reduce__(self) -> Any:
        if not self._far:
            return open_kept, (self._blob,)
        from zfarm.bringing import brought, store_near

        note(store_near(self._blob))
        return brought, (self._blob,)

    def __repr__(self) -> str:
        return f"<zfarm.Kept result of {self.nbytes:,} bytes>"


class Arrived(Cargo):
    """The blob of a result that is to be kept, opened: what it loads is its handle."""

    _handle: Any = None

    def __new__(cls, link: Link, blob: Blob, hold: Hold | None = None) -> Arrived:
        """``hold`` has the segments of its call. Raises OSError: what the blob names cannot be opened."""
        made = super().__new__(cls, b"")
        descriptors: list[int] = []
        tokens: list[bytes] = []
        try:
            whole, made.kept, made.weight = _own(blob, descriptors, tokens, partial(_ours, link, hold))
        except BaseException:
            _close(descriptors)
            raise
        made._handle = Kept(whole, descriptors, made.weight, link, tokens)
        if tokens:
            link.road.tell_notes(b"".join(KEEP + token for token in tokens))
        return made

    def load(self, loads: Any = None) -> Any:
        """The handle; once."""
        handle, self._handle = self._handle, None
        return handle


def _ours(link: Link, hold: Hold | None, ref: Ref) -> int:
    assert link.harbour is not None
    return link.harbour.stowage.keep(ref, hold)


def _own(
    blob: Blob, descriptors: list[int], tokens: list[bytes], ours: Callable[[Ref], int]
) -> tuple[bytes, Any, int]:
    """The same blob with references to descriptors of this process; what its sender had mapped; its size."""
    if not is_cargo(blob):
        return bytes(blob), (), len(blob)
    kept, parts, data = unpacked(blob)
    mine = [_reopened(part, descriptors, tokens, ours) for part in (*parts, data)]
    size = sum(len(part) if isinstance(part, bytes) else part.size for part in mine)
    return pack(mine[:-1], mine[-1]), kept, size


def _reopened(part: Part, descriptors: list[int], tokens: list[bytes], ours: Callable[[Ref], int]) -> Part:
    if isinstance(part, Slice):
        fd = ours(part.ref)
        descriptors.append(fd)
        return part._replace(ref=part.ref._replace(fd=fd))
    if not isinstance(part, Ref):
        return part
    fd = open_ref(part)
    descriptors.append(fd)
    tokens.append(part.token)
    return part._replace(pid=os.getpid(), fd=fd)


def _retire(
    link: weakref.ref[Link], descriptors: list[int], stored: list[Stored], tokens: list[bytes]
) -> None:
    there = link()
    if there is None or there.harbour is None:
        _close(descriptors)
        return
    harbour = there.harbour

    def gone() -> None:
        _close(descriptors)
        if stored:
            harbour.let_go(stored)
        if tokens:
            harbour.dropped(tokens)

    harbour.retire(gone)


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())
