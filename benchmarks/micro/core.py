"""CPU time per task of the pure core: submit, grant, run, report, settle, forget, with no I/O at all.

python -m benchmarks.micro.core [tasks] [tasks per turn]
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections import deque
from typing import Any

from zfarm import messages as m
from zfarm.core.broker import Broker
from zfarm.core.client import Client
from zfarm.core.worker import Worker

VERSIONS = m.Versions(protocol=m.PROTOCOL, zfarm="0", python="3.11")
FUNCTION, SETUP, BODY, VALUE_BLOB = b"f" * 40, m.Setup(realm="r", cwd="/", path=()), b"b" * 20, b"v" * 5
RUN_US = 5


class Farm:
    """One broker, one worker with two slots and one client that hand each other message objects."""

    def __init__(self) -> None:
        from zfarm.edge.wire import encode_setup  # encoded once, as a client does

        self.now = 1.0
        self.setup = encode_setup(SETUP)
        self.broker = Broker(1, VERSIONS, self.now)
        self.worker = Worker("worker", VERSIONS, 2, "host", 1, self.now)
        self.client = Client("client", VERSIONS, "host", 2, "bench", self.now)
        self.runs: deque[m.RunCalls] = deque()
        self.resolved = 0

    def turn(self) -> None:
        """Each machine's turn, and the children's."""
        self.now += 0.0001
        while self.runs:
            self._run(self.runs.popleft())
        for machine, peer in ((self.client, "c"), (self.worker, "w")):
            for action in machine.advance(self.now):
                self._perform(action, peer)
        for action in self.broker.advance(self.now):
            if type(action) is m.Send:
                receiver: Any = self.client if action.peer == "c" else self.worker
                receiver.receive(m.BROKER, action.message, action.payload, self.now)

    def _perform(self, action: m.Action, peer: str) -> None:
        if type(action) is m.Send:
            self.broker.receive(peer, action.message, action.payload, self.now)
        elif type(action) is m.Resolve:
            self.resolved += 1
        elif type(action) is m.RunCalls:
            self.runs.append(action)
        elif type(action) is m.StartChild:
            self.worker.child_started(action.child, self.now)
        elif type(action) is m.TakeBack:
            self.worker.child_took_back(action.child, sys.maxsize, self.now)

    def _run(self, action: m.RunCalls) -> None:
        dones = [m.Done(call.seq, m.VALUE, RUN_US) for call in action.run.calls]
        self.worker.child_reported(action.child, dones, [VALUE_BLOB] * len(dones), self.now)


def measure(count: int, per_turn: int) -> float:
    """Microseconds of CPU per task, all three machines and this harness together."""
    farm = Farm()
    for _ in range(10):
        farm.turn()
    gc.collect()
    began = time.process_time()
    submitted = 0
    while farm.resolved < count:
        for _ in range(min(per_turn, count - submitted)):
            farm.client.submit(submitted, "noop", FUNCTION, farm.setup, BODY)
            submitted += 1
        before = farm.resolved, len(farm.runs)
        farm.turn()
        if submitted == count and before == (farm.resolved, len(farm.runs)):
            farm.now += 0.01  # nothing moved: let the machines' clocks come round
    return (time.process_time() - began) / count * 1e6


def main() -> None:
    """Print the median of five."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    per_turn = int(sys.argv[2]) if len(sys.argv) > 2 else 500
    times = [measure(count, per_turn) for _ in range(5)]
    print(f"core: {statistics.median(times):.2f} µs of CPU per task ({min(times):.2f} – {max(times):.2f})")


if __name__ == "__main__":
    main()
