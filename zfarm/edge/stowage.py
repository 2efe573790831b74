"""What a client has in shared memory for its calls, and has mapped of their results; any thread may ask.

Equal bytes are stowed once: a buffer that looks like one that is there is compared with it, byte by byte. A
segment is written to again when every call that it was for has ended in a child that told what it has still
mapped; after any other end, and once it was shared, only if the system tells that nobody has it open, and
under another token; else it is left to whoever may still look at it. A result may be in a segment of its
call's arguments: then that is not written to before the result is gone, too. What dies in the middle of
anything else only leaves a word in a queue.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from zfarm.edge import segments
from zfarm.edge.cargo import Cargo, Part, opened_cargo, pack, small
from zfarm.edge.moorings import Moorings
from zfarm.edge.segments import POSSIBLE, Pool, Ref, Segment, leases_tell, open_ref, same
from zfarm.messages import Blob
from zfarm.settings import Settings, settings

__all__ = ["DROP", "KEEP", "RECYCLE", "UNSHARE", "Hold", "Stowage"]

RECYCLE: Final = b"R"
"""Before the token of a result that nobody here maps any more."""
DROP: Final = b"D"
"""The same, where a process that was forked may map it."""
KEEP: Final = b"K"
"""Before the token of a result that is kept here: it counts until it is dropped."""
UNSHARE: Final = b"U"
"""Before the key of a shared object that nobody here refers to any more, or the token of a segment of it."""
_SAMPLES: Final = 16
_SAMPLE_BYTES: Final = 256
_COPY_FROM: Final = 4096
"""Results mapped at once; further ones are copied: a process may have some 65,000 mappings."""
_AWAY_MAX: Final = 128
"""Segments that are kept for results alone, so that they are used again: each is a descriptor. Of others only
their mappings stay."""


class Hold:
    """The segments of one call. It dies with the call's blob, unless ``end`` was said before."""

    __slots__ = ("_ended", "segments")

    def __init__(self, held: list[Segment], ended: Callable[[list[Segment]], None]) -> None:
        self.segments = held
        self._ended = ended

    def __del__(self) -> None:
        if self.segments:
            self._ended(self.segments)


class Stowage:
    """The shared memory of one client."""

    lends = True
    """Those who run its calls map its memory, and it theirs."""

    def __init__(self, limits: Settings = settings) -> None:
        self.on = False
        """Whether those who run its calls can open its segments."""
        self.notify: Callable[[], None] = lambda: None
        """Called in any thread, in the middle of anything, when there are new notes."""
        self._lock = threading.Lock()
        self._pool = Pool(limits, self._forget)
        self._known: dict[Any, Segment] = {}  # by what they look like
        self._out: set[Segment] = set()  # in use
        self._away: dict[bytes, Segment] = {}  # in use by results alone, the first one for longest
        self._lost: deque[list[Segment]] = deque()  # of calls that went without a word
        self._freed: deque[Segment] = deque()  # of results that are no more, once for each
        self._probe: Segment | None = None
        # of results: the link's thread alone
        self._landed: dict[bytes, int] = {}
        self._inside = 0  # those that are in segments of ours
        self._dead: deque[bytes] = deque()
        self._forked: set[bytes] = set()
        self._moorings = Moorings()
        _all.add(self)

    # ------------------------------------------------------------ whether it works

    def probe(self) -> Ref | None:
        """A segment for others to try; None: there can be none."""
        if not POSSIBLE:
            return None
        if self._probe is None:
            try:
                self._probe = Segment(segments.TOKEN_BYTES)
            except OSError:
                return None
        return self._probe.ref()

    # ------------------------------------------------------------ calls

    def stow(self, data: bytes, buffers: Sequence[memoryview]) -> bytes:
        """The blob of a pickle and its buffers, which are put into segments, and the pickle too if it is
        large; as far as there is room."""
        self._sweep()
        held: list[Segment] = []
        hold = Hold(held, self._lost.append)
        parts = [self._part(buffer, held) for buffer in buffers]
        whole: Part = data
        if not small(len(data)):
            with memoryview(data) as view:
                whole = self._part(view, held)
        if not held and not parts:
            return data
        cargo = Cargo(pack(parts, whole))
        cargo.hold = hold
        cargo.weight = len(data) + sum(buffer.nbytes for buffer in buffers)
        return cargo

    def _part(self, data: memoryview, held: list[Segment]) -> Part:
        segment = self._find(data) or self._fill(data)
        if segment is None:
            return data.tobytes()
        held.append(segment)
        return segment.ref()

    def _find(self, data: memoryview) -> Segment | None:
        with self._lock:
            segment = self._known.get(_look(data))
            if segment is None:
                return None
            if self._pool.is_free(segment):
                self._pool.reclaim(segment)
            self._away.pop(segment.token, None)
            self._out.add(segment)
            segment.users += 1
        try:
            if same(segment.area, data):
                return segment
        except OSError:
            pass  # it cannot be mapped now
        with self._lock:
            self._leave(segment)
        return None

    def _fill(self, data: memoryview) -> Segment | None:
        with self._lock:
            segment = self._pool.take(data.nbytes)
            while segment is None and self._away:
                self._drop_away()
                segment = self._pool.take(data.nbytes)
            if segment is None:
                return None
            segment.users = 1
            self._out.add(segment)
        try:
            segment.write(data)
        except OSError:
            with self._lock:
                self._out.discard(segment)
                self._pool.drop(segment)
            return None
        with self._lock:
            segment.key = _look(data)
            self._known[segment.key] = segment
        return segment

    def ended(self, hold: Hold, kept: Iterable[bytes] | None) -> None:
        """A call has ended. ``kept``: what its child has still mapped; None: nobody knows."""
        held, hold.segments = hold.segments, []
        with self._lock:
            for segment in held:
                if kept is None or segment.token in kept:
                    segment.tainted = True
                self._leave(segment)
        self._sweep()

    def discard(self, hold: Hold) -> None:
        """What was shared is not needed any more. Children may map it; where nobody tells when that is over,
        it is not even kept warm."""
        if leases_tell():
            self.ended(hold, None)
            return
        held, hold.segments = hold.segments, []
        with self._lock:
            for segment in held:
                segment.tainted = True
                segment.users -= 1
                if not segment.users and segment in self._out:
                    self._out.discard(segment)
                    self._pool.drop(segment)

    def taint(self) -> None:
        """Those who run the calls have died in a way that leaves it open what they still do."""
        with self._lock:
            for segment in self._out:
                segment.tainted = True

    def _sweep(self) -> None:
        while self._lost:
            try:
                held = self._lost.popleft()
            except IndexError:  # another thread was faster
                return
            with self._lock:
                for segment in held:
                    segment.tainted = True
                    self._leave(segment)
        while self._freed:
            try:
                segment = self._freed.popleft()
            except IndexError:
                return
            with self._lock:
                segment.landed -= 1
                self._inside -= 1
                if not segment.landed and self._away.pop(segment.token, None) is not None:
                    self._pool.give(segment)

    def _leave(self, segment: Segment) -> None:
        segment.users -= 1
        if segment.users or segment not in self._out:
            return
        self._out.discard(segment)
        if not segment.landed:
            self._pool.give(segment)
            return
        self._away[segment.token] = segment
        if len(self._away) > _AWAY_MAX:
            self._drop_away()

    def _drop_away(self) -> None:
        """Have one less of those in which there are results: what these have mapped stays."""
        self._pool.drop(self._away.pop(next(iter(self._away))))

    def _forget(self, segment: Segment) -> None:
        if self._known.get(segment.key) is segment:
            del self._known[segment.key]
        segment.key = segment.blob = None

    # ------------------------------------------------------------ results

    def land(self, blob: Blob, hold: Hold | None = None) -> Cargo:
        """Open the blob of a result: what it has in shared memory is mapped, not copied. ``hold`` are the
        segments of its call, which has not ended.

        Raises:
            OSError: that is not there any more, or cannot be mapped.
        """
        ours = {} if hold is None else {segment.token: segment for segment in hold.segments}
        look = self._moorings.area_of if len(self._landed) + self._inside < _COPY_FROM else _copy_of

        def get_ours(ref: Ref) -> Any:
            if ref.token not in ours:  # it may hold something else by now
                raise FileNotFoundError("a segment of an argument whose call has ended")
            return look(ref)

        def mapped(ref: Ref, area: Any) -> None:
            gone: Segment | bytes
            if ref.token in ours:
                gone = ours[ref.token]
                with self._lock:
                    gone.landed += 1
                    self._inside += 1
            else:
                gone = ref.token
                self._landed[gone] = self._landed.get(gone, 0) + 1
            weakref.finalize(area, _unmapped, weakref.ref(self), gone).atexit = False

        return opened_cargo(blob, mapped, look, get_ours)

    def keep(self, ref: Ref, hold: Hold | None) -> int:
        """A descriptor of a segment of this call, in which there is a result that is to be kept: nothing else
        is written there as long as it is open. Raises OSError."""
        for segment in hold.segments if hold is not None else ():
            if segment.token == ref.token:
                segment.tainted = True
                return open_ref(segment.ref())  # a duplicate would not be noticed
        raise FileNotFoundError("a segment of an argument whose call has ended")

    def unmapped(self, gone: bytes | Segment) -> None:
        """An area is no more, of a segment of ours or of others. Called in any thread, in the middle of
        anything."""
        if isinstance(gone, Segment):
            self._freed.append(gone)
        else:
            self._dead.append(gone)
        self.notify()

    def notes(self) -> list[bytes]:
        """What those who made the results are to be told: the tokens of those that are free again."""
        notes = []
        while self._dead:
            token = self._dead.popleft()
            self._landed[token] -= 1
            if not self._landed[token]:
                del self._landed[token]
                notes.append((DROP if token in self._forked else RECYCLE) + token)
                self._forked.discard(token)
        return notes

    def rest(self) -> None:
        """There is nothing to do: see to the mappings of results that are no more, and to what was in use."""
        self._moorings.settle()
        self._sweep()

    # ------------------------------------------------------------ the end, and forks

    @property
    def bytes(self) -> int:
        """In shared memory for calls, what is kept warm included."""
        return self._pool.bytes

    def cool(self) -> None:
        """Give back what no call has needed since this was last called. The link's thread."""
        self._moorings.clear()
        self._sweep()
        with self._lock:
            self._pool.cool()

    def close(self) -> None:
        """Give back everything: nobody runs calls any more."""
        self.on = False
        self._moorings.close()
        self._sweep()
        with self._lock:
            while self._out:
                self._pool.drop(self._out.pop())
            while self._away:
                self._drop_away()
            self._pool.trim()
            if self._probe is not None:
                self._probe.close()
                self._probe = None

    def before_fork(self) -> None:
        """A process is about to be forked that will see what is mapped here."""
        self._forked.update(list(self._landed))
        for segment in (*list(self._out), *list(self._away.values())):
            segment.tainted = segment.tainted or segment.landed > 0

    def disown(self) -> None:
        """In a forked process: hold none of its parent's memory."""
        self.on = False
        held = (*self._out, *self._away.values(), *self._known.values())
        for segment in (*held, *([self._probe] if self._probe else ())):
            segment.close()
        self._out, self._away, self._known, self._probe = set(), {}, {}, None


_all: Final[weakref.WeakSet[Stowage]] = weakref.WeakSet()


def _unmapped(stowage: weakref.ref[Stowage], gone: bytes | Segment) -> None:
    there = stowage()
    if there is not None:
        there.unmapped(gone)


def _before_fork() -> None:
    for stowage in list(_all):
        stowage.before_fork()


os.register_at_fork(before=_before_fork)


def _look(data: memoryview) -> tuple[int, bytes]:
    """What bytes look like from afar: their number, and some of them."""
    size = data.nbytes
    last = size - _SAMPLE_BYTES
    starts = (last * n // (_SAMPLES - 1) for n in range(_SAMPLES))
    return size, b"".join(data[start : start + _SAMPLE_BYTES] for start in starts)


def _copy_of(ref: Ref) -> Any:
    """As ``segments.area_of``, but in memory of our own."""
    fd = open_ref(ref)
    try:
        area = _Copy(ref.size)
        os.preadv(fd, [area], 0)
        return area
    finally:
        os.close(fd)


class _Copy(bytearray):
    """A bytearray that can be weakly referred to."""
