"""The live dashboard over a farm that is made up: run as a program on a terminal by test_dashboard.py."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from tests.face import sample
from zfarm.edge.loop import Loop
from zfarm.errors import FarmError
from zfarm.face.dashboard import Dashboard
from zfarm.messages import FarmNote


class FakeSource:
    """Publishes a note ten times a second; falls silent for a while when ``silent`` seconds have passed."""

    title = "tcp://127.0.0.1:5555"
    trouble: FarmError | None = None

    def __init__(self, silent_from_s: float, silent_to_s: float) -> None:
        self.loop = Loop()
        self.number = 1
        self.started = time.monotonic()
        self.silence = (silent_from_s, silent_to_s)

    def follow(self, on_heard: Callable[[Any], None]) -> None:
        self.heard = on_heard
        self.loop.add_timer(self.publish, 0.1)

    def reopen(self) -> None:
        self.ask()

    def quiet(self) -> bool:
        return self.silence[0] < time.monotonic() - self.started < self.silence[1]

    def publish(self) -> None:
        self.number += 1
        if not self.quiet():
            farm = sample.farm(self.number, 100 * self.number)
            self.heard(FarmNote(farm, sample.running(3), sample.QUEUE, sample.clients()))

    def ask(self) -> None:
        if not self.quiet():
            first = sample.picture()
            self.heard(
                type(first)(
                    sample.farm(self.number, 0), first.workers, first.clients, first.running, first.queue
                )
            )


if __name__ == "__main__":
    silent_from_s, silent_to_s = map(float, sys.argv[1:])
    print("before", flush=True)
    Dashboard(FakeSource(silent_from_s, silent_to_s), Console()).run()
    print("after", flush=True)
