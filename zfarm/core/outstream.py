"""The stream of one lease, as its worker has it: what was sent and not used yet, and what was not sent.

The rules that it follows stand in zfarm.core.outflow.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import NamedTuple

from zfarm.messages import Payload
from zfarm.packed import bytes_of
from zfarm.settings import Settings

__all__ = ["OutStream"]


class Chunk(NamedTuple):
    """Items that came together and travel together."""

    first: int
    last: int
    blobs: Payload
    size: int
    latest: bool = False


class OutStream:
    """The stream of one lease."""

    __slots__ = (
        "away",
        "began_at",
        "buffer_bytes",
        "bytes",
        "came",
        "count",
        "direct",
        "ended",
        "flight",
        "gauge",
        "key",
        "lease",
        "left",
        "next",
        "offered",
        "open",
        "outstanding",
        "outstanding_bytes",
        "over_at",
        "owner",
        "paused",
        "read",
        "reading",
        "result_at",
        "sent",
        "stuck_since",
        "subscribed",
        "task",
        "unsent",
        "wait_until",
        "whole",
        "window_bytes",
    )

    def __init__(self, lease: int, owner: str, task: int, now: float, limits: Settings) -> None:
        self.lease = lease
        files = lease < 0
        self.window_bytes = limits.files_window_bytes if files else limits.stream_window_bytes
        self.buffer_bytes = limits.files_buffer_bytes if files else limits.stream_buffer_bytes
        self.began_at = now
        self.owner = owner
        self.task = task
        self.count = 0  # the number of the last item
        self.sent = 0  # the number of the last one that was sent, or dropped unsent
        self.next = 1  # all below was used by the reader
        self.flight: deque[Chunk] = deque()  # sent and not used, as far as it is kept
        self.unsent: deque[Chunk] = deque()
        self.bytes = 0  # of both
        self.outstanding: deque[tuple[int, int]] = (
            deque()
        )  # sent and not used, kept or not: last number, bytes
        self.outstanding_bytes = 0
        self.gauge = 0  # the number of the last item sent of which only the latest counts
        self.read = False  # there is or was a reader
        self.reading = False
        self.subscribed = False
        self.away = False  # its reader has made no progress for too long
        self.left = False  # for the stream of a later run: it comes back to this one no more
        self.paused = False
        self.stuck_since = now
        self.result_at = 0  # what its task gives begins with this item; nothing of that is dropped
        self.whole = False  # and it is complete: whoever sent it waits for its reader to have used it
        self.ended = False
        self.over_at = inf
        self.came = 0  # bytes, ever
        self.key = ""  # that its reader shows at a duct; empty: it has none
        self.offered = ""  # the key for which it may be had over the duct
        self.open = False  # its reader is seen there
        self.direct = False  # and what is sent goes there
        self.wait_until = 0.0  # for the reader to be seen

    @property
    def first(self) -> int:
        """The number of the first item that is kept; one more than the last if there is none."""
        kept = self.flight or self.unsent
        return kept[0].first if kept else self.count + 1

    @property
    def patient(self) -> bool:
        """Its task waits for a reader, and will not do so for ever."""
        return self.paused and not self.away and not self.result_at

    @property
    def admitted(self) -> bool:
        """Its reader wants the result, if there is one."""
        return not self.result_at or self.next > self.result_at

    @property
    def wanted(self) -> bool:
        """A reader that makes progress has not used all of it."""
        return self.reading and not self.away and self.next <= self.count

    def add(self, blobs: Payload, latest: bool) -> None:
        """Take items, or one that takes the place of the ``latest`` if that still waits."""
        if latest and self.unsent and self.unsent[-1].latest:
            replaced = self.unsent.pop()
            self.bytes -= replaced.size
            self.count -= 1
        size = bytes_of(blobs)
        self.unsent.append(Chunk(self.count + 1, self.count + len(blobs), blobs, size, latest))
        self.count += len(blobs)
        self.bytes += size
        self.came += size

    def used(self, below: int) -> None:
        """The reader has used all items below this number."""
        self.next = min(below, self.count + 1)
        while self.flight and self.flight[0].last < self.next:
            self.bytes -= self.flight.popleft().size
        while self.outstanding and self.outstanding[0][0] < self.next:
            self.outstanding_bytes -= self.outstanding.popleft()[1]
        while not self.flight and self.unsent and self.unsent[0].last < self.next:
            self._drop_unsent()

    def drop_oldest(self) -> None:
        """Drop the oldest items that are kept."""
        if self.flight:
            self.bytes -= self.flight.popleft().size
        else:
            self._drop_unsent()

    def _drop_unsent(self) -> None:
        chunk = self.unsent.popleft()
        self.bytes -= chunk.size
        self.sent = chunk.last

    def turn(self, now: float) -> bool:
        """Take the way that it is to take, which must wait until nothing is in flight on the other one;
        whether it is there."""
        if self.open is not self.direct and not self.outstanding:
            self.direct = self.open
        return self.open is self.direct and (self.open or now >= self.wait_until)

    def send_next(self, limits: Settings) -> Chunk | None:
        """The next items to send, if there are some and the window has room for them."""
        if not self.unsent:
            return None
        chunk = self.unsent[0]
        window = self.window_bytes
        if self.result_at:  # several may come at once, and if the broker passes them on, not much of each
            window = window // 2 if self.subscribed else min(window // 2, limits.batch_bytes_max)
            if not self.admitted and chunk.first > self.result_at:
                return None
        if self.outstanding and (
            self.outstanding_bytes + chunk.size > window
            or chunk.last - self.next >= limits.stream_window_items
        ):
            return None
        if chunk.latest:
            if self.gauge >= self.next and len(self.unsent) == 1:
                return None  # the one before it was not read yet: it may still be replaced
            self.gauge = chunk.last
        self.unsent.popleft()
        self.flight.append(chunk)
        self.outstanding.append((chunk.last, chunk.size))
        self.outstanding_bytes += chunk.size
        self.sent = chunk.last
        return chunk

    def full(self, limits: Settings, share: float = 1.0) -> bool:
        """As much is kept as may be, or that ``share`` of it."""
        most = self.buffer_bytes if self.admitted else min(self.buffer_bytes, limits.batch_bytes_max)
        return self.bytes >= most * share or self.count - self.first + 1 >= limits.stream_buffer_items * share
