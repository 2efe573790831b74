"""joblib.Parallel with its default back end; it has no submit, so only its map is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import joblib
from joblib.externals.loky import get_reusable_executor

from benchmarks.peers.futures import CHUNK


class Peer:
    """joblib.Parallel."""

    title = "joblib"
    lambdas = True

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.parallel = joblib.Parallel(n_jobs=workers)

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.parallel([joblib.delayed(function)(*args)])

    def gather(self, handles: list[Any]) -> None:
        """Each call was waited for when it was submitted."""

    def map(self, function: Callable[..., Any], items: Iterable[Any]) -> int:
        return len(self.parallel(joblib.delayed(function)(item) for item in items))

    def map_tuned(self, function: Callable[..., Any], items: Iterable[Any]) -> int:
        tuned = joblib.Parallel(n_jobs=self.workers, batch_size=CHUNK, pre_dispatch="all")
        return len(tuned(joblib.delayed(function)(item) for item in items))

    def close(self) -> None:
        get_reusable_executor().shutdown(wait=True)
