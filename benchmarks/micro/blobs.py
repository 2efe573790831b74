"""Large arrays out and back: embedded, over TCP to a worker of this host, and over TCP to one that seems far.

python -m benchmarks.micro.blobs [MB] [calls] [repetitions]

Each figure is the median of some repetitions, in milliseconds, and beside it how many times as long that is
as one copy of the array in this process. What travels for the first time is an array that nobody has seen.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

import numpy as np

import zfarm


def last(array: Any) -> float:
    """What a call does with an array: next to nothing, so that its way is what is measured."""
    return float(array[-1])


def made(size: int, value: float) -> Any:
    """A result."""
    return np.full(size, value)


def plus_one(array: Any) -> Any:
    """Another array, from one that came."""
    return array + 1


def timed(what: Callable[[], object]) -> float:
    """Milliseconds that it takes."""
    began = time.perf_counter()
    what()
    return (time.perf_counter() - began) * 1e3


def figures(farm: zfarm.Executor, size: int, calls: int, turn: int) -> dict[str, float]:
    """All of one repetition."""
    fresh = iter(np.arange(turn * 10.0 + 1, turn * 10.0 + 10))

    def many(argument: Any) -> None:
        for future in [farm.submit(last, argument) for _ in range(calls)]:
            future.result()

    def one(argument: Any) -> None:
        farm.submit(last, argument).result()

    def shared_anew() -> float:
        took = []
        for _ in range(4):
            travelling[:] += 1
            took.append(timed(lambda: many(farm.share(travelling))))
        return statistics.median(took[1:])

    def there_and_back() -> None:
        for _ in range(3):
            travelling[:] += 1
            farm.submit(plus_one, travelling).result()

    travelling = np.full(size, next(fresh))
    there_and_back()
    first, naive = np.full(size, next(fresh)), np.full(size, next(fresh))
    handles: list[Any] = []
    keeping = farm.options(keep=True)
    kept: list[Any] = []
    found = {
        "out, first": timed(lambda: one(first)),
        "out, again": timed(lambda: one(first)),
        f"{calls} naive": timed(lambda: many(naive)),
        "share": timed(lambda: handles.append(farm.share(np.full(size, next(fresh))))),
        f"{calls} of the handle": timed(lambda: many(handles[0])),
        f"share, {calls}, let go": shared_anew(),
        "back": timed(lambda: farm.submit(made, size, next(fresh)).result()),
        "3 there, others back": timed(there_and_back),
        "keep": timed(lambda: kept.append(keeping.submit(made, size, next(fresh)).result())),
        "use what was kept": timed(lambda: one(kept[0])),
        "get what was kept": timed(lambda: [one.get() for one in kept]),
    }
    found["out, again / first"] = found["out, again"] / found["out, first"]
    found[f"{calls} naive / first"] = found[f"{calls} naive"] / found["out, first"]
    return found


def measure(farm: zfarm.Executor, what: str, size: int, calls: int, repetitions: int) -> None:
    """Print all figures of one farm."""
    farm.submit(last, np.zeros(10)).result()
    turns = [figures(farm, size, calls, turn) for turn in range(repetitions)]
    copies = []
    source, target = np.ones(size), np.ones(size)
    for _ in range(5):
        copies.append(timed(lambda: np.copyto(target, source)))
    copy = statistics.median(copies)
    print(f"{what}: one copy is {copy:.0f} ms")
    for name in turns[0]:
        middle = statistics.median(turn[name] for turn in turns)
        if "/" in name:
            print(f"  {name:20} {middle:8.2f}")
        else:
            print(f"  {name:20} {middle:8.1f} ms {middle / copy:8.1f} copies", flush=True)


def remote(stack: ExitStack, root: Path, name: str) -> zfarm.Executor:
    """A farm over TCP with one worker of two slots; ``name`` is its host, empty: this one."""
    keys = str(root / f"farm{name}.json")
    command = [sys.executable, "-m", "zfarm"]
    broker = [*command, "broker", "--bind", "tcp://127.0.0.1:0", "--connection", keys, "--journal", "none"]
    processes = [Popen(broker, stdout=PIPE)]
    stack.callback(lambda: [(process.kill(), process.wait()) for process in processes])
    said = processes[0].stdout
    assert said is not None
    while b"program" not in said.readline():
        continue
    worker = ["worker", "--connection", keys, "--slots", "2", "--store", str(root / f"store{name}")]
    named = ["--name", name] if name else []
    processes.append(Popen([*command, *worker, *named, "--log-level", "error"], stdout=DEVNULL))
    return stack.enter_context(zfarm.Executor(keys))


def main() -> None:
    """Measure three farms, one after the other."""
    megabytes, calls, repetitions = (
        int(text) for text in (*sys.argv[1:], *("100", "20", "3")[len(sys.argv) - 1 :])
    )
    size = megabytes * 1_000_000 // 8
    with zfarm.Executor(max_workers=2) as farm:
        measure(farm, "embedded", size, calls, repetitions)
    for name, what in (("", "TCP, same host"), ("far", "TCP, far")):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            measure(remote(stack, Path(folder), name), what, size, calls, repetitions)


if __name__ == "__main__":
    main()
