"""Which streams of a worker may be had over its duct, and which are. It knows no item.

Rules of this file:
  1. What the broker passes on of a reader is the permission: a stream of files of a reader with a key is
     offered to that key once it is large, for as long as it is read and not gone. Nobody else is let in.
     What was permitted before a Welcome is said again soon, or it may have been taken back unheard.
  2. The offer follows the permission, so whoever dials for it is expected.
  3. A stream moves to the duct when its reader was seen there, and leaves it when the duct breaks. Before the
     first it waits for a moment, but not again where that was in vain.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from zfarm.core.outstream import OutStream
from zfarm.messages import BROKER, Action, Admit, Dismiss, Send, Streaming, Streams
from zfarm.settings import Settings

__all__ = ["Ducts"]


class Ducts:
    """The duct of one worker, if it has one."""

    def __init__(self, limits: Settings) -> None:
        self._limits = limits
        self.address = ""
        """As Join says it; empty: there is none."""
        self.waiting: dict[int, OutStream] = {}
        """Streams that wait for their readers to be seen."""
        self._doubted: dict[int, OutStream] = {}  # offered, and not said to be read since the Welcome
        self._doubted_until = inf
        self._vain: dict[str, float] = {}  # whose readers do not come, and until when nobody waits for them
        self._actions: list[Action] = []

    def look_after(self, stream: OutStream, now: float) -> None:
        """Offer this stream, if it is to be had now, or take that back."""
        if stream.offered and not (stream.reading and stream.offered == stream.key):
            self.withdraw(stream)
        large = stream.lease < 0 and stream.came >= self._limits.duct_from_bytes
        if not (large and stream.reading and stream.key and self.address) or stream.offered:
            return
        stream.offered = stream.key
        self._actions += (
            Admit(stream.lease, stream.key),
            Send(BROKER, Streams([self.streaming(stream)])),
        )
        if now >= self._vain.get(stream.owner, 0.0):
            stream.wait_until = now + self._limits.duct_wait_s
            self.waiting[stream.lease] = stream

    def welcome(self, streams: Iterable[OutStream], now: float) -> None:
        """Nobody knows what the broker has said meanwhile."""
        self._doubted = {stream.lease: stream for stream in streams if stream.offered}
        self._doubted_until = now + self._limits.client_grace_s

    def permits(self, stream: OutStream) -> None:
        """The broker has said whose this stream is."""
        self._doubted.pop(stream.lease, None)

    def lapsed(self, now: float) -> list[OutStream]:
        """The streams that nobody is known to be permitted any more."""
        if now < self._doubted_until:
            return []
        lapsed, self._doubted, self._doubted_until = list(self._doubted.values()), {}, inf
        for stream in lapsed:
            stream.key = ""
        return lapsed

    @property
    def deadline(self) -> float:
        """When one of them changes by itself; inf: never."""
        first = min((stream.wait_until for stream in self.waiting.values()), default=inf)
        return min(first, self._doubted_until) if self._doubted else first

    def streaming(self, stream: OutStream) -> Streaming:
        """What the broker is told of this stream."""
        duct = self.address if stream.offered else ""
        return Streaming(stream.lease, stream.owner, stream.task, 0, duct)

    def withdraw(self, stream: OutStream) -> None:
        """Nobody may have this stream over the duct any more."""
        if stream.offered:
            self._actions.append(Dismiss(stream.lease))
            self._doubted.pop(stream.lease, None)
            self.waiting.pop(stream.lease, None)
            stream.offered = ""
            stream.open = stream.direct = False
            stream.wait_until = 0.0

    def up(self, stream: OutStream) -> None:
        """The reader of this stream is seen at the duct."""
        if stream.offered:
            stream.open = True
            if self.waiting.pop(stream.lease, None) is not None:
                self._vain.pop(stream.owner, None)

    def down(self, stream: OutStream) -> None:
        """The reader of this stream is at the duct no more. Nothing is in flight on a way that is cut."""
        stream.open = stream.direct = False
        stream.wait_until = 0.0
        self.waiting.pop(stream.lease, None)

    def late(self, now: float) -> list[OutStream]:
        """The streams that need not wait any longer."""
        late = [stream for stream in self.waiting.values() if now >= stream.wait_until]
        for stream in late:
            del self.waiting[stream.lease]
            self._vain = {owner: until for owner, until in self._vain.items() if now < until}
            self._vain[stream.owner] = now + self._limits.duct_shunned_s
        return late

    def take_actions(self) -> list[Action]:
        """What is to be done, once."""
        actions, self._actions = self._actions, []
        return actions
