"""The thread that writes the files which arrive over one link, so that no disk holds up what it brings.

It says how far it is, and no more is on its way than ``settings.files_window_bytes`` of a task.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterable
from concurrent.futures import Future as StandardFuture
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from zfarm.edge.landing import Lost
from zfarm.errors import TransferError
from zfarm.files import Files, Redirect
from zfarm.futures import Future
from zfarm.messages import Arrived, Missed, StreamOver

if TYPE_CHECKING:
    from zfarm.core.client import Client
    from zfarm.link import Link

__all__ = ["Arrivals"]

TOLD_EACH: Final = 4
"""Pieces, each of up to a megabyte, after which the sender is told while more of them wait."""

SETTLE_S: Final = 0.02
"""How long nothing may come before what is complete is synced: alone, each file would cost a sync."""


class _End(NamedTuple):
    """Nothing more will come."""

    error: TransferError | None = None


class Arrivals:
    """The files that arrive over one link, and the thread that writes them."""

    def __init__(self, link: Link, machine: Client) -> None:
        self.thread_id = 0
        self._link = link
        self._machine = machine
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[tuple[Files, Any] | None] = queue.SimpleQueue()
        self._waiting = 0
        self._open: dict[int, Files] = {}  # of tasks whose files are coming
        self._thread: threading.Thread | None = None
        self._known: weakref.WeakSet[Files] = weakref.WeakSet()
        self._cut = False
        self._taken: dict[int, tuple[int, int]] = {}  # the thread's: written and not told, by task

    # ------------------------------------------------------------ from any thread

    @property
    def busy(self) -> bool:
        """Something that has come is not written yet."""
        return self._waiting > 0

    def files_of(self, future: Future[Any]) -> Files:
        """The files of this future."""
        fresh = False
        with self._lock:
            files = future._files
            if files is None:
                fresh = True
                files = future._files = Files(self, future)
                self._known.add(files)
        if fresh:
            future.add_done_callback(self._settled)
        return files

    def put(self, files: Files, what: Any) -> None:
        """Have the thread do this in its turn; at once when the link has ended."""
        with self._lock:
            if self._cut:
                self._do(files, what)
                files._settle()
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="zfarm-files", daemon=True)
                self._thread.start()
            self._waiting += 1
            self._queue.put((files, what))

    def _settled(self, future: StandardFuture[Any]) -> None:
        """The future is done: if no files come, that is all."""
        assert isinstance(future, Future)
        files, task = future._files, future._task
        if files is None:
            return
        if self._cut:
            self.put(files, _End())
        else:
            self._link.call(lambda: self._check(task, files))

    # ------------------------------------------------------------ the link's thread

    def _check(self, task: int, files: Files) -> None:
        if not self._machine.inflow.reads(-task):
            self.put(files, _End())

    def arrived(self, action: Arrived | Missed | StreamOver) -> None:
        """Pieces of files have come, or cannot be had, or were all."""
        token = action.token
        if not isinstance(token, Future):  # a batch of a map: a child does not let it send files
            if not isinstance(action, StreamOver):
                last = action.last if isinstance(action, Missed) else action.first + len(action.blobs) - 1
                self._machine.took(-token._task, action.attempt, last)
            return
        files = self.files_of(token)
        if isinstance(action, StreamOver):
            self._open.pop(token._task, None)
            self.put(files, _End())
        else:
            self._open[token._task] = files
            self.put(files, action)

    def _took_all(self, taken: dict[int, tuple[int, int]]) -> None:
        for task, (attempt, number) in taken.items():
            self._machine.took(-task, attempt, number)
        self._link.leave_when_done()

    def cut(self) -> None:
        """The link ends, and with it all that is not here; wait until what is here is written."""
        with self._lock:
            thread = self._thread
            self._queue.put(None)
        if thread is not None:
            thread.join()
        with self._lock:
            self._cut = True
            while not self._queue.empty():  # it came after the word that ended the thread
                if (entry := self._queue.get()) is not None:
                    self._do(*entry)
            coming = set(self._open.values())
            for files in list(self._known):
                text = "the executor has ended before all files were here"
                files._end(TransferError(text) if files in coming else None)
            self._open.clear()

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        self.thread_id = threading.get_ident()
        touched: dict[Files, None] = {}
        done = 0
        while True:
            if self._queue.empty() or done >= TOLD_EACH:
                self._say_taken()
                done = 0
            try:
                entry = self._queue.get(timeout=SETTLE_S if touched else None)
            except queue.Empty:
                _settle(touched)
                touched.clear()
                continue
            if entry is None:
                _settle(touched)
                return
            files, what = entry
            self._do(files, what)
            done += len(what.blobs) if isinstance(what, Arrived) else 1
            if files._landing is not None:
                touched[files] = None
            with self._lock:
                self._waiting -= 1
            del entry, what, files
            if not self.busy:
                self._link.call(self._link.leave_when_done)

    def _do(self, files: Files, what: Any) -> None:
        from concurrent.futures._base import LOGGER

        try:
            if isinstance(what, Arrived):
                files._take(what)
            elif isinstance(what, Missed):
                files._miss(what)
            elif isinstance(what, Redirect):
                files._redirect(what)
            else:
                files._end(what.error)
        except TransferError as error:
            files._tell([Lost("", error)])
        except Exception as error:
            LOGGER.exception("files cannot be written")
            files._tell([Lost("", TransferError(f"files cannot be written: {error!r}"))])
        if isinstance(what, Redirect):
            files._redirected()
        if isinstance(what, Arrived | Missed):
            last = what.last if isinstance(what, Missed) else what.first + len(what.blobs) - 1
            self._taken[what.token._task] = (what.attempt, last)

    def _say_taken(self) -> None:
        taken, self._taken = self._taken, {}
        if taken:
            self._link.call(lambda: self._took_all(taken))


def _settle(touched: Iterable[Files]) -> None:
    """Nothing more is here just now. A function of its own: who waits for what comes next must not hold the
    last of them, since files without a place go when nobody has them any more."""
    for files in touched:
        files._settle()
