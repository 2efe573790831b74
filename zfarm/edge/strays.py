"""Processes that calls have started and left behind: how the nursery becomes their parent, buries those that
end, and ends the rest when it ends itself, and how its own parent does so when it was killed; it knows no
child and no call.

What a call starts is in the process group of its child, and dies with it. Who has moved into a session of its
own has left that group. The system gives the orphans among them to the nearest ancestor that asks for them.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Container, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["adopt_strays", "bury_strays", "end_strays"]

_PR_SET_CHILD_SUBREAPER: Final = 36
_PATIENCE_S: Final = 2.0
"""How long they may take to end when they are asked, since a farm inside a call has to tidy up. For as long
they are killed after that."""

_prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None


def adopt_strays() -> set[int]:
    """From now on this process is the parent of all descendants whose own parent has ended. Elsewhere than on
    Linux nothing changes. Tells the children that it had before, which no call has left behind: a shell that
    becomes this process by ``exec`` may have started some."""
    before = _children()
    if _prctl is not None:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return before


def bury_strays(known: Container[int]) -> None:
    """Bury those that have ended, up to one whose pid is ``known``: that is for somebody else."""
    if _prctl is None:
        return
    with suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid in known:
                return
            os.waitpid(ended.si_pid, 0)


def end_strays(others: Iterable[int] = ()) -> None:
    """Have all that this process is the parent of end, and what they leave behind in turn: those that do not
    when they are asked are killed after a while. Left alone are ``others``, and those of another user."""
    patience = time.monotonic() + _PATIENCE_S
    spared = set(others)
    asked: set[int] = set()
    while strays := _children() - spared:
        left = patience - time.monotonic()
        if left < -_PATIENCE_S:
            return  # they start others faster than we find them
        for pid in strays if left <= 0 else strays - asked:
            try:
                os.kill(pid, signal.SIGTERM if left > 0 else signal.SIGKILL)  # not buried: the pid is its own
            except PermissionError:
                spared.add(pid)
        asked |= strays
        _await_one(strays - spared, max(left, 0.1))
        bury_strays(())


def _await_one(pids: set[int], timeout_s: float) -> None:
    """Wait until one of these children has ended."""
    poller = select.poll()
    fds = []
    try:
        for pid in pids:
            fds.append(os.pidfd_open(pid))
            poller.register(fds[-1], select.POLLIN)
        if fds:
            poller.poll(timeout_s * 1e3)
    finally:
        for fd in fds:
            os.close(fd)


def _children() -> set[int]:
    if _prctl is None:
        return set()
    try:
        return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))
    except OSError:  # this kernel does not tell
        return set()
