"""How much memory a process has in use, and which processes it has started; read from the system, no more.

What counts is memory of its own: anonymous pages and shared memory, what is swapped out included. Pages that
processes share count for each by its part. Programs, libraries and mapped files do not count: the system
can drop them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = ["HAS_PROC", "anonymous_bytes", "data_bytes", "used_bytes"]

HAS_PROC: Final = os.path.exists("/proc/self/statm")
PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_OWN: Final = ("Pss_Anon:", "Pss_Shmem:", "SwapPss:")


def _statm() -> list[int]:
    with open("/proc/self/statm") as file:
        return [int(pages) * PAGE for pages in file.read().split()]


def data_bytes() -> int:
    """What counts for this process against RLIMIT_DATA: writable memory that it has asked for, used or
    not."""
    return _statm()[5]


def anonymous_bytes() -> int:
    """Memory of this process that is in use and comes from no file; cheap. Elsewhere than on Linux: 0."""
    if not HAS_PROC:
        return 0
    fields = _statm()
    return fields[1] - fields[2]


def used_bytes(pid: int, most: int) -> int:
    """What a process and those that it has started have in use. Exact if that is above ``most``; else it may
    count too much, and is at most that. 0: it is gone.

    Raises:
        OSError: nobody can tell now, as when too many files are open.
    """
    if not HAS_PROC:
        return _resident(pid)
    pids = _family(pid)
    rough = sum(map(_rough, pids))
    if rough <= most:
        return rough
    return sum(_exact(member, resident) for member in pids if (resident := _rough(member)))


def _family(pid: int) -> list[int]:
    """A process and all that it has started, by way of those that still live."""
    found = [pid]
    for member in found:
        try:
            threads = os.listdir(f"/proc/{member}/task")
            for thread in threads:
                text = Path(f"/proc/{member}/task/{thread}/children").read_text()
                found.extend(map(int, text.split()))
        except OSError:
            continue  # it has ended, or this kernel does not tell
    return found


def _rough(pid: int) -> int:
    """Resident and swapped out, files included: an upper bound that is cheap to get."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return _sum(text, ("VmRSS:", "VmSwap:"))


def _exact(pid: int, otherwise: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return otherwise  # older than Linux 4.14, or it has just ended
    return _sum(text, _OWN) if "Pss_Anon:" in text else otherwise


def _sum(text: str, names: tuple[str, ...]) -> int:
    return 1024 * sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(names))


def _resident(pid: int) -> int:
    import psutil

    try:
        process = psutil.Process(pid)
        members = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    total = 0
    for member in members:
        try:
            total += int(member.memory_info().rss)
        except psutil.Error:
            continue  # it has just ended
    return total
