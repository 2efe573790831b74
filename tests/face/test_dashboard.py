"""The live dashboard on a real terminal: it draws, survives silence and Ctrl-Z, and leaves no trace."""

from __future__ import annotations

import os
import signal
import termios
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.face.terminal import ENTER, LEAVE, WAIT_S, Terminal


@pytest.fixture
def top(request: pytest.FixtureRequest) -> Iterator[Terminal]:
    terminal = Terminal("-m", "tests.face.fake_top", *map(str, getattr(request, "param", (1e9, 1e9))))
    yield terminal
    terminal.close()


def assert_left_cleanly(top: Terminal) -> None:
    top.assert_left_cleanly()
    assert "after" in top.written.partition(LEAVE)[2]


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

    assert "alpha03" in top.wait_screen("no answer since", present=False)
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
