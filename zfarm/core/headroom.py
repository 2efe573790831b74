"""How much new work the disk of the journal has room for, as its owner saw it last; it knows no disk.

Between two looks at the disk a client can submit more than there is, so the machine keeps an account: what
it accepts is taken off what was seen. What is in a table was in the log before, and takes its room twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Final

from zfarm.messages import Accepted, Blob, Payload, Record
from zfarm.settings import Settings

__all__ = ["PAGE", "RECORD_BYTES", "Headroom", "price"]

PAGE: Final = 4096
"""Bytes that the database writes at once: a payload leaves at most one of its pages partly empty."""
RECORD_BYTES: Final = 512
"""What a record costs beside its payload, about."""
COPIES: Final = 2
"""The log has it until the tables have it, too."""


def price(calls: int, size: int) -> int:
    """Bytes that the disk needs at most for so many records with payloads of together ``size`` bytes, until
    the log is used again. Payloads with files of their own need half of that."""
    return COPIES * (size + min(size, PAGE * calls) + RECORD_BYTES * calls)


class Headroom:
    """An account of bytes for new work; without limit until somebody has looked."""

    def __init__(self, limits: Settings) -> None:
        self._file_from = limits.journal_file_from_bytes
        self._floor = limits.journal_floor_bytes
        self.spare = limits.journal_floor_bytes // 16
        """Bytes that only records may use which give room back, or let somebody give some: without them a
        disk full of outcomes would stay so."""
        self.left: float = inf
        """Bytes that may still be accepted until the next look."""
        self.text = ""
        """Why there is no more, for people."""

    def see(self, left: float, text: str) -> None:
        """The disk has ``left`` bytes for new work, and ``text`` is to be said when they are used up."""
        self.left, self.text = left, text

    @property
    def dry(self) -> bool:
        """There seems to be no room even for a record of who speaks for a client."""
        return self.left + self._floor < self.spare / 2 + PAGE + RECORD_BYTES

    def price(self, calls: int, size: int, payload: Iterable[Blob]) -> int:
        """What all of this costs: these payloads of together ``size`` bytes, with so many calls."""
        if size < self._file_from:
            return price(calls, size)
        sizes = [len(blob) for blob in payload]
        large = sum(one for one in sizes if one >= self._file_from)
        return price(calls, size - large) + large

    def price_of(self, record: Record, payload: Payload) -> int:
        """What one record costs; a row that is changed takes its whole page along. The function and setup of
        a call, which most often are there, are not counted."""
        if not payload:
            return PAGE + RECORD_BYTES
        cost = self.price(1, len(payload[-1]), payload[-1:])
        return cost if isinstance(record, Accepted) else cost + PAGE

    def spend(self, size: int) -> None:
        """Book functions and setups, which are there for many calls, whether there is room or not."""
        if size:
            self.left -= price(1, size)

    def take(self, cost: int) -> bool:
        """Book this if there is room for it."""
        if cost > self.left:
            return False
        self.left -= cost
        return True
