"""How large the next batch of a map should be: arithmetic over what was measured, and nothing else."""

from __future__ import annotations

from math import ceil
from typing import Final

from zfarm.settings import Settings, settings

__all__ = ["BATCHES_PER_SLOT", "Pace"]

BATCHES_PER_SLOT: Final = 2
"""Batches under way per slot: one runs while the next one waits beside it."""
TAIL_SHARE: Final = 4
"""No batch is made shorter than this part of the aimed time only to let all slots finish together."""


class Pace:
    """What one map has measured so far. Recent batches count more, and large ones count by their size."""

    def __init__(self, fixed: int = 0, limits: Settings = settings) -> None:
        """Begin; ``fixed`` is how large every batch shall be, 0: as measured."""
        self._fixed = fixed
        self._limits = limits
        self._largest = 0
        self._items = self._us = self._bytes = 0.0

    def measured(self, items: int, run_us: int, size: int) -> None:
        """A batch of so many items took so long; its arguments and results together were ``size`` bytes."""
        self._largest = max(self._largest, items)
        self._items = self._items / 2 + items
        self._us = self._us / 2 + max(run_us, 1)
        self._bytes = self._bytes / 2 + size

    def size(self, left: int, slots: int) -> int:
        """How many of the ``left`` items go into the next batch, on a farm of so many slots.

        At first one; then as many as run for the aimed time, but not many times more than were ever measured,
        nor more bytes than fit into one message, nor more than leaves work for the other slots.
        """
        if self._fixed:
            return self._fixed
        if not self._largest:
            return 1
        limits = self._limits
        aimed = limits.batch_us * self._items / self._us
        share = max(ceil(left / (BATCHES_PER_SLOT * slots)), aimed / TAIL_SHARE)
        fit = limits.batch_bytes_max * self._items / (self._bytes + 1)
        return max(1, int(min(aimed, self._largest * limits.batch_growth, share, fit)))
