"""Calls that kill their children, and workers whose children keep dying, in real processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import zfarm
from tests.face.processes import TcpFarm, wait_until
from tests.integration.test_faults import hold, mark, marked

pytestmark = pytest.mark.timeout(180)


def run_where_it_is_sound(path: str, number: int) -> int:
    """A call like any other, on a host where everything dies."""
    if "ZFARM_TEST_BAD_HOST" in os.environ:
        os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(0.02)  # so that both workers have something to do
    return mark(path, number)


def states(farm: TcpFarm) -> dict[int, str]:
    """What is said of the workers, by their pids."""
    return {worker["pid"]: worker["state"] for worker in farm.status()["workers"]}


def test_a_worker_whose_children_keep_dying_is_set_aside_and_comes_back(
    farm: TcpFarm, tmp_path: Path
) -> None:
    farm.variables = {"ZFARM_WORKER_DEATHS_MAX": "3", "ZFARM_WORKER_ASIDE_S": "4"}
    broker = farm.start_broker()
    good = farm.start_worker(1)
    farm.variables["ZFARM_TEST_BAD_HOST"] = "1"
    bad = farm.start_worker(1)
    farm.wait_slots(2)
    runs = tmp_path / "runs"
    with zfarm.Executor(farm.connection) as client:
        patient = client.options(max_attempts=50)
        futures = [patient.submit(run_where_it_is_sound, str(runs), n) for n in range(40)]
        wait_until(lambda: states(farm).get(bad.pid) == "aside", "the bad worker is set aside")
        aside = {worker["pid"]: worker["aside_s"] for worker in farm.status()["workers"]}
        assert 0 <= aside[bad.pid] <= 4
        assert aside[good.pid] == 0
        assert "aside" in farm.run("status", "--connection", str(farm.connection)).stdout

        assert [future.result(90) for future in futures] == list(range(40))
        wait_until(lambda: "gets calls again" in broker.said, "it comes back")
        assert states(farm)[bad.pid] == "idle"
    assert "is set aside for 4 s" in broker.said
    assert set(marked(runs).values()) == {1}


def die(path: str) -> None:
    mark(path, 1)
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_call_that_kills_its_children_ends_and_sets_nobody_aside(farm: TcpFarm, tmp_path: Path) -> None:
    farm.variables = {"ZFARM_WORKER_DEATHS_MAX": "2"}
    broker = farm.start_broker()
    farm.start_worker(2)
    farm.start_worker(2)
    farm.wait_slots(4)
    poison, runs = tmp_path / "poison", tmp_path / "runs"
    with zfarm.Executor(farm.connection) as client:
        deadly = client.options(max_attempts=4).submit(die, str(poison))
        others = [client.submit(mark, str(runs), n) for n in range(200)]
        error: Any = deadly.exception(60)

        assert isinstance(error, zfarm.TaskLost)
        assert [death.signal for death in error.deaths] == [signal.SIGSEGV] * 4
        assert [future.result(60) for future in others] == list(range(200))
        status = farm.status()
    assert marked(poison)[1] == 4
    assert set(marked(runs).values()) == {1}, "its neighbours lost nothing"
    assert status["tasks"]["lost"] == 1
    assert sum(worker["deaths"] for worker in status["workers"]) == 4
    assert "set aside" not in broker.said


def began(farm: TcpFarm) -> bool:
    """Whether a worker has told the broker of a call that runs."""
    return any(task["began"] for task in farm.status()["running"])


def test_what_only_waited_at_a_worker_is_not_blamed_for_its_loss(farm: TcpFarm, tmp_path: Path) -> None:
    farm.start_broker()
    runs, go = tmp_path / "runs", tmp_path / "go"
    with zfarm.Executor(farm.connection) as client:
        twice = client.options(max_attempts=2)
        farm.start_worker(1)
        farm.wait_slots(1)
        for n in range(300):  # so that the farm knows them for short ones, which may wait beside a busy slot
            twice.submit(hold, str(runs), 1000 + n, "/").result(30)
        held = twice.submit(hold, str(runs), 0, str(go))
        wait_until(lambda: marked(runs)[0] == 1, "it runs")
        wait_until(lambda: began(farm), "the broker knows that it runs")
        waiting = [twice.submit(hold, str(runs), n, "/") for n in range(1, 30)]
        wait_until(lambda: farm.status()["workers"][0]["leased"] >= 1, "it is granted")
        for start in range(3):  # three workers are lost, one more than a call that ran there would survive
            worker = farm.commands[-1]
            os.kill(worker.pid, signal.SIGKILL)
            worker.wait()
            farm.start_worker(1)
            if start == 0:
                wait_until(lambda: marked(runs)[0] == 2, "it runs again")
                wait_until(lambda: began(farm), "the broker knows that it runs: it is blamed for what comes")

        assert isinstance(held.exception(90), zfarm.TaskLost)
        go.touch()
        assert [future.result(90) for future in waiting] == list(range(1, 30))
