"""What a client gets done while another one floods the farm, beside what it gets with the processors alike.

python -m benchmarks.micro.fairness [calls of the flood] [rounds]

Broker (CURVE, a journal), worker, both clients and the program that burns a processor are processes. The
client has calls of 20 ms, twice as many as there are slots. Half of what it gets while a processor is burnt
is its fair share beside a flood: the flooding program burns one, too, while it submits. Phases alternate.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from statistics import mean
from subprocess import PIPE, Popen
from typing import Any

import zfarm
from benchmarks.micro.restart import start_broker
from zfarm.edge.principals import new_principal
from zfarm.errors import FarmError

CALL_S = 0.02
SLOTS = 4
PHASE_S = 3.0
DEFAULTS = ("200000", "3")


def nothing() -> None:
    """Take no time."""


def neighbour(connection: str) -> None:
    """Have so many calls open all the time; for each line that is read, print how many have ended."""
    ended = 0
    room = threading.Semaphore(2 * SLOTS)

    def over(future: Future[Any]) -> None:
        nonlocal ended
        ended += 1
        room.release()

    def submit(farm: zfarm.Executor) -> None:
        while room.acquire():
            farm.submit(time.sleep, CALL_S).add_done_callback(over)

    with zfarm.Executor(connection) as farm:
        threading.Thread(target=submit, args=(farm,), daemon=True).start()
        for _ in sys.stdin:
            print(ended, time.monotonic(), flush=True)


def flood(connection: str, calls: int) -> None:
    """Submit all of them and say when, and when the broker has taken them; then cancel what is left."""
    with zfarm.Executor(connection) as farm:
        farm.submit(nothing).result(60)
        print("there", flush=True)
        sys.stdin.readline()
        futures = [farm.submit(nothing) for _ in range(calls)]
        while not futures[-1].accepted:
            time.sleep(0.005)
        print("taken", flush=True)
        sys.stdin.readline()
        farm.shutdown(wait=False, cancel_futures=True)


def burn() -> None:
    """Use a processor."""
    while True:
        sum(range(10_000))


class Part:
    """One of these in a process of its own, and its lines."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", __spec__.name, *arguments]
        self.process = Popen(command, stdin=PIPE, stdout=PIPE, text=True)

    def say(self) -> None:
        """Let it go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        """Its next line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def ended(self) -> tuple[int, float]:
        """Of the neighbour: how many of its calls have ended, and when that was so."""
        self.say()
        count, at = self.hear().split()
        return int(count), float(at)

    def kill(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


def admit(connection: Path, name: str) -> str:
    """A client's connection file, once the broker knows its key."""
    file = connection.with_name(f"{name}.json")
    new_principal(connection, name, "client", file)
    while True:
        try:
            with zfarm.Executor(str(file)):
                return str(file)
        except FarmError:
            time.sleep(0.1)


def rate(client: Part, until: Any) -> float:
    """Calls per second that end until ``until`` returns."""
    before, began = client.ended()
    until()
    after, at = client.ended()
    return (after - before) / (at - began)


def measure(root: Path, calls: int, rounds: int) -> None:
    """Alone, beside one that burns, beside one that floods; again and again."""
    connection = root / "farm.json"
    broker = start_broker(connection, 0)
    command = [sys.executable, "-m", "zfarm", "worker", "--connection", str(connection)]
    worker = Popen([*command, "--slots", str(SLOTS), "--log-level", "error"])
    parts: list[Part] = []
    try:
        modest = Part("neighbour", admit(connection, "modest"))
        parts.append(modest)
        floods = [admit(connection, f"flood-{number}") for number in range(rounds)]
        while modest.ended()[0] < 10 * SLOTS:
            time.sleep(0.1)
        shares = []
        for file in floods:
            alone = rate(modest, lambda: time.sleep(PHASE_S))
            burner = Part("burn")
            parts.append(burner)
            beside = rate(modest, lambda: time.sleep(PHASE_S))
            burner.kill()
            flooder = Part("flood", file, str(calls))
            parts.append(flooder)
            flooder.hear()
            flooder.say()
            began = time.monotonic()
            flooded = rate(modest, flooder.hear)
            taken_s = time.monotonic() - began
            flooder.say()
            flooder.process.wait()
            shares.append(flooded / (beside / 2))
            print(
                f"alone {alone:5.1f}/s, beside a burnt processor {beside:5.1f}/s, beside the flood "
                f"{flooded:5.1f}/s: {shares[-1]:.0%} of its fair share; {calls} taken in {taken_s:.1f} s",
                flush=True,
            )
        print(f"on average {mean(shares):.0%} of its fair share")
    finally:
        for process in (*(part.process for part in parts), worker, broker):
            process.kill()
            process.wait()


def main() -> None:
    """The command line."""
    if sys.argv[1:2] == ["neighbour"]:
        neighbour(sys.argv[2])
    elif sys.argv[1:2] == ["flood"]:
        flood(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ["burn"]:
        burn()
    else:
        given = sys.argv[1:3]
        calls, rounds = [*given, *DEFAULTS[len(given) :]]
        with tempfile.TemporaryDirectory() as root:
            measure(Path(root), int(calls), int(rounds))


if __name__ == "__main__":
    main()
