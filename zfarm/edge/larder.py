"""What a child keeps for its next calls, and gives back when none has come for a while: memory that calls
have freed, and mappings of their arguments and results; it runs no call."""

from __future__ import annotations

from typing import Final

from zfarm.edge.heap import Heap
from zfarm.edge.moorings import Berths, Moorings

__all__ = ["LONG_S", "Larder"]

LONG_S: Final = 0.01
"""Calls from that time on may leave so much that it is worth to look."""


class Larder:
    """What one child keeps."""

    def __init__(self) -> None:
        self.heap = Heap()
        self.moorings = Moorings()
        self.berths = Berths()
        self.full = False
        """There may be something to keep, or to give back."""

    def stir(self) -> None:
        """Such a call has been answered."""
        self.heap.stir()
        self.moorings.settle()

    def clear(self) -> None:
        """Give all back: no call has come."""
        self.full = False
        self.moorings.clear()
        self.berths.clear()
        self.heap.cool()

    def limit(self, strict: bool) -> None:
        """``strict``: the next call has a limit of its own, and nothing is kept that would count as its
        memory."""
        if strict:
            self.moorings.clear()
            self.berths.clear()
        self.heap.limit(strict)
