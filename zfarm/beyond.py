"""What an Executor can do beyond the standard's: streams, futures as they end, names of workers; it submits
only through ``submit``, and sends no message."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from zfarm.arguments import check_sizes
from zfarm.errors import BrokerUnreachable

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from zfarm.futures import Future
    from zfarm.handles import FileHandle
    from zfarm.link import Link
    from zfarm.merging import Merged
    from zfarm.naming import NamedFile
    from zfarm.syncing import Synced

__all__ = ["Beyond", "Completed", "WorkerInfo"]

T = TypeVar("T")
F = TypeVar("F", bound="concurrent.futures.Future[Any]")


class Completed(Iterator[F]):
    """Futures as they end, each once; ``len`` is how many are still to come."""

    def __init__(self, futures: Iterable[F], timeout: float | None) -> None:
        """Only executors make these: ``farm.as_completed``."""
        self.futures = set(futures)
        """All of them."""
        self._left = len(self.futures)
        self._ended: Iterator[Any] = concurrent.futures.as_completed(self.futures, timeout)

    def __next__(self) -> F:
        """The next one that has ended."""
        future: F = next(self._ended)
        self.futures.discard(future)
        self._left -= 1
        return future

    def __len__(self) -> int:
        """How many are still to come."""
        return self._left


class WorkerInfo(NamedTuple):
    """One worker of a farm, as its broker knows it."""

    name: str
    """As ``zfarm status --json`` has it."""
    host: str
    pid: int
    slots: int
    open: bool
    """It takes calls now: it is neither draining nor set aside."""

    @property
    def label(self) -> str:
        """A label that this worker alone has: ``farm.options(labels=worker.label)`` is for calls that run
        there, or wait for ever when it is gone."""
        from zfarm.messages import WORKER_LABEL

        return f"{WORKER_LABEL}={self.name}"


class Beyond(concurrent.futures.Executor):
    """An executor whose calls have streams and files and share objects, and whose workers have names."""

    _link: Link

    def workers(self) -> tuple[WorkerInfo, ...]:
        """The workers that the farm has now.

        Raises:
            BrokerUnreachable: the broker has not answered within some seconds.
            FarmClosed, FarmBroken: the executor is of no use any more.
        """
        from zfarm.reasons import LOOK_WAIT_S

        link = self._link
        link.check_open()
        link.check_waiting()
        link.reached.wait(LOOK_WAIT_S)
        picture = link.questions.look(link.call)
        if picture is None:
            link.check_open()
            raise BrokerUnreachable(f"the broker at {link.road.address} has not said who its workers are")
        return tuple(
            WorkerInfo(w.worker, w.host, w.pid, w.slots, not (w.draining or w.aside_s) and w.room > 0)
            for w in picture.workers
        )

    def sync(
        self, what: str | os.PathLike[str] | ModuleType = ".", /, *, exclude: Sequence[str] = ()
    ) -> Synced:
        """Ship the code at ``what``, a directory or an imported package, to every worker that runs a call
        submitted from now on; call it again after an edit.

        Such calls run in children that have seen no other version of it, on this host too. The directory (of
        a package the one that it is in) is the first place where they import from, and where it was the
        working directory a copy of it is theirs: what they write there goes with the child. What is taken is
        a snapshot: edits reach nobody before the next ``sync``, which moves only the files that have changed.

        ``.gitignore`` files hold as in git, and patterns in ``exclude`` as if written there. ``.git``, caches
        and virtual environments stay behind anyway. Returns what was taken: ``digest``, ``files``, ``bytes``,
        and the names that have ``changed`` since the last time.

        Raises:
            TransferError: it is no directory, or something in it cannot be read or is no file; or this is a
                job, whose calls outlive this program.
            UnsafeName: a name or link in it cannot travel.
            TypeError, ValueError: ``exclude`` is no list of patterns.
            TooLarge: it has more than ``settings.sync_files_max`` files or ``settings.sync_bytes_max`` bytes.
        """
        from zfarm.syncing import sync

        return sync(self, what, exclude)  # type: ignore[arg-type]  # every one of us is an Executor

    def put(
        self, path: str | os.PathLike[str], name: str | None = None, *, progress: bool = False
    ) -> FileHandle:
        """A handle of the file or directory at ``path``, to be handed to tasks, in which it is a local path.

        It is read once for its digest, and sent when a task needs it: once to each host that runs one, and
        not at all where the same content is already; on this host it is copied. Of a directory all comes,
        with permissions, empty directories, and links that stay within it. The handle may stand anywhere in
        the arguments of a call, or of the items of a map. The file must stay as it is until the calls have
        ended that need it: else they raise TransferError. What tasks see is read-only; that holds
        nobody back on a worker which runs as root, where a task that writes to it changes it for others.

        With a ``name`` the broker keeps it, in place of what had this name, for programs to come that ask for
        ``handle(name)`` with the same key, until it is discarded; and the file may change or go once this
        returns. It is sent now, but what is there already is not; if the broker dies this waits for it, and
        goes on from where it was. An embedded farm has nobody to keep it: there the name stands for what is
        at ``path``, as long as the executor lives. ``progress`` shows a bar on a terminal.

        Raises:
            TransferError: it cannot be read, is a device or the like, or is larger than
                ``settings.file_bytes_max``; or the broker cannot keep it, since it is full, say.
            UnsafeName: it can be no path, a name or link in the directory cannot travel, or nothing can be
                kept under ``name``.
            LimitExceeded: this key has ``settings.archive_names_max`` names.
            BrokerUnreachable, AccessDenied, FarmClosed: with a ``name``.
            ConfigurationError: this farm keeps no files, or this is a task.
        """
        from zfarm.fetching import put

        return put(path, self, name, progress)  # type: ignore[arg-type]  # every one of us is an Executor

    def handle(self, name: str) -> FileHandle:
        """A handle of what this farm keeps under ``name``: it stands for that content from now on, whatever
        becomes of the name, but calls need the content to be kept.

        Raises:
            FileUnknown: nothing is kept under this name.
            Others: as ``put``.
        """
        from zfarm.naming import handle

        return handle(self, name)  # type: ignore[arg-type]

    def names(self) -> list[NamedFile]:
        """What this farm keeps for this key, by name: name, size, files, whether it is a directory, since
        when, digest. Raises: as ``put``."""
        from zfarm.naming import names

        return names(self)  # type: ignore[arg-type]

    def discard(self, name: str) -> None:
        """Keep no more what has this name; calls that still need it raise TransferError.

        Raises:
            FileUnknown: nothing is kept under this name.
            Others: as ``put``.
        """
        from zfarm.naming import discard

        discard(self, name)  # type: ignore[arg-type]

    def get(self, handle: FileHandle, path: str | os.PathLike[str], *, progress: bool = False) -> Path:
        """Write what a handle stands for to ``path``, and return that. A file that is there is replaced, a
        directory must be empty or not there.

        What was put by this process is copied; what the broker keeps is fetched from there, from where it was
        when it is called again after a failure; else a worker sends it that has it. It is written beside,
        verified, synced and renamed. ``progress`` shows a bar on a terminal.

        Raises:
            TransferError: it cannot be had any more, or cannot be written.
            UnsafeName: it can be no path.
            Others: as ``submit``.
        """
        from zfarm.fetching import get

        return get(self, handle, path, progress)  # type: ignore[arg-type]

    def stream_map(
        self,
        fn: Callable[[Any], Any],
        inputs: Iterable[Any],
        /,
        *,
        buffersize: int | None = None,
        return_exceptions: bool = False,
    ) -> Merged[Any]:
        """Call ``fn`` on each of ``inputs``, and return what all these calls emit, as it comes.

        Iterate over it, with ``for`` or ``async for``: each item is a StreamItem with the ``index`` and the
        ``input`` of its call. The items of one call are in order and each comes once, as in
        ``future.stream()``; between calls there is no order. ``inputs`` is taken as the items are read: at
        most ``buffersize`` calls are open at once (default: two for each slot of the farm). What the calls
        return is dropped.

        What a call raises comes after its last item and ends the loop, and so does a StreamGap; that cancels
        the rest, as breaking off does. With ``return_exceptions`` it is the ``error`` of an item instead, and
        the others go on; so it is with an input that cannot be sent.

        Raises:
            TypeError, ValueError: ``buffersize`` is not a whole number above 0.
            Others: by the loop, as ``submit``.
        """
        from zfarm.merging import Merged

        check_sizes(1, buffersize)
        return Merged(self, fn, inputs, buffersize, return_exceptions)  # type: ignore[arg-type]

    def share(self, obj: object) -> Any:
        """Make an object known to the farm once, for many calls: a handle (Shared), to be passed in its
        place.

        Anywhere in the arguments of a call of this farm the handle becomes the object itself. On an embedded
        farm its large parts are in shared memory that all children map; over TCP they go once to each host
        that needs them. Each child unpickles it once and keeps it (the latest ``shared.KEPT_MAX`` ones), and
        it is released here when the handle is collected and the calls that it was passed to have ended: over
        TCP hosts keep a copy of it until their store needs the room. So calls in one child see the same
        object: treat it as read-only; arrays in it are. With a job it travels with every call.

        Waits until an embedded farm has started.

        Raises:
            NotPortable: it cannot be pickled; the text says why.
            FarmClosed, FarmBroken, BrokerUnreachable, ForkError: as ``submit``.
        """
        from zfarm.sharing import Shared

        return Shared(self, obj)  # type: ignore[arg-type]

    def broadcast(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> dict[str, Future[T]]:
        """Call ``fn(*args, **kwargs)`` once on every worker that the farm has now: a future for each, by the
        worker's name (HOST/PID).

        Each call waits for a slot of its worker, and runs there and nowhere else, in one of its children. If
        the worker leaves the farm or is lost before the call has ended, it raises TaskLost some seconds
        later. Workers that drain are left out; an embedded farm is one worker.

        Raises:
            BrokerUnreachable: the broker has not said which workers there are.
            Others: as ``submit``.
        """
        from zfarm.broadcast import broadcast

        return broadcast(self, fn, args, kwargs)  # type: ignore[arg-type]

    def as_completed(self, futures: Iterable[F], timeout: float | None = None) -> Completed[F]:
        """The ``futures`` as they end: ``concurrent.futures.as_completed``, at hand and with a length, for
        ``zfarm.track``.

        Raises:
            TimeoutError: by the iterator, when not all have ended ``timeout`` seconds after its first step.
        """
        return Completed(futures, timeout)
