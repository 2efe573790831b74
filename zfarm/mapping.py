"""The client's side of ``map``: cuts the input into batches, submits them as others end, yields results in
order.

Rules of this file:
  1. A Map decides in its link's thread what to submit next; the iterator that the user holds only reads
  batches that
     are done, so that a result costs it one pop of a list.
  2. Batches belong to the iterator. A map whose iterator is gone still runs, and keeps no results.
  3. A batch whose child died is cut into smaller ones, until a single item is to blame.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import nullcontext
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from zfarm.arguments import picklers
from zfarm.core.oversize import text_of_call
from zfarm.core.pace import BATCHES_PER_SLOT, Pace
from zfarm.edge.cargo import weigh
from zfarm.edge.outcomes import add_note, decode_batch
from zfarm.endings import ending, tries
from zfarm.errors import FarmError, NotPortable, TooLarge
from zfarm.messages import (
    CANCELLED,
    ERROR,
    LOST,
    MEMORY,
    MISSING,
    OVERSIZED,
    REFUSED,
    TIMEOUT,
    Outcome,
)
from zfarm.settings import settings

if TYPE_CHECKING:
    from zfarm.edge.callables import Portable
    from zfarm.link import Link
    from zfarm.terms import Terms

__all__ = ["Batch", "Batches", "Function", "Map", "buffered_results", "results"]

PIECES: Final = 16
"""Parts that a batch is cut into when it cannot be sent or run as a whole."""

Batches = deque["Batch"]


class Function(NamedTuple):
    """What a map calls: name, pickled function, pickled setup; with ``star`` each item is a tuple of
    arguments."""

    name: str
    blob: bytes
    setup: bytes
    star: bool
    terms: Terms | None = None
    called: Any = None


class Failure:
    """Stands in a list of results for an item that failed."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Batch:
    """Some consecutive items of a map: one task of the farm."""

    __slots__ = (
        "__weakref__",
        "_accepted",
        "_task",
        "done",
        "error",
        "first",
        "items",
        "mixed",
        "owner",
        "pieces",
        "results",
        "size",
    )

    def __init__(self, owner: Map, first: int, items: Sequence[Any]) -> None:
        self.owner = owner
        self.first = first
        self.items: Sequence[Any] = items  # until it is known that they need not be sent again
        self.size = 0  # bytes of the pickled arguments
        self.results: list[Any] = []  # backwards: read by popping
        self.mixed = False  # there are Failures among the results
        self.error: BaseException | None = None  # all items fail with it
        self.pieces: list[Batch] | None = None  # smaller ones in its place
        self.done = False
        self._task = 0
        self._accepted = False

    @property
    def _force(self) -> bool:
        terms = self.owner.terms
        return terms is not None and terms.force_cancel

    def _resolve(self, outcome: Outcome, blob: Any) -> None:
        self.owner.ended(self, outcome, blob)

    def _fail(self, error: BaseException) -> None:
        self.owner.failed(self, error)

    def _abandon(self) -> None:
        self.owner.failed(self, CancelledError())


class Map:
    """One call of ``map``: the input that is not submitted yet, and how to submit it. Lives in its link's
    thread."""

    def __init__(
        self,
        link: Link,
        portable: Portable,
        function: Function,
        items: list[Any] | range,
        pace: Pace,
        batches: Batches,
        more: bool = False,
    ) -> None:
        """Map over ``items``, which this object owns; with ``more`` others will come, and all are submitted
        at once."""
        self.link = link
        self.changed = threading.Condition()
        """Notified when a batch is done or there are no more to come."""
        self.complete = False
        """Every batch there will ever be is in the list of batches."""
        self.pace = pace
        self._portable = portable
        self._function = function
        self.terms = function.terms
        self._eager = self._more = more
        self._added: deque[list[Any]] = deque()
        self._range: range | None = items if isinstance(items, range) else None
        self._rest: list[Any] = items if isinstance(items, list) else []
        self._rest.reverse()  # so that what is submitted is cut off cheaply, and freed
        self._next = 0
        self._out = 0
        self._batches: Callable[[], Batches | None] = weakref.ref(batches)
        self._forgotten = False

    # ------------------------------------------------------------ from the user's threads

    def start(self) -> None:
        """Let the link's thread submit."""
        self.link.feeders.add(self)
        self.link.call(self.feed)
        if self.link.ended:  # nobody calls any more
            self.forget(self.link.refused())

    def add(self, items: list[Any], more: bool) -> None:
        """Here are more items, and there will be ``more``."""
        self._added.append(items)
        self._more = more
        self.start()

    def drop(self, batches: Batches) -> None:
        """The iterator is at its end, in whatever way: cancel what has not started."""
        if self.complete and not batches:
            return
        waiting = list(batches)
        batches.clear()
        self.link.call(lambda: self._cancel(waiting))

    def cancel(self) -> None:
        """Cancel what has not started, and submit no more."""
        self.link.call(lambda: self._cancel(list(self._batches() or ())))

    def join(self) -> None:
        """Wait until every item has its outcome, whoever reads it."""
        self.link.check_waiting()
        waits = self.link.waits
        with nullcontext() if waits is None else waits(), self.changed:
            self.changed.wait_for(lambda: self.complete and not self._out)

    def wait(self, batches: Batches, end: float | None) -> Batch | None:
        """Take the next batch when it is done; None: there are no more. Raises TimeoutError at ``end``."""
        with self.changed:
            if self._is_ready(batches):
                return batches.popleft() if batches else None
        self.link.check_waiting()
        waits = self.link.waits
        with nullcontext() if waits is None else waits(), self.changed:
            while not self._is_ready(batches):
                remaining = None if end is None else end - monotonic()
                if remaining is not None and remaining <= 0:
                    raise TimeoutError
                self.changed.wait(remaining)
            return batches.popleft() if batches else None

    def _is_ready(self, batches: Batches) -> bool:
        return batches[0].done if batches else self.complete

    # ------------------------------------------------------------ the link's thread: submitting

    def feed(self) -> None:
        """Submit what there is room for."""
        self.link.take()  # what was submitted before this map goes before it
        while self._added:
            added = self._added.popleft()
            added.reverse()
            self._rest[:0] = added
        slots = self.link.slots
        while left := len(self._rest) if self._range is None else len(self._range):
            if not self._eager and self._out >= BATCHES_PER_SLOT * slots:
                return
            items = self._cut(self.pace.size(left, slots))
            batch = Batch(self, self._next, items)
            self._next += len(items)
            self._append(batch)
            self._send(batch)
        self.link.feeders.discard(self)
        if not self._more:
            self._complete()

    def forget(self, error: BaseException | None) -> None:
        """Submit no more: what is left was cancelled (None), or fails with ``error``."""
        self.link.feeders.discard(self)
        if self._forgotten or self.complete:
            return
        self._forgotten = True
        self._rest.clear()
        self._added.clear()
        self._range = None
        last = Batch(self, self._next, ())
        last.error = CancelledError() if error is None else error
        last.done = True
        self._append(last)
        self._complete()

    def _cut(self, size: int) -> Sequence[Any]:
        items: Sequence[Any]
        if self._range is not None:
            items, self._range = self._range[:size], self._range[size:]
            return items
        items = self._rest[-size:]
        del self._rest[-size:]
        items.reverse()
        return items

    def _append(self, batch: Batch) -> None:
        batches = self._batches()
        if batches is not None:
            batches.append(batch)

    def _complete(self) -> None:
        with self.changed:
            self.complete = True
            self.changed.notify_all()

    def _send(self, batch: Batch) -> None:
        name, function, setup, star, terms, _ = self._function
        several = len(batch.items) > 1
        try:
            body = self._portable.encode_batch(star, batch.items, batch.first)
        except NotPortable as error:
            self._blame(batch, error)
            return
        batch.size = weigh(body)
        most: float = settings.payload_bytes_max
        if len(body) > self.link.bytes_max:  # of what travels beside it, the broker takes more
            most = self.link.bytes_max
        if batch.size > most or (several and batch.size > 2 * settings.batch_bytes_max):
            self._portable.drop(body)
            self._blame(batch, too_large(f"item {batch.first} of a map", batch.size, most))
            return
        if picklers or self.link.named:
            try:
                terms = self._with_files(batch)
            except FarmError as error:
                self._blame(batch, error)
                return
        self._out += 1
        self.link.submit(batch, name, function, setup, body, len(batch.items), terms)

    def _with_files(self, batch: Batch) -> Terms | None:
        """The terms of a batch with the files that its items and the function need."""
        _, function, _, _, terms, called = self._function
        if threading.get_ident() not in picklers and function not in self.link.named:
            return terms
        from zfarm.fetching import needed
        from zfarm.terms import PLAIN

        found = needed(terms or PLAIN, self._portable, self.link.named, called, function, batch.items)
        self.link.check_files(found.handles)
        return terms if terms is None and not found.handles else found

    def _blame(self, batch: Batch, error: BaseException) -> None:
        """Something is wrong with this batch: with its only item, or with one that smaller batches will
        tell."""
        size = len(batch.items)
        if size == 1:
            self.failed(batch, error)
            return
        step = -(-size // PIECES)
        pieces = [Batch(self, batch.first + n, batch.items[n : n + step]) for n in range(0, size, step)]
        batch.pieces = pieces
        self._settle(batch)
        for piece in pieces:
            self._send(piece)

    # ------------------------------------------------------------ the link's thread: what comes back

    def ended(self, batch: Batch, outcome: Outcome, blob: Any) -> None:
        """The farm says how a batch ended."""
        self._out -= 1
        kind = outcome.kind
        if kind == CANCELLED:
            self.failed(batch, CancelledError())
        elif kind in (REFUSED, TIMEOUT, MEMORY, MISSING):
            self.failed(batch, ending(self._function.name, outcome))
        elif kind in (LOST, OVERSIZED):
            self._blame(batch, ending(self._function.name, outcome))
        elif kind == ERROR and len(batch.items) > 1:
            self._blame(batch, NotPortable("the batch could not be opened"))
        else:
            self.pace.measured(len(batch.items), outcome.run_us, batch.size + weigh(blob))
            if self._batches() is not None:  # somebody may want the results
                self._take(batch, outcome, blob)
            self._settle(batch)
        if not self._forgotten:
            self.feed()

    def failed(self, batch: Batch, error: BaseException) -> None:
        """All items of a batch fail with ``error``."""
        batch.error = error
        self._settle(batch)

    def _take(self, batch: Batch, outcome: Outcome, blob: Any) -> None:
        values, errors = decode_batch(outcome.kind, blob, len(batch.items))
        if outcome.tries:
            for error in errors.values():
                add_note(error, tries(outcome))
        results = values if type(values) is list else list(values)
        for n, error in errors.items():
            results[n] = Failure(error)
        results.reverse()
        batch.mixed = bool(errors)
        batch.results = results

    def _settle(self, batch: Batch) -> None:
        batch.items = ()
        with self.changed:
            batch.done = True
            self.changed.notify_all()

    def _cancel(self, waiting: list[Batch]) -> None:
        self.forget(None)
        while waiting:
            batch = waiting.pop()
            if batch.pieces is not None:
                waiting += batch.pieces
            elif not batch.done:
                self.link.cancel_task(batch._task)


def too_large(what: str, size: int, most: float) -> TooLarge:
    """The error for something whose pickle is above the limit, ours or that of the broker."""
    if most < settings.payload_bytes_max:
        return TooLarge(text_of_call(what, size, most))
    return TooLarge(
        f"{what} has {size:,} bytes when pickled, at most {settings.payload_bytes_max:,} are allowed; "
        "the environment variable ZFARM_PAYLOAD_BYTES_MAX raises that"
    )


# ---------------------------------------------------------------- the iterators that users hold


def results(owner: Map, batches: Batches, end: float | None) -> Iterator[Any]:
    """The results in order. An exception comes at its place and ends them; leaving early cancels the rest."""
    try:
        while (batch := owner.wait(batches, end)) is not None:
            if batch.pieces is not None:
                batches.extendleft(reversed(batch.pieces))
            elif batch.mixed or batch.error is not None:
                yield from _mixed(batch)
            else:
                values = batch.results
                del batch  # and with it everything but the values that are still to come
                while values:
                    yield values.pop()
    finally:
        owner.drop(batches)


def buffered_results(
    owner: Map, batches: Batches, end: float | None, source: Iterator[Any], most: int
) -> Iterator[Any]:
    """As ``results``, with ever more items from ``source``, of which at most ``most`` are taken ahead."""
    inner = results(owner, batches, end)
    ahead = most  # so many were taken at the call
    more = True
    while True:
        room = most - ahead
        if more and room and room >= min(owner.pace.size(most, owner.link.slots), most // 4):
            owner.link.check_open()
            taken = list(islice(source, room))
            more = len(taken) == room
            owner.add(taken, more)
            ahead = most
        try:
            yield next(inner)
        except StopIteration:
            return
        ahead -= 1


def _mixed(batch: Batch) -> Iterator[Any]:
    error = batch.error
    values = batch.results
    del batch
    try:
        if error is not None:
            raise error
        while values:
            if type(values[-1]) is Failure:
                error = values.pop().error
                raise error
            yield values.pop()
    finally:
        error = None  # its traceback holds this frame: no cycle
