"""Large parts of calls as blobs in the memory of their client, for workers that its memory cannot be lent to;
it sends nothing.

A part is copied once, when the call is submitted, as pickling would have done: so it may change afterwards.
What is equal is one blob, found as zfarm.edge.stowage finds it, and read once for its digest. A blob goes
when the calls that need it have ended; no other process ever maps it, so its memory is used again at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Final

from zfarm.edge.cargo import Cargo, Part
from zfarm.edge.parcels import digest_of, whole_digest
from zfarm.edge.segments import POSSIBLE, Segment, bytes_of
from zfarm.edge.stored import Stored
from zfarm.edge.stowage import Hold, Stowage
from zfarm.messages import CHUNK_BYTES, Need
from zfarm.settings import Settings, settings

__all__ = ["Bale", "Bales"]

_DIGEST_BYTES: Final = 32


class Bale:
    """One blob in memory. To calls and to givers it is what a handle of a file is."""

    __slots__ = ("_digests", "_key", "_need", "_owner", "_segment")

    name = "a shared object"

    def __init__(self, segment: Segment) -> None:
        """That of what is in the segment now."""
        size = segment.size
        digests = bytearray()
        with bytes_of(segment.area)[:size] as data:
            for at in range(0, size, CHUNK_BYTES):
                digests += digest_of(data[at : at + CHUNK_BYTES])
        self._segment = segment
        self._key = segment.key
        self._digests = bytes(digests)
        self._need = Need(whole_digest(digests), size)
        self._owner: Any = None

    def of(self, owner: Any) -> Bale:
        """The same, which keeps its owner alive as long as a call needs it."""
        same = object.__new__(Bale)
        same._segment, same._key, same._digests = self._segment, self._key, self._digests
        same._need, same._owner = self._need, owner
        return same

    @property
    def need(self) -> Need:
        """What a call needs of it."""
        return self._need

    @property
    def path(self) -> str:
        """Where processes of this host and user find it."""
        return f"/proc/{os.getpid():d}/fd/{self._segment.fd:d}"

    def blob(self, digest: bytes) -> Bale | None:
        """What has this digest; None: nothing here."""
        return self if digest == self._need.digest else None

    def chunk(self, at: int) -> tuple[bytes, bytes]:
        """The chunk that begins there, and its digest; nothing: all its calls have ended."""
        try:
            with bytes_of(self._segment.area)[at : min(at + CHUNK_BYTES, self._need.size)] as view:
                data = bytes(view)
        except OSError:  # given back just now
            data = b""
        if self._segment.key is not self._key:
            data = b""  # the memory is, or may be, another one's
        number = at // CHUNK_BYTES * _DIGEST_BYTES
        return data, self._digests[number : number + _DIGEST_BYTES]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bale) and self._need == other._need

    def __hash__(self) -> int:
        return hash(self._need)


class Bales(Stowage):
    """All that one client has in memory for the calls of a farm on other hosts."""

    lends = False

    def __init__(self, limits: Settings = settings) -> None:
        super().__init__(limits)
        self.on = POSSIBLE
        self._from_bytes = limits.blobs_from_bytes

    def _part(self, data: memoryview, held: list[Segment]) -> Part:
        if data.nbytes < self._from_bytes:
            return data.tobytes()
        part = super()._part(data, held)
        if isinstance(part, bytes):
            return part
        need = _bale(held[-1]).need
        return Stored(need.digest, need.size)

    def bales(self, cargo: Cargo) -> tuple[Bale, ...]:
        """What this cargo refers to."""
        hold = cargo.hold
        return tuple(dict.fromkeys(map(_bale, hold.segments))) if isinstance(hold, Hold) else ()

    def ended(self, hold: Hold, kept: Iterable[bytes] | None) -> None:
        """A call has ended, in whatever way: nobody has mapped anything of ours."""
        super().ended(hold, ())


def _bale(segment: Segment) -> Bale:
    """That of a segment in use: made once for what is in it."""
    bale: Bale | None = segment.blob
    if bale is None or bale._key is not segment.key:
        bale = segment.blob = Bale(segment)
    return bale
