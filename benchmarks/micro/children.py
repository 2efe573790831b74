"""What one child does: no-op calls per second through its pipe, items of batches, and one round trip.

python benchmarks/micro/children.py [calls]
"""

from __future__ import annotations

import os
import pickle
import statistics
import sys
import time
from collections.abc import Callable

from zfarm.edge.nursery import Nursery

if __name__ == "__main__":
    began = time.perf_counter()
    nursery = Nursery.start()

import psutil

from zfarm.edge import wire
from zfarm.edge.children import Children
from zfarm.edge.loop import Loop
from zfarm.messages import ChildCall, Payload, Progress, Run, Setup

CALLS_PER_RUN = 200
RUNS_AHEAD = 4
FUNCTION = pickle.dumps(os.getpid)
BODY = pickle.dumps(())


class Bench:
    """A listener that keeps one child busy and stops the loop when it has enough."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.children = Children(nursery, self, self.loop)
        self.loop.add_machine(self.children, lambda actions: None)
        self.sent = self.done = self.wanted = 0
        self.more: Callable[[], None] | None = None

    def start(self) -> None:
        """Start the child and give it its setup."""
        self.children.start(1)
        self.loop.run()
        self.send(1, setup=[wire.encode_setup(Setup("r", os.getcwd(), tuple(sys.path)))])
        self.until(1)

    def send(self, n: int, body: bytes = BODY, function: bytes = FUNCTION, items: int = 0, setup=()) -> None:
        """Send calls."""
        calls = [ChildCall(self.sent + i + 1, 0, items) for i in range(n)]
        self.sent += n
        self.children.run(1, Run(calls, 1, bool(setup)), [function, *setup, *[body] * n])

    def until(self, done: int, more: Callable[[], None] | None = None) -> None:
        """Run the loop until that many are done, calling ``more`` after each answer."""
        self.wanted, self.more = done, more
        if self.done < done:
            self.loop.run()

    def child_started(self, child: int, now: float) -> None:
        self.loop.stop()

    def child_reported(self, child, dones, payload, now) -> None:
        self.done += len(dones)
        if self.more is not None:
            self.more()
        if self.done >= self.wanted:
            self.loop.stop()

    def child_starts(self, child: int, seq: int, now: float) -> None: ...

    def child_emitted(self, child: int, seq: int, blobs: Payload, now: float) -> None: ...

    def child_advanced(self, child: int, progress: Progress, now: float) -> None: ...

    def child_waits(self, child: int, waiting: bool, now: float) -> None: ...

    def child_took_back(self, child: int, started_seq: int, now: float) -> None: ...

    def child_died(self, child, started_seq, signal, exit_code, text, now) -> None:
        raise RuntimeError(text)

    def tunnel_frames(self, child, frames) -> None: ...

    def tunnel_closed(self, child) -> None: ...

    def nursery_died(self, now: float) -> None:
        raise RuntimeError("the nursery died")


def round_trips(bench: Bench, count: int) -> None:
    trips = []
    began = time.perf_counter()

    def again() -> None:
        nonlocal began
        trips.append(time.perf_counter() - began)
        began = time.perf_counter()
        if bench.done < bench.wanted:
            bench.send(1)

    bench.send(1)
    bench.until(bench.done + count, again)
    trips.sort()
    median, p99 = statistics.median(trips) * 1e6, trips[int(len(trips) * 0.99)] * 1e6
    print(f"round trip               {median:8.1f} us median, {p99:.1f} us p99")


def no_ops(bench: Bench, calls: int) -> None:
    left = calls

    def more() -> None:
        nonlocal left
        while left > 0 and bench.sent - bench.done <= (RUNS_AHEAD - 1) * CALLS_PER_RUN:
            n = min(left, CALLS_PER_RUN)
            left -= n
            bench.send(n)

    child = psutil.Process(bench.children.pids()[1])
    began, cpu, theirs = time.perf_counter(), time.process_time(), child.cpu_times()
    more()
    bench.until(bench.done + calls, more)
    spent, cpu = time.perf_counter() - began, time.process_time() - cpu
    now = child.cpu_times()
    busy = now.user + now.system - theirs.user - theirs.system
    print(
        f"no-op calls              {calls / spent:8.0f} /s ({busy / calls * 1e6:.2f} us of CPU each in it, "
        f"{cpu / calls * 1e6:.2f} here)"
    )


def batches(bench: Bench, count: int, items: int) -> None:
    batch = pickle.dumps((False, range(items)))
    began = time.perf_counter()
    bench.send(count, batch, pickle.dumps(abs), items)
    bench.until(bench.done + count)
    print(f"items in batches         {count * items / (time.perf_counter() - began):8.0f} /s")


def large(bench: Bench, megabytes: int) -> None:
    body = pickle.dumps((bytes(megabytes * 1_000_000),), 5)
    began = time.perf_counter()
    bench.send(1, body, pickle.dumps(len))
    bench.until(bench.done + 1)
    print(f"a large argument         {megabytes / (time.perf_counter() - began):8.0f} MB/s")


def main(calls: int) -> None:
    bench = Bench()
    forked = time.perf_counter()
    bench.start()
    now = time.perf_counter()
    print(f"first result             {(now - began) * 1e3:8.1f} ms after the program began")
    print(f"                         {(now - forked) * 1e3:8.1f} ms after asking for a child")
    round_trips(bench, 3000)
    no_ops(bench, calls)
    batches(bench, 50, 20_000)
    large(bench, 256)
    bench.children.close()
    bench.loop.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000)
