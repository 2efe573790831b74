"""What real tasks print: at its client, live, tagged, kept, bounded, and not lost when they crash."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import zfarm
from tests.face.processes import TcpFarm, wait_until

pytestmark = pytest.mark.timeout(60)


def say(n: int) -> int:
    """Print in three ways to both outputs."""
    print("python", n)
    os.write(1, b"system %d\n" % n)
    print("error", n, file=sys.stderr)
    print("open", end="")
    return n


def say_and_wait(gate: str) -> None:
    """Print a line, then wait for a file."""
    print("I wait")
    while not Path(gate).exists():
        time.sleep(0.005)


def crash() -> None:
    """Print, and die on the spot."""
    print("last words")
    os.write(2, b"of C")
    os.abort()


def flood(many: int) -> None:
    """Print more than may travel."""
    for n in range(many):
        print(f"{n:099}")


def close_outputs() -> None:
    """Close what is not the task's to close."""
    os.close(1)
    os.close(2)


def close_streams() -> None:
    """Close them as Python's."""
    print("the last")
    sys.stdout.close()
    sys.stderr.close()


def leave_a_program() -> int:
    """Start a program that keeps the outputs open and outlives its task."""
    return subprocess.Popen(["sleep", "60"]).pid


def print_binary() -> None:
    """Write what is no text, and a line that does not end."""
    os.write(1, b"\xff\xfe\n" + b"x" * 20_000)


def shown(capfd: Any, expected: str) -> str:
    """All that this process has shown once ``expected`` was."""
    seen = ""

    def look() -> bool:
        nonlocal seen
        seen += "".join(capfd.readouterr())
        return expected in seen

    wait_until(look, expected)
    return seen


def test_what_a_task_prints_is_kept_call_by_call() -> None:
    with zfarm.Executor(max_workers=2) as farm:
        assert farm.submit(say, 0).result(30) == 0  # which goes where it always went
        futures = [farm.options(output="keep").submit(say, n) for n in range(300)]
        for n, future in enumerate(futures):
            assert future.result(30) == n
            assert sorted(future.stdout.splitlines()) == sorted(["open", f"python {n}", f"system {n}"])
            assert future.stderr == f"error {n}\n"
        plain = farm.submit(say, 1)
        assert plain.result(30) == 1
        assert plain.stdout == ""


def test_lines_come_while_the_task_runs_and_are_tagged(capfd: Any, tmp_path: Path) -> None:
    with zfarm.Executor(max_workers=1) as farm:
        view = farm.options(output="forward", name="waiter")
        future = view.submit(say_and_wait, str(tmp_path / "gate"))
        line = shown(capfd, "I wait\n")
        assert line.startswith("[waiter #1 ")
        assert future.stdout == "I wait\n"
        assert not future.done()
        (tmp_path / "gate").touch()
        assert list(view.map(say, [5])) == [5]
        assert "error 5" in shown(capfd, "error 5\n")


def test_over_tcp_it_is_forwarded_without_a_word(farm: TcpFarm, capfd: Any) -> None:
    farm.start_broker()
    farm.start_worker(1)
    with zfarm.Executor(farm.connection) as client:
        assert client.submit(say, 7).result(30) == 7
    out, err = capfd.readouterr()  # the end of the executor has waited for it
    assert sorted(line.partition("] ")[2] for line in out.splitlines()) == ["open", "python 7", "system 7"]
    assert err.endswith("] error 7\n")
    assert err.startswith("[say #1 ")


def test_the_last_words_of_a_task_that_crashes_come() -> None:
    with zfarm.Executor(max_workers=1) as farm:
        future = farm.options(output="keep", retries=0).submit(crash)
        with pytest.raises(zfarm.TaskLost) as lost:
            future.result(30)
        assert lost.value.deaths[-1].stderr.startswith("of C")
        assert future.stdout == "last words\n"
        assert future.stderr.startswith("of C")  # and its stack follows


def test_a_flood_is_cut_visibly_and_harms_no_other() -> None:
    with zfarm.Executor(max_workers=1) as farm:
        keep = farm.options(output="keep")
        flooding = keep.submit(flood, 50_000)
        quiet = keep.submit(say, 1)
        assert flooding.result(30) is None
        assert quiet.result(30) == 1
        assert "python 1\n" in quiet.stdout
        lines = flooding.stdout.splitlines()
        assert lines[-1] == f"{49_999:099}"
        assert len(flooding.stdout) <= 64 * 1024
        assert any(line.startswith("[zfarm: ") and "dropped" in line for line in lines)


def test_a_task_that_closes_its_outputs_harms_only_itself() -> None:
    with zfarm.Executor(max_workers=1) as farm:
        keep = farm.options(output="keep")
        assert keep.submit(close_outputs).result(30) is None
        after = keep.submit(say, 2)
        assert after.result(30) == 2
        assert "system 2" in after.stdout


def test_a_task_that_closes_the_standard_streams_harms_only_itself() -> None:
    with zfarm.Executor(max_workers=1) as farm:
        keep = farm.options(output="keep")
        before, after = keep.submit(close_streams), keep.submit(say, 2)
        assert (before.result(30), after.result(30)) == (None, 2)
        assert before.stdout == "the last\n"
        assert "system 2" in after.stdout


def test_a_program_that_keeps_the_outputs_holds_up_nothing() -> None:
    with zfarm.Executor(max_workers=1) as farm:
        keep = farm.options(output="keep")
        future = keep.submit(leave_a_program)
        pid = future.result(30)
        assert keep.submit(say, 3).result(30) == 3
        os.kill(pid, 9)


def test_bytes_that_are_no_text_and_endless_lines_come_as_they_can() -> None:
    with zfarm.Executor(max_workers=1) as farm:
        future = farm.options(output="keep").submit(print_binary)
        assert future.result(30) is None
        assert future.stdout == "\\xff\\xfe\n" + "x" * 20_000


def test_off_is_off(capfd: Any) -> None:
    with zfarm.Executor(max_workers=1) as farm:
        future = farm.options(output="off").submit(say, 4)
        assert future.result(30) == 4
        assert future.stdout == future.stderr == ""
    assert "4" not in "".join(capfd.readouterr())


def test_what_cannot_be_is_said() -> None:
    with zfarm.Executor(max_workers=1) as farm, pytest.raises(ValueError, match="forward, keep, off"):
        farm.options(output="loud")  # type: ignore[arg-type]
