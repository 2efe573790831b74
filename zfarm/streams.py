"""What a task says while it runs: emit and progress inside it, streams of items at its client; no socket.

A stream is read by one or more readers: Streams that users iterate over, and callbacks. The link's thread
puts what arrives into their buffers; a Stream unpickles in the thread that iterates.
"""

from __future__ import annotations

import pickle
import struct
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import count, repeat
from operator import length_hint
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from zfarm.edge.ways import ITEM_MAX
from zfarm.errors import StreamGap
from zfarm.packed import Packed

if TYPE_CHECKING:
    import asyncio

    from zfarm.edge.inside import Inside
    from zfarm.futures import Future

__all__ = [
    "Buffer",
    "Called",
    "Item",
    "Piece",
    "Progress",
    "Stream",
    "emit",
    "inside_task",
    "progress",
    "wake",
    "woken",
]

T = TypeVar("T")


class Item(NamedTuple, Generic[T]):
    """One thing that a task has emitted. ``number`` counts from 1 in each ``attempt``; a higher attempt means
    that the one before died and the call runs again from its beginning."""

    value: T
    number: int
    attempt: int


class Progress(NamedTuple):
    """How far a task says it is. ``total`` is None where it does not know."""

    done: float
    total: float | None
    note: str


# ---------------------------------------------------------------- in a task


def emit(value: object, *, latest: bool = False) -> None:
    """Send ``value`` from the running task to whoever reads ``future.stream()``; it is pickled at once.

    With ``latest`` only the newest counts, as of a gauge: it never waits, and the next such value takes its
    place while it is not on its way. The reader gets it as an item like any other, in its place between
    those that were emitted before and after; the last one of a task always arrives.

    Otherwise it waits while the reader is behind by more than the room that there is, for at most
    ``settings.stream_patience_s`` seconds without progress; while nobody has begun to read,
    ``settings.stream_grace_s``. After that the oldest items make room for new ones, and who reads later is
    told what is missing. In a function that ``map`` calls it does nothing more than to check the value: a map
    has no streams, ``stream_map`` has. Any thread may call it, and speaks for the call that runs then: one
    that outlives its call speaks for the next one in this child. Of a call that dies what it has emitted in
    its last moment may be missing: what came of it is all up to some item.

    Raises:
        NotPortable: it cannot be pickled; the text says why.
        TooLarge: it exceeds ``settings.payload_bytes_max``, here or of the broker, or over TCP
            ``settings.undivided_bytes_max``.
        RuntimeError: this process does not run a task of a farm.
    """
    inside = inside_task("emit()")
    blob = inside.encode(value)
    if len(blob) > ITEM_MAX or len(blob) > inside.blob_max:
        from zfarm.edge.delivery import check_item

        check_item(blob, 0 if inside.setup is None else inside.setup.results, inside.blob_max)
    emitter = inside.emitter
    if emitter.muted:
        return
    if latest:
        emitter.emit_latest(inside.page.entered, blob)
    else:
        emitter.emit(inside.page.entered, blob)


def progress(done: float, total: float | None = None, note: str = "") -> None:
    """Say how far the running task is: ``future.progress`` at the client shows the last word.

    Never waits; it travels at most every ``settings.progress_interval_s`` seconds.

    Raises:
        TypeError, ValueError: a number is none or not finite, or the note has more than 1,000 characters.
        RuntimeError: this process does not run a task of a farm.
    """
    from math import isfinite

    from zfarm import messages

    inside = inside_task("progress()")
    done, total = float(done), None if total is None else float(total)
    if not isfinite(done) or not isfinite(total or 0.0):
        raise ValueError(f"progress must be finite, not {done!r} of {total!r}")
    if not isinstance(note, str):
        raise TypeError(f"a note must be a string, not {type(note).__name__}")
    if len(note) > NOTE_MAX:
        raise ValueError(f"a note may have {NOTE_MAX} characters, not {len(note)}")
    inside.emitter.tell(messages.Progress(inside.seq, done, total, note))


NOTE_MAX = 1000


def inside_task(what: str) -> Inside:
    """The child that this process is. Raises RuntimeError, which names ``what`` was called: it is none."""
    module = sys.modules.get("zfarm.edge.inside")
    inside: Inside | None = None if module is None else module.current()
    if inside is None or not inside.page.entered:
        lack = "this process runs no task" if inside is None else "an initializer is no task"
        raise RuntimeError(
            f"{what} speaks for the task that runs here, and {lack}: "
            "call it in a function that an Executor runs"
        )
    return inside


# ---------------------------------------------------------------- at the client: what waits to be read


BUSY_S: Final = 0.0003
BREATH_S: Final = 50e-6
"""A reader that has more to read rests this long after it has been busy so long: else it would keep the
interpreter's lock for up to 5 ms each time that the link or another thread of the program wakes up."""
LOOK_EACH: Final = 128
"""Items after which it looks at the clock."""


class Piece(NamedTuple):
    """Items of one attempt that came together; without blobs: they cannot be had."""

    attempt: int
    first: int
    last: int
    blobs: Any


class Reading(NamedTuple):
    """A piece that is being read: its next ``items``, each unpickled when it is asked for, the ``blobs`` of
    those that were not yet, and up to which of the piece they go."""

    piece: Piece
    items: Iterator[Any]
    blobs: Iterator[bytes]
    upto: int


class Buffer:
    """What one reader has not read yet. The link's thread fills it, the reader's empties it."""

    lasting = True
    """What it leaves unread when its reader goes is for the next one."""

    def __init__(self) -> None:
        self.pieces: deque[Piece] = deque()
        self.over = False
        self.error: StreamGap | None = None
        self.reading = Reading(Piece(0, 1, 0, ()), iter(()), iter(()), 0)
        """What is being read. Replaced as a whole: a KeyboardInterrupt may come between any two steps."""
        self.taken = (0, 0)
        """Attempt and number of the last item that was read."""
        self.changed = threading.Condition()
        self.awaiting: list[asyncio.Future[None]] = []

    @property
    def piece(self) -> Piece:
        """What is being read."""
        return self.reading.piece

    @property
    def at(self) -> int:
        """How many items of it were read."""
        return self.reading.upto - length_hint(self.reading.blobs)

    @property
    def unread(self) -> bool:
        """There is something in it that was not read."""
        return bool(self.pieces) or self.at < len(self.piece.blobs)

    def rest(self) -> deque[Piece]:
        """What was not read, by a reader that is gone."""
        rest, piece, at = self.pieces, self.piece, self.at
        if at < len(piece.blobs):
            rest.appendleft(piece._replace(first=piece.first + at, blobs=piece.blobs[at:]))
        return rest

    def put(self, piece: Piece) -> None:
        with self.changed:
            self.pieces.append(piece)
            self._wake()

    def end(self, error: StreamGap | None = None) -> None:
        with self.changed:
            self.over, self.error = True, error
            self._wake()

    def _wake(self) -> None:
        self.changed.notify_all()
        wake(self.awaiting)


def wake(awaiting: list[asyncio.Future[None]]) -> None:
    """Resolve these, of whatever event loops; from any thread. It empties the list."""
    while awaiting:  # not a loop over it: a coroutine that is collected meanwhile takes its own away
        woken = awaiting.pop(0)
        loop = woken.get_loop()
        try:
            loop.call_soon_threadsafe(_resolve, woken)
        except RuntimeError:
            if not loop.is_closed():  # else who waited in it has gone with it
                raise


def _resolve(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


async def woken(
    changed: threading.Condition, awaiting: list[asyncio.Future[None]], ready: Callable[[], object]
) -> None:
    """Wait in the event loop until the other thread calls ``wake``, unless it is ``ready``."""
    from asyncio import get_running_loop

    mine = get_running_loop().create_future()
    with changed:
        if ready():
            return
        awaiting.append(mine)
    try:
        await mine
    finally:
        with changed:
            if mine in awaiting:  # it was cancelled
                awaiting.remove(mine)


class Called(Buffer):
    """A reader that is a callback, called in the link's thread."""

    lasting = False

    def __init__(self, callback: Callable[[Any], object]) -> None:
        super().__init__()
        self._callback = callback

    def put(self, piece: Piece) -> None:
        if piece.blobs is None:
            self._call(_gap(piece))
        for number, blob in enumerate(piece.blobs or (), piece.first):
            try:
                item: Any = Item(pickle.loads(blob), number, piece.attempt)
            except BaseException as error:
                item = _unreadable(blob, error)
            self._call(item)
        self.taken = (piece.attempt, piece.last)

    def _call(self, item: Any) -> None:
        from concurrent.futures._base import LOGGER

        try:
            self._callback(item)
        except BaseException:  # SystemExit too: it must not end the thread that resolves everything
            LOGGER.exception("exception calling %r with an item", self._callback)


class Stream(Generic[T]):
    """The items that one task emits, as they come: iterate over it, with ``for`` or ``async for``.

    Each is an Item, once and in order. Where some cannot be had StreamGap is raised, and another loop goes on
    behind them. At the end, what the task raised is raised. A Stream is for one thread. Whoever lets go
    of it reads no more; a later ``future.stream()`` goes on from there.
    """

    def __init__(self, future: Future[Any], buffer: Buffer, sync: Callable[[], None]) -> None:
        """Only futures make streams."""
        self._future = future
        self._buffer = buffer
        self._sync = sync

    def __iter__(self) -> Iterator[Item[T]]:
        """The items from here on."""
        buffer, began = self._buffer, monotonic()
        while True:
            try:
                yield from buffer.reading.items
            except GeneratorExit:
                raise
            except BaseException as error:
                raise self._unreadable(error) from error
            more = buffer.at < len(buffer.piece.blobs)
            if (more or buffer.pieces) and monotonic() - began > BUSY_S:
                sleep(BREATH_S)
                began = monotonic()
            if more:
                self._go_on()
            elif not self._next():
                self._wait()
                began = monotonic()
                if not self._next():
                    self._raise()
                    return

    def __aiter__(self) -> AsyncIterator[Item[T]]:
        """The items from here on, without blocking the event loop."""
        return _Items(self)

    def _ready(self) -> Iterator[Item[T]]:
        """The items of this piece that were not read."""
        buffer = self._buffer
        while buffer.at < len(buffer.piece.blobs):
            self._go_on()
            try:
                yield from buffer.reading.items
            except GeneratorExit:
                raise
            except BaseException as error:
                raise self._unreadable(error) from error

    def _go_on(self) -> None:
        """Have the next items of this piece ready to be read, in one chain that runs no code for each."""
        buffer = self._buffer
        if length_hint(buffer.reading.blobs):  # another loop over this stream, or an earlier one, has them
            return
        piece, at = buffer.piece, buffer.at
        blobs = cut(piece.blobs[at : at + LOOK_EACH])
        left = iter(blobs)
        values = zip(map(pickle.loads, left), count(piece.first + at), repeat(piece.attempt))
        items = map(tuple.__new__, repeat(Item), values)  # as Item() does, in half the time
        buffer.reading = Reading(piece, items, left, at + len(blobs))

    def _unreadable(self, error: BaseException) -> BaseException:
        """What to raise in place of the item that has raised this; those behind it can be read on."""
        buffer = self._buffer
        piece, at = buffer.piece, buffer.at
        buffer.reading = Reading(piece, iter(()), iter(()), at)
        # it need not be of an item: a KeyboardInterrupt may come before the first
        return _unreadable(piece.blobs[at - 1], error) if at else error

    def _next(self) -> bool:
        """Go to the next piece; False: there is none (yet)."""
        buffer = self._buffer
        self._used()
        if not buffer.pieces:
            return False
        piece = buffer.pieces.popleft()
        buffer.reading = Reading(piece._replace(blobs=piece.blobs or ()), iter(()), iter(()), 0)
        if piece.blobs is None:
            raise _gap(piece)
        return True

    def _used(self) -> None:
        """This piece has been read to its end: there is room for more."""
        buffer = self._buffer
        if buffer.piece.attempt and buffer.taken != (buffer.piece.attempt, buffer.piece.last):
            buffer.taken = (buffer.piece.attempt, buffer.piece.last)
            self._sync()

    async def _wait_async(self) -> None:
        home, buffer = self._future._home, self._buffer
        if home is not None and not buffer.over:
            home.check_waiting()
        with nullcontext() if home is None or home.waits is None else home.waits():
            await woken(buffer.changed, buffer.awaiting, lambda: buffer.pieces or buffer.over)

    def _wait(self) -> None:
        home, buffer = self._future._home, self._buffer
        if home is not None and not buffer.over:
            home.check_waiting()
        if home is None or home.waits is None:
            self._wait_here()
        else:
            with home.waits():
                self._wait_here()

    def _wait_here(self) -> None:
        buffer = self._buffer
        with buffer.changed:
            while not (buffer.pieces or buffer.over):
                buffer.changed.wait()

    def _raise(self) -> None:
        """The stream is over: raise what the task raised, if it did."""
        cut, self._buffer.error = self._buffer.error, None
        if cut is not None:
            raise cut
        if self._future.done():
            error = self._future.exception()
            if error is not None:
                raise error


class _Items(Generic[T]):
    """A loop of asyncio over a stream. Not an async generator: the event loop would hold on to that for a
    while when somebody leaves the loop, and whoever then reads on would be told that others do."""

    def __init__(self, stream: Stream[T]) -> None:
        self._stream = stream
        self._ready = stream._ready()

    def __aiter__(self) -> AsyncIterator[Item[T]]:
        return self

    async def __anext__(self) -> Item[T]:
        stream = self._stream
        while True:
            for item in self._ready:
                return item
            if not stream._next():
                await stream._wait_async()
                if not stream._next():
                    stream._raise()
                    raise StopAsyncIteration
            self._ready = stream._ready()


_FORMATS: Final = [f"{size}s" for size in range(1024)]


def cut(blobs: Sequence[bytes]) -> Sequence[bytes]:
    """The same blobs; small ones that are packed as objects, in a third of the time of one by one."""
    if isinstance(blobs, Packed) and max(blobs.sizes, default=0) < len(_FORMATS):
        return struct.Struct("".join(map(_FORMATS.__getitem__, blobs.sizes))).unpack(blobs.data)
    return blobs


def _gap(piece: Piece) -> StreamGap:
    return StreamGap(
        f"items {piece.first} to {piece.last} of attempt {piece.attempt} cannot be had: the reader came "
        "too late for them, was too slow for too long, or the worker that kept them is gone",
        piece.attempt,
        piece.first,
        piece.last,
    )


def _unreadable(blob: Any, error: BaseException) -> BaseException:
    from zfarm.edge.outcomes import decode_outcome
    from zfarm.messages import VALUE

    return decode_outcome(VALUE, blob)[1] or error
