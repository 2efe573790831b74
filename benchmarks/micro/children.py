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

from zfarm.edge import wire
from zfarm.edge.children import Children
from zfarm.edge.loop import Loop
from zfarm.messages import ChildCall, Run, Setup

CALLS_PER_RUN = 200
RUNS_AHEAD = 4


class Bench:
    """A listener that keeps a child busy."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.done = 0
        self.wanted = 0
        self.more: Callable[[], None] | None = None
        self.children: Children

    def child_started(self, child: int, now: float) -> None:
        self.loop.stop()

    def child_reported(self, child, dones, payload, now) -> None:
        self.done += len(dones)
        self.blob = payload[-1]
        if self.more is not None:
            self.more()
        if self.done >= self.wanted:
            self.loop.stop()

    def child_waits(self, child: int, waiting: bool, now: float) -> None: ...

    def child_took_back(self, child: int, started_seq: int, now: float) -> None: ...

    def child_died(self, child, started_seq, signal, exit_code, text, now) -> None:
        raise RuntimeError(text)

    def tunnel_frames(self, child, frames) -> None: ...

    def tunnel_closed(self, child) -> None: ...

    def nursery_died(self, now: float) -> None:
        raise RuntimeError("the nursery died")


def main(calls: int) -> None:
    loop = Loop()
    bench = Bench(loop)
    children = bench.children = Children(nursery, bench, loop)
    loop.add_machine(children, lambda actions: None)
    forked = time.perf_counter()
    children.start(1)
    loop.run()
    setup = wire.encode_setup(Setup("r", os.getcwd(), tuple(sys.path)))
    function = pickle.dumps(os.getpid)
    body = pickle.dumps(())
    seq = 0

    def run(
        n: int, items: int = 0, first: bool = False, body: bytes = body, function: bytes = function
    ) -> None:
        nonlocal seq
        parts = [ChildCall(seq + i + 1, 0, items) for i in range(n)]
        seq += n
        children.run(1, Run(parts, 1, first), [function, *([setup] if first else []), *[body] * n])

    bench.wanted = 1
    run(1, first=True)
    loop.run()
    print(f"first result             {(time.perf_counter() - began) * 1e3:8.1f} ms after the program began")
    print(f"                         {(time.perf_counter() - forked) * 1e3:8.1f} ms after asking for a child")

    trips = []
    sent = 0.0

    def again() -> None:
        nonlocal sent
        trips.append(time.perf_counter() - sent)
        sent = time.perf_counter()
        run(1)

    bench.more = again
    bench.wanted = bench.done + 3000
    sent = time.perf_counter()
    run(1)
    loop.run()
    bench.more = None
    bench.wanted = bench.done + 1
    loop.run()
    print(f"round trip               {statistics.median(trips) * 1e6:8.1f} us median")

    left = calls
    bench.wanted = bench.done + calls

    def more() -> None:
        nonlocal left
        while left > 0 and seq - bench.done <= (RUNS_AHEAD - 1) * CALLS_PER_RUN:
            n = min(left, CALLS_PER_RUN)
            left -= n
            run(n)

    bench.more = more
    start, cpu = time.perf_counter(), time.process_time()
    more()
    loop.run()
    spent, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"no-op calls              {calls / spent:8.0f} /s ({cpu / calls * 1e6:.2f} us of CPU each here)")

    bench.more = None
    items = 20_000
    batch = pickle.dumps((False, range(items)))
    bench.wanted = bench.done + 50
    start = time.perf_counter()
    run(50, items, body=batch, function=pickle.dumps(abs))
    loop.run()
    print(f"items in batches         {50 * items / (time.perf_counter() - start):8.0f} /s")

    megabytes = 256
    big = pickle.dumps((bytes(megabytes * 1_000_000),), 5)
    bench.wanted = bench.done + 1
    start = time.perf_counter()
    run(1, body=big, function=pickle.dumps(len))
    loop.run()
    print(f"a large argument         {megabytes / (time.perf_counter() - start):8.0f} MB/s")
    children.close()
    loop.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000)
