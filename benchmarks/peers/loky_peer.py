"""loky, the executor behind joblib."""

from __future__ import annotations

import loky

from benchmarks.peers.futures import FuturesPeer


class Peer(FuturesPeer):
    """loky's reusable executor would stay; this one is closed."""

    title = "loky"
    lambdas = True

    def __init__(self, workers: int) -> None:
        self.executor = loky.ProcessPoolExecutor(workers)
