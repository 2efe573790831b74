"""zfarm as a cluster on this machine: a broker on TCP with CURVE, one worker, and a client that dials."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import zfarm
from benchmarks.peers.futures import FuturesPeer

READY_S = 30.0


class ClusterPeer(FuturesPeer):
    """zfarm.Executor on a farm of three processes; subclasses say which journal the broker keeps."""

    lambdas = True
    journal: tuple[str, ...] = ()
    """How the broker's command says which journal it keeps."""

    def __init__(self, workers: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="zfarm-bench-")
        self._processes: list[subprocess.Popen[bytes]] = []
        connection = Path(self._folder.name) / "farm.json"
        try:
            self._start(
                "broker", "--bind", "tcp://127.0.0.1:0", "--connection", str(connection), *self.journal
            )
            self._wait_for(connection)
            self._start("worker", "--slots", str(workers), "--connection", str(connection))
            self.executor = zfarm.Executor(str(connection))
            self.executor.submit(pow, 2, 2).result(READY_S)
        except BaseException:
            self._stop()
            raise

    def _start(self, *arguments: str) -> None:
        environment = {**os.environ, "XDG_STATE_HOME": self._folder.name}
        self._processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "zfarm", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
        )

    def _wait_for(self, connection: Path) -> None:
        deadline = time.monotonic() + READY_S
        while not connection.exists():
            if self._processes[0].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the broker does not come up; try: python -m zfarm broker")
            time.sleep(0.01)

    def map_tuned(self, function: Any, items: Any) -> int:
        return self.map(function, items)

    def close(self) -> None:
        super().close()
        self._stop()

    def _stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
            process.wait(READY_S)
        self._folder.cleanup()
