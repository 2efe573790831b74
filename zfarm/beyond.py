"""What an Executor can do beyond the standard's: streams of many calls, futures as they end; it submits only
through ``submit``, and knows no message."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from zfarm.arguments import check_sizes

if TYPE_CHECKING:
    from pathlib import Path

    from zfarm.futures import Future
    from zfarm.handles import FileHandle
    from zfarm.merging import Merged

__all__ = ["Beyond", "Completed"]

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


class Beyond(concurrent.futures.Executor):
    """An executor whose calls have streams and files, and share objects."""

    def put(self, path: str | os.PathLike[str]) -> FileHandle:
        """A handle of the file or directory at ``path``, to be handed to tasks, in which it is a local path.

        It is read once for its digest, and sent when a task needs it: once to each host that runs one, and
        not at all where the same content is already; on this host it is copied. Of a directory all comes,
        with permissions, empty directories, and links that stay within it. The handle may stand anywhere in
        the arguments of a call, or of the items of a map. The file must stay as it is until the calls have
        ended that need it: else they raise TransferError. What tasks see is read-only.

        Raises:
            TransferError: it cannot be read, is a device or the like, or is larger than
                ``settings.file_bytes_max``.
            UnsafeName: a name or link in the directory cannot travel.
        """
        from zfarm.fetching import put

        return put(path)

    def get(self, handle: FileHandle, path: str | os.PathLike[str]) -> Path:
        """Write what a handle stands for to ``path``, and return that. A file that is there is replaced, a
        directory must be empty or not there.

        What was put by this process is copied; else a worker sends it that has it. It is written beside,
        verified, synced and renamed.

        Raises:
            TransferError: it cannot be had any more, or cannot be written.
            Others: as ``submit``.
        """
        from zfarm.fetching import get

        return get(self, handle, path)  # type: ignore[arg-type]  # every one of us is an Executor

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
        the others go on.

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
        farm its large parts are in shared memory that all children map, each child unpickles it once and
        keeps it while the handle lives (the latest ``shared.KEPT_MAX`` ones), and it is released when the
        handle is collected and the calls that it was passed to have ended. So calls in one child see the same
        object: treat it as read-only; arrays in it are. On other farms it travels with every call.

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
