"""The one of many received pieces that is held so that memory for the next stays; it knows no message."""

from __future__ import annotations

from typing import Any, Final

from zfarm.edge.segments import address_of

__all__ = ["Highest"]

HELD_FROM: Final = 256 * 1024
"""Smaller pieces lie elsewhere, or are not worth it."""


class Highest:
    """Holds, of all large pieces that were received, the one that lies highest in memory.

    The C library gives back at once what is free at the end of a heap, and the next piece costs its fresh
    pages again: 80 to 120 for each megabyte. Below a piece that is held, nothing is given back, which is as
    much as was ever needed at a time. So the user's process keeps that as long as pieces come, and the
    library is told nothing that would last.
    """

    def __init__(self) -> None:
        self._address = 0
        self._held: memoryview | None = None

    def note(self, piece: Any) -> None:
        """This has come: in memory of the library if it is a view."""
        if isinstance(piece, memoryview) and piece.nbytes >= HELD_FROM:
            with address_of(piece) as address:
                if address > self._address:
                    self._address, self._held = address, piece
