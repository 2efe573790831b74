"""Large results that arrive over one link in pieces, and the thread that puts them together, so that no
digest holds up what the link brings.

The sender is told how far it is as of files; it ends its call when all is here. So a result is complete when
its outcome comes.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from msgspec import structs

from zfarm.edge.cargo import Cargo
from zfarm.edge.outcomes import encode_error
from zfarm.edge.pieces import KINDS, LANDED, Gathered
from zfarm.errors import TransferError
from zfarm.futures import Future
from zfarm.messages import ERROR, Arrived, Blob, Missed, Resolve, StreamOver
from zfarm.settings import settings

if TYPE_CHECKING:
    from zfarm.core.client import Client
    from zfarm.link import Link

__all__ = ["Gathering", "in_pieces"]

TOLD_EACH: Final = 4
"""Pieces, each of up to a megabyte, after which the sender is told while more of them wait."""
STALLED_S: Final = 1.0
"""When nothing has come for so long, those that should come have to wait for their turn again."""


class _Pieces(NamedTuple):
    """Some of one attempt, up to this item of its stream; none: nothing more will come of the task."""

    task: int
    attempt: int = 0
    last: int = 0
    blobs: Sequence[Blob] = ()


_NONE: Final = _Pieces(0)


def in_pieces(action: Arrived | Missed | StreamOver) -> bool:
    """Whether this brings a result, or a part of one: nothing else follows that in a stream."""
    return isinstance(action, Arrived) and _is_piece(action.blobs[-1])


def _is_piece(blob: Blob) -> bool:
    return len(blob) > 0 and memoryview(blob)[0] in KINDS


class Gathering:
    """The large results of one link."""

    def __init__(self, link: Link, machine: Client) -> None:
        self._link = link
        self._machine = machine
        self._attempts: dict[int, int] = {}  # the link's: of tasks whose results are coming, or have come
        self._lock = threading.Lock()
        self._results: dict[int, tuple[int, Gathered]] = {}  # with the attempt of each
        self._coming: dict[int, None] = {}  # the thread's: tasks whose results are wanted now
        self._waiting: dict[int, tuple[int, int]] = {}  # and those that have begun: what will be told of them
        self._queue: queue.SimpleQueue[_Pieces | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="zfarm-results", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------ the link's thread

    def sift(self, action: Arrived | Missed | StreamOver) -> Arrived | Missed | StreamOver | None:
        """Take what is of results; what is left is of files."""
        token = action.token
        task = token._task
        if isinstance(action, StreamOver):
            if self._attempts.pop(task, None) is None:
                return action
            self._queue.put(_Pieces(task))
            return action if isinstance(token, Future) and token._files is not None else None
        if isinstance(action, Missed):
            if self._attempts.get(task) != action.attempt:
                return action
            self._queue.put(_Pieces(task, action.attempt, action.last, (b"",)))  # no piece: there is a hole
            return None
        if not in_pieces(action):
            return action
        blobs = action.blobs
        files = next(at for at, blob in enumerate(blobs) if _is_piece(blob))
        self._attempts[task] = action.attempt
        self._queue.put(_Pieces(task, action.attempt, action.first + len(blobs) - 1, blobs[files:]))
        return structs.replace(action, blobs=blobs[:files]) if files else None

    def resolved(self, action: Resolve) -> Resolve:
        """A task has ended: put its result in the place of what stands for it."""
        outcome = action.outcome
        if outcome.task not in self._attempts:
            return action
        with self._lock:
            _, gathered = self._results.pop(outcome.task, (0, None))
        if action.blob[:1] != LANDED or gathered is None:
            return action
        try:
            cargo = gathered.opened(action.blob)
        except TransferError as error:
            return Resolve(action.token, structs.replace(outcome, kind=ERROR), encode_error(error))
        return Resolve(action.token, outcome, _plain(cargo) if outcome.kind == ERROR else cargo)

    def _took(self, taken: dict[int, tuple[int, int]]) -> None:
        for task, (attempt, number) in taken.items():
            self._machine.took(-task, attempt, number)
        self._link.leave_when_done()

    def cut(self) -> None:
        """The link ends, and with it all that is not here."""
        self._queue.put(None)
        self._thread.join()

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        taken: dict[int, tuple[int, int]] = {}
        done = 0
        while True:
            try:
                pieces = self._queue.get(timeout=STALLED_S if self._waiting else None)
            except queue.Empty:
                self._coming.clear()
                pieces = _NONE
            if pieces is None:
                return
            self._add(pieces)
            done += len(pieces.blobs)
            if pieces.attempt:
                self._waiting[pieces.task] = pieces.attempt, pieces.last
            else:
                self._waiting.pop(pieces.task, None)
                self._coming.pop(pieces.task, None)
            del pieces
            self._admit(taken)
            if taken and (self._queue.empty() or done >= TOLD_EACH):
                told, taken, done = taken, {}, 0
                self._tell(told)

    def _admit(self, taken: dict[int, tuple[int, int]]) -> None:
        """Say of no more than a few at once what has come: the others wait at their workers."""
        for task in list(self._waiting):
            if task in self._coming or len(self._coming) < settings.results_at_once:
                self._coming[task] = None
                taken[task] = self._waiting.pop(task)

    def _tell(self, told: dict[int, tuple[int, int]]) -> None:
        self._link.call(lambda: self._took(told))

    def _add(self, pieces: _Pieces) -> None:
        with self._lock:
            attempt, gathered = self._results.get(pieces.task, (0, None))
            if not pieces.attempt:
                self._results.pop(pieces.task, None)
                return
            if gathered is None or attempt != pieces.attempt:
                gathered = Gathered()
                self._results[pieces.task] = pieces.attempt, gathered
        for blob in pieces.blobs:
            gathered.take(blob)


def _plain(cargo: Cargo) -> Any:
    return cargo if cargo.data is None else bytes(cargo.data)
