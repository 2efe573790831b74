"""How fast calls of one function go that carries data, submitted one by one, and what its client sends for
them: on an embedded farm and over TCP with CURVE.

python benchmarks/micro/functions.py [KiB of the function] [calls] [at once]

What an embedded farm's client sends goes to the process of broker and worker; over TCP all that passes
the loopback interface is shown beside it: client to broker, broker to worker, and what else the machine
sends.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import zfarm
from zfarm.edge import ports

sent = 0
"""Bytes that this process has given to its sockets."""


def counted(send: Callable[..., None]) -> Callable[..., None]:
    """Count what goes through."""

    def send_frames(socket: Any, frames: Sequence[Any]) -> None:
        global sent
        send(socket, frames)
        sent += sum(map(len, frames))

    return send_frames


def carrying(size: int) -> Callable[[int], int]:
    """A function that has so many bytes with it."""
    data = os.urandom(size)

    def function(number: int) -> int:
        return len(data) + number

    return function


def loopback() -> int:
    """Bytes that the loopback interface has sent, where that can be read."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/dev").read_text().splitlines():
            name, _, figures = line.partition(":")
            if name.strip() == "lo":
                return int(figures.split()[8])
    return 0


def measure(farm: zfarm.Executor, what: str, size: int, calls: int, window: int) -> None:
    """Print the figures of one farm."""
    farm.submit(abs, 1).result()
    function = carrying(size)
    before, lo, began = sent, loopback(), time.perf_counter()
    waiting: deque[tuple[int, Future[int]]] = deque()
    for number in range(calls):
        waiting.append((number, farm.submit(function, number)))
        if len(waiting) >= window:
            first, future = waiting.popleft()
            assert future.result() == size + first
    for number, future in waiting:
        assert future.result() == size + number
    took = time.perf_counter() - began
    mine, all_of_it = (sent - before) / 1e6, (loopback() - lo) / 1e6
    print(f"{what}: {calls / took:,.0f} calls/s; the client sent {mine:,.2f} MB", end="")
    print(f", the loopback {all_of_it:,.2f} MB" if "TCP" in what else "", flush=True)


def main() -> None:
    """Measure both farms."""
    kib, calls, window = (int(text) for text in (*sys.argv[1:], *("1024", "1000", "1")[len(sys.argv) - 1 :]))
    vars(ports)["send_frames"] = counted(vars(ports)["send_frames"])
    with zfarm.Executor(max_workers=2) as farm:
        measure(farm, "embedded", kib * 1024, calls, window)
    with tempfile.TemporaryDirectory() as root:
        keys = f"{root}/farm.json"
        command = [sys.executable, "-m", "zfarm"]
        commands: list[Popen[bytes]] = []
        try:
            listen = ["--bind", "tcp://127.0.0.1:0", "--connection", keys, "--journal", "none"]
            commands.append(Popen([*command, "broker", *listen], stdout=PIPE))
            assert commands[0].stdout is not None
            while b"program" not in commands[0].stdout.readline():
                continue
            worker = ["worker", "--connection", keys, "--slots", "2", "--log-level", "error"]
            commands.append(Popen([*command, *worker]))
            with zfarm.Executor(keys) as farm:
                measure(farm, "TCP with CURVE", kib * 1024, calls, window)
        finally:
            for one in commands:
                one.kill()
                one.wait()


if __name__ == "__main__":
    main()
