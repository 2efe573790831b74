"""How many cores this process may really use: affinity and control groups count."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import ceil

__all__ = ["usable_cores"]


def usable_cores() -> int:
    """The number of cores that this process may use, at least 1.

    The smallest of: the machine's cores, the affinity mask, and the quota of every control group above us.
    """
    cores = [os.cpu_count() or 1]
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        cores.append(len(os.sched_getaffinity(0)))
    cores += [max(1, ceil(quota)) for quota in cpu_quotas("/proc/self/cgroup", "/sys/fs/cgroup")]
    return max(1, min(cores))


def cpu_quotas(membership: str, root: str) -> Iterator[float]:
    """The quotas in cores, one per control group that has one, from ours up to the root of each hierarchy."""
    for line in _read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = os.path.join(root, controllers) if controllers else root
        group = path.strip("/")
        while True:
            quota = _quota(os.path.join(base, group))
            if quota is not None:
                yield quota
            if not group:
                break
            group = os.path.dirname(group)


def _quota(folder: str) -> float | None:
    """The quota of one control group in cores, of version 2 or 1; None: it has none."""
    text = _read(os.path.join(folder, "cpu.max")) or " ".join(
        _read(os.path.join(folder, name)) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    )
    try:
        limit, period = text.split()
        cores = int(limit) / int(period)
    except (ValueError, ZeroDivisionError):
        return None  # no such file, or "max": no limit
    return cores if cores > 0 else None


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
