"""One call on every worker: each runs where it must, and ends when its worker has gone."""

from __future__ import annotations

import os
import signal
import time

import pytest

import zfarm
from tests.face.processes import TcpFarm

pytestmark = pytest.mark.timeout(120)

DEADLINE_S = 40.0


def worker_pid(seconds: float = 0.0) -> int:
    """Of the worker that this call runs on: its child's parent is the nursery, and that one's the worker."""
    import psutil

    time.sleep(seconds)
    parent = psutil.Process(os.getppid()).parent()
    assert parent is not None
    return parent.pid


def test_an_embedded_farm_is_one_worker() -> None:
    with zfarm.Executor(max_workers=2) as farm:
        futures = farm.broadcast(pow, 2, 5)
        assert [future.result(DEADLINE_S) for future in futures.values()] == [32]
        assert list(farm.options(name="again").broadcast(os.getpid)) == list(futures)


def test_it_runs_on_each_worker_and_ends_with_it(farm: TcpFarm) -> None:
    farm.start_broker()
    workers = [farm.start_worker(1) for _ in range(2)]
    farm.wait_slots(2)
    with zfarm.Executor(farm.connection) as executor:
        futures = executor.broadcast(worker_pid)
        pids = {name: future.result(DEADLINE_S) for name, future in futures.items()}
        assert sorted(pids.values()) == sorted(worker.pid for worker in workers)
        assert {name.rpartition("/")[2] for name in pids} == {str(pid) for pid in pids.values()}

        running = executor.broadcast(worker_pid, 5.0)
        waiting = executor.broadcast(worker_pid)
        assert {future.why().code for future in waiting.values()} <= {
            "resources",
            "slots",
            "starting",
            "next",
        }
        (lost, lost_pid), (kept, kept_pid) = pids.items()
        os.kill(lost_pid, signal.SIGKILL)
        assert running[kept].result(DEADLINE_S) == waiting[kept].result(DEADLINE_S) == kept_pid
        for future in (running[lost], waiting[lost]):
            error = future.exception(DEADLINE_S)
            assert isinstance(error, zfarm.TaskLost)
            assert lost in str(error)
