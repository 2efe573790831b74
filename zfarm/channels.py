"""Which streams are read over one link, and by whom: it gives what arrives to its readers; no socket.

What a reader leaves unread when it goes is kept for a while for the next one, also when all of it was here.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from zfarm.errors import StreamGap
from zfarm.settings import settings
from zfarm.streams import Buffer, Called, Piece, Stream

if TYPE_CHECKING:
    from zfarm.core.client import Client
    from zfarm.futures import Future
    from zfarm.link import Link
    from zfarm.messages import Arrived, Missed

__all__ = ["Channels"]

T = TypeVar("T")


class _Channel:
    """One stream and its readers."""

    def __init__(self, task: int) -> None:
        self.task = task
        self.readers: list[Buffer] = []
        self.attempt = 0
        self.next = 1
        self.over = False
        self.left: deque[Piece] = deque()
        """What the last reader had not read when it left."""
        self.leavings = 0
        """How often the last reader has left."""


class Channels:
    """The streams that are read over one link; all but ``open`` happens in the link's thread."""

    def __init__(self, link: Link, machine: Client) -> None:
        self._link = link
        self._machine = machine
        self._channels: dict[int, _Channel] = {}
        self._early: set[Buffer] = set()
        """Readers of calls that are not submitted yet, since they wait for their arguments."""
        self._done: deque[tuple[int, Buffer]] = deque()
        """Tasks, and readers that have read all of them and are gone: to be forgotten, in no hurry."""

    # ------------------------------------------------------------ from any thread

    def open(
        self,
        future: Future[T],
        callback: Callable[[Any], object] | None = None,
        buffer: Buffer | None = None,
    ) -> Stream[T]:
        """Read the stream of ``future``; without a callback the caller iterates over what this returns.
        ``buffer`` is one of the caller's own kind."""
        buffer = buffer or (Buffer() if callback is None else Called(callback))
        link = self._link
        stream: Stream[T] = Stream(future, buffer, lambda: link.call(lambda: self._took(future._task)))
        if callback is None:  # whoever has let go of its stream reads no more
            finalizer = weakref.finalize(stream, self._closed, future, buffer)
            finalizer.atexit = False
        link.call(lambda: self._attach(future, buffer))
        if link.ended:
            buffer.end(_cut())
        return stream

    def _closed(self, future: Future[Any], buffer: Buffer) -> None:
        if self._link.ended or (buffer.over and not buffer.lasting):
            return
        if buffer.over and not buffer.unread:
            self._done.append((future._task, buffer))
        else:
            self._link.call(lambda: self._detach(future._task, buffer))

    # ------------------------------------------------------------ the link's thread

    @property
    def busy(self) -> bool:
        """A callback has not had the whole of its stream yet."""
        return any(
            isinstance(reader, Called) for channel in self._channels.values() for reader in channel.readers
        )

    def _attach(self, future: Future[Any], buffer: Buffer) -> None:
        self._forget_done()
        self._link.take()
        if not future._task and self._is_early(future, buffer):
            return
        task = future._task
        channel = self._channels.get(task)
        if channel is None:
            if task <= 0 or not self._machine.listen(task):
                if future._emitted:
                    buffer.put(Piece(1, 1, future._emitted, None))
                buffer.end()
                return
            channel = self._channels[task] = _Channel(task)
        elif not channel.readers:
            for piece in channel.left:
                buffer.put(piece)
            channel.left.clear()
            if not channel.over and not self._machine.listen(task):
                buffer.end()
                return
        elif channel.next > 1:  # others have read that already
            buffer.put(Piece(channel.attempt, 1, channel.next - 1, None))
        channel.readers.append(buffer)
        if channel.over:
            self._end(channel)

    def _is_early(self, future: Future[Any], buffer: Buffer) -> bool:
        """Whether the call still waits for its arguments; this comes again when it is submitted, or done."""
        if future.done():
            return False
        pending = future._awaits
        if pending is None or not pending.then(partial(self._attach_late, future, buffer)):
            self._link.take()  # it was submitted just now
            return False
        self._early.add(buffer)
        return True

    def _attach_late(self, future: Future[Any], buffer: Buffer) -> None:
        if buffer in self._early:
            self._early.discard(buffer)
            self._attach(future, buffer)

    def _forget_done(self) -> None:
        while self._done:
            self._detach(*self._done.popleft())

    def _detach(self, task: int, buffer: Buffer) -> None:
        self._early.discard(buffer)
        channel = self._channels.get(task)
        if channel is None or buffer not in channel.readers:
            return
        channel.readers.remove(buffer)
        if channel.readers:
            self._took(channel.task)  # it may be the one for whom the others had to wait
            return
        channel.left = buffer.rest()
        channel.leavings += 1
        if not channel.over:
            self._machine.unlisten(channel.task)
        elif not channel.left:
            del self._channels[channel.task]
            return
        self._link.loop.call_later(partial(self._drop, channel, channel.leavings), settings.stream_kept_s)

    def _drop(self, channel: _Channel, leavings: int) -> None:
        """Nobody has come back to read on, unless another one has left since then."""
        gone = not channel.readers and channel.leavings == leavings
        if gone and self._channels.get(channel.task) is channel:
            del self._channels[channel.task]

    def arrived(self, action: Arrived) -> None:
        """Items have come."""
        last = action.first + len(action.blobs) - 1
        self._put(action.token._task, Piece(action.attempt, action.first, last, action.blobs))

    def missed(self, action: Missed) -> None:
        """Items cannot be had."""
        self._put(action.token._task, Piece(action.attempt, action.first, action.last, None))

    def _put(self, task: int, piece: Piece) -> None:
        channel = self._channels.get(task)
        if channel is None:
            return
        channel.attempt, channel.next = piece.attempt, piece.last + 1
        for reader in channel.readers:
            reader.put(piece)
        if any(isinstance(reader, Called) for reader in channel.readers):
            self._took(task)
        if not channel.readers:
            channel.left.append(piece)

    def _took(self, task: int) -> None:
        channel = self._channels.get(task)
        if channel is None or channel.over or not channel.readers:
            return
        attempt = channel.attempt
        taken = [number if at == attempt else 0 for at, number in (one.taken for one in channel.readers)]
        self._machine.took(task, attempt, min(taken))

    def over(self, task: int) -> None:
        """A stream has come to its end."""
        self._forget_done()
        channel = self._channels.get(task)
        if channel is None:
            return
        channel.over = True
        self._end(channel)
        if not channel.readers and not channel.left:
            del self._channels[task]

    def _end(self, channel: _Channel) -> None:
        """All has come. Whoever may leave the rest to others stays a reader until it is gone."""
        for reader in channel.readers:
            reader.end()
        channel.readers = [reader for reader in channel.readers if reader.lasting]

    def cut(self) -> None:
        """The link ends, and with it all that was not read to its end."""
        for channel in self._channels.values():
            for reader in channel.readers:
                if not channel.over:
                    reader.end(_cut())
        for reader in self._early:
            reader.end(_cut())
        self._channels.clear()
        self._early.clear()


def _cut() -> StreamGap:
    return StreamGap(
        "the executor has ended before the end of this stream was here: read it before shutdown(), within "
        "the with block"
    )
