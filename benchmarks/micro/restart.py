"""How a farm comes back when its broker is killed: when every peer is welcome again, and the CPU of it.

python -m benchmarks.micro.restart [peers] [processes] [seconds between the kill and the start]

The broker is a real process with CURVE and a journal. The peers are real machines behind real links, many to
a process: nine of ten are workers, which start no children, the others clients. All have a role's shared key,
as a fleet has, so that what one key may do in a second is met, too.
"""

from __future__ import annotations

import secrets
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import psutil

from zfarm.brokershell import own_versions
from zfarm.core.client import Client
from zfarm.core.worker import Worker
from zfarm.edge import wire
from zfarm.edge.loop import Loop
from zfarm.edge.ports import DealerPort
from zfarm.edge.security import load_connection
from zfarm.edge.sockets import new_context
from zfarm.messages import BROKER, Action, Rejected, Send, Welcome

LOOK_S = 0.1
WINDOW = 10
"""Looks at the broker's CPU that one figure is of: a second."""
PATIENCE_S = 120.0
DEFAULTS = ("500", "10", "2")


# ---------------------------------------------------------------- the peers


class _Peer:
    """One worker or client; a line to standard output for each Welcome, with its time."""

    def __init__(self, loop: Loop, context: Any, connection: Path, role: Any) -> None:
        versions, session = own_versions(), secrets.token_hex(16)
        now = time.monotonic()
        self.machine: Any = (
            Worker(session, versions, 1, "bench", 1, now)
            if role == "worker"
            else Client(session, versions, "bench", 1, "bench", now)
        )
        self._decoder: Any = wire.to_worker if role == "worker" else wire.to_client
        self._loop = loop
        self.port = port = DealerPort(context, load_connection(connection).access(role), print)
        loop.add_machine(self.machine, self._perform)
        loop.add_source(port.socket, self._receive)
        loop.add_source(port.monitor, port.watch_link)
        loop.add_flusher(port.flush)

    def _receive(self) -> None:
        for frames in self.port.receive():
            message, payload = self._decoder.decode(frames)
            if isinstance(message, Welcome):
                print("welcome", time.monotonic(), message.epoch, flush=True)
            self.machine.receive(BROKER, message, payload, self._loop.now)

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self.port.send(wire.encode(action.message, action.payload))
            elif isinstance(action, Rejected):
                print("rejected", action.code, action.text, flush=True)


def be_peers(connection: Path, first: int, many: int) -> None:
    """Be so many peers until somebody ends this process."""
    loop, context = Loop(), new_context()
    peers = [
        _Peer(loop, context, connection, "client" if number % 10 == 9 else "worker")
        for number in range(first, first + many)
    ]
    assert peers
    loop.run()


# ---------------------------------------------------------------- the measurement


class _Crowd:
    """The processes of all peers, and when each Welcome came."""

    def __init__(self, connection: Path, peers: int, processes: int) -> None:
        self.welcomes: list[tuple[float, int]] = []  # when, and the epoch of the broker
        self.other: list[str] = []
        share = -(-peers // processes)
        self.processes = []
        for first in range(0, peers, share):
            many = min(share, peers - first)
            command = [sys.executable, "-m", __spec__.name, "peers", str(connection), str(first), str(many)]
            process = Popen(command, stdout=PIPE, text=True)
            self.processes.append(process)
            threading.Thread(target=self._read, args=(process,), daemon=True).start()

    def _read(self, process: Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            word, *rest = line.split()
            if word == "welcome":
                self.welcomes.append((float(rest[0]), int(rest[1])))
            else:
                self.other.append(line.strip())

    def back(self, since: float) -> list[float]:
        """When each peer was welcome after that time, in order."""
        return sorted(at for at, _ in self.welcomes if at > since)


def start_broker(connection: Path, port: int) -> Popen[str]:
    """A broker that listens."""
    bind = f"tcp://127.0.0.1:{port}"
    command = [sys.executable, "-m", "zfarm", "broker", "--bind", bind, "--connection", str(connection)]
    broker = Popen([*command, "--log-level", "error"], stdout=PIPE, text=True)
    assert broker.stdout is not None
    while "program" not in broker.stdout.readline():
        assert broker.poll() is None, "the broker did not start"
    return broker


def watch(broker: Popen[str], done: Any) -> tuple[float, float]:
    """Look at the broker until ``done`` says so: its CPU seconds, and the share of a core of the busiest."""
    process = psutil.Process(broker.pid)
    looks: list[tuple[float, float]] = []
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline, "not all came"
        times = process.cpu_times()
        looks.append((time.monotonic(), times.user + times.system))
        time.sleep(LOOK_S)
    pairs = zip(looks, looks[WINDOW:], strict=False)
    peak = max(((later[1] - one[1]) / (later[0] - one[0]) for one, later in pairs), default=0.0)
    times = process.cpu_times()
    return times.user + times.system, peak


def measure(root: Path, peers: int, processes: int, away_s: float) -> None:
    """Start, let all in, kill, start again, let all in."""
    connection = root / "farm.json"
    broker = start_broker(connection, 0)
    port = int(load_connection(connection).addresses["client"][0].rpartition(":")[2])
    began = time.monotonic()
    crowd = _Crowd(connection, peers, processes)
    try:
        spent, peak = watch(broker, lambda: len(crowd.back(began)) >= peers)
        print(
            f"first start: {peers} peers welcome after {crowd.back(began)[peers - 1] - began:.1f} s", end=""
        )
        print(f" of which their own start is most; broker {spent:.1f} s CPU, busiest second {peak:.0%}")
        time.sleep(3)
        broker.kill()
        broker.wait()
        time.sleep(away_s)
        began = time.monotonic()
        broker = start_broker(connection, port)
        listening = time.monotonic()
        spent, peak = watch(broker, lambda: len(crowd.back(began)) >= peers)
        back = crowd.back(began)
        half, nearly, last = (back[int(share * peers) - 1] - listening for share in (0.5, 0.99, 1.0))
        print(f"killed, away for {away_s:g} s, listens again {listening - began:.2f} s after its start")
        print(f"welcome again, s after it listens: half {half:.2f}, 99 % {nearly:.2f}, all {last:.2f}")
        print(f"broker until then: {spent:.1f} s CPU, busiest second {peak:.0%} of a core")
        if crowd.other:
            print(f"{len(crowd.other)} peers had something to say: {crowd.other[0]}")
        settled = watch(broker, partial(_later, time.monotonic() + 5))[1]
        print(f"with all there, nothing to do: busiest second {settled:.0%}")
    finally:
        for process in (*crowd.processes, broker):
            process.kill()
            process.wait()


def _later(at: float) -> bool:
    return time.monotonic() > at


def main() -> None:
    """The command line."""
    if sys.argv[1:2] == ["peers"]:
        be_peers(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
        return
    given = sys.argv[1:4]
    peers, processes, away_s = [*given, *DEFAULTS[len(given) :]]
    with tempfile.TemporaryDirectory() as root:
        measure(Path(root), int(peers), int(processes), float(away_s))


if __name__ == "__main__":
    main()
