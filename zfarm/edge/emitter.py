"""What a call emits, on its way out of its child: put together, and sent by a thread; it knows no pickle.

The thread sends, so that a signal which interrupts the call can never cut a message on the pipe in two. While
the worker does not read, the pipe fills up, then the room here, and then ``emit`` waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final

from zfarm.messages import CHUNK_BYTES, Blob, Emits, Message, Progress
from zfarm.settings import settings

__all__ = ["Emitter"]

ITEMS_MAX: Final = 1024
"""Items in one message: enough to pay for it, few enough for it to be on its way soon."""
BYTES_MAX: Final = 256 * 1024
PIECES_BYTES_MAX: Final = 3 * CHUNK_BYTES
"""In one message of large pieces of files or results: three share what each message costs worker, relay and
client beside its bytes. Two such messages of a result fit into its window, and five of files."""
SMALL_MAX: Final = BYTES_MAX // ITEMS_MAX
"""Bytes of an item of which a message may have as many as it may have items at all."""
NEVER: Final = 1 << 62
GATHER_S: Final = 0.003
"""From one message of items to the next, unless it is full or the call has ended: a turn of worker, relay and
client each is worth many items, and must not be had by each of them. What comes after a rest goes at once."""


class Emitter:
    """The items of one child's calls, one call after the other.

    A small item takes no lock: it is appended to a list of which the thread takes all at once, and either is
    one step of the interpreter.
    """

    def __init__(self, send: Callable[[Message, Sequence[Blob]], None], files: bool = False) -> None:
        """``send`` writes one message to the worker, waiting for it to be taken. ``files``: what is emitted
        are pieces of files."""
        self.muted = False
        """What runs is a batch of a map: there is no future whose stream could be read."""
        self._send = send
        self._files = files
        self._large_max = PIECES_BYTES_MAX if files else BYTES_MAX
        # entered as it is, not through the condition: a KeyboardInterrupt in a method of that, between the
        # lock and the block, would leave it locked for ever
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._seq = 0
        self._quick = 0  # the call whose small items need no lock; 0: none
        self._items: list[bytes] = []  # always the same one
        self._wake_at = NEVER  # the thread sleeps until there are so many
        self._bytes = 0  # of the items, unless all are quick
        self._full = False  # of bytes
        self._latest: bytes | None = None  # comes after the items; replaced while it waits
        self._progress: Progress | None = None
        self._progress_at = 0.0
        self._hurry = False
        self._sending = False
        self._sent_at = 0.0  # when items were taken to be sent
        self._broken: OSError | None = None
        self._thread: threading.Thread | None = None

    def emit(self, seq: int, blob: bytes) -> None:
        """Send an item of call ``seq``; waits while there is no room. Raises OSError: the worker is gone."""
        items = self._items
        if seq == self._quick and len(blob) <= SMALL_MAX and len(items) < ITEMS_MAX:
            items.append(blob)
            if len(items) >= self._wake_at:
                with self._lock:
                    self._wake()
            return
        with self._lock:
            if seq != self._seq:
                self._begin(seq)
            while (self._full or len(items) >= ITEMS_MAX) and self._broken is None:
                self._wake()
                self._changed.wait()
            if self._broken is not None:
                raise self._broken
            if self._latest is not None:
                self._add(self._latest)
                self._latest = None
            self._add(blob)

    def emit_latest(self, seq: int, blob: bytes) -> None:
        """Send an item of call ``seq`` soon, or the next such one in its place. Raises as ``emit``."""
        with self._lock:
            if seq != self._seq:
                self._begin(seq)
            if self._broken is not None:
                raise self._broken
            self._slow_down()
            self._latest = blob
            self._wake()

    def tell(self, progress: Progress) -> None:
        """Send this progress soon, or the next one in its place."""
        with self._lock:
            if progress.number != self._seq:
                self._begin(progress.number)
            self._progress = progress
            self._wake()

    def flush(self) -> None:
        """Wait until all has been sent. Free when nothing was ever emitted."""
        if self._thread is None:
            return
        with self._lock:
            while (self._items or self._latest or self._progress or self._sending) and self._broken is None:
                self._hurry = True
                self._wake()
                self._changed.wait()
            self._hurry = False

    def _wake(self) -> None:
        self._wake_at = NEVER
        self._changed.notify_all()

    def _slow_down(self) -> None:
        """Until what there is has been taken items need the lock: it is to be known how large they are."""
        if self._quick:
            self._quick = 0
            self._bytes = sum(map(len, self._items))

    def _add(self, blob: bytes) -> None:
        if len(blob) > SMALL_MAX:
            self._slow_down()
        self._items.append(blob)
        if not self._quick:
            self._bytes += len(blob)
            self._full |= self._bytes >= (self._large_max if len(blob) >= BYTES_MAX else BYTES_MAX)
        if self._full or len(self._items) >= self._wake_at:
            self._wake()

    def _begin(self, seq: int) -> None:
        """A call emits for the first time; what the last one emitted was flushed at its end."""
        if self._broken is not None:
            raise self._broken
        self._seq = self._quick = seq
        self._items.clear()
        self._latest, self._progress = None, None
        self._full = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="zfarm-emitter", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                seq, items, latest, progress = self._next()
                if items:
                    self._send(Emits(seq, files=self._files), items)
                if latest is not None:
                    self._send(Emits(seq, latest=True), (latest,))
                if progress is not None:
                    self._send(progress, ())
        except OSError as error:
            with self._lock:
                self._broken = error
                self._quick = 0
                self._changed.notify_all()

    def _next(self) -> tuple[int, list[bytes], bytes | None, Progress | None]:
        with self._lock:
            self._sending = False
            if self._hurry:
                self._changed.notify_all()
            progress = self._wait()
            self._wake_at = NEVER
            items = self._items[:]
            del self._items[: len(items)]
            if items:
                self._sent_at = monotonic()
            self._quick, self._full = self._seq, False
            latest, self._latest = self._latest, None
            self._sending = True
            self._changed.notify_all()
            return self._seq, items, latest, progress

    def _wait(self) -> Progress | None:
        """Wait until something is to be sent; a progress that is."""
        while True:
            wait_s = None
            progress = self._progress
            if progress is not None:
                wait_s = 0.0 if self._hurry else self._progress_at - monotonic()
                if wait_s <= 0:
                    self._progress = None
                    self._progress_at = monotonic() + settings.progress_interval_s
                    return progress
            gather_s = 0.0 if self._hurry else self._sent_at + GATHER_S - monotonic()
            # said before the look at what there is: else one that comes between them would wake nobody
            self._wake_at = ITEMS_MAX if gather_s > 0 else 1
            if (
                self._full
                or len(self._items) >= self._wake_at
                or (self._latest is not None and gather_s <= 0)
            ):
                return None
            if gather_s > 0:
                wait_s = gather_s if wait_s is None else min(wait_s, gather_s)
            self._changed.wait(wait_s)
