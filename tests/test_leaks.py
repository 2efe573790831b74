"""The leak check itself: each kind of thing left behind is seen, and what goes in time is not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests import leaks

BLOCK = "import sys; sys.stdin.read()"


def test_a_clean_test_leaves_nothing(tmp_path: Path) -> None:
    before = leaks.take_stock(tmp_path)
    subprocess.run([sys.executable, "-c", "pass"], check=True)

    assert leaks.wait_settled(before, tmp_path, 5) == []


def test_an_open_descriptor_is_seen(tmp_path: Path) -> None:
    before = leaks.take_stock(tmp_path)
    with open(os.devnull):
        assert any("/dev/null" in line for line in leaks.wait_settled(before, tmp_path, 0))


def test_a_running_thread_is_seen_by_name(tmp_path: Path) -> None:
    before = leaks.take_stock(tmp_path)
    gate = threading.Event()
    thread = threading.Thread(target=gate.wait, name="left-behind")
    thread.start()
    lines = leaks.wait_settled(before, tmp_path, 0)
    gate.set()
    thread.join()

    assert any("left-behind" in line for line in lines)


def test_a_file_is_seen(tmp_path: Path) -> None:
    before = leaks.take_stock(tmp_path)
    (tmp_path / "socket").touch()

    assert leaks.wait_settled(before, tmp_path, 0) == [f"file {tmp_path / 'socket'}"]


def test_a_trial_of_the_standard_library_is_no_leak(tmp_path: Path) -> None:
    before = leaks.take_stock(tmp_path)
    (tmp_path / "m_u3nw23").write_bytes(b"blat")
    (tmp_path / "a_u3nw23").write_bytes(b"else")

    assert leaks.wait_settled(before, tmp_path, 0) == [f"file {tmp_path / 'a_u3nw23'}"]


def test_a_child_and_its_zombie_are_seen(tmp_path: Path) -> None:
    before = leaks.take_stock(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", BLOCK], stdin=subprocess.PIPE)
    assert any(str(child.pid) in line for line in leaks.wait_settled(before, tmp_path, 0))
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, but nobody has collected it
    assert any("zombie" in line for line in leaks.wait_settled(before, tmp_path, 0))
    child.wait()

    assert leaks.wait_settled(before, tmp_path, 0) == []


def test_an_orphan_is_seen_and_ended(tmp_path: Path) -> None:
    before = leaks.take_stock(tmp_path)
    read_end, write_end = os.pipe()
    script = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {BLOCK!r}], stdin={read_end})"
    subprocess.run([sys.executable, "-c", script], pass_fds=[read_end], check=True)
    seen = leaks.wait_settled(before, tmp_path, 0)
    leaks.end_processes(before)
    os.close(read_end)
    os.close(write_end)

    assert any(BLOCK in line for line in seen)
    assert leaks.wait_settled(before, tmp_path, 5) == []


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm here")
def test_shared_memory_is_seen(tmp_path: Path) -> None:
    before = leaks.take_stock(tmp_path)
    path = Path(f"/dev/shm/zfarm-test-{os.getpid()}")
    path.touch()
    lines = leaks.wait_settled(before, tmp_path, 0)
    path.unlink()

    assert lines == [f"file {path}"]
