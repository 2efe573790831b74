"""zfarm on an embedded farm; its map sizes its batches itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import zfarm
from benchmarks.peers.futures import FuturesPeer


class Peer(FuturesPeer):
    """zfarm.Executor."""

    title = "zfarm"
    lambdas = True

    def __init__(self, workers: int) -> None:
        self.executor = zfarm.Executor(max_workers=workers)

    def map_tuned(self, function: Callable[..., Any], items: Iterable[Any]) -> int:
        return self.map(function, items)
