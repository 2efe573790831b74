"""What a worker knows of a lease that has needs, and of a blob that is missing; what is done of it decides
zfarm.core.lacking.
"""

from __future__ import annotations

from typing import TypeAlias

from zfarm.messages import Need

__all__ = ["BUILDING", "BUSY", "FETCHING", "PARTS", "QUEUED", "SEEKING", "Call", "Errand", "Waiter", "plain"]

SEEKING, BUSY, QUEUED, FETCHING, PARTS, BUILDING = range(6)
"""How far an errand is: the store is asked; another worker is at it; it waits for room in the window; it is
fetched; a directory waits for its files; it is made."""

Waiter: TypeAlias = int | Need
"""A lease, or the directory that a file belongs to."""


def plain(need: Need) -> Need:
    """The same content, wherever it comes from."""
    return Need(need.digest, need.size, need.tree) if need.archived or need.near else need


class Call:
    """One lease with needs."""

    __slots__ = ("archived", "missing", "needs", "owner", "taken", "told")

    def __init__(self, owner: str, needs: tuple[Need, ...]) -> None:
        self.owner = owner
        self.archived = {plain(need) for need in needs if need.archived}
        """What the archive gives."""
        self.needs = tuple(dict.fromkeys(map(plain, needs)))
        self.missing: set[Need] = set()
        self.taken = 0  # bytes that have come in its name
        self.told = False  # its client was asked for something


class Errand:
    """One blob that is missing."""

    __slots__ = (
        "again", "archived", "at", "far", "lease", "moved_at", "near", "need", "number", "parts", "patience",
        "sought", "state", "stored", "tried", "upto", "waiters",
    )  # fmt: skip

    def __init__(self, number: int, need: Need) -> None:
        self.number = number
        self.need = need
        self.waiters: dict[Waiter, None] = {}
        self.state = SEEKING
        self.stored = 0  # written
        self.at = 0  # has come
        self.upto = 0  # was asked for
        self.lease = 0  # in whose name
        self.archived = False  # of the archive
        self.again = False
        self.near = False  # it is being taken from where it lies on this host
        self.far = False  # that was of no use
        self.tried = False  # it came damaged once
        self.sought = False  # the store has said what it has of it
        self.moved_at = 0.0
        self.patience = 1
        self.parts: dict[Need, None] = {}  # in an order that is the same in each run
