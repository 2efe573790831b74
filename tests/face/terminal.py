"""A program on a terminal of its own, for tests that press keys and look at what it writes."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
WAIT_S = 30.0
ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"
SHOW_CURSOR, HIDE_CURSOR, HOME = "\x1b[?25h", "\x1b[?25l", "\x1b[H"


class Terminal:
    """A program on a terminal of our own, and what it has written so far."""

    def __init__(self, *command: str, **variables: str) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(24, 80)
        self.before = termios.tcgetattr(self.slave)
        self.written = ""
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=self.slave, stdout=self.slave, stderr=self.slave, cwd=ROOT, start_new_session=True,
            # its terminal in every sense, so that Ctrl-C there is a signal
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no threads here
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "", "LINES": "", "PYTHONPATH": str(ROOT),
                 **variables},
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
            self._read(min(left, 1.0))
        seen, _, self.written = self.written.partition(text)
        return seen + text

    def wait_end(self) -> int:
        """Its exit code. What it writes until then is read, or it would wait for that for ever."""
        deadline = time.monotonic() + WAIT_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end within {WAIT_S} s: {self.written[-3000:]!r}"
            self._read(0.02)
        while self._read(0):
            pass
        return self.process.returncode

    def _read(self, wait_s: float) -> bool:
        ready = bool(select.select([self.master], [], [], wait_s)[0])
        if ready:
            self.written += os.read(self.master, 65536).decode(errors="replace")
        return ready

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)

    def screen(self) -> str:
        """The next whole screen."""
        self.wait_for(HOME)
        return self.wait_for("quit")

    def wait_screen(self, text: str, present: bool = True) -> str:
        """The first screen with ``text`` in it, or without."""
        deadline = time.monotonic() + WAIT_S
        while (text in (screen := self.screen())) != present:
            assert time.monotonic() < deadline, f"{text!r} {'never came' if present else 'stays'}: {screen!r}"
        return screen

    def assert_left_cleanly(self) -> None:
        """The program has ended well, and the terminal is as it was."""
        assert self.wait_end() == 0
        assert LEAVE in self.written
        assert self.written.rfind(SHOW_CURSOR) > self.written.rfind(HIDE_CURSOR)
        assert "Traceback" not in self.written
        assert termios.tcgetattr(self.slave) == self.before
