"""What the journal does: records per second by size of the turn, on a disk and on a tmpfs, and its files
after churn.

python benchmarks/micro/journal.py [tasks] [directory ...]

Each task is three records: Accepted, Settled and Forgotten, a few turns apart. CPU time is told beside wall
time: on a machine that has other things to do, it is the steadier one. The last run passes all tasks through
at once: all are accepted before the first is settled, and settled before the first is forgotten.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

from zfarm.edge.journal import Journal
from zfarm.messages import VALUE, Accepted, Enrolled, Forgotten, Outcome, Settled

GROUPS = (1, 10, 100, 500, 2000)
AHEAD = 4
FUNCTION, SETUP = b"f" * 400, b"s" * 300
BODY, BLOB = b"b" * 100, b"r" * 60
CLIENT = "0123456789abcdef0123456789abcdef"


def accepted(task: int):
    return Accepted(CLIENT, task, "module.function"), (FUNCTION, SETUP, BODY)


def settled(task: int):
    return Settled(CLIENT, Outcome(task, VALUE, 17)), (BLOB,)


def churn(directory: Path, tasks: int, group: int, ahead: int) -> None:
    """Let tasks pass through: each turn accepts a group, settles an older one and forgets one older still."""
    journal = Journal(directory / f"group-{group}-{ahead}")
    journal.append([(Enrolled(CLIENT, "host", 1), ())])
    turns = tasks // group
    longest, largest, log = 0.0, 0, 0
    began, cpu = time.perf_counter(), time.process_time()
    for turn in range(turns + 2 * ahead):
        pairs = []
        if turn < turns:
            pairs += [accepted(task) for task in range(turn * group, (turn + 1) * group)]
        if 0 <= (older := turn - ahead) < turns:
            pairs += [settled(task) for task in range(older * group, (older + 1) * group)]
        if 0 <= (oldest := turn - 2 * ahead) < turns:
            pairs.append((Forgotten(CLIENT, list(range(oldest * group, (oldest + 1) * group))), ()))
        before = time.perf_counter()
        journal.append(pairs)
        longest = max(longest, time.perf_counter() - before)
        if turn % 64 == 0:
            largest = max(largest, journal.path.stat().st_size)
            log = max(log, Path(f"{journal.path}-wal").stat().st_size)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    records = 3 * turns * group
    size = journal.path.stat().st_size
    journal.close()
    print(
        f"  {group:5d} a turn, {ahead * group:7d} ahead: {records / wall:9,.0f} records/s, "
        f"{records / cpu:9,.0f} per CPU second; longest turn {longest * 1e3:5.0f} ms; "
        f"file up to {largest / 1e6:.1f} MB, at the end {size / 1e6:.1f} MB, log up to {log / 1e6:.1f} MB",
        flush=True,
    )


def reopen(directory: Path, tasks: int) -> None:
    """How long a start takes with this many tasks queued."""
    path = directory / "reopened"
    journal = Journal(path)
    journal.append([(Enrolled(CLIENT), ())])
    for first in range(0, tasks, 2000):
        journal.append([accepted(task) for task in range(first, min(first + 2000, tasks))])
    journal.close()
    began = time.perf_counter()
    journal = Journal(path)
    opened = time.perf_counter()
    count = sum(1 for _ in journal.replay())
    replayed = time.perf_counter()
    journal.check()
    checked = time.perf_counter()
    journal.close()
    print(
        f"  {tasks:,} tasks queued: opens in {opened - began:.2f} s, replays {count:,} records in "
        f"{replayed - opened:.2f} s, checks in {checked - replayed:.2f} s, "
        f"{path.stat().st_size / tasks:.0f} bytes each"
    )


def main() -> None:
    tasks = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    places = sys.argv[2:] or [str(Path.cwd()), "/dev/shm"]
    for place in places:
        if not Path(place).is_dir():
            continue
        directory = Path(tempfile.mkdtemp(dir=place))
        print(f"in {place}:")
        try:
            for group in GROUPS:
                churn(directory, min(tasks, 5000 * group), group, AHEAD)
            churn(directory, tasks, 500, tasks // 500)
            reopen(directory, tasks)
        finally:
            shutil.rmtree(directory)


if __name__ == "__main__":
    main()
