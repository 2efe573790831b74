"""How long a worker may go on with exclusive calls without its broker: then it stops them by its own clock.

A broker moves the leases of a worker that it has not heard for ``worker_lost_after_s``. It cannot have heard
what was not sent yet, so that time begins no earlier than the sending of the last beat that it has answered:
not when the answer came, which may have been on its way for as long. The calls are stopped after three
quarters of it. The rest is for clocks that run apart, and for the killing. Whether the broker is dead or cut
off nobody here can know, and that is why only calls which ask for it are stopped; see docs/decisions.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from zfarm.messages import DoomChild, Tell

if TYPE_CHECKING:
    from zfarm.core.brood import Brood
    from zfarm.core.kids import Duty

__all__ = ["SHARE", "Tether"]

SHARE: Final = 0.75
"""Of the time after which leases move: holds while no clock runs a third faster than another."""
BEATS_MAX: Final = 64
"""Beats of which no answer has come yet; older ones say nothing any more."""


class Tether:
    """What one worker has said and its broker has heard, and the exclusive leases that hang on it."""

    def __init__(self, brood: Brood) -> None:
        self.leases: dict[int, Duty] = {}
        """Exclusive ones, and for a moment those that have ended."""
        self.needless = False
        """Worker and broker are one process: neither can be without the other."""
        self._brood = brood
        self._after_s = 0.0
        self._number = 0
        self._sent: dict[int, float] = {}  # beats that may still be answered, and when each was sent
        self._heard = -inf  # the broker has heard of this worker then, or later
        self._doomed: dict[int, float] = {}  # children that will be killed, and when

    @property
    def deadline(self) -> float:
        """When exclusive calls have to stop; infinity: there is none."""
        return self._heard + self._after_s if self.leases and not self.needless else inf

    def allow(self, silence_s: float) -> None:
        """The broker moves the leases of whoever is silent for so long."""
        self._after_s = silence_s * SHARE

    def take(self, duty: Duty, answered_at: float) -> bool:
        """An exclusive call has come. Whether its broker had not heard what was said last, which may have
        wanted no answer, and that to the next beat, at ``answered_at``, is too late."""
        self.leases[duty.lease] = duty
        return bool(self._sent) and self.deadline < answered_at

    def beat(self, now: float) -> int:
        """A number for what is said to the broker now."""
        self._number += 1
        self._sent[self._number] = now
        if len(self._sent) > BEATS_MAX:
            del self._sent[next(iter(self._sent))]
        return self._number

    def heard(self, number: int) -> None:
        """The broker has heard what had this number."""
        if number in self._sent:
            self._heard = max(self._heard, self._sent[number])
            for earlier in [one for one in self._sent if one <= number]:
                del self._sent[earlier]

    def watch(self, now: float) -> None:
        """Let go what has ended, and stop the rest if the time is over."""
        brood = self._brood
        self.leases = {lease: duty for lease, duty in self.leases.items() if lease in brood._leases}
        busy = {duty.kid.number for duty in self.leases.values() if duty.kid is not None}
        for child in [child for child in self._doomed if child not in busy]:
            del self._doomed[child]
            if child in brood._kids:
                brood._actions.append(DoomChild(child, None))
        if now < self.deadline:
            return
        text = (
            f"no word from the broker: {len(self.leases)} exclusive calls are stopped, and may run elsewhere"
        )
        brood._actions.append(Tell("warning", text))
        for duty in self.leases.values():
            brood._cut(duty, now)
        self.leases.clear()
        self._doomed.clear()

    def arm(self) -> None:
        """Let the children of exclusive calls die in time even if this worker is stopped itself."""
        at = self.deadline
        for duty in self.leases.values():
            if duty.kid is not None and at < inf and self._doomed.get(duty.kid.number) != at:
                self._doomed[duty.kid.number] = at
                self._brood._actions.append(DoomChild(duty.kid.number, at))
