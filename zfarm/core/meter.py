"""For how long the leases of one worker hold its slots, which is what their clients are charged with; it
knows no client.

A call that was granted a slot of its own holds it from its grant to its end. Short calls are granted ahead,
many for each slot; they share the slots that those leave, each of them alike. So what waits behind others is
charged with its part of the slots and no more, and all that share are charged together with the time for
which those slots were taken, whatever was done in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from zfarm.core.books import Task

__all__ = ["Meter"]

MEAN_WEIGHT: Final = 0.05
"""Of the last lease, in what leases have held lately."""


class Meter:
    """The slots of one worker, and who holds them."""

    __slots__ = ("_at", "_shared_us", "alone", "mean_us", "sharing", "slots")

    def __init__(self, slots: int, now: float) -> None:
        self.slots = slots  # that leases may hold: while calls wait for nested ones, more than the worker has
        self.alone = 0  # leases with a slot of their own
        self.sharing = 0  # leases that share the others
        self.mean_us = 0.0  # what those that shared slots have held lately
        self._shared_us = 0.0  # what one that always shared would have held until ``_at``
        self._at = now

    def enter(self, task: Task, shares: bool, now: float) -> None:
        """This lease begins now."""
        if now > self._at:
            self._go_on(now)
        task.granted_at = now
        if shares:
            self.sharing += 1
            task.shared_us = self._shared_us
        else:
            self.alone += 1

    def leave(self, task: Task) -> None:
        """This lease is over."""
        if task.shares:
            self.sharing -= 1
            self.mean_us += MEAN_WEIGHT * (self._shared_us - task.shared_us - self.mean_us)
            task.shared_us = -1.0
        else:
            self.alone -= 1

    def part_us(self, task: Task, now: float) -> float:
        """For how long this lease, which shares slots and is not over, would have held one by itself."""
        if now > self._at:
            self._go_on(now)
        return self._shared_us - task.shared_us

    def _go_on(self, now: float) -> None:
        free = self.slots - self.alone
        if self.sharing and free > 0:
            self._shared_us += (now - self._at) * 1e6 * min(1.0, free / self.sharing)
        self._at = now
