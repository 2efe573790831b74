"""Processes that calls have started and left behind: how the nursery becomes their parent, buries those that
end, and kills the rest when it ends itself; it knows no child and no call.

What a call starts is in the process group of its child, and dies with it. Who has moved into a session of its
own has left that group. The system gives the orphans among them to the nearest ancestor that asks for them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["adopt_strays", "bury_strays", "end_strays"]

_PR_SET_CHILD_SUBREAPER: Final = 36
_END_S: Final = 2.0
"""For how long they are looked for: one that starts others faster than we find them has the last word."""

_prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None


def adopt_strays() -> None:
    """From now on this process is the parent of all descendants whose own parent has ended. Elsewhere than on
    Linux nothing changes."""
    if _prctl is not None:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def bury_strays(known: Container[int]) -> None:
    """Bury those that have ended, up to one whose pid is ``known``: that is for somebody else."""
    if _prctl is None:
        return
    with suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid in known:
                return
            os.waitpid(ended.si_pid, 0)


def end_strays() -> None:
    """Kill and bury all that this process is the parent of, and what they leave behind in turn. Those of
    another user are left alone."""
    until = time.monotonic() + _END_S
    spared: set[int] = set()
    while (strays := _children() - spared) and time.monotonic() < until:
        for pid in strays:
            try:
                os.kill(pid, signal.SIGKILL)  # it is our child and not buried, so the pid is its own
            except PermissionError:
                spared.add(pid)
            else:
                os.waitpid(pid, 0)


def _children() -> set[int]:
    if _prctl is None:
        return set()
    try:
        return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))
    except OSError:  # this kernel does not tell
        return set()
