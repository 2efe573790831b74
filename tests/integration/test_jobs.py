"""Jobs over a farm with a journal: programs that come and go, and the tasks that stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import zfarm
from tests.face.processes import ROOT, TcpFarm, environment, wait_until
from tests.integration.test_faults import hold, mark, marked

pytestmark = pytest.mark.timeout(120)

PROGRAM = """
import sys, zfarm
from tests.integration.test_faults import hold, mark
job = zfarm.Job("night", sys.argv[1])
for n in range(2): job.submit(hold, sys.argv[2], n, sys.argv[3])
for n in range(2, 30): job.submit(mark, sys.argv[2], n)
print("submitted", flush=True)
job.wait()
"""


def test_a_job_survives_its_program_and_its_broker(farm: TcpFarm, tmp_path: Path) -> None:
    broker = farm.start_broker()
    port = farm.port
    farm.start_worker(2)
    farm.wait_slots(2)
    runs, go = tmp_path / "runs", tmp_path / "go"
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(farm.connection), str(runs), str(go)],
        cwd=ROOT, env=environment(tmp_path),
    )  # fmt: skip
    wait_until(lambda: len(marked(runs)) == 2, "two calls run")
    program.kill()
    program.wait()
    os.kill(broker.pid, signal.SIGKILL)
    broker.wait()
    farm.start_broker(port=port)
    go.touch()

    with zfarm.attach("night", farm.connection) as job:
        assert len(job.futures) == 30
        assert [future.result(60) for future in job.futures] == list(range(30))
        assert job.submit(mark, str(runs), 99).result(30) == 99
    assert set(marked(runs).values()) == {1}, "nothing ran twice"


def test_a_job_is_left_and_taken_over_and_ends_with_its_last_outcome(farm: TcpFarm, tmp_path: Path) -> None:
    farm.start_broker()
    farm.start_worker(1)
    farm.wait_slots(1)
    runs, go = tmp_path / "runs", tmp_path / "go"
    job = zfarm.Job("mine", farm.connection)
    job.submit(hold, str(runs), 1, str(go))
    job.submit(mark, str(runs), 2)
    job.detach()
    assert all(future.cancelled() for future in job.futures)
    with pytest.raises(zfarm.JobExists, match="mine"):
        zfarm.Job("mine", farm.connection)
    go.touch()

    with zfarm.attach("mine", farm.connection) as again:
        assert [future.result(30) for future in again.futures] == [1, 2]
    with pytest.raises(zfarm.JobUnknown, match="there is none"):
        zfarm.attach("mine", farm.connection)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("", zfarm.ConfigurationError),
        ("x" * 201, zfarm.ConfigurationError),
        ("a\nb", zfarm.ConfigurationError),
        ("\x1b[2J", zfarm.ConfigurationError),
        ("\ud800", zfarm.ConfigurationError),
        (b"mine", TypeError),
        (3, TypeError),
        (None, TypeError),
    ],
)
def test_a_name_that_cannot_be_is_refused_before_a_broker_is_asked(name: Any, error: type[Exception]) -> None:
    for begin in (zfarm.Job, zfarm.attach):
        with pytest.raises(error, match="the name of a job"):
            begin(name, "tcp://127.0.0.1:1")


def test_nothing_of_a_job_is_left_behind_whatever_way_it_was_submitted(farm: TcpFarm) -> None:
    farm.start_broker()
    job = zfarm.Job("all", farm.connection)
    job.options(timeout=50).submit(divmod, 7, 2)
    job.options(priority=3).options(name="named").submit(divmod, 8, 2)
    job.map(divmod, range(20), [3] * 20)
    job.options(retries=0).map(divmod, range(5), [2] * 5, buffersize=3)
    job.submit(divmod, 9, 2)
    job.detach()
    farm.start_worker(2)

    with zfarm.attach("all", farm.connection) as again:
        values = [future.result(60) for future in again.futures]
    mapped = [divmod(n, 3) for n in range(20)] + [divmod(n, 2) for n in range(3)]
    assert values == [(3, 1), (4, 0), *mapped, (4, 1)]


def test_a_map_of_a_job_gives_its_results_in_order_and_ends_with_the_first_error(farm: TcpFarm) -> None:
    farm.start_broker()
    farm.start_worker(2)
    with zfarm.Job("map", farm.connection) as job:
        assert list(job.map(divmod, range(9), [4] * 9, buffersize=2)) == [divmod(n, 4) for n in range(9)]
        results = job.map(divmod, [1, 2, 3], [1, 0, 1], timeout=60)
        assert next(results) == (1, 0)
        with pytest.raises(ZeroDivisionError):
            next(results)
        with pytest.raises(StopIteration):
            next(results)


def test_who_attached_last_has_the_job(farm: TcpFarm, tmp_path: Path) -> None:
    broker = farm.start_broker()
    farm.start_worker(1)
    farm.wait_slots(1)
    runs, go = tmp_path / "runs", tmp_path / "go"
    first = zfarm.Job("mine", farm.connection)
    held = first.submit(hold, str(runs), 1, str(go))
    wait_until(lambda: marked(runs), "the call runs")
    wait_until(lambda: held.accepted, "the call is in the journal")

    with zfarm.attach("mine", farm.connection) as second:
        with pytest.raises(zfarm.JobTakenOver, match="mine"):
            held.result(30)
        with pytest.raises(zfarm.JobTakenOver, match="mine"):
            first.submit(mark, str(runs), 2)
        os.kill(broker.pid, signal.SIGKILL)
        broker.wait()
        farm.start_broker(port=farm.port)
        go.touch()
        assert [future.result(60) for future in second.futures] == [1]
        assert second.submit(mark, str(runs), 3).result(30) == 3
    first.shutdown()
    assert set(marked(runs)) == {1, 3}


def test_a_job_needs_a_farm_with_a_journal(farm: TcpFarm) -> None:
    with pytest.raises(zfarm.ConfigurationError, match="outlives its program"):
        zfarm.Job("mine")
    farm.start_broker("--journal", "none")
    with pytest.raises(zfarm.ConfigurationError, match="no journal"):
        zfarm.Job("mine", farm.connection)
