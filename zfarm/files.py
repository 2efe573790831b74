"""The files of one call at its client: what users hold, and what becomes of what arrives; no socket."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from zfarm.arguments import end_of
from zfarm.edge.landing import Landed, Landing, Lost
from zfarm.edge.names import check_path
from zfarm.edge.parcels import directory_item, file_items, open_regular
from zfarm.edge.scratch import Scratch
from zfarm.errors import FarmError, TransferError
from zfarm.settings import settings

if TYPE_CHECKING:
    from zfarm.arrivals import Arrivals
    from zfarm.futures import Future
    from zfarm.messages import Arrived, Missed

__all__ = ["File", "Files", "FilesProgress", "Redirect"]


class File(NamedTuple):
    """A file that has arrived, complete. The same content has the same ``digest``; ``attempt`` is the
    call's."""

    name: str
    path: Path
    size: int
    digest: str
    attempt: int


class FilesProgress(NamedTuple):
    """What has come of a call's files: how many, their bytes so far, and the bytes of all that have begun."""

    files: int
    received_bytes: int
    announced_bytes: int


class Files:
    """The files that one call sends, as they come: iterate over it, or ``wait``.

    They go to the directory that ``into`` names; without, to a temporary one that is removed when nobody has
    the future and this any more. A file is there once it is complete, verified and synced. When the call is
    run again after a death, its files come again and replace those of the attempt before.
    """

    def __init__(self, arrivals: Arrivals, future: Future[Any]) -> None:
        """Only futures have files."""
        self._arrivals = arrivals
        self._future = weakref.ref(future)  # which holds this
        self._changed = threading.Condition()
        self._files: dict[str, File] = {}
        self._news: list[File | TransferError] = []
        self._errors: list[TransferError] = []
        self._over = False
        self._moves = 0  # to other directories, which were asked for and are not done
        self._progress = FilesProgress(0, 0, 0)
        self._target: Path | None = None
        self._on_file: Callable[[File | TransferError], object] | None = None
        self._on_progress: Callable[[FilesProgress], object] | None = None
        # the thread of the arrivals alone
        self._landing: Landing | None = None
        self._scratch: Scratch | None = None
        self._attempt = 0
        self._said_at = 0.0
        self._dead: TransferError | None = None

    def into(
        self,
        directory: str | os.PathLike[str],
        *,
        on_file: Callable[[File | TransferError], object] | None = None,
        on_progress: Callable[[FilesProgress], object] | None = None,
    ) -> Files:
        """Have the files written to ``directory``, which is made if need be; those that have come already are
        moved there. A file of the same name that is there is replaced. Returns this object.

        ``on_file`` is called with each File, and with a TransferError for each that cannot be had;
        ``on_progress`` with the state, at most every ``settings.progress_interval_s`` seconds. Both in the
        thread that writes files; what they raise is logged.

        Raises UnsafeName: this can be no path.
        """
        target = Path(os.path.abspath(check_path(directory)))
        with self._changed:
            self._moves += 1
        self._arrivals.put(self, Redirect(target, on_file, on_progress))
        return self

    @property
    def progress(self) -> FilesProgress:
        """What has come so far."""
        return self._progress

    def __iter__(self) -> Iterator[File]:
        """The files as they come, those that are there first, until the call has ended and all are here.

        Raises the TransferError of each that cannot be had; another loop goes on behind it. At the end, what
        the call raised is raised.
        """
        at = 0
        while True:
            with self._changed:
                while self._moves or (at >= len(self._news) and not self._over):
                    self._wait_change(None)
                if at >= len(self._news):
                    break
                one = self._news[at]
                if isinstance(one, TransferError):
                    self._news.pop(at)
                    raise one
            at += 1
            yield one
        future = self._future()
        error = (
            future.exception() if future is not None and future.done() and not future.cancelled() else None
        )
        if error is not None:
            raise error

    def wait(self, timeout: float | None = None) -> list[File]:
        """Wait until the call has ended and all its files are here, and return them, sorted by name.

        Raises:
            TransferError: one cannot be had: the first of them.
            TimeoutError: they are not here within ``timeout`` seconds.
        """
        end = end_of(timeout)
        with self._changed:
            while self._moves or not self._over:
                left = None if end is None else end - monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(f"not all files are here after {timeout} s")
                self._wait_change(left)
            if self._errors:
                raise self._errors[0]
            return sorted(self._files.values())

    def _wait_change(self, timeout: float | None) -> None:
        future = self._future()
        home = future._home if future is not None else None
        if home is not None:
            home.check_waiting()
        if threading.get_ident() == self._arrivals.thread_id:
            raise RuntimeError(
                "a callback of files must not wait for files: it runs in the thread that writes them"
            )
        if home is None or home.waits is None:
            self._changed.wait(timeout)
        else:
            with home.waits():
                self._changed.wait(timeout)

    # ------------------------------------------------------------ the thread of the arrivals

    def _take(self, action: Arrived) -> None:
        if action.attempt != self._attempt:
            self._begin(action.attempt)
        landing = self._open()
        if landing is None:
            return
        for blob in action.blobs:
            self._tell(landing.take(blob))
            if landing.full:
                self._tell(landing.settle())
            if self._target is not None and landing.idle and landing.directory != self._target:
                landing = self._move(landing)

    def _miss(self, action: Missed) -> None:
        if action.attempt != self._attempt:
            self._begin(action.attempt)
        why = "its sender or worker died, or this client was too slow for too long"
        lost = self._landing.interrupted(why) if self._landing is not None else []
        if not lost:
            text = f"files of {self._name()} cannot be had: {why}"
            lost = [Lost("", TransferError(text))]
        self._tell(lost)

    def _name(self) -> str:
        future = self._future()
        return (future._name if future is not None else "") or "the call"

    def _begin(self, attempt: int) -> None:
        if self._attempt and self._landing is not None:
            self._tell(self._landing.settle())
            self._landing.begin_anew()
        with self._changed:  # what could not be had of the one before comes again
            self._errors.clear()
        self._attempt = attempt

    def _open(self) -> Landing | None:
        """Where files go now; None: nowhere, as was told."""
        if self._landing is None and self._dead is None:
            try:
                if self._target is None:
                    self._scratch = Scratch()
                    weakref.finalize(self, self._scratch.remove)
                self._landing = Landing(self._target or self._scratch_path())
            except (OSError, FarmError) as error:
                self._dead = error if isinstance(error, TransferError) else TransferError(str(error))
                self._tell([Lost("", self._dead)])
        return self._landing

    def _scratch_path(self) -> Path:
        assert self._scratch is not None
        return self._scratch.path

    def _redirected(self) -> None:
        """What was there has been moved, or will be with the file that comes just now."""
        with self._changed:
            self._moves -= 1
            self._changed.notify_all()

    def _redirect(self, redirect: Redirect) -> None:
        self._target, self._dead = redirect.target, None
        self._on_file, self._on_progress = redirect.on_file, redirect.on_progress
        landing = self._landing
        if landing is not None and not landing.idle:
            return  # when the file that comes just now is complete
        if landing is not None or self._files:
            self._move(landing)
        elif self._on_file is not None:
            for error in self._errors:
                self._call(self._on_file, error)

    def _move(self, old: Landing | None) -> Landing:
        """Take what has come to where it shall be."""
        assert self._target is not None
        directories = {}
        if old is not None:
            directories = dict(old.directories)
            self._tell(old.finish())
        self._landing = None
        landing = self._open()
        if landing is None:
            raise self._dead or TransferError("there is no place for files")
        moved, self._files = self._files, {}
        with self._changed:
            self._news = [one for one in self._news if isinstance(one, TransferError)]
        for file in moved.values():
            try:
                fd = open_regular(file.path, follow=False)
                try:
                    for item in file_items(fd, file.name):
                        self._tell(landing.take(item))
                finally:
                    os.close(fd)
                os.unlink(file.path)
            except (OSError, TransferError) as error:
                self._tell([Lost(file.name, TransferError(f"cannot move {file.name!r}: {error}"))])
            if landing.full:
                self._tell(landing.settle())
        for name, mode in directories.items():
            self._tell(landing.take(directory_item(name, mode)))
        self._tell(landing.settle())
        if self._over:
            self._tell(landing.finish())
            self._landing = None
        return landing

    def _settle(self) -> None:
        """Nothing more is here just now."""
        if self._landing is not None:
            self._tell(self._landing.settle())

    def _end(self, error: TransferError | None = None) -> None:
        """All has come, or nothing more will."""
        if self._over:
            return
        if self._landing is not None:
            why = "the call ended before all of it was sent" if error is None else str(error)
            self._tell(self._landing.interrupted(why))
            self._tell(self._landing.finish())
            self._landing = None
        elif self._target is not None:
            with suppress(OSError):
                os.makedirs(self._target, exist_ok=True)
        if error is not None:
            self._tell([Lost("", error)])
        self._count(last=True)
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _tell(self, results: list[Landed | Lost] | list[Lost]) -> None:
        for result in results:
            one: File | TransferError
            if isinstance(result, Landed):
                one = File(result.name, result.path, result.size, result.digest.hex(), self._attempt)
            else:
                one = result.error
            with self._changed:
                if isinstance(one, File):
                    self._files[one.name] = one
                else:
                    self._errors.append(one)
                self._news.append(one)
                self._changed.notify_all()
            if self._on_file is not None:
                self._call(self._on_file, one)
        self._count()

    def _count(self, last: bool = False) -> None:
        landing = self._landing
        if landing is not None:
            self._progress = FilesProgress(len(self._files), landing.received, landing.announced)
        elif last:
            self._progress = self._progress._replace(files=len(self._files))
        now = monotonic()
        if self._on_progress is not None and (last or now >= self._said_at + settings.progress_interval_s):
            self._said_at = now
            self._call(self._on_progress, self._progress)

    @staticmethod
    def _call(callback: Callable[[Any], object], value: Any) -> None:
        from concurrent.futures._base import LOGGER

        try:
            callback(value)
        except BaseException:  # SystemExit too: it must not end the thread that all files come through
            LOGGER.exception("exception calling %r with %r", callback, value)


class Redirect(NamedTuple):
    """Write to another directory from now on."""

    target: Path
    on_file: Callable[[File | TransferError], object] | None
    on_progress: Callable[[FilesProgress], object] | None
