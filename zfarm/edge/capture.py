"""A child's standard output, led into pipes to its worker while a call asks for it; it runs no call.

What Python writes is preceded by a mark with the number of its call, so that lines of short calls that are
read together, or late, are told apart. What is written by others carries none.
"""

from __future__ import annotations

import ctypes
import fcntl
import io
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from threading import get_ident
from typing import Any, Final

from zfarm.edge import upbringing

__all__ = ["FORWARD", "KEEP", "MARK", "OFF", "Capture"]

FORWARD: Final = "forward"
KEEP: Final = "keep"
OFF: Final = "off"
MARK: Final = b"\0\x1bzf%d\x1b"
_LINE_BUFFERED: Final = 1  # _IOLBF


class Capture:
    """Where the output of this child goes."""

    def __init__(self, out: int, err: int, running: Callable[[], int]) -> None:
        """``out`` and ``err`` are pipes to the worker; ``running`` tells the number of the call that runs."""
        self.muted = _Muted()
        """Calls what shall not be heard."""
        self.mode = ""
        """What the last call wanted; empty: its output goes where the child's went from its birth."""
        self.used = False
        """Something may have been written to the pipes."""
        self.printed = False
        """Python has written something since the last ``settle``."""
        self.running = running
        self._pipes = (out, err)
        self._births: tuple[int, int] | None = None
        self._null = -1

    def become(self, mode: str) -> None:
        """Lead what is written from now on where ``mode`` says."""
        upbringing.flush_output()
        if self._births is None:
            self._null = upbringing.move_high([os.open(os.devnull, os.O_RDWR)])[0]
            self._births = (self._keep(1), self._keep(2))
            _buffer_lines()
            before = sys.stdout, sys.stderr
            sys.stdout = _Text(1, self)
            sys.stderr = _Text(2, self)
            _lead_handlers(before, (sys.stdout, sys.stderr))
        targets = self._births
        if mode in (FORWARD, KEEP):
            targets = self._pipes
            self.used = True
        elif mode == OFF:
            targets = (self._null, self._null)
        for number, target in enumerate(targets, 1):
            os.dup2(target, number)
        self.mode = mode

    def settle(self) -> None:
        """A call has ended: give on what it printed while it is known whose it is."""
        self.printed = False
        upbringing.flush_output()

    def mend(self) -> None:
        """Open again what a call may have closed: the next one shall not suffer for it."""
        for number in (1, 2):
            try:
                os.fstat(number)
            except OSError:
                self.become(self.mode)
                return

    def _keep(self, number: int) -> int:
        try:
            return fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, self._pipes[0])
        except OSError:  # it is closed: there was no output
            return self._null

    @property
    def marked(self) -> bool:
        """Whether what is written goes to the worker, which wants to know whose it is."""
        return self.mode in (FORWARD, KEEP)


class _Muted:
    """The threads of which nothing is heard: what they write to Python's standard streams is dropped."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def call(self, function: Callable[..., None], *args: object) -> None:
        """Call it in this thread, unheard."""
        thread = get_ident()
        if thread in self.threads:
            function(*args)
            return
        self.threads.add(thread)
        try:
            function(*args)
        finally:
            self.threads.discard(thread)


class _Marking(io.FileIO):
    """A descriptor whose text is marked with the number of its call."""

    def __init__(self, number: int, capture: Capture) -> None:
        super().__init__(number, "w", closefd=False)
        self._capture = capture

    def write(self, data: Any, /) -> int:
        """See io.RawIOBase.write."""
        if not self._capture.marked:
            return super().write(data)
        mark = MARK % self._capture.running()
        return max(0, super().write(mark + bytes(data)) - len(mark))


class _Text(io.TextIOWrapper):
    """One of Python's standard streams."""

    def __init__(self, number: int, capture: Capture) -> None:
        buffer = io.BufferedWriter(_Marking(number, capture))
        super().__init__(buffer, "utf-8", errors="backslashreplace", line_buffering=True)
        self._capture = capture

    def write(self, text: str, /) -> int:
        """See io.TextIOBase.write."""
        if self._capture.muted.threads and get_ident() in self._capture.muted.threads:
            return len(text)
        self._capture.printed = True
        return super().write(text)

    def close(self) -> None:
        """See io.IOBase.close: it is not a call's to close, and the next one shall not suffer for it."""
        with suppress(ValueError, OSError):  # nor does this one
            self.flush()


def _lead_handlers(before: tuple[Any, Any], after: tuple[Any, Any]) -> None:
    """Let handlers of logging that write to the standard streams of before write to those of now."""
    for handler in [reference() for reference in logging._handlerList]:  # type: ignore[attr-defined]
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            for old, new in zip(before, after, strict=True):
                if getattr(handler, "stream", None) is old and "stream" in vars(handler):
                    handler.setStream(new)


def _buffer_lines() -> None:
    """What C libraries print shall not wait for a full buffer, which they use for anything but a terminal."""
    with suppress(OSError, ValueError, AttributeError):
        libc = ctypes.CDLL(None)
        name = "__stdoutp" if sys.platform == "darwin" else "stdout"
        libc.setvbuf(ctypes.c_void_p.in_dll(libc, name), None, _LINE_BUFFERED, 0)
