"""What all peers with the face of concurrent.futures share."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["FuturesPeer", "consume"]

CHUNK = 1024
"""The batch size that suits no-ops."""


def consume(results: Iterable[Any]) -> int:
    """Read all results as a loop would, and count them."""
    count = 0
    for _ in results:
        count += 1
    return count


class FuturesPeer:
    """An executor; subclasses make it."""

    title = ""
    lambdas = False
    durable = False
    executor: concurrent.futures.Executor

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.executor.submit(function, *args)

    def gather(self, handles: list[Any]) -> None:
        for handle in handles:
            handle.result()

    def map(self, function: Callable[..., Any], items: Iterable[Any]) -> int:
        return consume(self.executor.map(function, items))

    def map_tuned(self, function: Callable[..., Any], items: Iterable[Any]) -> int:
        return consume(self.executor.map(function, items, chunksize=CHUNK))

    def close(self) -> None:
        self.executor.shutdown(wait=True)
