"""What other tasks notice of a stream: their round trips without and with one beside them, turn about.

python -m benchmarks.micro.streams [items a second; 0: as fast as it goes] [seconds] [repetitions] [tcp]

The tasks are submitted by the program that reads the stream; with "tcp" (a broker and a worker with CURVE)
also by another program. "submit to start" is the part of a round trip that the farm alone answers for: the
way back into a program that is busy with reading is not in it. CPU seconds are told per thread of the
program and the farm, and per process of the tasks, for each million items.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import zfarm

ELSEWHERE = """
import sys, time, zfarm
from benchmarks.micro.streams import round_trips
with zfarm.Executor(sys.argv[1]) as farm:
    round_trips(farm, 0.3)
    print(flush=True)
    for line in sys.stdin:
        print(*(f"{rtt} {start}" for rtt, start in round_trips(farm, float(line))), sep=" ", flush=True)
"""
TICKS = os.sysconf("SC_CLK_TCK")


def emit_items(rate: int, seconds: float) -> int:
    """Emit small items, in step with the clock every hundred of them; how many."""
    began = now = time.perf_counter()
    count = 0
    while now < began + seconds:
        for _ in range(100):
            zfarm.emit(count)
            count += 1
        now = time.perf_counter()
        if rate and (early_s := began + count / rate - now) > 0:
            time.sleep(early_s)
            now = time.perf_counter()
    return count


def when() -> float:
    """When it ran."""
    return time.perf_counter()


def round_trips(farm: zfarm.Executor, seconds: float) -> list[tuple[float, float]]:
    """Milliseconds from the submit to the result, and to the start, of small tasks one after the other."""
    took = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        started = farm.submit(when).result()
        took.append(((time.perf_counter() - began) * 1e3, (started - began) * 1e3))
        time.sleep(0.002)
    return took


def cpu_of(pids: dict[int, str]) -> Counter[str]:
    """CPU seconds by thread of these processes."""
    used: Counter[str] = Counter()
    ours = {thread.native_id: thread.name for thread in threading.enumerate()}
    for pid, what in pids.items():
        for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
            name, _, rest = thread.read_text().partition(") ")
            fields = rest.split()
            number, _, command = name.partition(" (")
            label = ours.get(int(number)) or ("main" if int(number) == pid else command)
            used[f"{what}/{label}"] += (int(fields[11]) + int(fields[12])) / TICKS
    return used


def descendants(pid: int) -> list[int]:
    """The processes that it has started, and theirs."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *descendants(child)]
    return found


def read(stream: zfarm.Stream[int], counted: list[int]) -> None:
    """Read all, and see that none is missing."""
    expected = 0
    for item in stream:
        assert item.value == expected
        expected += 1
    counted.append(expected)


class Figures:
    """Quantiles of many runs."""

    def __init__(self) -> None:
        self.rtts: dict[str, list[float]] = {}

    def add(self, what: str, took: list[tuple[float, float]]) -> None:
        for kind, which in (("round trip", 0), ("submit to start", 1)):
            self.rtts.setdefault(f"{what} {kind}", []).extend(pair[which] for pair in took)

    def show(self) -> None:
        for what in [name for name in self.rtts if name.startswith("idle ")]:
            idle = self.rtts[what]
            busy = self.rtts[what.replace("idle ", "busy ", 1)]
            words = []
            for percent in (50, 90, 99):
                a, b = (statistics.quantiles(each, n=100)[percent - 1] for each in (idle, busy))
                words.append(f"p{percent} {a:.2f} -> {b:.2f} ms ({b / a:.2f} x)")
            print(f"{what.removeprefix('idle ')}: {', '.join(words)}")


class Elsewhere:
    """Another program with tasks of its own."""

    def __init__(self, connection: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", ELSEWHERE, str(connection)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._stdout.readline()

    def ask(self, seconds: float) -> None:
        self._stdin.write(f"{seconds}\n")
        self._stdin.flush()

    def answer(self) -> list[tuple[float, float]]:
        words = [float(word) for word in self._stdout.readline().split()]
        return list(zip(words[::2], words[1::2], strict=True))

    def close(self) -> None:
        self._stdin.close()
        self._process.wait()


def measure(farm: zfarm.Executor, elsewhere: Elsewhere | None, rate: int, seconds: float, times: int) -> None:
    """Turn about without and with a stream, and print."""
    figures, cpu, items, rates = Figures(), Counter[str](), 0, []
    round_trips(farm, 0.3)
    for _ in range(times):
        for busy in (False, True):
            state = "busy" if busy else "idle"
            counted: list[int] = []
            if busy:
                stream = farm.submit(emit_items, rate, seconds + 0.4).stream()
                reader = threading.Thread(target=read, args=(stream, counted), name="reader")
                reader.start()
                time.sleep(0.2)
            pids = {os.getpid(): "program"} | {pid: str(pid) for pid in descendants(os.getpid())}
            before = cpu_of(pids)
            figures.add(f"{state} same program", round_trips(farm, seconds / (2 if elsewhere else 1)))
            if elsewhere is not None:
                elsewhere.ask(seconds / 2)
                figures.add(f"{state} another program", elsewhere.answer())
            if busy:
                used = cpu_of(pids)
                reader.join()
                cpu.update({what: used[what] - before[what] for what in used})
                items += counted[0]
                rates.append(counted[0] / (seconds + 0.4))
    print(f"{statistics.median(rates):,.0f} items/s (from {min(rates):,.0f}), {items:,} in order, none lost")
    figures.show()
    share = seconds / (seconds + 0.4) * items / 1e6
    print(
        "CPU s per million items:",
        ", ".join(f"{k} {v / share:.2f}" for k, v in cpu.most_common(9) if v > 0.01),
    )


def main() -> None:
    """Measure an embedded farm, or one over TCP."""
    rate, seconds, times = (
        kind(sys.argv[n]) if len(sys.argv) > n else d
        for n, kind, d in ((1, int, 300_000), (2, float, 3.0), (3, int, 4))
    )
    if "tcp" not in sys.argv:
        with zfarm.Executor(max_workers=2) as farm:
            measure(farm, None, int(rate), float(seconds), int(times))
        return
    with tempfile.TemporaryDirectory() as top:
        keys = Path(top) / "farm.json"
        command = [sys.executable, "-m", "zfarm"]
        broker = ["broker", "--bind", "tcp://127.0.0.1:0", "--connection", str(keys), "--journal", "none"]
        commands = [subprocess.Popen([*command, *broker], stderr=subprocess.DEVNULL)]
        try:
            while not keys.exists():
                time.sleep(0.05)
            worker = ["worker", "--connection", str(keys), "--slots", "3", "--log-level", "error"]
            commands.append(subprocess.Popen([*command, *worker]))
            with zfarm.Executor(str(keys)) as farm:
                farm.submit(when).result()
                elsewhere = Elsewhere(keys)
                measure(farm, elsewhere, int(rate), float(seconds), int(times))
                elsewhere.close()
        finally:
            for process in commands:
                process.terminate()
                process.wait()


if __name__ == "__main__":
    main()
