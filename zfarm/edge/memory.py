"""Watches what children have in use while a call with a memory limit runs in them; it decides nothing.

How soon it looks again depends on how much may still be added: no process fills memory faster than a few
gigabytes a second. A look never takes more than a twentieth of the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from typing import Final, Protocol

from zfarm.edge.processes import used_bytes
from zfarm.messages import Action, Left

__all__ = ["MemoryWatch"]

FILLED_PER_S: Final = 4e9
"""Bytes that a process can fill in a second: what the kernel needs to clear fresh pages bounds it."""
PAUSE_MIN_S: Final = 0.02
PAUSE_MAX_S: Final = 0.25
SHARE: Final = 20


class Watched(Protocol):
    """The children (zfarm.edge.children.Children)."""

    def pid(self, child: int) -> int:
        """Of a child; 0: it has none (any more)."""

    def last_words(self, child: int) -> str:
        """The last lines that a child has written to its stderr so far."""


class MemoryWatch:
    """All children of one worker that have a limit now. A machine of the worker's loop."""

    def __init__(
        self,
        children: Watched,
        overshot: Callable[[int, Left, float], None],
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[int, int], int] = used_bytes,
    ) -> None:
        self.deadline = inf
        self._children = children
        self._overshot = overshot
        self._clock = clock
        self._used = used
        self._limits: dict[int, int] = {}
        self._due: dict[int, float] = {}

    def limit(self, child: int, most: int) -> None:
        """Watch a child that may have ``most`` bytes in use from now on; 0: it may have what it likes."""
        if most:
            self._limits[child] = most
            self._due[child] = self.deadline = 0.0
        else:
            self._forget(child)

    def advance(self, now: float) -> list[Action]:
        """Look at those whose time has come."""
        if now < self.deadline:
            return []
        for child in [child for child, due in self._due.items() if due <= now]:
            self._look(child, now)
        self.deadline = min(self._due.values(), default=inf)
        return []

    def _look(self, child: int, now: float) -> None:
        most = self._limits[child]
        pid = self._children.pid(child)
        began = self._clock()
        try:
            used = self._used(pid, most) if pid else 0
        except OSError:  # it will be looked at again
            self._due[child] = now + PAUSE_MAX_S
            return
        if not used:
            self._forget(child)
        elif used > most:
            self._forget(child)
            self._overshot(child, Left(self._children.last_words(child), used), now)
        else:
            spent = self._clock() - began
            pause = min(max((most - used) / FILLED_PER_S, PAUSE_MIN_S), PAUSE_MAX_S)
            self._due[child] = now + max(pause, SHARE * spent)

    def _forget(self, child: int) -> None:
        self._limits.pop(child, None)
        self._due.pop(child, None)
