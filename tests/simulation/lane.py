"""A way on which things arrive in the order in which they were sent, whatever the clock's tie-breaks say."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.farm import Farm


class Lane:
    """One direction of a pipe between two processes of a host: it loses nothing."""

    __slots__ = ("_farm", "_last", "_queue")

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self._last = 0.0
        self._queue: deque[Callable[[], object]] = deque()

    def push(self, delay: float, what: Callable[[], object]) -> None:
        """Do ``what`` after ``delay`` seconds, and not before what was pushed earlier."""
        self._last = max(self._last, self._farm.now + delay)
        self._queue.append(what)
        self._farm.at(self._last, self._pop)

    def _pop(self) -> None:
        self._queue.popleft()()
