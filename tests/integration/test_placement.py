"""Resources and labels in real processes: calls run where they may, and no worker runs more than it has."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import wait
from pathlib import Path

import pytest

import zfarm
from tests.face.processes import TcpFarm, wait_until

pytestmark = pytest.mark.timeout(180)


def take_turns(directory: str, allowed: int) -> int:
    """Say that this runs, and how many others do; never more than allowed."""
    mine = Path(directory) / str(os.getpid())
    mine.touch()
    running = len(os.listdir(directory))
    time.sleep(0.03)
    mine.unlink()
    assert running <= allowed
    return running


def where() -> str:
    """What the worker was called by the test."""
    return os.environ["ZFARM_TEST_WHERE"]


def hold_until(path: str) -> str:
    """Run until that file is there."""
    while not os.path.exists(path):
        time.sleep(0.01)
    return path


def test_a_worker_runs_no_more_calls_at_once_than_its_resources_allow(farm: TcpFarm, tmp_path: Path) -> None:
    running = tmp_path / "running"
    running.mkdir()
    farm.start_broker()
    farm.start_worker(4, "--resource", "gpu=2", "--label", "zone=a")
    farm.wait_slots(4)
    with zfarm.Executor(farm.connection) as client:
        choosy = client.options(resources={"gpu": 1})
        futures = [choosy.submit(take_turns, str(running), 2) for _ in range(12)]
        plain = [client.submit(pow, 2, n) for n in range(50)]

        assert [future.result(60) for future in plain] == [2**n for n in range(50)]
        assert max(future.result(60) for future in futures) == 2


def test_calls_run_where_their_labels_are_and_wait_until_such_a_worker_comes(farm: TcpFarm) -> None:
    farm.start_broker()
    farm.variables = {"ZFARM_TEST_WHERE": "first"}
    farm.start_worker(2, "--label", "zone=a")
    farm.wait_slots(2)
    with zfarm.Executor(farm.connection) as client:
        here = [client.options(labels={"zone": "a"}).submit(where) for _ in range(4)]
        there = [client.options(labels=["zone=b", "ssd"]).submit(where) for _ in range(4)]
        assert {future.result(60) for future in here} == {"first"}
        assert client.submit(pow, 2, 3).result(60) == 8
        assert not any(future.done() for future in there)

        farm.variables = {"ZFARM_TEST_WHERE": "second"}
        farm.start_worker(1, "--label", "zone=b", "--label", "ssd")
        assert {future.result(60) for future in there} == {"second"}


def test_a_call_can_name_its_worker(farm: TcpFarm) -> None:
    farm.start_broker()
    for name in ("first", "second"):
        farm.variables = {"ZFARM_TEST_WHERE": name}
        farm.start_worker(1, "--name", name)
    farm.wait_slots(2)
    with zfarm.Executor(farm.connection) as client:
        workers = client.workers()
        assert {worker.host for worker in workers} == {"first", "second"}
        assert all(worker.open and worker.slots == 1 for worker in workers)
        for worker in workers:
            there = client.options(labels=worker.label)
            assert [future.result(60) for future in [there.submit(where) for _ in range(4)]] == [
                worker.host
            ] * 4


def test_an_embedded_farm_has_a_worker_of_its_own() -> None:
    with zfarm.Executor(max_workers=2) as client:
        (worker,) = client.workers()
        assert worker.slots == 2
        assert client.options(labels=worker.label).submit(pow, 2, 3).result(60) == 8
        gone = client.options(labels="zfarm.worker=none").submit(pow, 2, 3)
        wait_until(lambda: gone.why().code == "unmet", "no worker has it")
        assert gone.cancel()
    with pytest.raises(zfarm.FarmClosed):
        client.workers()


def test_resources_come_back_after_a_killed_worker_and_a_stopped_call(farm: TcpFarm, tmp_path: Path) -> None:
    go = tmp_path / "go"
    farm.start_broker()
    victim = farm.start_worker(2, "--resource", "gpu=1")
    farm.wait_slots(2)
    with zfarm.Executor(farm.connection) as client:
        choosy = client.options(resources={"gpu": 1})
        stopped, moved, last = (choosy.submit(hold_until, str(go)) for _ in range(3))
        wait_until(stopped.running, "the first call runs")
        assert not moved.running()
        assert stopped.cancel(force=True)
        wait_until(moved.running, "the second call has what the first one had")
        os.kill(victim.pid, signal.SIGKILL)
        farm.start_worker(2, "--resource", "gpu=1")
        go.touch()
        assert [future.result(60) for future in (moved, last)] == [str(go)] * 2


@pytest.mark.parametrize("journal", [True, False])
def test_a_restarted_broker_knows_who_has_what(farm: TcpFarm, tmp_path: Path, journal: bool) -> None:
    go = tmp_path / "go"
    more = ("--journal", str(tmp_path / "journal") if journal else "none")
    broker = farm.start_broker(*more)
    farm.start_worker(3, "--resource", "gpu=1")
    farm.wait_slots(3)
    port = farm.port
    with zfarm.Executor(farm.connection) as client:
        choosy = client.options(resources={"gpu": 1})
        first = choosy.submit(hold_until, str(go))
        second = choosy.submit(hold_until, str(go))
        wait_until(first.running, "the first call runs")
        os.kill(broker.pid, signal.SIGKILL)
        broker.wait()
        farm.start_broker(*more, port=port)
        assert client.submit(pow, 2, 3).result(60) == 8
        assert not second.running()
        go.touch()
        done = wait([first, second], 60)
        assert not done.not_done
        assert first.result() == second.result() == str(go)
