"""multiprocessing.Pool: no futures, but map sizes its chunks itself."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.peers.futures import CHUNK


class Peer:
    """multiprocessing.Pool with apply_async."""

    title = "multiprocessing.Pool"
    lambdas = False

    def __init__(self, workers: int) -> None:
        self.pool = multiprocessing.get_context("fork").Pool(workers)

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.pool.apply_async(function, args)

    def gather(self, handles: list[Any]) -> None:
        for handle in handles:
            handle.get()

    def map(self, function: Callable[..., Any], items: Iterable[Any]) -> int:
        return len(self.pool.map(function, items))

    def map_tuned(self, function: Callable[..., Any], items: Iterable[Any]) -> int:
        return len(self.pool.map(function, items, CHUNK))

    def close(self) -> None:
        self.pool.close()
        self.pool.join()
