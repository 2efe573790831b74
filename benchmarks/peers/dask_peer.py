"""dask.distributed on a LocalCluster with one thread per worker."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import distributed


class Peer:
    """distributed.Client; calls are impure, or it would run equal ones once."""

    title = "dask.distributed"
    lambdas = True

    def __init__(self, workers: int) -> None:
        self.client = distributed.Client(n_workers=workers, threads_per_worker=1, dashboard_address=None)

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.client.submit(function, *args, pure=False)

    def gather(self, handles: list[Any]) -> None:
        self.client.gather(handles)

    def map(self, function: Callable[..., Any], items: Iterable[Any]) -> int:
        return len(self.client.gather(self.client.map(function, list(items), pure=False)))

    def map_tuned(self, function: Callable[..., Any], items: Iterable[Any]) -> int:
        futures = self.client.map(function, list(items), pure=False, batch_size=1024)
        return len(self.client.gather(futures))

    def close(self) -> None:
        self.client.shutdown()
        self.client.close()
