"""What an Executor can do beyond the standard's: streams of many calls, futures as they end; it submits only
through ``submit``, and knows no message."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from zfarm.merging import Merged

__all__ = ["Beyond", "check_sizes"]

F = TypeVar("F", bound="concurrent.futures.Future[Any]")


class Beyond(concurrent.futures.Executor):
    """An executor whose calls have streams."""

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

    def as_completed(self, futures: Iterable[F], timeout: float | None = None) -> Iterator[F]:
        """The ``futures`` as they end: ``concurrent.futures.as_completed``, at hand.

        Raises:
            TimeoutError: by the iterator, when not all have ended ``timeout`` seconds after this call.
        """
        completed: Iterator[Any] = concurrent.futures.as_completed(futures, timeout)
        return completed


def check_sizes(chunksize: int, buffersize: object) -> None:
    """Raise ValueError or TypeError, as the standard does, for sizes that cannot be."""
    if chunksize < 1:
        raise ValueError("chunksize must be >= 1.")
    if buffersize is not None and not isinstance(buffersize, int):
        raise TypeError("buffersize must be an integer or None")
    if buffersize is not None and buffersize < 1:
        raise ValueError("buffersize must be None or > 0")
