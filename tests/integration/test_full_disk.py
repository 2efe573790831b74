"""A disk that somebody else has really filled, under a broker's journal: nobody is left without an answer."""

from __future__ import annotations

import contextlib
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
