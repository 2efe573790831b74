"""A broker with a journal under kill -9: what it accepted it still has, and no outcome comes twice."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import zfarm
from tests.face.processes import Command, TcpFarm, wait_until
from tests.integration.test_faults import hold, mark, marked

pytestmark = pytest.mark.timeout(180)


def kill(broker: Command) -> None:
    """End a broker at once."""
    os.kill(broker.pid, signal.SIGKILL)
    broker.wait()


def test_10000_queued_and_100_running_tasks_survive_a_killed_broker(farm: TcpFarm, tmp_path: Path) -> None:
    farm.variables = {"ZFARM_WORKER_LOST_AFTER_S": "30"}  # a hundred children take time to start
    broker = farm.start_broker()
    port = farm.port
    farm.start_worker(100)
    farm.wait_slots(100)
    runs, go = tmp_path / "runs", tmp_path / "go"
    with zfarm.Executor(farm.connection) as client:
        running = [client.submit(hold, str(runs), n, str(go)) for n in range(100)]
        wait_until(lambda: len(marked(runs)) == 100, "100 calls run")
        queued = [client.submit(abs, -n) for n in range(10_000)]
        wait_until(lambda: all(future.accepted for future in queued), "all are in the journal")
        kill(broker)
        farm.start_broker(port=port)
        go.touch()

        assert [future.result(90) for future in running] == list(range(100))
        assert [future.result(90) for future in queued] == list(range(10_000))
    assert set(marked(runs).values()) == {1}, "what ran was adopted, and not run again"


def test_outcomes_survive_a_broker_and_a_client_that_had_not_heard_them(
    farm: TcpFarm, tmp_path: Path
) -> None:
    broker = farm.start_broker()
    port = farm.port
    farm.start_worker(2)
    runs = tmp_path / "runs"
    with zfarm.Executor(farm.connection) as client:
        first = [client.submit(mark, str(runs), n) for n in range(20)]
        assert [future.result(30) for future in first] == list(range(20))
        for round_ in range(3):
            kill(broker)
            broker = farm.start_broker(port=port)
            numbers = range(100 * round_ + 100, 100 * round_ + 150)
            assert [f.result(60) for f in [client.submit(mark, str(runs), n) for n in numbers]] == list(
                numbers
            )
    assert all(count == 1 for n, count in marked(runs).items() if n < 20)


def test_a_second_broker_on_the_same_journal_is_refused(farm: TcpFarm, tmp_path: Path) -> None:
    farm.start_broker("--journal", str(tmp_path / "shared.journal"))
    second = farm.run(
        "broker", "--bind", "tcp://127.0.0.1:0", "--connection", str(tmp_path / "other.json"),
        "--journal", str(tmp_path / "shared.journal"),
    )  # fmt: skip

    assert second.returncode == 78
    assert str(farm.commands[0].pid) in second.stderr
    assert farm.commands[0].process.poll() is None


def test_a_full_disk_refuses_new_tasks_with_a_clear_error_and_recovers(farm: TcpFarm, disk: Path) -> None:
    farm.variables = {"ZFARM_JOURNAL_FLOOR_BYTES": str(6 << 20)}
    broker = farm.start_broker("--journal", str(disk / "farm.journal"))
    farm.start_worker(1)
    with zfarm.Executor(farm.connection) as client:
        assert client.submit(abs, -1).result(30) == 1
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * (2 << 20))

        def refused() -> BaseException | None:
            return client.submit(abs, -2).exception(30)

        error = wait_until(refused, "new tasks are refused")
        assert isinstance(error, zfarm.FarmBusy)
        assert "ZFARM_JOURNAL_FLOOR_BYTES" in str(error)

        ballast.unlink()
        wait_until(lambda: refused() is None, "new tasks are taken again")
    broker.process.terminate()
    broker.wait()
