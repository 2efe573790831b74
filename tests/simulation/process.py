"""A process of a simulated farm: a machine with a clock and an inbox, which takes turns, stops and dies.

It has a clock of its own (offset and rate), may be stopped for a while and then gets everything at once, and
may die between any two actions of a turn. It decides nothing: that is the machine's.
"""

from __future__ import annotations

from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from zfarm import messages as m

if TYPE_CHECKING:
    from tests.simulation.farm import Farm
    from tests.simulation.network import Link

SPINS_MAX, SPIN_S = 50, 5.0
"""Turns in a row in which nothing arrived and nothing was done, within so long: then the machine's deadline
is wrong. A broker to which nobody speaks sweeps eight times in a second at most."""
CHECKED_TURN = 13
"""Each machine's books are checked after so many of its turns, and at rest. They sum up all that was before,
so that what has gone wrong stays wrong; checks after every turn would take longer than the farm itself."""


class Process:
    """A machine with a clock and an inbox."""

    machine: Any
    link: Link | None = None

    def __init__(self, farm: Farm, name: str) -> None:
        rng, mix = farm.rng, farm.mix
        self.farm = farm
        self.name = name
        self.alive = True
        self.born = farm.now
        self.stopped_until = 0.0
        self.doomed: int | None = None
        """Die in the next turn that has actions, after so many of them."""
        self._offset = 1.0 + rng.random() * 1e5
        self._rate = 1.0 + (rng.random() - 0.5) * mix.clock_skew
        self._inbox: list[tuple[Any, ...]] = []
        self._wake_at = inf
        self._wake = 0
        self._spins = 0
        self._turns = 0
        self._spins_since = 0.0

    @property
    def clock(self) -> float:
        """The monotonic time that this process sees."""
        return self._offset + self.farm.now * self._rate

    def hand(self, *entry: Any) -> None:
        """Something for the machine to note in its next turn."""
        if self.alive:
            self._inbox.append(entry)
            self._wake_up(self.farm.now + self.farm.rng.random() * self.farm.mix.turn_s)

    def stop(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT so much later."""
        self.farm.story.tell(self.farm.now, self.name, "stops", seconds)
        before, self.stopped_until = self.stopped_until, self.farm.now + seconds
        if self.stopped_until < before:  # it was stopped already, and goes on earlier
            self._wake_up(self.stopped_until)

    def resume(self) -> None:
        """SIGCONT now."""
        if self.stopped_until > self.farm.now:
            self.stopped_until = self.farm.now
            self._wake_up(self.farm.now)

    def die(self) -> None:
        """No turn will follow."""
        self.alive = False
        self._inbox.clear()

    def when(self, clock: float) -> float:
        """The virtual time at which its clock will show this."""
        return (clock - self._offset) / self._rate

    def waits_from(self, peer: Any) -> bool:
        """Something of this peer waits in the inbox."""
        return any(entry[0] == "message" and entry[1] == peer for entry in self._inbox)

    def take(self, entry: tuple[Any, ...], clock: float) -> None:
        """Feed one entry of the inbox to the machine."""
        raise AssertionError(f"{type(self).__name__} takes nothing")

    def perform(self, action: m.Action) -> None:
        """Do what the machine wants."""
        raise AssertionError(f"{type(self).__name__} performs nothing")

    def turned(self, clock: float) -> None:
        """The turn that began then is over."""

    def advanced(self) -> None:
        """The machine has decided, and nothing of it is done yet."""

    def stirs(self) -> None:
        """Its machine has something to do in this turn that had waited there."""
        self._spins = 0

    def checked(self, actions: list[m.Action]) -> list[m.Action]:
        """These actions, or what is to be done in their place."""
        return actions

    def lose_power(self) -> None:
        """Die right now, in the middle of a turn."""
        raise AssertionError(f"{type(self).__name__} cannot die")

    def _wake_up(self, at: float) -> None:
        at = max(at, self.stopped_until, self.farm.now)
        if at < self._wake_at:
            self._wake_at = at
            self._wake += 1
            self.farm.at(at, partial(self._turn, self._wake))

    def _turn(self, wake: int) -> None:
        if wake != self._wake or not self.alive:
            return  # another wake-up came first, or nobody is there any more
        self._wake_at = inf
        if self.farm.now < self.stopped_until:
            self._wake_up(self.stopped_until)
            return
        most = self.farm.mix.turn_messages
        inbox, self._inbox = self._inbox, []
        if len(inbox) > most:
            inbox, self._inbox = inbox[:most], inbox[most:]
        clock = self.clock
        for entry in inbox:
            self.take(entry, clock)
        actions = self.machine.advance(clock)
        self.advanced()
        if inbox or actions or not self._spins or clock >= self._spins_since + SPIN_S:
            self._spins, self._spins_since = 0, clock
        self._spins += not (inbox or actions)
        assert self._spins < SPINS_MAX, f"{self.name} spins: deadline {self.machine.deadline}, now {clock}"
        doomed = self.doomed if actions else None
        for done, action in enumerate(actions if doomed == 0 else self.checked(actions)):
            if doomed is not None and done >= doomed:
                break
            self.perform(action)
        if doomed is not None:
            self.lose_power()
        if self.alive:
            self.turned(clock)
            self._turns += 1
            if self._turns % CHECKED_TURN == 0:
                self.machine.check()
            self._sleep()
            if self._inbox:
                self._wake_up(self.farm.now + self.farm.rng.random() * self.farm.mix.turn_s)

    def _sleep(self) -> None:
        deadline = self.machine.deadline
        if deadline < inf:
            at = max(self.farm.now, (deadline - self._offset) / self._rate)
            self._wake_up(at + 1e-9 + self.farm.rng.random() * self.farm.mix.late_s)

    def _told(self, action: m.Tell) -> None:
        self.farm.story.tell(self.farm.now, self.name, action.level, action.text)
        self.farm.story.probe_tell(action)
