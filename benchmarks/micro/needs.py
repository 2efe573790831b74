"""How fast files that calls need arrive: on one host, over TCP with CURVE, again, many small ones, and what
small calls notice of it.

python benchmarks/micro/needs.py [directory] [MiB] [small files] [repetitions]

A file has arrived when a call has it: verified and in the store of its worker, synced where that is to last.
The raw rates to compare the second line with are those of benchmarks/micro/files.py.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE, Popen

import zfarm


def size(path: os.PathLike[str]) -> int:
    """What a call does with a file."""
    return os.path.getsize(path)


def count(path: os.PathLike[str]) -> int:
    """What a call does with a directory."""
    return len(os.listdir(path))


def nothing() -> None:
    """A small call."""


def fresh(path: Path, mib: int) -> Path:
    """A file that nobody has seen."""
    block = os.urandom(1 << 20)
    with path.open("wb") as file:
        for n in range(mib):
            file.write(n.to_bytes(8, "big") + block[8:])
    return path


def timed(what: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def round_trips(farm: zfarm.Executor, enough: Callable[[], bool]) -> float:
    """The median round trip of small calls until it is enough, in microseconds."""
    took = []
    while not enough() or not took:
        took.append(timed(lambda: farm.submit(nothing).result()) * 1e6)
    return statistics.median(took)


def measure(farm: zfarm.Executor, what: str, folder: Path, mib: int, files: int, repetitions: int) -> None:
    """Print all figures of one farm."""
    farm.submit(nothing).result()
    rates, again, small = [], [], []
    for n in range(repetitions):
        handle = farm.put(fresh(folder / f"large-{n}", mib))
        rates.append(mib * 1.048576 / timed(lambda h=handle: farm.submit(size, h).result()))  # type: ignore[misc]
        again.append(timed(lambda h=handle: farm.submit(size, h).result()) * 1e3)  # type: ignore[misc]
        many = folder / f"many-{n}"
        many.mkdir()
        for number in range(files):
            (many / str(number)).write_bytes(os.urandom(1000))
        listed = farm.put(many)
        small.append(files / timed(lambda h=listed: farm.submit(count, h).result()))  # type: ignore[misc]
    ends = iter(range(300))
    idle = round_trips(farm, lambda: next(ends, None) is None)
    future = farm.submit(size, farm.put(fresh(folder / "beside", 2 * mib)))
    beside = round_trips(farm, future.done)
    best = max(rates)
    print(
        f"{what}: {statistics.median(rates):,.0f} MB/s (best {best:,.0f}), again {min(again):.1f} ms",
        end="; ",
    )
    print(f"{statistics.median(small):,.0f} small files/s", end="; ")
    print(f"small calls {idle:,.0f} us, beside a transfer {beside:,.0f} us", flush=True)


def main() -> None:
    """Measure an embedded farm, and one over TCP to a worker that seems far."""
    root = Path(tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else None))
    mib, files, repetitions = (
        int(text) for text in (*sys.argv[2:], *("256", "10000", "3")[len(sys.argv) - 2 :])
    )
    commands: list[Popen[bytes]] = []
    try:
        with zfarm.Executor(max_workers=2) as farm:
            (root / "near").mkdir()
            measure(farm, "same host", root / "near", mib, files, repetitions)
        keys = str(root / "farm.json")
        zfarm_command = [sys.executable, "-m", "zfarm"]
        broker = [
            *zfarm_command,
            "broker",
            "--bind",
            "tcp://127.0.0.1:0",
            "--connection",
            keys,
            "--journal",
            "none",
        ]
        commands.append(Popen(broker, stdout=PIPE))
        assert commands[0].stdout is not None
        while b"program" not in commands[0].stdout.readline():
            continue
        worker = [
            "worker",
            "--connection",
            keys,
            "--name",
            "far",
            "--slots",
            "2",
            "--store",
            str(root / "store"),
        ]
        commands.append(Popen([*zfarm_command, *worker, "--log-level", "error"]))
        with zfarm.Executor(keys) as farm:
            (root / "far").mkdir()
            measure(farm, "TCP with CURVE", root / "far", mib, files, repetitions)
    finally:
        for command in commands:
            command.kill()
            command.wait()
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
