"""The room that a journal has on its disk, and how it gives some back; it knows no record.

What is written is in the log first, and in the tables too once the log moves there (a checkpoint). The file
of the log keeps its size, and so does that of the tables when rows go: both are used again, and given back
to the disk only when that has little left.
"""

from __future__ import annotations

import os
from typing import Final

from zfarm.edge.vault import Vault

__all__ = ["Room"]

FREE_PAGES_KEPT: Final = 1024
"""Pages without content that stay in the file for the next tasks, as do a quarter of all."""
FREE_PAGES_PER_TURN: Final = 1024
"""Pages given back to the disk at once: some 10 ms."""
LOGS_KEPT: Final = 4
"""The log keeps the room of so many checkpoints: using that again is faster than asking for it."""
TO_OPEN: Final = 1 << 20
"""Bytes that the records of an opening need, and more than that."""
COMPACT_COPIES: Final = 2
"""What is in the tables is once more in the log, and once beside it, while they are made smaller."""


class Room:
    """How many bytes there are, for the one connection of this vault. Errors of SQLite pass through."""

    def __init__(self, vault: Vault, checkpoint_bytes: int) -> None:
        self._vault = vault
        self._db = vault.db
        self._log_max = LOGS_KEPT * checkpoint_bytes

    def _ask(self, pragma: str) -> int:
        (number,) = self._db.execute(f"PRAGMA {pragma}").fetchone()
        return int(number)

    def _pages(self, pragma: str) -> int:
        return self._ask(pragma) * self._ask("page_size")

    def free(self) -> int:
        """Bytes of the disk that we may have."""
        disk = os.statvfs(self._vault.path.parent)
        return disk.f_bavail * disk.f_frsize

    def left(self) -> int:
        """Those of them that the tables will not take when the log moves into them; below 0: it cannot."""
        size = os.stat(self._vault.path).st_size
        return self.free() - max(0, self._pages("page_count") - size)

    def log_bytes(self) -> int:
        """The size of the log."""
        try:
            return self._vault.wal.stat().st_size
        except FileNotFoundError:
            return 0

    def tables(self) -> tuple[int, int]:
        """Bytes of the tables, and of those the ones without content."""
        return self._pages("page_count"), self._pages("freelist_count")

    def spare(self) -> int:
        """Bytes that tidying can give back to the disk, in some calls."""
        return self.log_bytes() + self._pages("freelist_count")

    def tidy(self, scarce: bool) -> bool:
        """Move the log into the tables and give pages back that are not needed: with ``scarce`` all that
        there are, and the log's. False: the tables have no room to grow."""
        if self.left() < 0:
            return False  # they would take the last of it, and the log would keep its own
        if scarce or self.log_bytes() > self._log_max:
            self.empty_log()
        else:
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        free, pages = self._ask("freelist_count"), self._ask("page_count")
        if scarce and free:
            self._give_back(max(1, min(FREE_PAGES_PER_TURN, self.left() // (2 * self._ask("page_size")))))
            self.empty_log()
        elif free > FREE_PAGES_KEPT and free > pages // 4:
            self._give_back(FREE_PAGES_PER_TURN)
        return True

    def _give_back(self, pages: int) -> None:
        self._db.executescript(f"PRAGMA incremental_vacuum({pages})")  # execute would give back one page

    def empty_log(self) -> None:
        """Move the log into the tables, and give its room back to the disk."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def to_open(self) -> None:
        """See that an earlier life's log does not have the room that a new life's first records need.

        Raises:
            JournalError: there is not enough.
        """
        left = self.left()
        self._vault.needs = max(0, TO_OPEN - left)
        if left < 0:
            raise self._vault.no_space("cannot be opened")
        if self._vault.needs and self.log_bytes():
            self.empty_log()

    def to_compact(self) -> None:
        """Note what making the tables smaller may need."""
        size, free = self.tables()
        self._vault.needs = max(0, COMPACT_COPIES * (size - free) - self.free())
