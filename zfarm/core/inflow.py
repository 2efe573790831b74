"""The streams that a client receives: in order, each item once, what is missing fetched. It knows no pickle.

Rules of this file:
  1. What is handed on is in order and without holes: an item, or the word that it cannot be had.
  2. An attempt that died hands on what had come of it without a hole; its successor begins at 1.
  3. Nothing is kept for a stream that nobody reads but where it stands.
  4. The files of a task are a stream of their own, under its number with a minus sign. They are read without
     being asked for.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Any

from zfarm.core.dialling import Dialling
from zfarm.core.instream import UNKNOWN, InStream
from zfarm.core.machine import NOW
from zfarm.messages import (
    BROKER,
    Action,
    Arrived,
    Fetch,
    Items,
    Listen,
    Listening,
    Missed,
    Outcome,
    Payload,
    Send,
    Sent,
    Streaming,
    StreamOver,
    Streams,
)
from zfarm.packed import bytes_of
from zfarm.settings import Settings

__all__ = ["Inflow"]

ACK_S = 0.02
"""How often a reader that has used all that it has says so at most."""
SWEEP_S = 0.25
"""How often what has been kept for long enough is forgotten at most."""
ALL = 1 << 62
"""Above the number of every item."""
BEHIND_PULSES = 2
"""Of these the broker owes an Echo at most, or else it is behind with what we say."""
AHEAD_MAX = 10_000
"""Pieces kept behind a hole; what comes beyond is fetched when the hole is filled."""


class Inflow:
    """All streams of one client."""

    def __init__(self, limits: Settings) -> None:
        self._limits = limits
        self._streams: dict[int, InStream] = {}
        self._leases: dict[int, InStream] = {}
        self._reading: dict[int, InStream] = {}
        self._closing: list[Listening] = []
        self._actions: list[Action] = []
        self._unread: list[InStream] = []  # to be kept for a while from now on
        self._resting: dict[int, InStream] = {}  # ended, and read by nobody; the oldest first
        self._subscribed = False  # items are published for this client, and it gets them
        self.dialling = Dialling(limits)
        self.files = False
        """Files are read, whenever a task sends some."""
        self.deadline = inf
        self._due = inf  # when the turn after the last one was to be
        self._pulses: deque[tuple[int, float]] = deque()  # those without an Echo, and when they were sent
        self._heeded_at = NOW  # the broker has read what we said until then
        self._heeded_due = inf  # and something is to be decided when it has read what we said until then

    @property
    def filing(self) -> bool:
        """Files of some task have not all been handed on."""
        return any(task < 0 for task in self._reading)

    @property
    def read(self) -> dict[int, InStream]:
        """The streams that are read and not over, as far as their leases are known."""
        return {stream.lease: stream for stream in self._reading.values() if stream.lease}

    def reads(self, task: int) -> bool:
        """The stream of this task is read and not over."""
        return task in self._reading

    # ------------------------------------------------------------ what the reader wants

    def listen(self, task: int, token: Any) -> bool:
        """Read the stream of this task from where it stands. ``token`` is of an open task, None of another;
        False: nothing is known of it."""
        stream = self._streams.get(task)
        if stream is None:
            if token is None:
                return False
            stream = self._streams[task] = InStream(task, token)
        stream.reading = stream.listen_due = True
        stream.ask_at = stream.moved_at = NOW
        self._resting.pop(task, None)
        self._reading[task] = stream
        self.deadline = NOW
        return True

    def took(self, task: int, attempt: int, number: int) -> None:
        """The reader has used all items of this attempt up to this number."""
        stream = self._streams.get(task)
        if stream is None or stream.attempt != attempt or number <= stream.taken:
            return
        stream.taken = min(number, stream.next - 1)
        stream.moved_at = NOW
        while stream.sizes and stream.sizes[0][0] <= stream.taken:
            stream.untaken += stream.sizes.popleft()[1]
        limits = self._limits
        if (
            stream.taken - stream.acked >= limits.stream_window_items // 4
            or stream.untaken >= (limits.stream_window_bytes if task > 0 else limits.files_window_bytes) // 4
        ):
            stream.listen_due = True
        self.deadline = NOW

    def unlisten(self, task: int) -> None:
        """Nobody reads the stream of this task any more; it may be read on later."""
        stream = self._reading.pop(task, None)
        if stream is not None:
            stream.reading = False
            self._close(stream, stream.taken + 1)
            self._unread.append(stream)
            self.deadline = NOW

    def _close(self, stream: InStream, below: int) -> None:
        if stream.lease:
            self._closing.append(Listening(stream.lease, below, stream.seen, reading=False))

    def subscribe(self, subscribed: bool) -> None:
        """Items that are published reach us from now on, or do not any more."""
        self._subscribed = subscribed
        for stream in self._reading.values():
            stream.listen_due = True
        self.deadline = NOW

    # ------------------------------------------------------------ what the broker and workers say

    def streams(self, message: Streams, tokens: dict[int, Any]) -> None:
        """Streams there are, and such that are gone; ``tokens`` are the open tasks."""
        for one in message.streams:
            stream = self._streams.get(one.task)
            if stream is None:
                asked = tokens.get(abs(one.task))
                if asked is None:
                    continue
                stream = self._new(one.task, asked.token)
            self._announced(stream, one)
        for lease in message.gone:
            known = self._leases.get(lease)
            if known is not None:
                known.gone = True
        self.deadline = NOW

    def _new(self, task: int, token: Any) -> InStream:
        stream = self._streams[task] = InStream(task, token)
        if task < 0 and self.files:
            self.listen(task, token)
        return stream

    def _announced(self, stream: InStream, one: Streaming) -> None:
        known = one.lease == stream.lease
        if stream.end == UNKNOWN and not known:
            if abs(one.lease) > abs(stream.lease):
                self._begin(stream, one.lease, one.attempt)
            elif one.task < 0:  # what had come of it is dropped
                self._closing.append(Listening(one.lease, ALL, 0, reading=False))
        if one.lease != stream.lease:
            return
        stream.gone, stream.gone_until = False, inf
        if not (one.duct and self.dialling.offered(stream, one.duct) and known):  # else it is but an offer
            stream.listen_due = stream.reading
            stream.ask_at = stream.fetch_at = NOW

    def _begin(self, stream: InStream, lease: int, attempt: int) -> None:
        self._leases.pop(stream.lease, None)
        self._close(stream, ALL)  # nobody needs what is left of the attempt before
        stream.begin(lease, max(attempt, stream.attempt + 1))
        self._leases[lease] = stream

    def items(self, message: Items, payload: Payload, now: float) -> None:
        """Items have come, or the word that there are none."""
        stream = self._leases.get(message.lease)
        if stream is None or not stream.reading or message.last < stream.next:
            return
        stream.moved_at = now
        if not payload:
            if message.first <= stream.next:
                self._miss(stream, message.last)
                self._drain(stream)
            self.deadline = NOW
            return
        if message.first > stream.next:
            if len(stream.ahead) < AHEAD_MAX and len(payload) > len(stream.ahead.get(message.first, ())):
                stream.ahead[message.first] = payload
                stream.seen = max(stream.seen, message.last)
            self.deadline = NOW
            return
        stream.seen = max(stream.seen, message.last)
        self._hand_on(stream, message.first, payload)
        # items keep their order on their way: while they come, those that were told of may just be behind
        stream.fetch_at = max(stream.fetch_at, now + self._limits.stream_retry_s / 5)
        if stream.ahead:
            self._drain(stream)
        self.deadline = NOW

    def direct(self, duct: str, message: Items, payload: Payload, now: float) -> None:
        """Items have come over a duct."""
        if self.dialling.counts(message.lease, duct):
            self.items(message, payload, now)

    def duct_broke(self, duct: str, reached: bool, now: float, refused: bool = False) -> None:
        """A duct has ended, could not be reached, or was refused."""
        self.dialling.broke(duct, reached, now, refused)
        self.deadline = NOW

    def sent(self, message: Sent, now: float) -> None:
        """The worker has sent all up to a number: what is not here soon is lost."""
        stream = self._leases.get(message.lease)
        if stream is not None and message.last > stream.told:
            stream.told = message.last
            stream.moved_at = now  # its worker lives and has them: patience begins anew
            if stream.next <= stream.told and stream.fetched != stream.next:
                stream.fetch_at = now + self._limits.stream_retry_s / 5
            self.deadline = NOW

    def ended(self, task: int, token: Any, outcome: Outcome) -> None:
        """A task has ended, so the number of its last item is known."""
        streams = self._streams
        if outcome.emitted or task in streams:
            self._ended(task, token, outcome.lease, outcome.emitted)
        if outcome.filed or -task in streams:
            self._ended(-task, token, -outcome.lease, outcome.filed)

    def _ended(self, task: int, token: Any, lease: int, emitted: int) -> None:
        stream = self._streams.get(task) or self._new(task, token)
        if emitted and lease != stream.lease:  # nobody has told us of that attempt
            self._begin(stream, lease, stream.attempt + 1)
        if emitted:
            stream.end = emitted
        else:  # that attempt died, or emitted nothing: what there is without a hole is all
            stream.end = stream.next - 1
            stream.ahead.clear()
        self._unread.append(stream)
        stream.ask_at = stream.fetch_at = stream.moved_at = NOW
        self.deadline = NOW

    def pulse(self, number: int, now: float) -> None:
        """The client has beaten, after all that it has said so far."""
        if self._reading:
            self._pulses.append((number, now))
        else:
            self._pulses.clear()

    def echo(self, number: int) -> None:
        """The broker has read all that was said before the Pulse of this number."""
        pulses = self._pulses
        while pulses and pulses[0][0] <= number:
            self._heeded_at = pulses.popleft()[1]
        if self._heeded_at >= self._heeded_due:
            self.deadline = NOW

    def welcome(self) -> None:
        """What was said on the old link may be lost."""
        self._pulses.clear()
        for stream in self._reading.values():
            stream.listen_due = True
            stream.ask_at = stream.fetch_at = stream.moved_at = NOW
        self.deadline = NOW

    def give_up(self) -> None:
        """Nobody can be asked for what is still to come."""
        for stream in self._reading.values():
            stream.gone = True
        self.deadline = NOW

    def clear(self) -> None:
        """Forget all."""
        self._streams.clear()
        self._leases.clear()
        self._reading.clear()
        self._resting.clear()
        self._closing.clear()
        self._unread.clear()
        self.dialling.clear()

    # ------------------------------------------------------------ putting in order

    def _hand_on(self, stream: InStream, first: int, blobs: Payload) -> None:
        if first < stream.next:
            blobs = blobs[stream.next - first :]
            first = stream.next
        stream.next = first + len(blobs)
        stream.sizes.append((stream.next - 1, bytes_of(blobs)))
        self._actions.append(Arrived(stream.token, stream.attempt, first, blobs, stream.task < 0))

    def _miss(self, stream: InStream, last: int) -> None:
        if last >= stream.next:
            missed = Missed(stream.token, stream.attempt, stream.next, last, stream.task < 0)
            self._actions.append(missed)
            stream.next = last + 1
            stream.sizes.append((last, 0))

    def _drain(self, stream: InStream) -> None:
        """Hand on what was kept behind a hole that is filled now."""
        ahead = stream.ahead
        while ahead and (first := min(ahead)) <= stream.next:
            blobs = ahead.pop(first)
            if first + len(blobs) > stream.next:
                self._hand_on(stream, first, blobs)

    # ------------------------------------------------------------ the turn

    def advance(self, now: float, joined: bool, actions: list[Action]) -> None:
        """Hand on what came, ask for what is missing, tell workers how far readers are."""
        self.deadline = self._heeded_due = inf
        if now > self._due + self._limits.beat_interval_s:  # we were stopped, and nobody is to blame for that
            for stream in self._reading.values():
                stream.moved_at = now
        listens, self._closing = self._closing, []
        for stream in list(self._reading.values()):
            self._look_after(stream, now, joined, listens)
        for stream in [s for s in self._reading.values() if s.over]:
            self._close(stream, stream.next)
            listens += self._closing
            self._closing = []
            self._actions.append(StreamOver(stream.token, stream.task < 0))
            self._forget(stream)
        self._sweep(now)
        if joined:
            most = self._limits.batch_calls_max
            for start in range(0, len(listens), most):
                actions.append(Send(BROKER, Listen(listens[start : start + most])))
        actions.extend(self._actions)
        self._actions = []
        told = self.dialling.advance(now, self._leases, actions)
        self._due = self.deadline = min(self.deadline, self.dialling.deadline)
        if told:
            self.deadline = NOW

    def _look_after(self, stream: InStream, now: float, joined: bool, listens: list[Listening]) -> None:
        limits = self._limits
        if stream.moved_at == NOW or not joined:
            stream.moved_at = now
        used = stream.taken >= stream.next - 1
        if stream.end >= 0 and stream.next <= stream.end and used:
            if stream.gone or self._waited_long(stream, now):
                last = min(stream.ahead) - 1 if stream.ahead else stream.end
                self._miss(stream, min(last, stream.end))
                self._drain(stream)
        elif stream.gone and stream.ahead:
            stream.gone_until = min(stream.gone_until, now + limits.stream_given_up_s)
            if now >= stream.gone_until:
                self._miss(stream, min(stream.ahead) - 1)
                self._drain(stream)
            else:
                self.deadline = min(self.deadline, stream.gone_until)
        if stream.end >= 0 and stream.next > stream.end:
            stream.over = True
            return
        if not (joined and stream.lease):
            return
        hole = stream.hole
        behind = len(self._pulses) > BEHIND_PULSES
        if behind and self._heeded_at < stream.asked_at:  # asking again would add to what waits there
            stream.ask_at = max(stream.ask_at, now + limits.stream_retry_s)
            if hole is not None and stream.fetched == hole[0]:
                stream.fetch_at = max(stream.fetch_at, now + limits.stream_retry_s)
        if hole is not None and (now >= stream.fetch_at or (stream.ahead and stream.fetched != hole[0])):
            stream.fetched, stream.fetch_at, stream.asked_at = hole[0], now + limits.stream_retry_s, now
            self._actions.append(Send(BROKER, Fetch(stream.lease, *hole)))
        if hole is not None:
            self.deadline = min(self.deadline, max(stream.fetch_at, now + 1e-3))
        ask = now >= stream.ask_at
        if ask:
            hurry = stream.end >= 0 and used
            stream.asked_at = now
            stream.ask_at = now + (limits.stream_retry_s if hurry else limits.beat_interval_s)
        if used and stream.taken > stream.acked:  # it may be that nothing comes before it is told
            if now >= stream.acked_at + ACK_S:
                stream.listen_due = True
            else:
                self.deadline = min(self.deadline, stream.acked_at + ACK_S)
        if ask or stream.listen_due:
            stream.listen_due = False
            stream.acked, stream.untaken, stream.acked_at = stream.taken, 0, now
            relayed = self.dialling.leaves_alone(stream.duct, now)
            listens.append(
                Listening(stream.lease, stream.taken + 1, stream.seen, True, self._subscribed, ask, relayed)
            )
        self.deadline = min(self.deadline, stream.ask_at)

    def _waited_long(self, stream: InStream, now: float) -> bool:
        """Nothing has come for so long that nothing will. It is no loss that the broker is behind: patience
        begins when it has read that something is missing, and while it reads nothing no time passes."""
        if stream.waits_since != stream.moved_at:
            stream.waits_since, stream.heard_at = stream.moved_at, inf
        if stream.heard_at == inf and self._heeded_at > stream.moved_at:
            stream.heard_at = now
        limits = self._limits
        patience_s = limits.stream_given_up_s if stream.task > 0 else limits.files_given_up_s
        due = stream.moved_at if stream.heard_at == inf else stream.heard_at + patience_s
        self._heeded_due = min(self._heeded_due, due)
        return self._heeded_at >= stream.heard_at + patience_s

    def _sweep(self, now: float) -> None:
        """Forget, after a while, what has ended and is read by nobody."""
        for stream in self._unread:
            if stream.end != UNKNOWN and not stream.reading and self._streams.get(stream.task) is stream:
                stream.kept_until = now + self._limits.stream_kept_s
                self._resting.pop(stream.task, None)
                self._resting[stream.task] = stream
        self._unread = []
        while self._resting:
            oldest = next(iter(self._resting.values()))
            if now < oldest.kept_until:
                self.deadline = min(self.deadline, max(oldest.kept_until, now + SWEEP_S))
                break
            self._forget(oldest)

    def _forget(self, stream: InStream) -> None:
        del self._streams[stream.task]
        self._leases.pop(stream.lease, None)
        self._reading.pop(stream.task, None)
        self._resting.pop(stream.task, None)

    def check(self) -> None:
        """Every stream that is read is known, and what is kept lies behind a hole."""
        for task, stream in self._reading.items():
            assert self._streams.get(task) is stream and stream.reading
        for lease, stream in self._leases.items():
            assert stream.lease == lease and self._streams.get(stream.task) is stream
        for stream in self._streams.values():
            assert stream.taken < stream.next
            assert not stream.ahead or min(stream.ahead) > stream.next, "what could be handed on was kept"
