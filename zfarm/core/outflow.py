"""The streams that a worker sends: what its tasks emit, kept until a reader has it. It knows no child.

Rules of this file:
  1. Items are numbered from 1 in the order in which they come. What is kept is one run of them without holes.
  2. What a reader has not used yet is kept while it makes progress: its task waits in emit when there is no
     room. Without a reader, or with one that makes none for too long, the oldest items are dropped instead.
  3. Of items of which only the latest counts one at most is on its way, and one waits: the newest. It gets
     its number when the one before it can be replaced no more, so the numbers have no holes.
  4. Nothing is sent again unless it is asked for, and only what was sent before.
  5. The files of a lease are a stream of their own, under the lease with a minus sign, with more room.
  6. From where a task delivers its result there nothing is dropped: it waits for its client, for however
     long, until that has used all of it. Before the client has used the first piece no other one is sent:
     so it has as many results on their way as it wants.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from math import inf

from zfarm.core.ducts import Ducts
from zfarm.core.machine import NOW
from zfarm.core.outstream import OutStream
from zfarm.messages import (
    BROKER,
    Action,
    Fetch,
    Items,
    Listening,
    Payload,
    Progress,
    PublishItems,
    Send,
    Sent,
    Streams,
)
from zfarm.settings import Settings

__all__ = ["Outflow"]


class Gauge:
    """The last progress that a task has told."""

    __slots__ = ("progress", "told", "told_at")

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.told = False
        self.told_at = -inf


class Outflow:
    """All streams of one worker."""

    def __init__(self, limits: Settings) -> None:
        self._limits = limits
        self._streams: dict[int, OutStream] = {}
        self._living: dict[int, OutStream] = {}  # those whose task has not ended
        self._gauges: dict[int, Gauge] = {}
        self._last_words: list[tuple[int, Progress]] = []  # of tasks that have ended, to be told before that
        self._ended: dict[int, OutStream] = {}  # oldest first
        self._ended_bytes = 0
        self._fresh: list[int] = []  # to be announced
        self._gone: list[int] = []  # to be announced as gone
        self._used = False  # there were streams: a broker may know of some
        self._anew = False  # the broker is to know these streams and no others
        self._touched: dict[int, OutStream] = {}
        self._answers: list[Action] = []
        self.ducts = Ducts(limits)
        self.voided: list[int] = []
        """Leases whose results nobody takes: their clients have gone over to later runs."""
        self.delivered: list[int] = []
        """Leases whose results have come to their clients, to be told."""
        self.deadline = inf

    # ------------------------------------------------------------ what happens to streams

    def emitted(
        self, lease: int, owner: str, task: int, blobs: Payload, now: float, latest: bool = False
    ) -> None:
        """A task has emitted items, or one of which only the ``latest`` counts."""
        stream = self._streams.get(lease) or self._begin(lease, owner, task, now)
        stream.add(blobs, latest)
        self._touch(stream)

    def deliver(self, lease: int, owner: str, task: int, whole: bool, now: float) -> None:
        """What follows in the files of this lease is its result; ``whole``: that was all of it, and it is
        ``delivered`` when its reader has used it."""
        stream = self._streams.get(-lease) or self._begin(-lease, owner, -task, now)
        stream.result_at, stream.whole = stream.result_at or stream.count + 1, whole
        self._touch(stream)

    def _begin(self, lease: int, owner: str, task: int, now: float) -> OutStream:
        stream = self._streams[lease] = self._living[lease] = OutStream(lease, owner, task, now, self._limits)
        self._fresh.append(lease)
        self._used = True
        return stream

    def advanced(self, lease: int, progress: Progress) -> None:
        """A task has told how far it is."""
        gauge = self._gauges.get(lease)
        if gauge is None:
            gauge = self._gauges[lease] = Gauge(progress)
        gauge.progress, gauge.told = progress, False
        self.deadline = min(self.deadline, gauge.told_at + self._limits.progress_interval_s)

    def end(self, lease: int, died: bool) -> int:
        """The task has ended; the number of its last item. What has ``died`` will have a successor."""
        gauge = self._gauges.pop(lease, None)
        if gauge is not None and not gauge.told and not died:
            self._last_words.append((lease, gauge.progress))
            self.deadline = NOW
        return self._end_stream(lease, died)

    def end_files(self, lease: int, died: bool) -> int:
        """The same of its files."""
        return self._end_stream(-lease, died)

    def _end_stream(self, lease: int, died: bool) -> int:
        stream = self._streams.get(lease)
        if stream is None:
            return 0
        if died:
            self._forget(stream)
        else:
            stream.ended = True
            del self._living[lease]
            self._ended[lease] = stream
            self._ended_bytes += stream.bytes
            self._touch(stream)
        return stream.count

    def paused(self, lease: int) -> bool:
        """Whether the task of this lease waits in emit."""
        living = self._living
        if not living:
            return False
        return any(one in living and living[one].paused for one in (lease, -lease))

    def reap(self, held: Container[int]) -> None:
        """Forget the streams of tasks that run no more and will not be reported."""
        for lease in [lease for lease in self._living if abs(lease) not in held]:
            self._forget(self._living[lease])
        for lease in [lease for lease in self._gauges if lease not in held]:
            del self._gauges[lease]

    def _touch(self, stream: OutStream) -> None:
        self._touched[stream.lease] = stream
        self.deadline = NOW

    def _forget(self, stream: OutStream) -> None:
        lease = stream.lease
        self.ducts.withdraw(stream)
        del self._streams[lease]
        self._living.pop(lease, None)
        self._gauges.pop(lease, None)
        self._touched.pop(lease, None)
        if self._ended.pop(lease, None) is not None:
            self._ended_bytes -= stream.bytes
        if lease in self._fresh:
            self._fresh.remove(lease)
        else:
            self._gone.append(lease)
        self.deadline = NOW

    # ------------------------------------------------------------ what readers say

    def listen(self, listens: list[Listening], now: float, key: str = "") -> None:
        """Readers say how far they are; whoever shows this ``key`` is their client."""
        for one in listens:
            stream = self._streams.get(one.lease)
            if stream is None:
                self._gone.append(one.lease)
                self.deadline = NOW
                continue
            stream.key = "" if one.relayed else key
            self.ducts.permits(stream)
            self._touch(stream)
            if not one.next:
                continue
            if one.next > stream.next or (one.reading and not stream.reading):
                stream.stuck_since = now
                stream.away = False
                if stream.ended:  # it is kept for a while from now on
                    stream.over_at = inf
                    self._ended[one.lease] = self._ended.pop(one.lease)
            if one.next > stream.next:
                before = stream.bytes
                stream.used(one.next)
                if stream.ended:
                    self._ended_bytes += stream.bytes - before
            stream.left = one.next > stream.count + 1 and not one.reading
            stream.reading, stream.subscribed = one.reading, one.subscribed
            stream.read = True
            if one.ask and stream.sent > one.seen:
                self._answers.append(Send(BROKER, Sent(one.lease, stream.sent)))

    def duct(self, lease: int, up: bool) -> None:
        """The reader of this stream is seen at the duct, or is there no more."""
        stream = self._streams.get(lease)
        if stream is not None:
            (self.ducts.up if up else self.ducts.down)(stream)
            self._touch(stream)

    def fetch(self, message: Fetch) -> None:
        """A reader misses items: send again what is kept of them, and say what is not."""
        stream = self._streams.get(message.lease)
        self.deadline = NOW
        if stream is None:
            self._gone.append(message.lease)
            return
        first, last = message.first, min(message.last, stream.sent)
        if first < stream.first and first <= last:
            gone = min(last, stream.first - 1)
            self._answers.append(Send(BROKER, Items(message.lease, first, gone)))
        for chunk in stream.flight:
            low, high = max(chunk.first, first), min(chunk.last, last)
            if low <= high:
                blobs = chunk.blobs[low - chunk.first : high - chunk.first + 1]
                self._answers.append(Send(BROKER, Items(message.lease, low, high), blobs))

    def welcome(self, now: float) -> None:
        """The broker knows nothing of what was said before."""
        self.ducts.welcome(self._streams.values(), now)
        self._anew = self._used
        self._fresh = list(self._streams)
        self._gone = []
        self._answers = []
        for gauge in self._gauges.values():
            gauge.told = False
        for stream in self._streams.values():
            self._touch(stream)
        self.deadline = NOW

    @property
    def wanted(self) -> bool:
        """A reader still needs something of a task that has ended."""
        return any(stream.wanted for stream in self._ended.values())

    # ------------------------------------------------------------ the turn

    def advance(self, now: float, actions: list[Action]) -> None:
        """Send what this turn has, as far as readers have room, and forget what nobody will ask for."""
        self._announce(actions)
        actions.extend(self._answers)
        self._answers = []
        for stream in [*self.ducts.late(now), *self.ducts.lapsed(now)]:
            self._touch(stream)
        touched, self._touched = self._touched, {}
        for stream in touched.values():
            self.ducts.look_after(stream, now)
            actions.extend(self.ducts.take_actions())  # who is let in no more gets nothing of what follows
            if stream.reading:
                self._pump(stream, now, actions)
            if stream.ended:
                stream.over_at = min(stream.over_at, now + self._limits.stream_kept_s)
                if stream.next > stream.count:
                    self._forget(stream)
            elif stream.left and stream.result_at:
                self.voided.append(-stream.lease)
            elif stream.whole and stream.next > stream.count:
                stream.whole = False
                self.delivered.append(-stream.lease)
        self._tell_progress(now, actions)
        self._sweep(now)
        actions.extend(self.ducts.take_actions())
        if self._gone:
            self._announce(actions)
        self.deadline = self._next_deadline(now)

    def pauses(self, now: float) -> Iterator[tuple[int, bool]]:
        """Leases whose task shall wait in emit from now on, or go on."""
        for stream in self._living.values():
            if stream.patient and now >= stream.stuck_since + self._limits.stream_patience_s:
                stream.away = True
            expected = not stream.read and now < stream.began_at + self._limits.stream_grace_s
            held_back = stream.result_at > 0 or (stream.reading and not stream.away) or expected
            if not held_back:
                while stream.full(self._limits) and stream.first < stream.count:
                    stream.drop_oldest()
            paused = held_back and stream.full(self._limits, 0.5 if stream.paused else 1.0)
            if paused and not stream.paused:
                stream.stuck_since = max(stream.stuck_since, now)
            if paused is not stream.paused:
                stream.paused = paused
                lease = abs(stream.lease)
                yield lease, self.paused(lease)

    def _announce(self, actions: list[Action]) -> None:
        most = self._limits.batch_calls_max
        fresh = [self._streams[lease] for lease in self._fresh]
        streams = [self.ducts.streaming(stream) for stream in fresh]
        gone = self._gone
        anew, self._fresh, self._gone, self._anew = self._anew, [], [], False
        count = max(len(streams), len(gone), int(anew))
        for start in range(0, count, most):
            last = anew and start + most >= count
            part = Streams(streams[start : start + most], gone[start : start + most], last)
            actions.append(Send(BROKER, part))

    def _pump(self, stream: OutStream, now: float, actions: list[Action]) -> None:
        limits = self._limits
        while stream.turn(now) and (chunk := stream.send_next(limits)) is not None:
            items = Items(stream.lease, chunk.first, chunk.last)
            if stream.direct:
                actions.append(PublishItems(stream.owner, items, chunk.blobs, True))
            elif stream.subscribed and chunk.size <= limits.batch_bytes_max:
                actions.append(PublishItems(stream.owner, items, chunk.blobs))
            else:
                actions.append(Send(BROKER, items, chunk.blobs))

    def _tell_progress(self, now: float, actions: list[Action]) -> None:
        last_words, self._last_words = self._last_words, []
        for lease, told in last_words:
            actions.append(Send(BROKER, Progress(lease, told.done, told.total, told.note)))
        for lease, gauge in self._gauges.items():
            if not gauge.told and now >= gauge.told_at + self._limits.progress_interval_s:
                gauge.told, gauge.told_at = True, now
                told = gauge.progress
                actions.append(Send(BROKER, Progress(lease, told.done, told.total, told.note)))

    def _sweep(self, now: float) -> None:
        while self._ended:
            oldest = next(iter(self._ended.values()))
            if now < oldest.over_at and self._ended_bytes <= self._limits.streams_bytes_max:
                return
            self._forget(oldest)

    def _next_deadline(self, now: float) -> float:
        deadline = next(iter(self._ended.values())).over_at if self._ended else inf
        for stream in self._living.values():
            if stream.paused and not stream.read and not stream.result_at:
                deadline = min(deadline, stream.began_at + self._limits.stream_grace_s)
            elif stream.patient:
                deadline = min(deadline, stream.stuck_since + self._limits.stream_patience_s)
        deadline = min(deadline, self.ducts.deadline)
        for gauge in self._gauges.values():
            if not gauge.told:
                deadline = min(deadline, gauge.told_at + self._limits.progress_interval_s)
        return deadline

    def check(self) -> None:
        """What is kept is one run of items without holes, and the sums are right."""
        for stream in self._streams.values():
            number = stream.first
            for chunk in (*stream.flight, *stream.unsent):
                assert chunk.first == number and len(chunk.blobs) == chunk.last - chunk.first + 1
                number = chunk.last + 1
            assert number == stream.count + 1, "the last items are missing"
            assert stream.bytes == sum(chunk.size for chunk in (*stream.flight, *stream.unsent))
            assert stream.outstanding_bytes == sum(size for _, size in stream.outstanding)
            assert stream.outstanding or not stream.flight, "what was sent is not counted"
            assert not stream.direct or (stream.open and stream.offered), "it goes where nobody is seen"
        assert sorted(self._streams) == sorted([*self._living, *self._ended])
        assert self._ended_bytes == sum(stream.bytes for stream in self._ended.values())
