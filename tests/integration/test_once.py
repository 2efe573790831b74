"""Calls of ``retries=0`` under kill -9 of their broker and their worker: none ever runs a second time."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

import zfarm
from tests.face.processes import Command, TcpFarm, wait_until
from tests.integration.test_faults import hold, mark, marked

pytestmark = pytest.mark.timeout(180)

JOURNAL = pytest.mark.parametrize("journal", [(), ("--journal", "none")], ids=["journal", "no journal"])


def kill(command: Command) -> None:
    """End it at once."""
    os.kill(command.pid, signal.SIGKILL)
    command.wait()


def lost(future: zfarm.Future[int]) -> bool:
    """Whether the call is lost, and nobody knows whether it ran."""
    error = future.exception(90)
    return isinstance(error, zfarm.TaskLost) and error.maybe_ran and len(error.deaths) == 1


@JOURNAL
def test_what_runs_is_taken_over_by_the_next_broker(
    farm: TcpFarm, tmp_path: Path, journal: tuple[str, ...]
) -> None:
    broker = farm.start_broker(*journal)
    farm.start_worker(3)
    farm.wait_slots(3)
    runs, go = tmp_path / "runs", tmp_path / "go"
    with zfarm.Executor(farm.connection) as client:
        once = client.options(retries=0)
        running = [once.submit(hold, str(runs), n, str(go)) for n in range(3)]
        wait_until(lambda: len(marked(runs)) == 3, "all three run")
        queued = [once.submit(mark, str(runs), n) for n in range(100, 120)]
        kill(broker)
        farm.start_broker(*journal, port=farm.port)
        go.touch()

        assert [future.result(90) for future in running] == [0, 1, 2]
        for number, future in enumerate(queued, 100):
            assert (future.exception(90) is None and future.result() == number) or (journal and lost(future))
    counts = marked(runs)
    assert set(counts.values()) == {1}
    assert journal or set(counts) == {0, 1, 2, *range(100, 120)}, "a journal knows that those had not begun"


@JOURNAL
def test_what_ran_on_a_worker_that_died_with_the_broker_is_lost_and_not_run_again(
    farm: TcpFarm, tmp_path: Path, journal: tuple[str, ...]
) -> None:
    broker = farm.start_broker(*journal)
    worker = farm.start_worker(1)
    farm.wait_slots(1)
    runs, never = tmp_path / "runs", tmp_path / "never"
    with zfarm.Executor(farm.connection) as client:
        once = client.options(retries=0)
        running = once.submit(hold, str(runs), 0, str(never))
        wait_until(lambda: marked(runs)[0] == 1, "it runs")
        queued = [once.submit(mark, str(runs), n) for n in range(100, 110)]
        if not journal:
            wait_until(lambda: all(future.accepted for future in queued), "they are in the journal")
        kill(broker)
        kill(worker)
        farm.start_broker(*journal, port=farm.port)
        farm.start_worker(1)

        assert lost(running)
        assert "started anew" in str(running.exception())
        if journal:
            assert all(lost(future) for future in queued), "nobody knows that they had not begun"
        else:
            assert [future.result(90) for future in queued] == list(range(100, 110))
        assert once.submit(mark, str(runs), 200).result(90) == 200
    assert set(marked(runs).values()) == {1}


def test_what_ran_on_a_worker_that_died_is_lost(farm: TcpFarm, tmp_path: Path) -> None:
    farm.start_broker()
    worker = farm.start_worker(1)
    farm.wait_slots(1)
    runs, never = tmp_path / "runs", tmp_path / "never"
    with zfarm.Executor(farm.connection) as client:
        running = client.options(retries=0).submit(hold, str(runs), 0, str(never))
        wait_until(lambda: marked(runs)[0] == 1, "it runs")
        kill(worker)
        farm.start_worker(1)

        assert lost(running)
        assert client.submit(mark, str(runs), 1).result(90) == 1
    assert marked(runs)[0] == 1


def die_at(path: str, number: int) -> int:
    mark(path, number)
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_the_neighbours_of_an_item_that_dies_do_not_run_twice(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with zfarm.Executor(max_workers=2) as farm:
        results = farm.options(retries=0).map(die_at, [str(runs)] * 12, range(12))
        assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(zfarm.TaskLost) as caught:
            next(results)
        assert caught.value.maybe_ran
    assert set(marked(runs).values()) == {1}


def test_what_runs_when_an_embedded_farm_is_killed_is_lost(tmp_path: Path) -> None:
    runs, never = tmp_path / "runs", tmp_path / "never"
    with zfarm.Executor(max_workers=1) as farm:
        pid = farm.submit(os.getppid).result(30)
        running = farm.options(retries=0).submit(hold, str(runs), 0, str(never))
        wait_until(lambda: marked(runs)[0] == 1, "it runs")
        os.kill(_parent(pid), signal.SIGKILL)

        assert lost(running)
        assert farm.submit(mark, str(runs), 1).result(90) == 1
    assert marked(runs) == {0: 1, 1: 1}


def _parent(pid: int) -> int:
    """The parent of a nursery: the process of the farm."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:")))


def test_a_call_of_retries_0_costs_one_sync_and_no_wait(farm: TcpFarm) -> None:
    """It is granted in the turn that has accepted it: both stand in the same commit."""
    farm.start_broker()
    farm.start_worker(2)
    farm.wait_slots(2)
    with zfarm.Executor(farm.connection) as client:
        once = client.options(retries=0)
        once.submit(time.time).result(30)
        assert [future.result(60) for future in [once.submit(abs, -n) for n in range(500)]] == list(
            range(500)
        )
        assert list(once.map(abs, range(-200, 0))) == list(range(200, 0, -1))
