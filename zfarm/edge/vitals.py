"""How the host of a worker is doing, sampled in a thread of its own; it knows no socket and no machine.

psutil takes tens of milliseconds to import and /proc of a sick host can be slow: neither may hold up the
worker's loop. So both happen in the thread of `VitalsSampler`, and the first sample comes one interval after
its start: a farm that lives for less never pays.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zfarm.messages import Vitals

if TYPE_CHECKING:
    import psutil

__all__ = ["Sampler", "VitalsSampler", "memory_bytes", "sample"]

STOP_WAIT_S: Final = 2.0
"""How long `VitalsSampler.stop` waits for a sample that hangs in the kernel; the thread is a daemon."""

_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN_CGROUPS: Final = Path("/proc/self/cgroup")
_MEMINFO: Final = Path("/proc/meminfo")

_log = logging.getLogger(__name__)
_local = threading.local()


class Sampler:
    """Takes samples, and remembers the processes it has met so that one costs well below a millisecond.

    To be used from one thread only: psutil keeps the CPU times to compare with per thread.
    """

    def __init__(self) -> None:
        import psutil

        self._psutil = psutil
        self.unreadable: type[Exception] = psutil.Error
        self._own = psutil.Process()
        self._children: dict[int, psutil.Process] = {}
        self._disk = tempfile.gettempdir()
        psutil.cpu_percent()  # the next call compares with now

    def sample(self, children_pids: Iterable[int] = ()) -> Vitals:
        """The host now, and what this process and ``children_pids`` hold; those that ended count nothing."""
        psutil = self._psutil
        total, available = self._memory()
        rss, processes = self._resident(children_pids)
        return Vitals(
            cpu_percent=psutil.cpu_percent(),
            load_1m=psutil.getloadavg()[0],
            cpus=_usable_cpus(),
            memory_bytes=total,
            memory_available_bytes=available,
            swap_percent=self._swap(),
            disk_free_bytes=psutil.disk_usage(self._disk).free,
            rss_bytes=rss,
            processes=processes,
        )

    def _memory(self) -> tuple[int, int]:
        memory = self._psutil.virtual_memory()
        total, available = int(memory.total), int(memory.available)
        limit = _cgroup_memory()
        if limit is not None and limit[0] < total:
            total, available = limit[0], min(available, limit[0] - limit[1])
        return total, max(0, available)

    def _swap(self) -> float:
        """Percent of swap in use. psutil would want paging rates too, and warn where they are hidden."""
        try:
            lines = _MEMINFO.read_text().splitlines()
        except OSError:
            return float(self._psutil.swap_memory().percent)  # not Linux
        facts = {key: int(rest.split()[0]) for key, _, rest in (line.partition(":") for line in lines)}
        total = facts.get("SwapTotal", 0)
        return 100.0 * (total - facts.get("SwapFree", 0)) / total if total else 0.0

    def _resident(self, children_pids: Iterable[int]) -> tuple[int, int]:
        """Resident bytes of this process and its children, and how many live; shared pages count often."""
        known = self._children
        self._children = {}
        rss, processes = self._own.memory_info().rss, 1
        for pid in children_pids:
            try:
                child = known.get(pid) or self._psutil.Process(pid)
                rss += child.memory_info().rss
            except self._psutil.Error:
                continue  # it ended: nothing to count
            self._children[pid] = child
            processes += 1
        return int(rss), processes


def sample(children_pids: Iterable[int] = ()) -> Vitals:
    """One sample of this host, this process and ``children_pids``; imports psutil when first called.

    ``cpu_percent`` compares with the last call in this thread, and is 0.0 in the first.
    """
    if not hasattr(_local, "sampler"):
        _local.sampler = Sampler()
    vitals: Vitals = _local.sampler.sample(children_pids)
    return vitals


class VitalsSampler:
    """A thread that calls ``deliver(vitals)``, in that thread, every ``interval_s`` seconds until `stop`.

    ``children_pids`` is asked for the processes to count, in that thread too.
    """

    def __init__(
        self,
        interval_s: float,
        deliver: Callable[[Vitals], None],
        children_pids: Callable[[], Iterable[int]] = tuple,
    ) -> None:
        self._children_pids = children_pids
        self._interval_s = interval_s
        self._deliver = deliver
        self._stopped = threading.Event()
        self._complained = False
        self._thread = threading.Thread(target=self._run, name="zfarm-vitals", daemon=True)

    def start(self) -> None:
        """Start sampling; the first sample comes after one interval."""
        self._thread.start()

    def stop(self) -> None:
        """Stop sampling and wait until the thread is gone: nothing is delivered any more. May be repeated."""
        self._stopped.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(STOP_WAIT_S)

    def _run(self) -> None:
        if self._stopped.wait(self._interval_s / 2):
            return
        sampler = Sampler()  # from here on CPU time counts for the first sample
        pause_s = self._interval_s / 2
        while not self._stopped.wait(pause_s):
            pause_s = self._interval_s
            try:
                vitals = sampler.sample(self._children_pids())
            except (OSError, sampler.unreadable) as error:
                self._complain(error)
                continue
            if not self._stopped.is_set():
                self._deliver(vitals)

    def _complain(self, error: Exception) -> None:
        """Say it once: a host that hides its figures hides them every second."""
        if not self._complained:
            self._complained = True
            _log.warning("cannot read how this host is doing: %s: %s", type(error).__name__, error)


@cache
def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Memory that this process may use: the host's, or less in a cgroup with a limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup_memory()
    return total if limit is None else min(total, limit[0])


def _cgroup_memory() -> tuple[int, int] | None:
    """Limit and use in bytes of the tightest memory cgroup around this process; None where there is none."""
    found: tuple[int, int] | None = None
    for limit_file, used_file, stat_file, reclaimable in _memory_files():
        try:
            limit = int(limit_file.read_text())
            used = int(used_file.read_text()) - _field(stat_file, reclaimable)
        except (OSError, ValueError):
            continue  # "max", or a file this kernel has not: no limit here
        if found is None or limit - used < found[0] - found[1]:
            found = limit, max(0, used)
    return found


@cache
def _memory_files() -> tuple[tuple[Path, Path, Path, str], ...]:
    """Files of limit, use and statistics of each memory cgroup from ours to the root (version 2 or 1)."""
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return ()  # not Linux
    found: list[tuple[Path, Path, Path, str]] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = _CGROUPS, ("memory.max", "memory.current", "memory.stat", "inactive_file")
        elif "memory" in controllers.split(","):
            root = _CGROUPS / "memory"
            names = (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "memory.stat",
                "total_inactive_file",
            )
        else:
            continue
        here = root / path.lstrip("/")
        for folder in (here, *here.parents):
            if folder.is_relative_to(root) and (folder / names[0]).exists():
                found.append((folder / names[0], folder / names[1], folder / names[2], names[3]))
    return tuple(found)


def _field(stat_file: Path, name: str) -> int:
    for line in stat_file.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
