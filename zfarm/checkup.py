"""A checkup of a farm: what its client and its workers run, compared; and what of that will bite.

Each worker is asked by one call of its own, which is pinned to it and may run once.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zfarm.beyond import WorkerInfo
from zfarm.edge.probe import Sight, look_around

if TYPE_CHECKING:
    from zfarm.api import Executor

__all__ = ["PROBLEM", "Checkup", "Finding", "Seen", "examine", "judge"]

PROBLEM: Final = "problem"
WARNING: Final = "warning"
NOTE: Final = "note"

PICKLED: Final = (
    "cloudpickle", "dask", "geopandas", "jax", "networkx", "numba", "numpy", "pandas", "pillow", "polars",
    "pyarrow", "pydantic", "scikit-learn", "scipy", "sympy", "torch", "xarray",
)  # fmt: skip
"""Packages whose objects travel, and may not be read by other versions."""
CLOCK_MAX_S: Final = 1.0
SHM_MIN_BYTES: Final = 128 * 2**20
"""Containers have 64 MB unless they are told otherwise."""
DISK_MIN_BYTES: Final = 2**30
FILES_PER_SLOT: Final = 16
FILES_MIN: Final = 1024
NAMED_MAX: Final = 12
"""Packages that one sentence names."""


class Finding(msgspec.Struct, order=True):
    """Something that will bite, or may."""

    level: str
    where: str
    code: str
    """A word that stays, for programs."""
    text: str


class Seen(msgspec.Struct):
    """One worker, and what it sees; None: it did not answer, and ``why`` says what is known of that."""

    worker: str
    host: str
    pid: int
    slots: int
    sight: Sight | None = None
    clock_s: float = 0.0
    """How far its clock is ahead of ours, at least; below 0: behind."""
    why: str = ""


class Checkup(msgspec.Struct):
    """What was found."""

    address: str
    client: Sight
    workers: list[Seen]
    findings: list[Finding]

    @property
    def healthy(self) -> bool:
        """Nothing bites."""
        return all(finding.level == NOTE for finding in self.findings)


def examine(farm: Executor, wait_s: float) -> Checkup:
    """Look at every worker of ``farm``; those that have not answered ``wait_s`` seconds later are told as
    such.

    Raises: as ``farm.workers()``.
    """
    client = msgspec.convert(look_around(), Sight)
    end = time.monotonic() + wait_s
    workers = _wait_workers(farm, end)
    asked = [(worker, *_ask(farm, worker)) for worker in workers]
    concurrent.futures.wait([future for _, future, _ in asked], max(0.0, end - time.monotonic()))
    seen = [_answered(worker, future, sent) for worker, future, sent in asked]
    return Checkup(farm.address, client, seen, judge(client, seen))


def _wait_workers(farm: Executor, end: float) -> tuple[WorkerInfo, ...]:
    """An embedded farm may still boot."""
    while True:
        workers = farm.workers()
        if workers or time.monotonic() > end:
            return workers
        time.sleep(0.1)


def _ask(farm: Executor, worker: WorkerInfo) -> tuple[Any, list[float]]:
    """The future of a look around there, and when it was asked for and answered."""
    times = [time.time()]
    view = farm.options(labels=worker.label, max_attempts=1, output="off", priority=1000, name="zfarm doctor")
    future = view.submit(look_around)
    future.add_done_callback(lambda _: times.append(time.time()))
    return future, times


def _answered(worker: WorkerInfo, future: Any, times: list[float]) -> Seen:
    seen = Seen(worker.name, worker.host, worker.pid, worker.slots)
    if not future.done():
        seen.why = str(future.why())
        future.cancel(force=True)  # or it would be waited for at the end
        return seen
    try:
        seen.sight = msgspec.convert(future.result(), Sight)
    except Exception as error:  # whatever the call there has met is what we are here to tell
        seen.why = f"{type(error).__name__}: {error}".splitlines()[0]
        return seen
    there, asked, answered = seen.sight.time_s, times[0], times[-1]
    seen.clock_s = there - answered if there > answered else min(0.0, there - asked)
    return seen


# ---------------------------------------------------------------- what bites


def judge(client: Sight, workers: list[Seen]) -> list[Finding]:
    """What the differences mean, the worst first."""
    found = _of_host("this host", client)
    if not workers:
        found.append(
            Finding(PROBLEM, "farm", "no-workers", "there is no worker: start one with `zfarm worker`")
        )
    packages: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for worker in workers:
        where = f"{worker.host}/{worker.pid}"
        if worker.sight is None:
            text = f"it has not answered: {worker.why}"
            found.append(Finding(PROBLEM, where, "no-answer", text))
            continue
        found += _of_worker(where, client, worker, worker.sight)
        for difference in _of_packages(client.packages, worker.sight.packages):
            packages[difference].append(where)
    found += [
        Finding(level, ", ".join(wheres), code, text) for (level, code, text), wheres in packages.items()
    ]
    order = (PROBLEM, WARNING, NOTE)
    return sorted(set_of(found), key=lambda finding: (order.index(finding.level), finding))


def set_of(found: Iterable[Finding]) -> list[Finding]:
    """Each of them once: workers of one host see the same."""
    return list({(one.level, one.where, one.code, one.text): one for one in found}.values())


def _of_worker(where: str, client: Sight, worker: Seen, sight: Sight) -> list[Finding]:
    found = _of_host(where, sight)
    if _minor(sight.python) != _minor(client.python) or sight.implementation != client.implementation:
        text = (
            f"{sight.implementation} {sight.python} there, {client.implementation} {client.python} here: "
            "functions that travel by value cannot be read; install the same minor version"
        )
        found.append(Finding(PROBLEM, where, "python", text))
    elif sight.python != client.python:
        found.append(Finding(NOTE, where, "python", f"Python {sight.python} there, {client.python} here"))
    if sight.zfarm != client.zfarm:
        text = f"zfarm {sight.zfarm} there, {client.zfarm} here: install the same"
        found.append(Finding(PROBLEM, where, "zfarm", text))
    if sight.system != client.system:
        text = f"{sight.system} there, {client.system} here: compiled code and paths differ"
        found.append(Finding(NOTE, where, "system", text))
    if abs(worker.clock_s) > CLOCK_MAX_S:
        ahead = "ahead of" if worker.clock_s > 0 else "behind"
        text = f"its clock is {abs(worker.clock_s):.1f} s {ahead} this host's: use NTP"
        found.append(Finding(WARNING, where, "clock", text))
    if 0 < sight.quota_cores < worker.slots:
        text = f"{worker.slots} slots share a CPU quota of {sight.quota_cores:g} cores: they are throttled"
        found.append(Finding(WARNING, where, "quota", f"{text}; start it with --slots {max(1, sight.cores)}"))
    elif sight.cores < worker.slots:
        text = f"{worker.slots} slots on {sight.cores} usable cores: right only for calls that wait"
        found.append(Finding(NOTE, where, "cores", text))
    needed = max(FILES_MIN, FILES_PER_SLOT * worker.slots + 256)
    if 0 <= sight.files_max < needed:
        text = f"at most {sight.files_max} open files, {worker.slots} slots want {needed}: raise `ulimit -n`"
        found.append(Finding(WARNING, where, "files", text))
    return found


def _of_host(where: str, sight: Sight) -> list[Finding]:
    found = []
    if 0 <= sight.shm_free_bytes < SHM_MIN_BYTES:
        text = f"/dev/shm has {_megabytes(sight.shm_free_bytes)} free: give a container more (--shm-size=1g)"
        found.append(Finding(WARNING, where, "shm", text))
    if 0 <= sight.temp_free_bytes < DISK_MIN_BYTES:
        text = f"{sight.temp} has {_megabytes(sight.temp_free_bytes)} free: make room, or set TMPDIR"
        found.append(Finding(WARNING, where, "disk", text))
    return found


def _of_packages(ours: dict[str, str], theirs: dict[str, str]) -> list[tuple[str, str, str]]:
    found = []
    for name in PICKLED:
        here, there = ours.get(name), theirs.get(name)
        if here and there and here != there:
            near = _minor(here) == _minor(there)
            bites = "" if near else ": what is pickled by one may not be read by the other; install the same"
            found.append((NOTE if near else WARNING, name, f"{name} {there} there, {here} here{bites}"))
        elif here and not there:
            text = f"{name} {here} is here and not there: calls that need it raise ModuleMissing; install it"
            found.append((WARNING, name, text))
    others = ours.keys() - set(PICKLED)
    missing = sorted(name for name in others if name not in theirs)
    if missing:
        found.append((NOTE, "missing", f"{len(missing)} packages are here and not there: {_listed(missing)}"))
    differ = sorted(f"{name} {theirs[name]}" for name in others if theirs.get(name, ours[name]) != ours[name])
    if differ:
        found.append((NOTE, "versions", f"{len(differ)} packages differ there: {_listed(differ)}"))
    return found


def _listed(names: list[str]) -> str:
    return ", ".join(names[:NAMED_MAX]) + (", ..." if len(names) > NAMED_MAX else "")


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
