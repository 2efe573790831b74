"""Real brokers, workers and commands in processes of their own, for tests that look from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from zfarm.face.status import snapshot
from zfarm.monitor import Monitor, find_farm

ROOT = Path(__file__).parents[2]
WAIT_S = 30.0
T = TypeVar("T")


def wait_until(look: Callable[[], T], what: str, within_s: float = WAIT_S) -> T:
    """What ``look`` returns as soon as that is true."""
    deadline = time.monotonic() + within_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what}: not within {within_s} s"
        time.sleep(0.02)


class Command:
    """A command of zfarm that runs, with all that it has written in files."""

    def __init__(
        self,
        directory: Path,
        arguments: list[str],
        program: list[str] | None = None,
        variables: dict[str, str] | None = None,
        before: Sequence[str] = (),
    ) -> None:
        """Start it; ``before`` is a command that runs other commands, such as ``nice``."""
        number = len(list(directory.glob("*.err")))
        self.name = " ".join(arguments)
        self.out = directory / f"{number}.out"
        self.err = directory / f"{number}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [*before, sys.executable, *(program or ["-m", "zfarm"]), *arguments],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=ROOT,
                env={**environment(directory), **(variables or {})},
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def said(self) -> str:
        return self.err.read_text()

    def wait(self, within_s: float = WAIT_S) -> int:
        """The exit code."""
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"zfarm {self.name} does not end: {self.said}") from None

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def environment(directory: Path) -> dict[str, str]:
    """That of a user whose files all lie in ``directory``, with a farm that notices a loss in two seconds."""
    ours = {k: value for k, value in os.environ.items() if not k.startswith("ZFARM_") or "TEST" in k}
    return {
        **ours,
        "COLUMNS": "100",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(directory / "cache"),
        "XDG_STATE_HOME": str(directory / "state"),
        "ZFARM_BEAT_INTERVAL_S": "0.4",
        "ZFARM_WORKER_LOST_AFTER_S": "2",
    }


class TcpFarm:
    """A broker on TCP with CURVE and as many workers as wanted."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.connection = directory / "farm.json"
        self.commands: list[Command] = []
        self.variables: dict[str, str] = {}  # of the environment of what is started from now on
        self.before: Sequence[str] = ()  # see Command; also for what is started from now on

    def start(self, *arguments: str, program: list[str] | None = None) -> Command:
        command = Command(self.directory, list(arguments), program, self.variables, self.before)
        self.commands.append(command)
        return command

    def start_broker(self, *arguments: str, port: int = 0, host: str = "127.0.0.1") -> Command:
        """A broker that listens."""
        broker = self.start(
            "broker", "--bind", f"tcp://{host}:{port}", "--connection", str(self.connection), *arguments
        )
        wait_until(lambda: broker.process.poll() is not None or "program" in broker.out.read_text(), "broker")
        assert broker.process.poll() is None, broker.said
        return broker

    def start_worker(self, slots: int = 2, *arguments: str) -> Command:
        return self.start("worker", "--slots", str(slots), "--connection", str(self.connection), *arguments)

    @property
    def port(self) -> int:
        return self.door("client")

    def door(self, role: str) -> int:
        """The port of a role's door."""
        return int(json.loads(self.connection.read_text())["addresses"][role][0].rpartition(":")[2])

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "zfarm", *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, cwd=ROOT,
            env={**environment(self.directory), **variables}, check=False,
        )  # fmt: skip

    def status(self) -> dict[str, Any]:
        """What `zfarm status --json` would say, without the cost of another process."""
        with Monitor(lambda: find_farm(None, self.connection)) as monitor:
            return snapshot(monitor.look(), monitor.address)

    def wait_slots(self, slots: int) -> dict[str, Any]:
        """The status once the farm has ``slots`` slots."""
        return (
            wait_until(
                lambda: (status := self.status())["slots"]["total"] == slots and status, f"{slots} slots"
            )
            or {}
        )

    def close(self) -> None:
        for command in self.commands:
            command.close()


@contextmanager
def tcp_farm(directory: Path) -> Iterator[TcpFarm]:
    farm = TcpFarm(directory)
    try:
        yield farm
    finally:
        farm.close()
