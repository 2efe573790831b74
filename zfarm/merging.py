"""The streams of many calls read as one, as their items come; little of it runs in the link's thread.

Every piece of items that comes for one of the calls puts its buffer into one queue, so that whoever reads
takes a piece of each in the order in which they came, and a call that emits much starves no other.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from zfarm.errors import NotPortable, TooLarge
from zfarm.streams import Buffer, Stream, wake, woken

if TYPE_CHECKING:
    import asyncio

    from zfarm.api import Executor
    from zfarm.futures import Future
    from zfarm.link import Link

__all__ = ["Merged", "StreamItem"]

T = TypeVar("T")

_nothing: Any = None
CALLS_PER_SLOT = 2
"""Calls open at once when nothing else is said: one that runs and one that waits for its slot."""


class StreamItem(NamedTuple, Generic[T]):
    """One thing that a call of ``stream_map`` has emitted, and which call that was.

    ``index`` is the place of ``input`` in the input, from 0. ``number`` and ``attempt`` are those of the
    Item; a higher attempt means that the one before died and the call runs again from its beginning. With
    ``return_exceptions`` an ``error`` may stand in place of a value: what the call raised, after its last
    item, or a StreamGap where items cannot be had.
    """

    index: int  # type: ignore[assignment]  # the method of tuples is no loss
    input: Any
    value: T
    number: int
    attempt: int
    error: BaseException | None = None


class _Queue:
    """Buffers that have something to read, in the order in which it came."""

    def __init__(self) -> None:
        self._ready: deque[_Source] = deque()
        self._changed = threading.Condition()
        self._awaiting: list[asyncio.Future[None]] = []

    def put(self, source: _Source) -> None:
        with self._changed:
            self._ready.append(source)
            self._changed.notify()
            wake(self._awaiting)

    def get(self, link: Link) -> _Source:
        with self._changed:
            if self._ready:
                return self._ready.popleft()
        link.check_waiting()
        with nullcontext() if link.waits is None else link.waits(), self._changed:
            while not self._ready:
                self._changed.wait()
            return self._ready.popleft()

    async def get_async(self, link: Link) -> _Source:
        while True:
            with self._changed:
                if self._ready:
                    return self._ready.popleft()
            link.check_waiting()
            with nullcontext() if link.waits is None else link.waits():
                await woken(self._changed, self._awaiting, lambda: self._ready)


class _Source(Buffer):
    """What one call has emitted and nobody has read."""

    lasting = False

    def __init__(self, queue: _Queue, index: int, given: Any) -> None:
        super().__init__()
        self.index = index
        self.given = given
        self.future: Future[Any]
        self.stream: Stream[Any]
        self._queue = queue

    def _wake(self) -> None:
        self._queue.put(self)


class Merged(Generic[T]):
    """The items of many calls as they come: iterate over it, with ``for`` or ``async for``, once.

    It submits as it is read. Whoever ends the loop early cancels the rest, as with ``map``: calls that have
    not started; with ``force_cancel`` those that run, too.
    """

    def __init__(
        self,
        farm: Executor,
        fn: Callable[[Any], Any],
        inputs: Iterable[Any],
        buffersize: int | None,
        return_exceptions: bool,
    ) -> None:
        """Only executors make these: ``farm.stream_map``."""
        self._farm = farm
        self._fn = fn
        self._inputs = enumerate(inputs)
        self._most = buffersize
        self._give = return_exceptions
        self._queue = _Queue()
        self._sources: set[_Source] = set()
        self._more = True

    def __iter__(self) -> Iterator[StreamItem[T]]:
        """The items from here on."""
        link = self._farm._link
        try:
            while self._submit():
                yield from self._read(self._queue.get(link))
        finally:
            self.close()

    async def __aiter__(self) -> AsyncIterator[StreamItem[T]]:
        """The items from here on, without blocking the event loop."""
        link = self._farm._link
        try:
            while self._submit():
                for item in self._read(await self._queue.get_async(link)):
                    yield item
        finally:
            self.close()

    def close(self) -> None:
        """Submit no more, and cancel what has not started. Harmless when done before, or at the end."""
        self._more = False
        sources, self._sources = self._sources, set()
        if sources:
            link = self._farm._link
            link.call(partial(_cancel, link, [source.future for source in sources]))

    def _submit(self) -> bool:
        """Submit what there is room for; False: all has been read."""
        most = self._most or CALLS_PER_SLOT * self._farm._link.slots
        while self._more and len(self._sources) < most:
            try:
                index, given = next(self._inputs)
            except StopIteration:
                self._more = False
                break
            source = _Source(self._queue, index, given)
            try:
                source.future = self._farm.submit(self._fn, given)
            except (NotPortable, TooLarge) as error:
                if not self._give:
                    raise
                self._refuse(source, error)
            else:
                source.stream = source.future._channels().open(source.future, buffer=source)
            self._sources.add(source)
        return bool(self._sources)

    def _refuse(self, source: _Source, error: BaseException) -> None:
        """Its call cannot be submitted: that is how it ends, before its first item."""
        from zfarm.futures import Future

        source.future = Future()
        source.future._fail(error)
        source.stream = Stream(source.future, source, lambda: None)
        source.end()

    def _read(self, source: _Source) -> Iterator[StreamItem[T]]:
        """One piece of the items of this call, or its end."""
        stream = source.stream
        try:
            if source.at < len(source.piece.blobs) or stream._next():
                for item in stream._ready():
                    yield StreamItem(source.index, source.given, *item)
                stream._used()
            elif source.over and source in self._sources:
                self._sources.discard(source)
                stream._raise()
        except GeneratorExit:
            raise
        except BaseException as error:
            if not self._give:
                raise
            if source.at < len(source.piece.blobs):  # an item that cannot be unpickled: the others follow
                self._queue.put(source)
            attempt, number = source.piece.attempt, source.piece.first + source.at - 1
            yield StreamItem(source.index, source.given, _nothing, number, attempt, error)


def _cancel(link: Link, futures: list[Future[Any]]) -> None:
    """In the link's thread."""
    link.take()
    for future in futures:
        if future._withdraw():  # it still waits for its argument
            future._drop()
        else:
            link.cancel_task(future._task)
