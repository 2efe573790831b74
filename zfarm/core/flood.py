"""How much of one kind a log is told: the first few lines as they are, the others by their number, later."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

__all__ = ["Flood"]

LINES_MAX: Final = 10
"""Lines of one kind in a period."""
PERIOD_S: Final = 10.0


class Flood:
    """Counts what is said of many, by level and kind."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, str], int] = {}
        self._until = 0.0

    def holds_back(self, level: str, kind: str) -> bool:
        """Whether one more of this kind is too much lately; ``kind`` is what is said of a number of them."""
        said = self._said[level, kind] = self._said.get((level, kind), 0) + 1
        return said > LINES_MAX

    def rest(self, now: float) -> Iterator[tuple[str, str]]:
        """When a period is over: level and text about those that were held back."""
        if now < self._until:
            return
        self._until = now + PERIOD_S
        said, self._said = self._said, {}
        for (level, kind), count in said.items():
            if count > LINES_MAX:
                yield level, f"{count - LINES_MAX} more {kind}"
