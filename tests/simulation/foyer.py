"""Clients that say more than a simulated broker has the time for: what they say waits, and what must hold of
that. Everybody's words come in their order, and all who wait are heard alike."""

from __future__ import annotations

import dataclasses
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from zfarm.core.foyer import AT_ONCE, Hear, price_us
from zfarm.messages import Payload

if TYPE_CHECKING:
    from tests.simulation.faults import Mix
    from tests.simulation.processes import BrokerProcess

NEVER_FULL_US = 1_000_000_000


def let_hurry(mix: Mix) -> None:
    """In some farms little is heard in one turn. The dice are of their own, so that the others stay as they
    are."""
    rng = Random(f"foyer {mix.seed}")
    if mix.calm or rng.random() >= 0.1:
        mix.settings = dataclasses.replace(mix.settings, turn_us=NEVER_FULL_US)
        return
    mix.settings = dataclasses.replace(
        mix.settings, turn_us=rng.choice((50, 400)), contention_kept_s=rng.choice((1.0, 100.0))
    )
    mix.worth = rng.choice((1.0, 5.0, 50.0))
    mix.clients = rng.choice((2, 3))
    mix.waves = ("short", *mix.waves)


class Foyer:
    """What the foyer of one life of the broker was told, and what came of it."""

    def __init__(self, process: BrokerProcess) -> None:
        self._process = process
        self._said = 0
        self.waited_s = 0.0
        """How long anything waited here at most."""
        self._heard: dict[Any, int] = {}
        """The number of what was heard of each peer last."""
        self._turn_us = 0.0
        self._largest_us = 0.0
        self._most_us = 0.0
        """The price of a full turn, at most, since all of them wait."""
        self._since: dict[str, float] = {}
        """What accounts said that was heard since all of them wait."""

    def receive(self, peer: Any, message: Any, payload: Payload, clock: float, hear: Hear) -> None:
        """The broker has read this; ``hear`` gives it to its machine."""
        self._said += 1
        told = partial(self._hear, peer, self._said, clock, hear)
        self._process.machine.foyer.receive(peer, message, payload, clock, told)

    def _hear(
        self, peer: Any, number: int, since: float, hear: Hear, message: Any, payload: Payload, clock: float
    ) -> None:
        self.waited_s = max(self.waited_s, clock - since)
        last = self._heard.get(peer, 0)
        assert number >= last, f"{peer} said {number} before {last}"
        self._heard[peer] = number
        us = price_us(message, payload)
        self._turn_us += us
        self._process.stirs()
        self._largest_us = max(self._largest_us, us)
        self._charge(peer, us)
        hear(message, payload, clock)

    def gone(self, peer: Any, clock: float, hear: Hear) -> None:
        """The link of this peer is dead: where that is heard in its turn it costs what a message does."""
        foyer = self._process.machine.foyer
        foyer.gone(peer, clock, partial(self._hear_end, peer, hear) if peer in foyer else hear)

    def _hear_end(self, peer: Any, hear: Hear, message: None, payload: Payload, clock: float) -> None:
        self._charge(peer, price_us(message, payload))
        hear(message, payload, clock)

    def _charge(self, peer: Any, us: float) -> None:
        record = self._process.machine.peers.get(peer)
        name = record.account.name if hasattr(record, "account") else ""  # else it is heard for nothing
        if name in self._since:
            self._since[name] += us

    def turned(self, clock: float) -> None:
        """A turn is over: those who waited all the while were heard alike."""
        foyer, mix = self._process.machine.foyer, self._process.farm.mix
        waiting = foyer.waiting()
        if waiting:
            self._process.farm.story.probe("somebody waits in the foyer")
        contended = clock < self._process.machine.accounts.contended_until  # else nobody is charged
        if contended and len(waiting) > 1 and waiting == set(self._since):
            self._process.farm.story.probe("several wait in the foyer")
            apart = max(self._since.values()) - min(self._since.values())
            self._most_us = max(self._most_us, foyer.most_us)
            most = 2 * self._largest_us + 2 * self._most_us / AT_ONCE
            assert apart <= most, f"of those who wait one was heard for {apart} us more: {self._since}"
        else:
            self._since = dict.fromkeys(sorted(waiting), 0.0)
            self._most_us = foyer.most_us
        foyer.turned(clock, self._turn_us * mix.worth * 1e-6)
        self._turn_us = 0.0
