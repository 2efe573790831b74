"""What the handles of a client name in the stores of workers, and what those have been told of it; it knows
neither handle nor file.

A store keeps what it was told that handles name, for as long as the client is heard of (``pins_kept_s``):
so whoever dies, and whatever is lost, nothing is kept for ever. To each store one Pin at a time is on its
way; it is said again until it is answered, now and then one says nothing but that the client is there, and a
store that has nothing of it any more is told everything anew.
"""

from __future__ import annotations

from itertools import islice
from math import inf
from typing import Final, TypeAlias

from zfarm.core.machine import NOW
from zfarm.messages import BROKER, Action, Keep, Need, Pin, Pinned, Send
from zfarm.settings import Settings

__all__ = ["Pinning"]

PATIENCE_MAX: Final = 4
"""Beats between two times that the same is said, at most."""
RENEWALS: Final = 4
"""So often a store hears of its client within the time for which it keeps what that has."""

Key: TypeAlias = tuple[bytes, int]
"""Digest and size."""


class Place:
    """The store of one worker."""

    __slots__ = ("drops", "fresh", "heard_at", "held", "keeps", "patience", "said", "said_at")

    def __init__(self) -> None:
        self.held: dict[Key, int] = {}  # how many handles name it
        self.keeps: list[Keep] = []  # to be said
        self.drops: dict[Key, None] = {}
        self.fresh = True
        self.said: Pin | None = None  # on its way
        self.said_at = -inf
        self.heard_at: float | None = None  # None: at the next turn
        self.patience = 1


class Pinning:
    """All handles of one client."""

    def __init__(self, limits: Settings) -> None:
        self.deadline = inf
        self._limits = limits
        self._places: dict[str, Place] = {}
        self._number = 0

    @property
    def busy(self) -> bool:
        """A store has been told of a handle, or is to be told of one."""
        return bool(self._places)

    def hold(self, at: str, digest: bytes, size: int, birth: bytes) -> None:
        """A handle names this from now on, which is in the store of worker ``at``."""
        place = self._places.get(at)
        if place is None:
            place = self._places[at] = Place()
        key = digest, size
        place.held[key] = place.held.get(key, 0) + 1
        place.keeps.append(Keep(digest, size, birth))
        place.drops.pop(key, None)
        self.deadline = NOW

    def let_go(self, at: str, digest: bytes, size: int) -> None:
        """That handle is gone, and whatever calls were given it have ended."""
        place = self._places[at]
        key = digest, size
        place.held[key] -= 1
        if not place.held[key]:
            del place.held[key]
            place.drops[key] = None
            self.deadline = NOW

    def pinned(self, message: Pinned, now: float) -> None:
        """A worker answers."""
        place = self._places.get(message.at)
        if place is None or place.said is None or place.said.number != message.number:
            return
        said, place.said = place.said, None
        place.heard_at = now
        place.patience = 1
        if not message.known:  # births that were in vain are said again, lest they last for their time
            place.fresh = True
            named = [Keep(digest, size) for digest, size in place.held]
            place.keeps = [*said.keeps, *place.keeps, *named]
            place.drops.update(((n.digest, n.size), None) for n in said.drops)
            place.drops = {key: None for key in place.drops if key not in place.held}
        elif not (place.held or place.keeps or place.drops):
            del self._places[message.at]

    def welcome(self) -> None:
        """What was on the old link may be lost."""
        for place in self._places.values():
            place.said_at = -inf
            place.patience = 1
            self.deadline = NOW

    def advance(self, now: float, actions: list[Action]) -> None:
        """Say what is to be said to each store; there is a link."""
        kept = self._limits.pins_kept_s
        self.deadline = inf
        for at, place in list(self._places.items()):
            if place.heard_at is None:
                place.heard_at = now
            if not place.held and now >= place.heard_at + kept:
                del self._places[at]  # nobody is there, and what was kept there is not any more
                continue
            if place.said is None and (place.keeps or place.drops or now >= place.heard_at + kept / RENEWALS):
                place.said = self._next(at, place)
                place.said_at = -inf
            if place.said is None:
                self.deadline = min(self.deadline, place.heard_at + kept / RENEWALS)
                continue
            if now >= place.said_at + place.patience * self._limits.beat_interval_s:
                again = place.said_at > -inf
                place.patience = min(2 * place.patience, PATIENCE_MAX) if again else 1
                place.said_at = now
                actions.append(Send(BROKER, place.said))
            due = place.said_at + place.patience * self._limits.beat_interval_s
            self.deadline = min(self.deadline, due)

    def _next(self, at: str, place: Place) -> Pin:
        """What there is to be said. A store notes what is kept before it drops anything."""
        most = self._limits.batch_calls_max
        self._number += 1
        keeps, place.keeps = place.keeps[:most], place.keeps[most:]
        gone = [] if place.keeps else list(islice(place.drops, most))
        for key in gone:
            del place.drops[key]
        fresh, place.fresh = place.fresh, False
        return Pin(at, self._number, keeps, [Need(digest, size) for digest, size in gone], fresh)

    def check(self) -> None:
        """What is named is not to be dropped."""
        for place in self._places.values():
            assert not place.held.keys() & place.drops.keys(), "a store would drop what a handle names"
            assert all(place.held.values())
