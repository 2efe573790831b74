"""A real farm under random faults, with a history and a checker: python -m tests.integration.chaos.

Broker with a journal, workers and clients talk over TCP with CURVE, through proxies. A nemesis kills, stops
and cuts; two clients submit all the while. In the end all is healed, and what the clients were told is
compared with what they asked for: nothing lost, nothing that was never asked for, nothing twice, every value
right, and no call of ``retries=0`` begun twice.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

import zfarm
from tests.face.processes import Command, TcpFarm, tcp_farm
from tests.integration.proxy import DOWN, UP, Proxy, through
from zfarm.link import CANCEL_WAIT_S

OPEN_MAX = 100
"""Calls that one client has open at most."""
PAUSE_S = 1.0
"""Between two faults, in the mean."""
REST_S = 90.0
"""Within which everything has its outcome once all is healed."""


def burden(client: int, number: int) -> bytes:
    """What a call carries: nothing mostly, and up to a megabyte for each fifth."""
    size = 0 if number % 5 else 1 << number // 5 % 21
    return random.Random(f"{client}/{number}").randbytes(size)


def work(path: str, client: int, number: int, seconds: float, carried: bytes) -> tuple[int, int, bytes]:
    """Note that it begins, take a while, and answer with what it was given, reversed; each seventh raises."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{client} {number}\n".encode())
    os.close(descriptor)
    time.sleep(seconds)
    if number % 7 == 3:
        raise ValueError(client, number)
    return client, number * number, carried[::-1]


@dataclass(eq=False)
class Asked:
    """One call, and what its client was told of it."""

    client: int
    number: int
    once: bool
    told: list[str] = field(default_factory=list)
    cancelled: bool = False


class History:
    """All that was asked and told, in order, and in a file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.asked: dict[tuple[int, int], Asked] = {}
        self.wrong: list[str] = []
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._lines = file.open("w", encoding="utf-8")

    def note(self, kind: str, **facts: Any) -> None:
        with self._lock:
            line = {"at": round(time.monotonic() - self._began, 3), "kind": kind, **facts}
            self._lines.write(json.dumps(line) + "\n")
            self._lines.flush()

    def ask(self, call: Asked) -> None:
        self.asked[call.client, call.number] = call
        self.note("asked", client=call.client, number=call.number, once=call.once)

    def tell(self, call: Asked, future: Future[tuple[int, int, bytes]]) -> None:
        """The callback of a call's future."""
        outcome = _judged(call, future)
        call.told.append(outcome)
        self.note("told", client=call.client, number=call.number, outcome=outcome)

    def close(self) -> None:
        self._lines.close()


def _judged(call: Asked, future: Future[tuple[int, int, bytes]]) -> str:
    """The outcome in a word; one that cannot be is "wrong" and why."""
    try:
        value = future.result(0)
    except CancelledError:
        return "cancelled" if call.cancelled else "wrong: cancelled by nobody"
    except ValueError as error:
        return "error" if error.args == (call.client, call.number) else f"wrong: {error!r}"
    except zfarm.TaskLost as error:
        return "lost" if call.once and error.maybe_ran else f"wrong: {error!r}"
    except Exception as error:
        return f"wrong: {error!r}"
    carried = burden(call.client, call.number)[::-1]
    right = call.number % 7 != 3 and value == (call.client, call.number**2, carried)
    return "value" if right else f"wrong: {str(value)[:200]}"


class User(threading.Thread):
    """A client that submits, and now and then cancels, until it is told to stop."""

    def __init__(self, number: int, connection: Path, runs: Path, history: History, seed: str) -> None:
        super().__init__(name=f"user-{number}", daemon=True)
        self.number = number
        self.open: dict[int, zfarm.Future[tuple[int, int, bytes]]] = {}
        self.failure: BaseException | None = None
        self.stop = threading.Event()
        self._rng = random.Random(seed)
        self._runs = str(runs)
        self._history = history
        self._executor = zfarm.Executor(str(connection))
        self._again = self._executor.options(max_attempts=1000)
        self._once = self._executor.options(retries=0)

    def run(self) -> None:
        try:
            number = 0
            while not self.stop.is_set():
                self.open = {n: future for n, future in self.open.items() if not future.done()}
                if len(self.open) >= OPEN_MAX:
                    self.stop.wait(0.01)
                    continue
                number += 1
                self._submit(number)
                if self._rng.random() < 0.05 and self.open:
                    self._cancel(self._rng.choice(list(self.open)))
                self.stop.wait(self._rng.choice((0.0, 0.0, 0.0, 0.05)))
        except BaseException as error:
            self.failure = error

    def _submit(self, number: int) -> None:
        call = Asked(self.number, number, once=self._rng.random() < 0.2)
        self._history.ask(call)
        way = self._once if call.once else self._again
        seconds = self._rng.choice((0.0, 0.001, 0.02, 0.3, 1.0))
        carried = burden(self.number, number)
        future = way.submit(work, self._runs, self.number, number, seconds, carried)
        self.open[number] = future
        future.add_done_callback(lambda done: self._history.tell(call, done))

    def _cancel(self, number: int) -> None:
        call = self._history.asked[self.number, number]
        call.cancelled = True  # before it is said, or the callback would come first
        began = time.monotonic()
        said = self.open[number].cancel()
        in_time = time.monotonic() - began < CANCEL_WAIT_S
        self._history.note("cancel", client=self.number, number=number, said=said, in_time=in_time)
        call.cancelled = said or not in_time  # what nobody answers for so long may still come to pass

    def settle(self) -> None:
        """Wait for all outcomes, and leave."""
        for number, future in self.open.items():
            with contextlib.suppress(Exception, CancelledError):
                future.result(REST_S)
            assert future.done(), f"call {number} of client {self.number} has no outcome"
        self._executor.shutdown()


class Nemesis:
    """What goes wrong, one thing after the other."""

    def __init__(self, farm: TcpFarm, proxies: list[Proxy], rng: random.Random, history: History) -> None:
        self._farm = farm
        self._proxies = proxies
        self._rng = rng
        self._history = history
        self._port = farm.port
        self.broker = farm.commands[0]
        self.workers: list[Command] = []
        self.faults: Counter[str] = Counter()
        self._kinds: list[tuple[Callable[[], None], int]] = [
            (self._kill_child, 4),
            (self._kill_worker, 2),
            (self._kill_broker, 2),
            (self._stop_worker, 2),
            (self._stop_broker, 1),
            (self._reset, 3),
            (self._stall, 2),
            (self._stall_one_way, 2),
            (self._corrupt, 2),
        ]

    def add_worker(self) -> None:
        """Start a worker behind a proxy of its own."""
        number = len(self.workers)
        self.workers.append(self._worker(number))

    def supervise(self) -> None:
        """Start anew what has ended, as whoever runs services does: a worker whose nursery was killed."""
        for number, worker in enumerate(self.workers):
            if worker.process.poll() is not None:
                self._history.note("ended", worker=number, code=worker.process.returncode)
                self.workers[number] = self._worker(number)

    def strike(self) -> None:
        """Let one thing go wrong."""
        self.supervise()
        kinds, weights = zip(*self._kinds, strict=True)
        kind = self._rng.choices(kinds, weights)[0]
        name = kind.__name__.strip("_")
        self.faults[name] += 1
        self._history.note("fault", what=name)
        kind()

    def _worker(self, number: int) -> Command:
        file = self._farm.directory / f"worker-{number}.json"
        through(self._farm.connection, self._proxies[number].port, file)
        return self._farm.start("worker", "--slots", "2", "--connection", str(file), "--name", f"w{number}")

    def _kill_child(self) -> None:
        worker = self._rng.choice(self.workers)
        with contextlib.suppress(psutil.NoSuchProcess):
            below = psutil.Process(worker.pid).children(recursive=True)
            if below:
                self._rng.choice(below).kill()

    def _kill_worker(self) -> None:
        number = self._rng.randrange(len(self.workers))
        os.kill(self.workers[number].pid, signal.SIGKILL)
        self.workers[number].wait()
        self.workers[number] = self._worker(number)

    def _kill_broker(self) -> None:
        os.kill(self.broker.pid, signal.SIGKILL)
        self.broker.wait()
        self.broker = self._farm.start_broker(port=self._port)

    def _stop_worker(self) -> None:
        self._stopped(self._rng.choice(self.workers), self._rng.uniform(0.2, 4.0))

    def _stop_broker(self) -> None:
        self._stopped(self.broker, self._rng.uniform(0.2, 3.0))

    @staticmethod
    def _stopped(command: Command, seconds: float) -> None:
        os.kill(command.pid, signal.SIGSTOP)
        try:
            threading.Event().wait(seconds)
        finally:
            os.kill(command.pid, signal.SIGCONT)

    def _reset(self) -> None:
        self._rng.choice(self._proxies).reset()

    def _stall(self) -> None:
        self._rng.choice(self._proxies).stall(self._rng.uniform(0.1, 4.0))

    def _stall_one_way(self) -> None:
        self._rng.choice(self._proxies).stall(self._rng.uniform(0.1, 4.0), self._rng.choice((UP, DOWN)))

    def _corrupt(self) -> None:
        self._rng.choice(self._proxies).corrupt()


def check(history: History, runs: Path) -> Counter[str]:
    """Raise unless what was told is exactly what was asked for; how many outcomes of which kind came."""
    begun = Counter(tuple(map(int, line.split())) for line in runs.read_text().splitlines())
    calls = list(history.asked.values())
    times = {call: begun[call.client, call.number] for call in calls}
    found: dict[str, list[object]] = {
        "lost": [call for call in calls if not call.told],
        "told twice": [call for call in calls if len(call.told) > 1],
        "wrong": [call for call in calls if any(told.startswith("wrong") for told in call.told)],
        "never asked for": [run for run in begun if run not in history.asked],
        "retries=0 and begun twice": [call for call in calls if call.once and times[call] > 1],
        "begun and cancelled": [c for c in calls if c.once and c.told == ["cancelled"] and times[c]],
        "a value of nothing": [call for call in calls if call.told == ["value"] and not times[call]],
    }
    problems = {what: some[:5] for what, some in found.items() if some}
    assert not problems, f"{problems}"
    told = Counter(call.told[0] for call in calls)
    told["begun again"] = sum(count - 1 for count in begun.values())
    return told


def _note_state(farm: TcpFarm, history: History) -> None:
    """What the farm says of itself, and the last words of each process."""
    for command in farm.commands:
        words = command.said.splitlines()[-30:]
        history.note("said", command=command.name, pid=command.pid, ended=command.process.poll(), words=words)
    try:
        history.note("status", **farm.status())
    except zfarm.FarmError as error:
        history.note("status", error=repr(error))


def chaos(directory: Path, seconds: float, seed: int, clients: int = 2, workers: int = 2) -> str:
    """Run it; a line that says what happened. Raises AssertionError, with the seed and the history's file."""
    rng = random.Random(seed)
    history, runs = History(directory / "history.jsonl"), directory / "runs"
    runs.touch()
    try:
        with contextlib.ExitStack() as stack:
            farm = stack.enter_context(tcp_farm(directory))
            farm.variables["ZFARM_RESTART_HOLD_S"] = "2"
            farm.start_broker()
            ports = [farm.door("worker")] * workers + [farm.port] * clients
            proxies = [stack.enter_context(Proxy(port)) for port in ports]
            nemesis = Nemesis(farm, proxies, rng, history)
            for _ in range(workers):
                nemesis.add_worker()
            farm.wait_slots(2 * workers)
            users = []
            for number, proxy in enumerate(proxies[workers:]):
                file = through(farm.connection, proxy.port, directory / f"client-{number}.json")
                users.append(User(number, file, runs, history, f"{seed} {number}"))
            for user in users:
                user.start()
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                nemesis.strike()
                threading.Event().wait(rng.expovariate(1 / PAUSE_S))
            history.note("healed")
            for user in users:
                user.stop.set()
                user.join()
            try:
                for user in users:
                    nemesis.supervise()
                    assert user.failure is None, f"client {user.number} failed: {user.failure!r}"
                    user.settle()
            except BaseException:
                _note_state(farm, history)
                raise
            told = check(history, runs)
    except BaseException as error:
        history.close()
        kept = Path(tempfile.gettempdir()) / f"zfarm-chaos-{seed}.jsonl"
        kept.write_bytes(history.file.read_bytes())
        error.add_note(f"seed {seed}; the history is in {kept}")
        raise
    finally:
        history.close()
    faults = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in sorted(nemesis.faults.items()))
    outcomes = ", ".join(f"{count} {kind}" for kind, count in sorted(told.items()))
    return f"seed {seed}: {len(history.asked)} calls ({outcomes}) under {faults}"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.integration.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long things go wrong (60)")
    parser.add_argument("--seed", type=int, help="what goes wrong; when, depends on the machine, too")
    asked = parser.parse_args()
    seed = secrets.randbelow(10**6) if asked.seed is None else asked.seed
    with tempfile.TemporaryDirectory() as directory:
        print(chaos(Path(directory), asked.seconds, seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
