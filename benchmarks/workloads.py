"""The workloads, each measured in a process of its own: ``python -m benchmarks.workloads PEER WORKLOAD ...``.

Writes one JSON object with the figures of one repetition to stdout; knows nothing of tables or other peers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks import peers, tasks

Figures = dict[str, float]

SLOW = {"ppe", "loky", "joblib", "dask"}
"""Peers that get fewer tasks where the figure is a rate, or a run would take minutes."""
VERY_SLOW = {"dask"}
IDLE_S = 5.0


def noop_of_main(*_: object) -> None:
    """A no-op of ``__main__``, as scripts and notebooks have them: it cannot be imported anywhere else."""


@contextlib.contextmanager
def running(name: str, workers: int) -> Iterator[peers.Peer]:
    """The peer with warm workers, closed at the end."""
    peer = peers.load(name)(workers)
    peer.gather([peer.submit(tasks.noop) for _ in range(200)])
    peer.map(tasks.noop, range(200))
    yield peer
    peer.close()


def scaled(name: str, count: int) -> int:
    """As many tasks as this peer gets."""
    return count // 100 if name in VERY_SLOW else count // 4 if name in SLOW else count


def _rate(peer: peers.Peer, function: Callable[..., Any], count: int) -> tuple[float, float]:
    """Calls per second from first submit to last result, and of the submits alone."""
    began = time.perf_counter()
    handles = [peer.submit(function) for _ in range(count)]
    submitted = time.perf_counter()
    peer.gather(handles)
    return count / (time.perf_counter() - began), count / (submitted - began)


def submit(name: str, workers: int, scale: float) -> Figures:
    """W1: submit no-ops one by one, then gather: importable ones, and ones of ``__main__``."""
    count = int(scaled(name, 60_000) * scale)
    figures = {}
    with running(name, workers) as peer:
        before = _cpu_s()
        figures["calls_per_s"], figures["submits_per_s"] = _rate(peer, tasks.noop, count)
        figures["cpu_us"] = (_cpu_s() - before) / count * 1e6
        figures["main_calls_per_s"], _ = _rate(peer, noop_of_main, count)
        if peer.lambdas:
            figures["lambda_calls_per_s"], _ = _rate(peer, lambda: None, count)
    return figures


def map_(name: str, workers: int, scale: float) -> Figures:
    """W2: map no-ops over a range, by the default call and with a fitting chunk size."""
    with running(name, workers) as peer:
        count = int(1_000_000 * scale)
        default = 20_000 if name in {"ppe", "loky"} else count
        default = count // 200 if name in VERY_SLOW else default
        began = time.perf_counter()
        assert peer.map(tasks.noop, range(default)) == default
        middle = time.perf_counter()
        tuned = count // 200 if name in VERY_SLOW else count
        assert peer.map_tuned(tasks.noop, range(tuned)) == tuned
        ended = time.perf_counter()
    return {"items_per_s": default / (middle - began), "tuned_items_per_s": tuned / (ended - middle)}


def round_trip(name: str, workers: int, scale: float) -> Figures:
    """W3: one call after the other."""
    count = max(200, int(scaled(name, 4000) * scale))
    times = []
    with running(name, workers) as peer:
        cpu_before = _cpu_s()
        for _ in range(count):
            began = time.perf_counter()
            peer.gather([peer.submit(tasks.noop)])
            times.append(time.perf_counter() - began)
        cpu_us = (_cpu_s() - cpu_before) / count * 1e6
    times.sort()
    p50, p99 = statistics.median(times), times[int(0.99 * len(times))]
    return {"p50_us": p50 * 1e6, "p99_us": p99 * 1e6, "cpu_us": cpu_us}


def data(name: str, workers: int, scale: float) -> Figures:
    """W4: an array of 100 MB out and back, with data that is new each time and that is not; and the same
    array to 20 calls, as it is, and by the peer's best idiom if it has one."""
    import numpy as np

    size = int(12_500_000 * scale)
    figures = {}
    with running(name, workers) as peer:
        array = np.random.default_rng(0).random(size)
        times = []
        for n in range(10):
            array += 1
            began = time.perf_counter()
            peer.gather([peer.submit(tasks.same, array)])
            if n >= 4:  # warm: the same sizes were used before
                times.append(time.perf_counter() - began)
        figures["echo_mb_per_s"] = 2 * array.nbytes / 1e6 / statistics.median(times)
        ways = {"naive_s": lambda: array}
        if (share := getattr(getattr(peer, "executor", None), "share", None)) is not None:
            ways["shared_s"] = lambda: share(array)
        for figure, give in ways.items():
            times = []
            for _ in range(3):
                began = time.perf_counter()
                given = give()
                peer.gather([peer.submit(tasks.first, given) for _ in range(20)])
                times.append(time.perf_counter() - began)
            figures[figure] = statistics.median(times)
    return figures


def sleeping(name: str, workers: int, scale: float) -> Figures:
    """W5: sleeps of 1 ms; ideal time over actual."""
    count = int(2000 * scale)
    with running(name, workers) as peer:
        began = time.perf_counter()
        peer.gather([peer.submit(tasks.sleep_1ms) for _ in range(count)])
        took = time.perf_counter() - began
    return {"efficiency": count * 0.001 / workers / took}


def cold(name: str, workers: int, scale: float) -> Figures:
    """W6: a cold interpreter to its first result and its clean end; and what the import alone takes."""
    program = (
        f"from benchmarks import peers, tasks; peer = peers.load({name!r})({workers});"
        "peer.gather([peer.submit(tasks.noop)]); peer.close()"
    )
    module = {"pool": "multiprocessing.pool", "ppe": "concurrent.futures.process"}.get(
        name, peers.PEERS[name]
    )
    attribute = "; zfarm.Executor" if name == "zfarm" else ""
    importing = (
        f"import time; t = time.perf_counter(); import {module}{attribute}; print(time.perf_counter() - t)"
    )
    totals, imports, bare, cpu = [], [], [], []
    for _ in range(5):
        before = _cpu_of_the_dead_s()
        totals.append(_wall_s(program))
        cpu.append(_cpu_of_the_dead_s() - before)
        bare.append(_wall_s("pass"))
        done = subprocess.run([sys.executable, "-c", importing], check=True, capture_output=True, text=True)
        imports.append(float(done.stdout))
    return {
        "total_s": statistics.median(totals),
        "cpu_s": statistics.median(cpu),
        "import_ms": statistics.median(imports) * 1e3,
        "interpreter_s": statistics.median(bare),
    }


def _wall_s(program: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - began


def memory(name: str, workers: int, scale: float) -> Figures:
    """W7: bytes per queued call, in the client and in all its helper processes, and the rate of queueing."""
    count = int((2000 if name in VERY_SLOW else 200_000) * scale)
    with running(name, workers) as peer, tempfile.TemporaryDirectory() as folder:
        gate = Path(folder) / "gate"
        os.mkfifo(gate)
        held = [peer.submit(tasks.hold, str(gate)) for _ in range(workers)]
        client_before, helpers_before = _bytes()
        began = time.perf_counter()
        handles = [peer.submit(tasks.noop) for _ in range(count)]
        submitted = time.perf_counter()
        _wait_settled()
        client, helpers = _bytes()
        descriptor = os.open(gate, os.O_RDWR | os.O_NONBLOCK)
        opened = time.perf_counter()
        peer.gather(held + handles)
        ended = time.perf_counter()
        os.close(descriptor)
    return {
        "client_bytes": (client - client_before) / count,
        "helper_bytes": (helpers - helpers_before) / count,
        "submits_per_s": count / (submitted - began),
        "drains_per_s": count / (ended - opened),
    }


def accepting(name: str, workers: int, scale: float) -> Figures:
    """W8: submit no-ops until all are safe, while they run; nothing for a peer that makes nothing safe."""
    count = int(scaled(name, 60_000) * scale)
    with running(name, workers) as peer:
        if not peer.durable:
            return {}
        began = time.perf_counter()
        handles = [peer.submit(tasks.noop) for _ in range(count)]
        for handle in handles:
            while not handle.accepted:
                time.sleep(0.0005)
        accepted = time.perf_counter()
        peer.gather(handles)
    return {"accepted_per_s": count / (accepted - began)}


def idle(name: str, workers: int, _scale: float) -> Figures:
    """CPU that a farm with warm, idle workers takes, the client included, in percent of one core."""
    with running(name, workers):
        _wait_settled()
        before = _exact_cpu_s()
        began = time.perf_counter()
        time.sleep(IDLE_S)  # never scaled: in a second a single beat is much
        used = _exact_cpu_s() - before
        took = time.perf_counter() - began
        processes = len(_family())
    return {"percent": 100 * used / took, "processes": processes}


def _family() -> list[psutil.Process]:
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def _bytes() -> tuple[int, int]:
    """Unique memory of this process, and of all below it."""
    client, *helpers = (process.memory_full_info().uss for process in _family())
    return client, sum(helpers)


def _cpu_s() -> float:
    return sum(sum(process.cpu_times()[:2]) for process in _family())


def _exact_cpu_s() -> float:
    """As _cpu_s, counted in nanoseconds where the system does so and not in clock ticks of 10 ms."""
    total = 0.0
    for process in _family():
        threads = list(Path(f"/proc/{process.pid}/task").glob("*/schedstat"))
        if not threads:
            return _cpu_s()
        total += sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9
    return total


def _cpu_of_the_dead_s() -> float:
    """CPU of all children that have ended and been waited for, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _wait_settled() -> None:
    """Wait until the family has nothing more to do: what was submitted has arrived where it waits."""
    quiet = 0
    before = _cpu_s()
    while quiet < 3:
        time.sleep(0.1)
        now = _cpu_s()
        quiet = quiet + 1 if now - before < 0.02 else 0
        before = now


def _emit_numbers(count: int) -> Iterator[int]:
    yield from range(count)


def stream(name: str, workers: int, scale: float) -> Figures:
    """W9: small items from one task to its reader, none lost; and one call after the other meanwhile."""
    import zfarm

    if name != "zfarm":
        raise SystemExit(f"{name} has no streams")
    count = int(1_000_000 * scale)
    with zfarm.Executor(max_workers=workers) as farm:
        farm.submit(tasks.noop).result()
        began = time.perf_counter()
        numbers = [item.number for item in farm.submit(_emit_numbers, count).stream()]
        took = time.perf_counter() - began
        assert numbers == list(range(1, count + 1)), "items were lost"
        quiet_us = _round_trip_us(farm)
        future = farm.submit(_emit_numbers, count)
        future.on_item(lambda item: None)
        busy_us = _round_trip_us(farm)
    return {"items_per_s": count / took, "quiet_p50_us": quiet_us, "busy_p50_us": busy_us}


def _round_trip_us(farm: Any) -> float:
    """Median of calls one after the other."""
    times = []
    for _ in range(300):
        began = time.perf_counter()
        farm.submit(tasks.noop).result()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


WORKLOADS: dict[str, Callable[[str, int, float], Figures]] = {
    "w1": submit,
    "w2": map_,
    "w3": round_trip,
    "w4": data,
    "w5": sleeping,
    "w6": cold,
    "w7": memory,
    "w8": accepting,
    "w9": stream,
    "idle": idle,
}


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=peers.PEERS)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0)
    args = parser.parse_args()
    json.dump(WORKLOADS[args.workload](args.peer, args.workers, args.scale), sys.stdout)


if __name__ == "__main__":
    main()
