"""What an error tells about a child that died: how, where, how often, its last words and its memory."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import zfarm
from tests.face.processes import tcp_farm, wait_until
from zfarm.edge.ooms import Ooms
from zfarm.errors import TaskLost

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def executor() -> Iterator[zfarm.Executor]:
    with zfarm.Executor(max_workers=2) as farm:
        yield farm


def lost(farm: zfarm.Executor, fn: Callable[..., Any], *args: Any) -> TaskLost:
    """How that call ends, which has one attempt."""
    error = farm.options(max_attempts=1).submit(fn, *args).exception(60)
    assert type(error) is TaskLost, error
    assert len(error.deaths) == 1
    return error


def read_nowhere() -> None:
    ctypes.string_at(0)


def stumble() -> None:
    """Crash one call further down."""
    read_nowhere()


def test_a_segfault_leaves_its_stack(executor: zfarm.Executor) -> None:
    error = lost(executor, stumble)

    (death,) = error.deaths
    assert (death.signal, death.exit_code) == (signal.SIGSEGV, 0)
    assert "Segmentation fault" in death.stderr
    inner, outer = death.stderr.index("read_nowhere"), death.stderr.index("stumble")
    assert inner < outer, "the innermost call comes first"
    assert "SIGSEGV" in str(error)
    assert "in read_nowhere" in str(error)
    assert death.host in str(error)


def shout_and_abort() -> None:
    os.write(2, b"free(): double free detected in tcache 2\n")  # as the C library does it
    os.abort()


def test_what_c_code_says_before_it_aborts_is_kept(executor: zfarm.Executor) -> None:
    error = lost(executor, shout_and_abort)

    assert error.deaths[0].signal == signal.SIGABRT
    assert error.deaths[0].stderr.startswith("free(): double free detected in tcache 2\n")
    assert "double free" in str(error)


def write_and_leave(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
    os._exit(7)


def test_the_last_lines_are_bounded_and_clean(executor: zfarm.Executor) -> None:
    progress = "".join(f"\r\x1b[32m{n} %\x1b[0m" for n in range(101))
    text = "".join(f"line {n}\n" for n in range(20_000)) + progress + "\nthe end \x00\ufffd\n"
    error = lost(executor, write_and_leave, text)

    (death,) = error.deaths
    assert (death.signal, death.exit_code) == (0, 7)
    lines = death.stderr.split("\n")
    assert lines[0] == "[...]"
    assert lines[-3:] == ["line 19999", "100 %", "the end \ufffd"]
    assert 2000 < len(death.stderr) <= zfarm.settings.settings.stderr_kept
    assert "code 7" in str(error)


def speak(text: str) -> None:
    print(text, file=sys.stderr)


def test_what_an_earlier_call_has_written_is_not_told_of_a_later_one() -> None:
    with zfarm.Executor(max_workers=1) as farm:
        farm.submit(speak, "all is well").result(30)
        error = lost(farm, write_and_leave, "mine\n")

    assert error.deaths[0].stderr == "mine"


def kill_itself(size: int) -> None:
    held = bytearray(size)
    os.kill(os.getpid(), signal.SIGKILL if held else 0)


def test_kill_9_is_told_with_peak_memory_and_what_the_kernel_counts(executor: zfarm.Executor) -> None:
    small = lost(executor, kill_itself, 1).deaths[0]
    error = lost(executor, kill_itself, 100_000_000)

    (large,) = error.deaths
    assert large.signal == signal.SIGKILL
    assert large.peak_bytes - small.peak_bytes > 80_000_000
    assert f"{large.peak_bytes / 1e6:.1f} MB" in str(error)
    assert large.oom == "", "nothing was killed for lack of memory"
    if sys.platform == "linux":
        assert "the kernel has killed nothing" in str(error)


def test_every_attempt_is_told(executor: zfarm.Executor) -> None:
    error = executor.submit(write_and_leave, "again\n").exception(60)

    assert isinstance(error, TaskLost)
    assert [death.stderr for death in error.deaths] == ["again"] * 3
    assert "died 3 times" in str(error)
    assert str(error).count("again") == 1
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.deaths) == (str(error), error.deaths)


def test_stderr_of_children_is_seen_by_whoever_started_the_farm(capfd: Any) -> None:
    with zfarm.Executor(max_workers=1) as farm:
        farm.submit(speak, "said to all").result(30)
        assert "said to all" in wait_until(lambda: capfd.readouterr().err, "it is given on")


def test_deaths_travel_over_tcp_and_survive_the_broker(tmp_path: Path) -> None:
    with tcp_farm(tmp_path) as farm:
        broker = farm.start_broker()
        worker = farm.start_worker(1)
        farm.wait_slots(1)
        with zfarm.Executor(farm.connection) as executor:
            future = executor.options(max_attempts=2).submit(die_until, str(tmp_path / "go"))
            wait_until(lambda: "runs again" in broker.said, "one death is in the journal")
            broker.process.kill()
            broker.wait()
            farm.start_broker(port=farm.port)
            (tmp_path / "go").touch()
            error = future.exception(60)

    assert isinstance(error, TaskLost)
    assert [(death.exit_code, death.stderr) for death in error.deaths] == [(3, "first"), (4, "second")]
    assert all(death.worker.endswith(f"/{worker.pid}") and death.peak_bytes > 0 for death in error.deaths)


def die_until(go: str) -> None:
    import time

    mark = go + ".mark"
    if not os.path.exists(mark):
        open(mark, "x").close()
        os.write(2, b"first\n")
        os._exit(3)
    while not os.path.exists(go):
        time.sleep(0.02)
    os.write(2, b"second\n")
    os._exit(4)


# ---------------------------------------------------------------- the kernel's counters


def host_with(root: Path, group: int | None, host: int) -> Path:
    """A tree of files in which the kernel says that it has killed so many."""
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/vmstat").write_text(f"nr_free_pages 5\noom_kill {host}\n")
    (root / "proc/self/cgroup").write_text("0::/farm/worker\n")
    place = root / "sys/fs/cgroup/farm/worker"
    place.mkdir(parents=True, exist_ok=True)
    if group is not None:
        (place / "memory.events").write_text(f"low 0\noom 1\noom_kill {group}\noom_group_kill 0\n")
    return root


def test_kills_of_the_own_group_within_the_last_moments_are_evidence(tmp_path: Path) -> None:
    ooms = Ooms(host_with(tmp_path, group=4, host=9))
    assert ooms.evidence() == ("", True)

    host_with(tmp_path, group=5, host=10)
    assert "a process of its control group" in ooms.evidence().text
    ooms.tick()
    assert ooms.evidence().text, "that was a moment ago"
    ooms.tick()
    assert ooms.evidence() == ("", True), "that was long ago"

    host_with(tmp_path, group=5, host=11)
    assert "of this host" in ooms.evidence().text


def test_a_host_without_counters_says_nothing(tmp_path: Path) -> None:
    assert Ooms(tmp_path).evidence() == ("", False)
    assert Ooms(host_with(tmp_path, group=None, host=1)).evidence() == ("", True)
