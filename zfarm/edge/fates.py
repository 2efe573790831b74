"""How a child came to its end, in words for the owner of the task that ran in it; it knows no socket."""

from __future__ import annotations

import errno
import os
import re
import signal
from typing import Final

from zfarm.edge.nursery import Failed, Gone
from zfarm.edge.ooms import Evidence
from zfarm.edge.pipe import PIPE_LOST

__all__ = ["bereaved", "failure_of", "fate_of", "starved", "unborn"]

_REMEDIES: Final = {
    errno.EMFILE: " (raise the limit of the worker, as with ulimit -n, or give it fewer slots)",
    errno.EAGAIN: " (its user may have no more processes: see ulimit -u)",
    errno.ENOMEM: " (give the worker fewer slots)",
}
_REFUSED: Final = re.compile(
    r"std::bad_alloc|[cC]annot allocate memory|[oO]ut of memory|memory allocation of \d+ bytes failed"
    r"|\bMemoryError\b|failed to allocate memory"
)


def fate_of(gone: Gone, reason: str, stopping: bool, evidence: Evidence) -> str:
    """How it ended; ``reason`` is why its worker has killed it, ``stopping`` that it was asked to leave."""
    if gone.signal:
        if reason and gone.signal == signal.SIGKILL:
            return reason
        try:
            name = signal.Signals(gone.signal).name
        except ValueError:
            name = f"signal {gone.signal}"
        if gone.signal == signal.SIGKILL and evidence.text:
            return f"killed by SIGKILL, likely for lack of memory: {evidence.text}"
        if gone.signal == signal.SIGKILL and evidence.known:
            return "killed by SIGKILL, and the kernel has killed nothing for lack of memory just then"
        if gone.signal == signal.SIGKILL:
            return f"killed by SIGKILL (out of memory? the host has {_memory()})"
        return f"killed by {name}"
    if gone.exit_code == PIPE_LOST:
        return "lost the pipe to its worker: a task closed file descriptors that were not its own"
    if stopping and gone.exit_code == 0:
        return "stopped"
    return f"exited with code {gone.exit_code} (os._exit or a crash in an exit handler)"


def _memory() -> str:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{total / 1e9:.1f} GB"


def bereaved(evidence: Evidence) -> str:
    """How all children of a nursery that has died came to their end."""
    why = f", which died likely for lack of memory: {evidence.text}" if evidence.text else ""
    return f"killed with the nursery, the process that all children come from{why}"


def failure_of(failed: Failed) -> str:
    """Why a child could not be started."""
    return unborn(failed.errno)


def unborn(number: int) -> str:
    """Why a child could not be started: the error and, where it has one, the remedy."""
    remedy = _REMEDIES.get(number, "")
    return f"could not be started: {os.strerror(number)}{remedy}"


def starved(last_words: str) -> bool:
    """Whether these last words say that memory was refused: so C, C++, Rust and Python put it."""
    return _REFUSED.search(last_words) is not None
