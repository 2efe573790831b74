"""Results that simulated calls keep at their workers: what stores know of handles, and what must hold.

Nothing goes that a living handle names, and what no handle names is not kept for ever.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import TYPE_CHECKING

from zfarm import messages as m

if TYPE_CHECKING:
    from tests.simulation.farm import Farm
    from tests.simulation.faults import Mix
    from tests.simulation.people import Task
    from tests.simulation.processes import ClientProcess
    from tests.simulation.shelves import Shelf, Store

SIZE = 30
SHORT_S = 3.0
"""For so long a client may well be silent though it lives."""


def let_keep(mix: Mix) -> None:
    """In some farms calls keep their results where they are. The dice are of their own here, too."""
    rng = Random(f"kept {mix.seed}")
    mix.keep_share = rng.choice((0.0, 0.0, 0.5, 1.0))
    if mix.keep_share:
        mix.settings = dataclasses.replace(mix.settings, pins_kept_s=rng.choice((SHORT_S, 60.0, 120.0)))
        if mix.calm:
            mix.leave_share = rng.choice((0.0, 0.5))


@dataclass(slots=True, eq=False)
class Named:
    """What one store knows of the handles of one client."""

    heard_at: float
    last: int = 0
    names: set[m.Need] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Kept:
    """One kept result: what it is, where, what it was called at birth, and when that was."""

    need: m.Need
    at: str
    birth: bytes
    shelf: Shelf
    born_at: float
    lost: bool = False
    """Its client was silent for too long."""


@dataclass(slots=True, eq=False)
class Pins:
    """What one store keeps for handles."""

    births: dict[bytes, tuple[m.Need, float]] = field(default_factory=dict)
    clients: dict[str, Named] = field(default_factory=dict)
    forgot_at: float = -inf
    ended_at: dict[str, float] = field(default_factory=dict)
    """When it was told of clients that they are gone; they may have been given up, and live."""

    def lose_some(self, farm: Farm) -> None:
        """The host has lost its power, and what was not synced."""
        if farm.mix.settings.pins_kept_s == SHORT_S and farm.chaos and farm.rng.random() < 0.5:
            self.clients.clear()
            self.forgot_at = farm.now

    def pinned(self, now: float, kept_s: float) -> set[m.Need]:
        """What must not go."""
        found = {need for need, born_at in self.births.values() if now <= born_at + kept_s}
        for named in self.clients.values():
            if now <= named.heard_at + kept_s:
                found |= named.names
        return found

    def follow(self, pin: m.Pin, now: float, kept_s: float, whole: set[m.Need]) -> bool | None:
        """As the true store does it: whether it knew of that client; None: there is nothing to say."""
        if pin.over:
            self.clients.pop(pin.owner, None)
            self.ended_at[pin.owner] = now
            return None
        named = self.clients.get(pin.owner)
        if named is not None and now > named.heard_at + kept_s:
            del self.clients[pin.owner]
            named = None
        if named is None and not pin.fresh:
            return False
        if named is None:
            named = self.clients[pin.owner] = Named(now)
        named.heard_at = now
        if pin.number <= named.last:
            return True
        named.last = pin.number
        if pin.fresh:
            named.names.clear()
        for keep in pin.keeps:
            need = m.Need(keep.digest, keep.size)
            if need in whole:
                named.names.add(need)
            self.births.pop(keep.birth, None)
        named.names.difference_update(pin.drops)
        return True


def outcome_of(shelf: Shelf, task: Task) -> tuple[int, bytes]:
    """A call has come to its end. If its result stays, the blob says which it is; what is equal is one."""
    kind, blob = task.outcome_of_run()
    if task.gives and not task.keep:
        return kind, blob + b"@" + task.gives
    if not task.keep or kind != m.VALUE:
        return kind, blob
    from tests.simulation.shelves import digest

    farm, store = shelf.farm, shelf.store
    need = m.Need(digest(b"kept %d" % (task.token % 5)), SIZE)
    kept = Kept(need, shelf.place[1], b"%d" % len(farm.kept), shelf, farm.now)
    store.pins.births[kept.birth] = need, farm.now
    store.whole.add(need)
    farm.kept.append(kept)
    shelf.evict()
    return kind, blob + b"@%d" % (len(farm.kept) - 1)


class Handles:
    """The handles that people have, as an onlooker sees them."""

    farm: Farm

    def __init__(self) -> None:
        super().__init__()
        self.handles: dict[ClientProcess, list[Kept]] = {}

    def is_kept(self, client: ClientProcess, blob: m.Blob) -> None:
        """A client has a kept result: its handle lives for a while."""
        _, _, number = bytes(blob).rstrip().partition(b"@")
        if not number:
            return
        farm, kept = self.farm, self.farm.kept[int(number)]
        self.handles.setdefault(client, []).append(kept)
        client.machine.hold(kept.at, kept.need.digest, kept.need.size, kept.birth)
        lives_s = farm.rng.choice((0.01, 1.0, 1.0, 3 * farm.mix.settings.pins_kept_s)) * farm.rng.random()
        farm.after(lives_s, lambda: client.hand("let_go", kept))
        for part in (0.4, 0.98):
            farm.after(lives_s * part, kept.shelf.evict)
        farm.plans_until = max(farm.plans_until, farm.now + lives_s)
        farm.story.probe("a result is kept")

    def lets_go(self, client: ClientProcess, kept: Kept) -> None:
        """A handle is gone."""
        self.handles[client].remove(kept)

    def in_hand(self) -> list[tuple[ClientProcess, Kept]]:
        """All handles that there are and that count: not those of somebody whose key was revoked."""
        keys = self.farm.keys
        return [
            (client, kept)
            for client, some in self.handles.items()
            if client.alive and not client.left and keys.admits(client.principal)
            for kept in some
        ]

    def judge_kept(self, store: Store) -> None:
        """Something went to make room: nothing that a handle names."""
        for client, kept in self.in_hand():
            if kept.shelf.store is not store or kept.lost:
                continue
            if kept.need not in store.whole and self._silent(client, kept):
                kept.lost = True
                self.farm.story.probe("what a silent client names goes")
                continue
            assert kept.need in store.whole, (
                f"{kept.need} went, born {kept.born_at}, and a handle of {client.name} names it"
            )
            self.farm.story.probe("what a handle names stays")

    def _silent(self, client: ClientProcess, kept: Kept) -> bool:
        kept_s = self.farm.mix.settings.pins_kept_s
        pins = kept.shelf.store.pins
        named = pins.clients.get(client.session)
        heard_at = kept.born_at
        if named is not None and kept.need in named.names:
            heard_at = max(heard_at, named.heard_at)
        elif kept.born_at <= max(pins.forgot_at, pins.ended_at.get(client.session, -inf)):
            return True  # gone before its client could say it anew
        return kept_s == SHORT_S and self.farm.now > heard_at + kept_s

    def kept_in_vain(self) -> list[str]:
        """What stores keep for handles that are gone, and will not forget by themselves, or not yet."""
        farm = self.farm
        kept_s = farm.mix.settings.pins_kept_s
        here = {client.session: client for client in farm.clients.values() if client.alive}
        found = []
        for name, store in farm.stores.items():
            pins = store.pins
            for birth, (_, born_at) in pins.births.items():
                if farm.now <= born_at + kept_s:
                    found.append(f"the store of {name} keeps {birth!r}, of which no handle has come yet")
            for owner, named in pins.clients.items():
                over = farm.now > named.heard_at + kept_s
                told = kept_s > SHORT_S and (owner in here or farm.mix.calm)
                if named.names and (told or not over):
                    found.append(f"the store of {name} keeps {named.names} for {owner}")
        return found
