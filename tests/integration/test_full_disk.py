"""A disk that somebody else has really filled, under a broker's journal: nobody is left without an answer."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import zfarm
from tests.face.processes import TcpFarm, wait_until


def hold(marks: str, number: int, go: str) -> bytes:
    """A call that says that it runs, and ends when it may."""
    (Path(marks) / str(number)).touch()
    while not Path(go).exists():
        time.sleep(0.02)
    return bytes([number]) * 3000


def once(marks: str, number: int, body: bytes) -> tuple[int, int]:
    """A call that leaves a line for each time that it runs."""
    with (Path(marks) / str(number)).open("a") as file:
        file.write("x")
    return number, len(body)


def free(disk: Path) -> int:
    room = os.statvfs(disk)
    return room.f_bavail * room.f_frsize


def fill(ballast: Path) -> None:
    """Take all the room that there is."""
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def test_a_disk_filled_by_somebody_else_makes_nobody_mute(farm: TcpFarm, disk: Path, tmp_path: Path) -> None:
    farm.variables = {"ZFARM_JOURNAL_FLOOR_BYTES": "4096"}  # it is full before anybody could see it coming
    farm.start_broker("--journal", str(disk / "farm.journal"))
    farm.start_worker(2)
    farm.wait_slots(2)
    marks, go = tmp_path / "marks", tmp_path / "go"
    marks.mkdir()
    with zfarm.Executor(farm.connection) as client:
        futures = [client.submit(hold, str(marks), n, str(go)) for n in range(12)]
        wait_until(lambda: len(list(marks.iterdir())) == 2, "two calls run")
        wait_until(lambda: all(future.accepted for future in futures), "all are in the journal")
        fill(disk / "ballast")
        go.touch()

        status = wait_until(lambda: (s := farm.status())["refusing"] and s, "the status tells")
        assert "cannot write its journal" in status["refusing"] or "MiB left" in status["refusing"]
        wait_until(lambda: len(list(marks.iterdir())) == 12, "what was accepted goes on")
        wait_until(lambda: "cannot write its journal" in futures[0].why(), "why tells")
        assert not any(future.done() for future in futures), "none of it is in the journal"
        error = client.submit(abs, -1).exception(30)
        assert isinstance(error, zfarm.FarmBusy)
        assert "No space left on device" in str(error)
        with zfarm.Executor(farm.connection) as other:
            assert isinstance(other.submit(abs, -2).exception(30), zfarm.FarmBusy)
        assert "No space left on device" in farm.run("status", "--connection", str(farm.connection)).stdout

        (disk / "ballast").unlink()
        assert [future.result(30) for future in futures] == [bytes([n]) * 3000 for n in range(12)]
        wait_until(lambda: not farm.status()["refusing"], "new tasks are taken again")
        assert client.submit(abs, -3).result(30) == 3


def test_a_client_that_submits_more_than_the_disk_has_is_refused_the_rest(
    farm: TcpFarm, disk: Path, tmp_path: Path
) -> None:
    floor = 2 << 20
    farm.variables = {"ZFARM_JOURNAL_FLOOR_BYTES": str(floor)}
    farm.start_broker("--journal", str(disk / "farm.journal"))
    farm.start_worker(2)
    farm.wait_slots(2)
    marks = tmp_path / "marks"
    marks.mkdir()
    with zfarm.Executor(farm.connection) as client:
        futures = [client.submit(once, str(marks), n, os.urandom(300_000)) for n in range(100)]
        lowest = free(disk)

        def over() -> bool:
            nonlocal lowest
            lowest = min(lowest, free(disk))
            return all(future.done() for future in futures)

        wait_until(over, "each call ends or is refused")
        assert lowest > floor // 2, "the floor holds, but for outcomes"
        refused = [n for n, future in enumerate(futures) if future.exception() is not None]
        for n in refused:
            error = futures[n].exception()
            assert isinstance(error, zfarm.FarmBusy)
            assert "ZFARM_JOURNAL_FLOOR_BYTES" in str(error)
        done = [n for n in range(100) if n not in refused]
        assert done
        assert refused
        assert [futures[n].result() for n in done] == [(n, 300_000) for n in done]
        assert {int(mark.name): mark.read_text() for mark in marks.iterdir()} == dict.fromkeys(done, "x")
        wait_until(lambda: client.submit(abs, -3).exception(30) is None, "new tasks are taken again")


PROGRAM = """
import sys, time
from pathlib import Path
import zfarm

def large(marks, number, go):
    (Path(marks) / str(number)).touch()
    while not Path(go).exists():
        time.sleep(0.02)
    return bytes([number]) * (3 << 20)

farm, marks, go = sys.argv[1:]
with zfarm.Executor(farm) as client:
    futures = [client.submit(large, marks, n, go) for n in range(24)]
    for n, future in enumerate(futures):
        assert future.result(120) == bytes([n]) * (3 << 20), n
print("all came")
"""


def start_eight(farm: TcpFarm, disk: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A farm of eight slots with its journal on this disk; where calls leave marks, and what lets them go."""
    farm.variables = {"ZFARM_JOURNAL_FLOOR_BYTES": str(1 << 20)}
    farm.start_broker("--journal", str(disk / "farm.journal"))
    farm.start_worker(8)
    farm.wait_slots(8)
    marks = tmp_path / "marks"
    marks.mkdir()
    return marks, tmp_path / "go"


def test_outcomes_that_are_more_than_the_disk_has_arrive_all_the_same(
    farm: TcpFarm, disk: Path, tmp_path: Path
) -> None:
    marks, go = start_eight(farm, disk, tmp_path)
    command = [sys.executable, "-c", PROGRAM, *map(str, (farm.connection, marks, go))]
    with contextlib.ExitStack() as ends:
        client = ends.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        ends.callback(client.kill)
        wait_until(lambda: len(list(marks.iterdir())) == 8, "eight calls run")
        client.send_signal(signal.SIGSTOP)  # it takes nothing, and the disk fills
        go.touch()
        wait_until(lambda: "cannot write its journal" in farm.status()["refusing"], "outcomes wait")
        assert free(disk) > 1 << 16, "the last room is for what frees some"
        client.send_signal(signal.SIGCONT)
        assert client.communicate(timeout=120)[0] == "all came\n"
    wait_until(lambda: not farm.status()["refusing"], "new tasks are taken again")
    with zfarm.Executor(farm.connection) as other:
        assert other.submit(abs, -3).result(30) == 3


JOB = """
import sys, time
from pathlib import Path
import zfarm

def large(marks, number, go):
    (Path(marks) / str(number)).touch()
    while not Path(go).exists():
        time.sleep(0.02)
    return bytes([number]) * 700_000

farm, marks, go = sys.argv[1:]
job = zfarm.Job("night", farm)
for number in range(24):
    job.submit(large, marks, number, go)
job.detach()
"""


def test_a_job_whose_outcomes_fill_the_disk_can_be_taken_over_and_they_come(
    farm: TcpFarm, disk: Path, tmp_path: Path
) -> None:
    marks, go = start_eight(farm, disk, tmp_path)
    subprocess.run([sys.executable, "-c", JOB, *map(str, (farm.connection, marks, go))], check=True)
    go.touch()
    wait_until(lambda: "cannot write its journal" in farm.status()["refusing"], "the disk is full of it")

    with zfarm.attach("night", farm.connection) as job:
        values = sorted(future.result(60) for future in job.futures)
    assert values == [bytes([number]) * 700_000 for number in range(24)]
    wait_until(lambda: not farm.status()["refusing"], "new tasks are taken again")
