"""The shared memory that a worker lends to its children for results, until their client needs it no more.

A segment belongs to the worker, so that a child may die as soon as it has reported. It is lent to a child; it
is then part of a report, as long as there is such a report; and then the client's, who says when it has
unmapped it. What the client keeps is its own, and counts here until it says that it is gone. What the client
never came for, since the call was cancelled meanwhile, or had no outcome, is dropped when others are waiting
for room. Dropping is always safe: who maps it keeps it.
"""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Final

from zfarm.edge.cargo import Cargo, tokens_of
from zfarm.edge.heap import share_bytes
from zfarm.edge.segments import POSSIBLE, TOKEN_BYTES, Pool, Ref, Segment, open_ref
from zfarm.edge.stowage import DROP, KEEP, RECYCLE, UNSHARE
from zfarm.messages import Blob, Lent, Memory
from zfarm.settings import Settings, settings

__all__ = ["ENABLE", "NOTE_BYTES", "Lender", "can_open"]

ENABLE: Final = b"E"
"""Before a token that says nothing: the client has opened the segment that it was to try."""
NOTE_BYTES: Final = 1 + TOKEN_BYTES
_NOTHING: Final = Lent([])
_AWAY_MAX: Final = 128


class Lender:
    """The segments of one worker."""

    def __init__(self, limits: Settings = settings) -> None:
        self.unshare: Callable[[bytes], None] = lambda key: None
        """Told which shared object nobody refers to any more."""
        self.on = False
        """Whether its client can open its segments."""
        self._pool = Pool(limits)
        self._lent: dict[int, dict[bytes, Segment]] = {}  # by child
        self._reported: dict[bytes, Segment] = {}
        self._away: OrderedDict[bytes, Segment] = OrderedDict()  # in no report any more: the client's
        self._kept: dict[bytes, Segment] = {}  # closed here, and open at the client
        self._gone: deque[Sequence[bytes]] = deque()  # reports that are no more
        self._probe: Segment | None = None
        self._rest = b""
        self._last: weakref.WeakKeyDictionary[Segment, int] = weakref.WeakKeyDictionary()
        self._housed: set[Segment] = set()
        self._housed_max = limits.shared_warm_bytes // 2

    def probe(self) -> Ref | None:
        """A segment for the client to try; None: there can be none."""
        if not POSSIBLE:
            return None
        try:
            self._probe = self._probe or Segment(TOKEN_BYTES)
        except OSError:
            return None
        return self._probe.ref()

    def lend(self, child: int, sizes: Sequence[int]) -> Lent:
        """Segments for results of these sizes, as many as there is room for, from the first on."""
        if not self.on:
            return _NOTHING
        self._sweep()
        lent = self._lent.setdefault(child, {})
        given = []
        for size in sizes:
            segment = self._pool.take(size, child)
            while segment is None and self._away:
                self._pool.drop(self._away.popitem(last=False)[1])
                segment = self._pool.take(size, child)
            if segment is None:
                break
            lent[segment.token] = segment
            ref = segment.ref()
            yours = self._houses(segment, child)
            given.append(Memory(ref.token, ref.pid, ref.fd, size, ref.spilled, yours))
        return Lent(given)

    def _houses(self, segment: Segment, child: int) -> bool:
        """Whether a segment is this child's own from now on: it has had it before, and nobody else since. Of
        those there are not too many, so that others find some that they may have."""
        if segment.home == child:
            return True
        before, self._last[segment] = self._last.get(segment, 0), child
        if before != child or segment.spilled:
            return False
        self._housed = {one for one in self._housed if one.home and one.fd >= 0}
        of_child = sum(one.touched for one in self._housed if one.home == child)
        of_all = sum(one.touched for one in self._housed)
        if max(of_child + segment.touched - share_bytes(), of_all + segment.touched - self._housed_max) > 0:
            return False
        segment.home = child
        self._housed.add(segment)
        return True

    def reported(self, child: int, payload: Sequence[Blob]) -> Sequence[Blob]:
        """The payload of what a child reports, such that it is known how long it is needed."""
        lent = self._lent.pop(child, None)
        if not lent:
            return payload
        blobs: list[Blob] = []
        for blob in payload:
            named = {token: lent.pop(token) for token in tokens_of(blob) if token in lent}
            if named:
                self._reported.update(named)
                cargo = Cargo(blob)
                cargo.hold = _Report(list(named), self._gone)
                blob = cargo
            blobs.append(blob)
        for segment in lent.values():  # it has not used them after all
            self._pool.give(segment)
        return blobs

    def died(self, child: int) -> None:
        """A child is gone; what it left behind may still write into what it had."""
        for segment in self._lent.pop(child, {}).values():
            self._pool.drop(segment)
        for segment in self._housed:
            if segment.home == child:
                segment.home = 0

    def hear(self, data: bytes) -> None:
        """Notes of the client, or a part of them."""
        data = self._rest + data
        whole = len(data) - len(data) % NOTE_BYTES
        self._rest = data[whole:]
        self._take(data[:whole])

    def note(self, notes: bytes) -> None:
        """Whole notes of a client in a child. It may die before it says what it keeps no more: that never
        counts."""
        self._take(notes, mortal=True)

    def _take(self, notes: bytes, mortal: bool = False) -> None:
        self._sweep()
        for at in range(0, len(notes), NOTE_BYTES):
            verb = notes[at : at + 1]
            self._note(DROP if verb == KEEP and mortal else verb, notes[at + 1 : at + NOTE_BYTES])

    def _note(self, verb: bytes, token: bytes) -> None:
        if verb == ENABLE:
            self.on = POSSIBLE
        elif verb == UNSHARE:
            self.unshare(token)
        elif verb == DROP and token in self._kept:
            self._pool.handed_over_went(self._kept.pop(token))
        elif verb in (RECYCLE, DROP, KEEP):
            segment = self._away.pop(token, None) or self._reported.pop(token, None)
            if segment is not None and verb == KEEP:
                self._kept[token] = segment
                self._pool.hand_over(segment)
            elif segment is not None:
                (self._pool.give if verb == RECYCLE else self._pool.drop)(segment)

    def _sweep(self) -> None:
        while self._gone:
            for token in self._gone.popleft():
                segment = self._reported.pop(token, None)
                if segment is not None:
                    self._away[token] = segment
        while len(self._away) > _AWAY_MAX:
            self._pool.drop(self._away.popitem(last=False)[1])

    @property
    def bytes(self) -> int:
        """In shared memory, what is kept warm included."""
        return self._pool.bytes

    def cool(self) -> None:
        """Give back what nobody has needed since this was last called."""
        self._sweep()
        self._pool.cool()

    def close(self) -> None:
        """Give everything back."""
        self._sweep()
        for held in (*self._lent.values(), self._reported, self._away):
            for segment in held.values():
                self._pool.drop(segment)
        self._pool.trim()
        if self._probe is not None:
            self._probe.close()


class _Report:
    """Lives as long as the report of a result."""

    __slots__ = ("_gone", "_tokens")

    def __init__(self, tokens: Sequence[bytes], gone: deque[Sequence[bytes]]) -> None:
        self._tokens = tokens
        self._gone = gone

    def __del__(self) -> None:
        self._gone.append(self._tokens)


def can_open(ref: Ref | None) -> bool:
    """Whether this process can open another one's segment."""
    if ref is None or not POSSIBLE:
        return False
    try:
        os.close(open_ref(ref))
    except OSError:
        return False
    return True
