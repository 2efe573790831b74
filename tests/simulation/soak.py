"""Runs many seeds on all cores, and names those that fail: python -m tests.simulation.soak --count 100000."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.simulation.run import simulate, spare_the_collector

CHUNK = 50
FRESH_FROM = 1_000_000
"""Seeds below this are those of everyday runs; a soak takes its own, different ones each time."""
TOLD_MAX = 3
"""Failures whose end is told in full; the seeds of the others are named, and tell it again."""
TOLD_EVERY = 1000
"""Seeds after which a log, which has no bar, gets a line: a soak that is cut short has done so many."""
STORY_BYTES = 2000
"""What is kept of those others."""


@dataclass
class Tally:
    """What some seeds came to."""

    seeds: int = 0
    events: int = 0
    virtual_s: float = 0.0
    longest_s: float = 0.0
    probes: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        """Count those of ``other``, too."""
        self.seeds += other.seeds
        self.events += other.events
        self.virtual_s += other.virtual_s
        self.longest_s = max(self.longest_s, other.longest_s)
        self.probes += other.probes
        for seed, story in other.failures.items():
            self.failures[seed] = story if len(self.failures) < TOLD_MAX else story[-STORY_BYTES:]


def run_some(seeds: Sequence[int]) -> Tally:
    """All of these seeds, also after one that fails."""
    tally = Tally()
    for seed in seeds:
        result = simulate(seed, keep=200)
        virtual_s = result.virtual_s
        failures = {seed: result.report()} if result.failure else {}
        tally.add(Tally(1, result.events, virtual_s, virtual_s, Counter(result.probes), failures))
    return tally


def soak(first: int, count: int, jobs: int, console: Console) -> Tally:
    """Run ``count`` seeds from ``first`` on in ``jobs`` processes."""
    total, told = Tally(), 0
    columns = (TextColumn("seeds"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    end = first + count
    chunks = (range(start, min(start + CHUNK, end)) for start in range(first, end, CHUNK))
    pool = ProcessPoolExecutor(jobs, initializer=spare_the_collector)
    with Progress(*columns, console=console) as progress, pool:
        bar = progress.add_task("", total=count)
        running: set[Future[Tally]] = {pool.submit(run_some, chunk) for chunk in islice(chunks, 2 * jobs)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                part = future.result()
                total.add(part)
                for seed, story in part.failures.items():
                    progress.console.print(f"seed {seed}: {story.strip().splitlines()[-1]}", markup=False)
            progress.update(bar, completed=total.seeds)
            if not console.is_terminal and total.seeds >= told + TOLD_EVERY:
                told = total.seeds
                progress.console.print(f"{told} seeds done, {len(total.failures)} failed")
            running |= {pool.submit(run_some, chunk) for chunk in islice(chunks, len(done))}
    return total


def main() -> int:
    """The command line; the exit code says whether every seed passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.soak", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="how many seeds (100000)")
    parser.add_argument("--first", type=int, help="the first one (a random one)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (one a core)")
    asked = parser.parse_args()
    first = FRESH_FROM + secrets.randbelow(10**9) if asked.first is None else asked.first
    console = Console(stderr=True)
    began = time.perf_counter()
    total = soak(first, asked.count, asked.jobs, console)
    took = time.perf_counter() - began
    for kind, number in sorted(total.probes.items()):
        print(f"{number:10} {kind}")
    print(
        f"{total.seeds} seeds from {first} on in {took:.0f} s ({total.seeds / took:.1f} seeds/s, "
        f"{total.events} events, {total.virtual_s / 3600:.1f} virtual hours)"
    )
    for story in [*total.failures.values()][:TOLD_MAX]:
        print(story)
    print(f"failed: {sorted(total.failures)}" if total.failures else "none failed")
    return bool(total.failures)


if __name__ == "__main__":
    sys.exit(main())
