"""What a client keeps of one open task, to be able to ask for it again; it decides nothing."""

from __future__ import annotations

from typing import Any

import msgspec

from zfarm.messages import Blob, Call, Demand, Need

__all__ = ["EARLIER", "Asked"]

EARLIER = -1
"""In place of a Submit's number: it may or may not have arrived, so whatever the broker says of it holds."""


class Asked(msgspec.Struct, gc=False, eq=False):
    """One open task: all that is needed to ask for it again. Untracked by the garbage collector: there may be
    millions, and they refer to nothing that refers back but their token, which the client's ``_tasks`` lets
    go."""

    number: int
    token: Any
    name: str
    function: bytes
    setup: bytes
    body: Blob
    items: int
    max_attempts: int
    timeout_us: int = 0
    priority: int = 0
    memory_bytes: int = 0
    demand: Demand | None = None
    needs: tuple[Need, ...] = ()
    sent: int = 0  # the number of its Submit; EARLIER: one from before the last Welcome; 0: none yet
    cancelling: bool = False
    books: int = 0  # the books of the broker that it was first sent to, as its Welcome named them

    @property
    def counts_books(self) -> bool:
        """It matters whether it may have begun under an earlier broker."""
        return self.max_attempts == 1 or (self.demand is not None and self.demand.exclusive)

    def call(self, function: int, setup: int) -> Call:
        """What a Submit says of it."""
        return Call(
            self.number, function, setup, self.items, self.max_attempts, self.timeout_us, self.priority,
            False, self.memory_bytes,
        )  # fmt: skip
