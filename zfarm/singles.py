"""A map of which each item is a task with a future of its own: slower for short calls than the batches of
zfarm.mapping, and whoever attaches to its job later finds every item.
"""

from __future__ import annotations

import concurrent.futures
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from time import monotonic
from typing import Any

__all__ = ["map_one_by_one"]


def map_one_by_one(
    farm: concurrent.futures.Executor,
    fn: Callable[..., Any],
    iterables: tuple[Iterable[Any], ...],
    end: float | None,
    ahead: int | None,
) -> Iterator[Any]:
    """The results in the order of the input, of which all, or ``ahead`` items, are submitted at once.

    ``end`` is the time (monotonic) at which the iterator raises TimeoutError if a result is not there. Once
    begun, an iterator that is dropped or that raises cancels what is open, as that of Executor.map does.
    """
    inputs = zip(*iterables)  # noqa: B905  the shortest ends it
    futures = deque(farm.submit(fn, *args) for args in islice(inputs, ahead))
    return _results(farm, fn, inputs, futures, end)


def _results(
    farm: concurrent.futures.Executor,
    fn: Callable[..., Any],
    inputs: Iterator[tuple[Any, ...]],
    futures: deque[concurrent.futures.Future[Any]],
    end: float | None,
) -> Iterator[Any]:
    try:
        while futures:
            value = futures[0].result(None if end is None else end - monotonic())
            del futures[0]
            futures.extend(farm.submit(fn, *args) for args in islice(inputs, 1))
            yield value
    finally:
        for future in futures:
            future.cancel()
