"""How a process that was just forked becomes a child: signals, session, descriptors; it runs no call."""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import fcntl
import os
import resource
import signal
import sys
import threading
from contextlib import suppress
from typing import Final

__all__ = ["HIGH_FD_SPAN", "bring_up", "end", "move_high"]

_PR_SET_PDEATHSIG: Final = 1
_OOM_SCORE: Final = "300"  # if memory runs out, a child goes before its worker and before the user's shell
HIGH_FD_SPAN: Final = 32
_LEFT_AS_THEY_ARE: Final = {
    getattr(signal, name)
    for name in ("SIGKILL", "SIGSTOP", "SIGPIPE", "SIGXFSZ")  # Python ignores the last two wherever it runs
    if hasattr(signal, name)
}

_prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None


def bring_up(parent: int) -> None:
    """Leave the parent's session and ways behind. ``parent`` is the pid of the process that forked us."""
    with suppress(OSError):  # it is a leader already only where somebody else has seen to that
        os.setsid()
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)  # it died before we asked to die with it
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - _LEFT_AS_THEY_ARE:
        if signal.getsignal(number) is not signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(_OOM_SCORE)
    with suppress(OSError, RuntimeError):
        faulthandler.enable(2)  # a child that crashes leaves its stack in the last lines of its stderr
    _fresh_seeds()


def _fresh_seeds() -> None:
    """No two children may draw the same numbers; the random module sees to itself after a fork."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and hasattr(numpy, "random"):
        numpy.random.seed()


def move_high(fds: list[int]) -> list[int]:
    """Move descriptors to numbers that careless code does not touch; programs that a task starts do not get
    them."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    base = max(3, min(soft, 1024) - HIGH_FD_SPAN)  # below 1024: select() must still work
    moved = []
    for fd in fds:
        moved.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, base))
        os.close(fd)
    return moved


def end(code: int) -> None:
    """End this process as Python would (threads, exit handlers, output), and nothing of the nursery's."""
    try:
        wait_threads = getattr(threading, "_shutdown", None)
        if wait_threads is not None:
            wait_threads()
        atexit._run_exitfuncs()
    finally:
        flush_output()
        os._exit(code)


def flush_output() -> None:
    """Give on what tasks have printed."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, ValueError, OSError):  # a task may have closed, replaced or broken it
            continue
