"""How fast files of tasks come home: on one host, over TCP with CURVE beside its raw rate, many small ones.

python -m benchmarks.micro.files [directory] [MiB] [small files] [repetitions]

A file counts as here when it is verified, synced and renamed. Over TCP it goes in chunks, as it would to
another host. The raw rate is that of one PUSH and one PULL with CURVE in two processes on this machine; what
passes a broker is encrypted twice, so the same through a relay in a third process stands beside it; and a
second farm whose worker has a duct. CPU time per MB of all processes together says what is possible: no rate
is higher than the processors of the machine divided by it, and it is steady where others use the machine.

Small files stay until all is measured: ext4 avoids inodes of files that were removed in the last minutes, and
to create one takes ten times as long for whoever comes after 10,000 removed ones. Where other programs have
removed many, the figures are worth something five minutes later.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import zfarm
from benchmarks.micro.streams import cpu_of, descendants

CHUNK = 1 << 20
RAW = """
import sys, time, zmq
role, mib = sys.argv[1], int(sys.argv[2])
server, client = (a.encode() for a in sys.argv[3:5]), None
public, secret = server
context, begun = zmq.Context(), time.process_time()
def socket(kind, address, bind):
    one = context.socket(kind)
    one.set_hwm(16)
    if bind:
        one.curve_server, one.curve_secretkey, one.curve_publickey = 1, secret, public
        one.bind(address)
    else:
        one.curve_publickey, one.curve_secretkey = zmq.curve_keypair()
        one.curve_serverkey = public
        one.connect(address)
    return one
if role == "push":
    out = socket(zmq.PUSH, sys.argv[5], False)
    data = b"x" * (1 << 20)
    for _ in range(mib):
        out.send(data, copy=False)
    context.destroy(linger=-1)
elif role == "relay":
    into, out = socket(zmq.PULL, "tcp://127.0.0.1:0", True), socket(zmq.PUSH, sys.argv[5], False)
    print(into.getsockopt(zmq.LAST_ENDPOINT).rstrip(bytes(1)).decode(), flush=True)
    for _ in range(mib):
        out.send(into.recv(copy=False), copy=False)
    context.destroy(linger=-1)
print(time.process_time() - begun)
"""


def raw_rate(mib: int, relayed: bool) -> tuple[float, float]:
    """MB/s of CURVE between processes of this machine, and CPU milliseconds of all of them per MB."""
    import zmq

    public, secret = (key.decode() for key in zmq.curve_keypair())
    context = zmq.Context()
    sink = context.socket(zmq.PULL)
    sink.set_hwm(16)
    sink.curve_server, sink.curve_secretkey, sink.curve_publickey = 1, secret.encode(), public.encode()
    address = f"tcp://127.0.0.1:{sink.bind_to_random_port('tcp://127.0.0.1')}"
    started = []
    for role in ("relay", "push") if relayed else ("push",):
        command = [sys.executable, "-c", RAW, role, str(mib), public, secret, address]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        if role == "relay":
            assert started[0].stdout is not None
            address = started[0].stdout.readline().strip()
    sink.recv()
    began, busy = time.perf_counter(), time.process_time()
    for _ in range(mib - 1):
        sink.recv(copy=False)
    spent = time.perf_counter() - began
    busy = time.process_time() - busy + sum(float(process.communicate()[0]) for process in started)
    context.destroy(linger=0)
    megabytes = (mib - 1) * CHUNK / 1e6
    return megabytes / spent, busy * 1e3 / megabytes


def send(path: str, near: bool) -> None:
    from zfarm import outbox

    outbox.HANDED_FROM_BYTES = CHUNK if near else 1 << 60
    zfarm.send_file(path, "file")


def write_many(count: int, near: bool) -> None:
    from zfarm import outbox

    if not near:
        outbox.HANDED_FROM_BYTES = outbox.FEW = 1 << 60
    fill(zfarm.outdir(), count)


def fill(top: Path, count: int) -> None:
    """Make that many small files, a hundred in each directory."""
    for n in range(count):
        if n % 100 == 0:
            folder = top / f"{n // 100}"
            folder.mkdir()
        with open(folder / f"{n}.txt", "wb") as file:
            file.write(b"%1000d" % n)


def timed(farm: zfarm.Executor, home: Path, function: Callable[..., object], *args: object) -> float:
    """Seconds from the submit until all files are here."""
    began = time.perf_counter()
    farm.submit(function, *args).files.into(home).wait()
    return time.perf_counter() - began


def timed_large(farm: zfarm.Executor, home: Path, source: Path, near: bool) -> float:
    """Seconds that this file takes."""
    spent = timed(farm, home, send, str(source), near)
    shutil.rmtree(home)
    return spent


def floor(source: Path, target: Path) -> float:
    """Seconds that the disk takes for it: written from memory, and synced."""
    data = source.read_bytes()
    began = time.perf_counter()
    with target.open("wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    spent = time.perf_counter() - began
    target.unlink()
    return spent


def floor_many(target: Path, count: int) -> float:
    """Seconds that small files take when one program writes them, and syncs."""
    target.mkdir()
    began = time.perf_counter()
    fill(target, count)
    os.sync()
    return time.perf_counter() - began


def measure_small(farm: zfarm.Executor, near: bool, home: Path, count: int, repetitions: int) -> None:
    """Print how fast small files are written by a task and come, with one program's writing turn about."""
    many, disk = [], []
    where = "same host" if near else "TCP"
    for n in range(repetitions):
        many.append(count / timed(farm, home / f"{where} {n}", write_many, count, near))
        disk.append(count / floor_many(home / f"{where} alone {n}", count))
    print(
        f"small files, written too, {where}: {statistics.median(many):,.0f} files/s (best {max(many):,.0f}); "
        f"written and synced by one program: {statistics.median(disk):,.0f} (best {max(disk):,.0f})"
    )


def measure_near(farm: zfarm.Executor, source: Path, home: Path, repetitions: int) -> None:
    """Print how fast a large file is handed over on one host, with the disk's own rate turn about."""
    megabytes = source.stat().st_size / 1e6
    near, disk = [], []
    for _ in range(repetitions):
        near.append(megabytes / timed_large(farm, home, source, True))
        disk.append(megabytes / floor(source, source.with_name("floor")))
    print(
        f"same host: {statistics.median(near):,.0f} MB/s (best {max(near):,.0f}); write and sync: "
        f"{statistics.median(disk):,.0f} (best {max(disk):,.0f})"
    )


@contextmanager
def over_tcp(connection: Path, *options: str) -> Iterator[tuple[zfarm.Executor, dict[int, str]]]:
    """A farm whose worker has these options, and the processes of all that it takes."""
    command = [sys.executable, "-m", "zfarm"]
    where = ["--connection", str(connection)]
    broker = subprocess.Popen(
        [*command, "broker", "--bind", "tcp://127.0.0.1:0", "--journal", "none", *where],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    while not connection.exists():
        time.sleep(0.05)
    worker = subprocess.Popen(
        [*command, "worker", "--slots", "1", *options, *where], stderr=subprocess.DEVNULL
    )
    try:
        with zfarm.Executor(str(connection)) as farm:
            farm.submit(len, "").result()
            ours = [os.getpid(), broker.pid, worker.pid, *descendants(worker.pid)]
            yield farm, dict.fromkeys(ours, "farm")
    finally:
        for process in (worker, broker):
            process.terminate()
            process.wait()


def measure_far(
    farms: Sequence[tuple[zfarm.Executor, dict[int, str]]], source: Path, home: Path, repetitions: int
) -> None:
    """Print how fast a large file comes over TCP, by the relay and over a duct, with raw CURVE turn about."""
    mib = source.stat().st_size // CHUNK
    megabytes = mib * CHUNK / 1e6
    found: list[list[tuple[float, float]]] = [[], [], [], []]
    for _ in range(repetitions):
        for n, (farm, ours) in zip((0, 3), farms, strict=True):
            before = cpu_of(ours).total()
            rate = megabytes / timed_large(farm, home, source, False)
            found[n].append((rate, (cpu_of(ours).total() - before) * 1e3 / megabytes))
        found[1].append(raw_rate(mib, relayed=False))
        found[2].append(raw_rate(mib, relayed=True))
    rates, costs = ([statistics.median(pair[n] for pair in each) for each in found] for n in (0, 1))
    print(
        f"TCP with CURVE: {rates[0]:,.0f} MB/s; raw {rates[1]:,.0f}, raw through a relay "
        f"{rates[2]:,.0f}: ratios {rates[0] / rates[1]:.2f} and {rates[0] / rates[2]:.2f}"
    )
    cores = len(os.sched_getaffinity(0))
    print(
        f"CPU ms per MB: {costs[0]:.2f}; raw {costs[1]:.2f}, raw through a relay {costs[2]:.2f}: "
        f"on {cores} cores at most {cores * 1e3 / costs[0]:,.0f} MB/s; {cores * 1e3 / costs[1]:,.0f}, "
        f"{cores * 1e3 / costs[2]:,.0f}"
    )
    turns = sorted(duct[0] / relay[0] for duct, relay in zip(found[3], found[0], strict=True))
    print(
        f"over a duct: {rates[3]:,.0f} MB/s, {costs[3]:.2f} ms of CPU per MB; to the relay "
        f"{rates[3] / rates[0]:.2f} (turn by turn {turns[0]:.2f} to {turns[-1]:.2f}) "
        f"and {costs[3] / costs[0]:.2f}; to raw {rates[3] / rates[1]:.2f}"
    )


def main() -> None:
    top = Path(tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else None))
    mib, small, repetitions = (
        int(sys.argv[n]) if len(sys.argv) > n else d for n, d in ((2, 256), (3, 10_000), (4, 5))
    )
    source, home, many = top / "source", top / "home", top / "many"
    many.mkdir()
    with source.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(CHUNK))
    try:
        with zfarm.Executor(max_workers=1) as farm:
            farm.submit(len, "").result()
            measure_near(farm, source, home, repetitions)
            measure_small(farm, True, many, small, repetitions)
        with (
            over_tcp(top / "farm.json") as plain,
            over_tcp(top / "ducts.json", "--duct", "0") as direct,
        ):
            measure_far((plain, direct), source, home, repetitions)
            measure_small(plain[0], False, many, small, repetitions)
    finally:
        shutil.rmtree(top)


if __name__ == "__main__":
    main()
