"""A checkup of a farm: what its client and its workers run, compared; and what of that will bite.

Each worker is asked by calls of its own, which are pinned to it and may run once.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zfarm.beyond import WorkerInfo
from zfarm.edge.modules import Module, importing_from, look_at_modules
from zfarm.edge.probe import Sight, look_around
from zfarm.likeness import Code, Difference, differences, told

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
    """One worker, and what it sees; None: it did not answer that, and ``why`` says what is known of it."""

    worker: str
    host: str
    pid: int
    slots: int
    sight: Sight | None = None
    clock_s: float = 0.0
    """How far its clock is ahead of ours, at least; below 0: behind."""
    why: str = ""
    code: list[Difference] | None = None
    """Modules that are not there as they are here."""


class Checkup(msgspec.Struct):
    """What was found."""

    address: str
    client: Sight
    workers: list[Seen]
    findings: list[Finding]
    code: Code

    @property
    def healthy(self) -> bool:
        """Nothing bites."""
        return all(finding.level == NOTE for finding in self.findings)


def examine(farm: Executor, wait_s: float, code: Code) -> Checkup:
    """Look at every worker of ``farm``, and for ``code`` there; those that have not answered ``wait_s``
    seconds later are told as such.

    What this client has shipped is what is found there: what differs then was edited since.

    Raises: as ``farm.workers()``.
    """
    client = msgspec.convert(look_around(), Sight)
    code.shipped = farm._link.shipped is not None
    end = time.monotonic() + wait_s
    asked = [(worker, *_ask(farm, worker, code)) for worker in _wait_workers(farm, end)]
    futures = [future for _, *two, _ in asked for future in two if future is not None]
    concurrent.futures.wait(futures, max(0.0, end - time.monotonic()))
    seen = []
    for worker, future, looked, times in asked:
        seen.append(_answered(worker, future, times))
        if looked is not None:
            _add_code(seen[-1], looked, code)
    return Checkup(farm.address, client, seen, judge(client, seen, code), code)


def _wait_workers(farm: Executor, end: float) -> tuple[WorkerInfo, ...]:
    """An embedded farm may still boot."""
    while True:
        workers = farm.workers()
        if workers or time.monotonic() > end:
            return workers
        time.sleep(0.1)


def _ask(farm: Executor, worker: WorkerInfo, code: Code) -> tuple[Any, Any, list[float]]:
    """The futures of a look around there and, if any, for code; when it was asked for and answered."""
    view = farm.options(labels=worker.label, max_attempts=1, output="off", priority=1000, name="zfarm doctor")
    times = [time.time()]
    future = view.submit(look_around)
    future.add_done_callback(lambda _: times.append(time.time()))
    if not code.modules:
        return future, None, times
    with importing_from(code.directory):
        return future, view.submit(look_at_modules, sorted(code.modules)), times


def _add_code(seen: Seen, future: Any, code: Code) -> None:
    """Note what a look for code there has brought."""
    if not future.done():
        seen.why = str(future.why())
        future.cancel(force=True)
        return
    try:
        seen.code = differences(code, msgspec.convert(future.result(), dict[str, Module]))
    except Exception as error:  # such as that its zfarm cannot look
        seen.why = _summary(error)


def _answered(worker: WorkerInfo, future: Any, times: list[float]) -> Seen:
    seen = Seen(worker.name, worker.host, worker.pid, worker.slots)
    if not future.done():
        seen.why = str(future.why())
        future.cancel(force=True)  # or it would be waited for at the end
        return seen
    try:
        seen.sight = msgspec.convert(future.result(), Sight)
    except Exception as error:  # whatever the call there has met is what we are here to tell
        seen.why = _summary(error)
        return seen
    there, asked, answered = seen.sight.time_s, times[0], times[-1]
    seen.clock_s = there - answered if there > answered else min(0.0, there - asked)
    return seen


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


# ---------------------------------------------------------------- what bites


def judge(client: Sight, workers: list[Seen], code: Code | None = None) -> list[Finding]:
    """What the differences mean, the worst first."""
    found = _of_host("this host", client)
    if not workers:
        found.append(
            Finding(PROBLEM, "farm", "no-workers", "there is no worker: start one with `zfarm worker`")
        )
    alike: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for worker in workers:
        where = f"{worker.host}/{worker.pid}"
        if worker.sight is None:
            text = f"it has not answered: {worker.why}"
            found.append(Finding(PROBLEM, where, "no-answer", text))
            continue
        found += _of_worker(where, client, worker, worker.sight)
        for difference in _of_packages(client.packages, worker.sight.packages):
            alike[difference].append(where)
        for difference in _of_code(code, worker):
            alike[difference].append(where)
    found += [Finding(level, ", ".join(wheres), word, text) for (level, word, text), wheres in alike.items()]
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


def _of_code(code: Code | None, worker: Seen) -> list[tuple[str, str, str]]:
    if code is None or not code.modules:
        return []
    if worker.code is None:
        return [(NOTE, "code-unknown", f"it has not told what modules it has: {worker.why}")]
    return [(WARNING if bites else NOTE, word, text) for bites, word, text in told(code, worker.code)]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:NAMED_MAX]) + (", ..." if len(names) > NAMED_MAX else "")


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
