"""The live dashboard on a real terminal: it draws, survives silence and Ctrl-Z, and leaves no trace."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
WAIT_S = 30.0
ENTER, LEAVE, SHOW_CURSOR = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"


class Terminal:
    """A program on a terminal of our own, and what it has written so far."""

    def __init__(self, *command: str, rows: int = 24, columns: int = 80) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(self.slave)
        self.written = ""
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=self.slave, stdout=self.slave, stderr=self.slave, cwd=ROOT, start_new_session=True,
            # its terminal in every sense, so that Ctrl-C there is a signal
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no threads here
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "", "LINES": "", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def wait_for(self, text: str) -> str:
        """Everything written up to ``text``, which is taken out of what is still to be looked at."""
        deadline = time.monotonic() + WAIT_S
        while text not in self.written:
            left = deadline - time.monotonic()
            assert left > 0, f"no {text!r} within {WAIT_S} s, but {self.written[-3000:]!r}"
            if select.select([self.master], [], [], min(left, 1.0))[0]:
                self.written += os.read(self.master, 65536).decode(errors="replace")
        seen, _, self.written = self.written.partition(text)
        return seen + text

    def wait_end(self) -> int:
        code = self.process.wait(WAIT_S)
        while select.select([self.master], [], [], 0)[0]:
            self.written += os.read(self.master, 65536).decode(errors="replace")
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def top(request: pytest.FixtureRequest) -> Iterator[Terminal]:
    terminal = Terminal("-m", "tests.face.fake_top", *map(str, getattr(request, "param", (1e9, 1e9))))
    yield terminal
    terminal.close()


def assert_left_cleanly(top: Terminal) -> None:
    assert top.wait_end() == 0
    assert LEAVE in top.written
    assert top.written.rfind(SHOW_CURSOR) > top.written.rfind("\x1b[?25l")
    assert "after" in top.written.partition(LEAVE)[2]
    assert "Traceback" not in top.written
    assert termios.tcgetattr(top.slave) == top.before


@pytest.mark.parametrize("how", ["q", "\x03", "\x04", signal.SIGTERM, signal.SIGINT])
def test_it_draws_and_leaves_the_terminal_as_it_was(top: Terminal, how: str | signal.Signals):
    assert ENTER in top.wait_for("tcp://127.0.0.1:5555")
    top.wait_for("alpha03")
    if isinstance(how, str):
        top.send(how)
    else:
        top.process.send_signal(how)

    assert_left_cleanly(top)


def test_numbers_move_and_rates_appear(top: Terminal):
    top.wait_for("  200/s")  # a hundred more in half a second of the broker

    top.send("q")
    assert_left_cleanly(top)


def test_it_follows_the_size_of_the_terminal(top: Terminal):
    top.wait_for("alpha03")
    top.resize(50, 160)
    top.process.send_signal(signal.SIGWINCH)

    top.wait_for("login1/77")  # only a wide screen has a pane for clients
    top.send("q")
    assert_left_cleanly(top)


@pytest.mark.parametrize("top", [(1.0, 6.0)], indirect=True)
def test_a_silent_broker_is_admitted_and_its_return_noticed(top: Terminal):
    seen = top.wait_for("no answer since")
    assert "alpha03" in seen
    top.wait_for("(4.")

    deadline = time.monotonic() + WAIT_S
    while True:
        top.wait_for("\x1b[H")  # the next screen
        screen = top.wait_for("q quit")
        if "no answer since" not in screen:
            break
        assert time.monotonic() < deadline
    assert "alpha03" in screen
    top.send("q")
    assert_left_cleanly(top)


def test_suspended_and_continued_it_gives_the_terminal_back_and_takes_it_again(top: Terminal):
    top.wait_for("alpha03")
    os.kill(top.process.pid, signal.SIGTSTP)
    top.wait_for(LEAVE)
    process = psutil.Process(top.process.pid)
    deadline = time.monotonic() + WAIT_S
    while process.status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline
    assert termios.tcgetattr(top.slave) == top.before

    os.kill(top.process.pid, signal.SIGCONT)
    top.wait_for(ENTER)
    top.wait_for("alpha03")
    top.send("q")
    assert_left_cleanly(top)


def test_it_costs_little(top: Terminal):
    top.wait_for("alpha03")
    process = psutil.Process(top.process.pid)
    shares = []
    for _ in range(2):  # the better of two: others use this machine, too
        used, began = sum(process.cpu_times()[:2]), time.monotonic()
        for _ in range(4):
            top.wait_for("q quit")
        shares.append((sum(process.cpu_times()[:2]) - used) / (time.monotonic() - began))

    assert min(shares) < 0.05
    top.send("q")
    assert_left_cleanly(top)
