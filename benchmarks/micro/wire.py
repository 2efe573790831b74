"""CPU time of encoding and decoding: Submit, Grants, Reports, Ended of 1, 64 and 500 tasks, and a large blob.

python -m benchmarks.micro.wire
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from zfarm import messages as m
from zfarm.edge import wire

FUNCTION, SETUP, BODY = b"f" * 40, b"s" * 200, b"b" * 20
ROUNDS = 5


def submit(count: int, body: bytes = BODY) -> tuple[m.Message, list[bytes]]:
    """As a client sends it."""
    calls = [m.Call(task=n, function=0, setup=0) for n in range(count)]
    return m.Submit(calls=calls, names=["noop"], setups=1), [FUNCTION, SETUP, *[body] * count]


def grants(count: int, body: bytes = BODY) -> tuple[m.Message, list[bytes]]:
    """As a broker answers it."""
    leases = [m.Lease(lease=n, owner=0, task=n, function=0, setup=0, expected_us=5) for n in range(count)]
    message = m.Grants(number=1, leases=leases, owners=["client"], functions=1, setups=1)
    return message, [FUNCTION, SETUP, *[body] * count]


def reports(count: int, body: bytes = BODY) -> tuple[m.Message, list[bytes]]:
    """As a worker reports it."""
    return m.Reports(reports=[m.Report(n, m.VALUE, 5) for n in range(count)]), [body] * count


def ended(count: int, body: bytes = BODY) -> tuple[m.Message, list[bytes]]:
    """As a client hears of it."""
    return m.Ended(outcomes=[m.Outcome(n, m.VALUE, 5) for n in range(count)]), [body] * count


UNIONS = {submit: m.FromClient, grants: m.ToWorker, reports: m.FromWorker, ended: m.ToClient}


def cpu_us(call: Callable[[], object], per_round: int) -> float:
    """Median CPU time of one call."""
    times = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(per_round):
            call()
        times.append((time.process_time() - began) / per_round * 1e6)
    return statistics.median(times)


def main() -> None:
    """Print µs per message and per task."""
    for make, union in UNIONS.items():
        decoder: wire.Decoder[m.Message] = wire.Decoder(union)
        for count, body in ((1, BODY), (64, BODY), (500, BODY), (1, bytes(1 << 20))):
            message, payload = make(count, body)
            frames = [bytes(frame) for frame in wire.encode(message, payload)]
            per_round = max(20, 20_000 // count) if len(body) < 1000 else 200
            encoding = cpu_us(lambda: wire.encode(message, payload), per_round)  # noqa: B023
            decoding = cpu_us(lambda: decoder.decode(frames), per_round)  # noqa: B023
            size = f"{count} × {len(body):,} B"
            print(
                f"{make.__name__:8}{size:>16}   encode {encoding:8.2f} µs   decode {decoding:8.2f} µs"
                f"   per task {(encoding + decoding) / count:7.3f} µs"
            )


if __name__ == "__main__":
    main()
