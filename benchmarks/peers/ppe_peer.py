"""concurrent.futures.ProcessPoolExecutor, forking as it does by default on Linux up to Python 3.13."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from benchmarks.peers.futures import FuturesPeer


class Peer(FuturesPeer):
    """ProcessPoolExecutor."""

    title = "ProcessPoolExecutor"

    def __init__(self, workers: int) -> None:
        self.executor = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"))
