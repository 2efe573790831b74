"""Runs many seeds on all cores, and names those that fail: python -m tests.simulation.soak --count 100000.

It goes on where one of the same code was ended: what is done stands in a file, and a change of what is
simulated begins another one.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.simulation.logbook import TOLD_MAX, Logbook, Tally, state_of
from tests.simulation.run import simulate, spare_the_collector

CHUNK = 20
FRESH_FROM = 1_000_000
"""Seeds below this are those of everyday runs; a soak takes its own, different ones each time."""
TOLD_EVERY = 1000
"""Seeds after which a log, which has no bar, gets a line."""
BOOKS = Path(".soak")
"""Where it is written down what was done."""


def run_some(seeds: Sequence[int]) -> Tally:
    """All of these seeds, also after one that fails."""
    tally = Tally()
    for seed in seeds:
        began = time.process_time()
        result = simulate(seed, keep=200)
        took_s, virtual_s = time.process_time() - began, result.virtual_s
        failures = {seed: result.report()} if result.failure else {}
        probes = Counter(result.probes)
        tally.add(Tally(1, result.events, virtual_s, virtual_s, took_s, probes, failures))
    return tally


def soak(book: Logbook, first: int, count: int, jobs: int, console: Console) -> None:
    """Run what ``book`` lacks of the ``count`` seeds from ``first`` on, in ``jobs`` processes."""
    total = book.total
    told = total.seeds
    columns = (TextColumn("seeds"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    chunks = book.left(first, count, CHUNK)
    pool = ProcessPoolExecutor(jobs, initializer=_begin)
    running: dict[Future[Tally], int] = {}
    with Progress(*columns, console=console) as progress, pool:
        bar = progress.add_task("", total=count, completed=total.seeds)
        try:
            while True:
                for chunk in islice(chunks, 2 * jobs - len(running)):
                    running[pool.submit(run_some, chunk)] = chunk.start
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    part = future.result()
                    book.enter(running.pop(future), part)
                    for seed, story in part.failures.items():
                        progress.console.print(f"seed {seed}: {story.strip().splitlines()[-1]}", markup=False)
                progress.update(bar, completed=total.seeds)
                if not console.is_terminal and total.seeds >= told + TOLD_EVERY:
                    told = total.seeds
                    progress.console.print(f"{told} seeds done, {len(total.failures)} failed")
        except KeyboardInterrupt:
            progress.console.print("ends with the seeds that are at work")
            at_work = [future for future in running if not future.cancel()]
            for future in wait(at_work).done:
                book.enter(running[future], future.result())
            raise


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this process ends it
    spare_the_collector()


def _tell(total: Tally) -> None:
    for kind, number in sorted(total.probes.items()):
        print(f"{number:10} {kind}")
    print(
        f"{total.seeds} seeds ({total.seeds / max(total.took_s, 1e-9):.1f} a processor second, "
        f"{total.events} events, {total.virtual_s / 3600:.1f} virtual hours)"
    )
    for story in [*total.failures.values()][:TOLD_MAX]:
        print(story)
    print(f"failed: {sorted(total.failures)}" if total.failures else "none failed")


def main() -> int:
    """The command line; the exit code says whether every seed passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.soak", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="how many seeds (100000)")
    parser.add_argument("--first", type=int, help="the first one (of what is to go on, or random)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (one a core)")
    asked = parser.parse_args()
    books = BOOKS / state_of()
    earlier = sorted(int(path.stem) for path in books.glob("*.jsonl"))
    fresh = FRESH_FROM + secrets.randbelow(10**9)
    first = asked.first if asked.first is not None else earlier[0] if earlier else fresh
    book = Logbook(books / f"{first}.jsonl")
    console = Console(stderr=True)
    print(f"seeds of {books.name} from {first} on, of which {book.total.seeds} are done", flush=True)
    try:
        soak(book, first, asked.count, asked.jobs, console)
    except KeyboardInterrupt:
        print(f"ended after {book.total.seeds} seeds; the same command goes on", file=sys.stderr)
        return 130
    _tell(book.total)
    return bool(book.total.failures)


if __name__ == "__main__":
    sys.exit(main())
