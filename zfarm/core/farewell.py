"""When a worker that drains leaves: what it runs and owes is told to it, and what it hears of its broker."""

from __future__ import annotations

from math import inf

from zfarm.messages import Action, Tell
from zfarm.settings import Settings

__all__ = ["Farewell"]


class Farewell:
    """How long one worker waits for a broker that takes nothing of it."""

    def __init__(self, limits: Settings) -> None:
        self._limits = limits
        self._let_in_by = inf  # not let in: until then it hopes to tell what it owes
        self._done_at = inf  # since then it runs nothing more
        self._heard_at = -inf
        self._told = False

    def heard(self, now: float) -> None:
        """The broker has said something."""
        self._heard_at = now

    def welcome(self) -> None:
        """It is let in."""
        self._let_in_by = inf

    def refused(self, now: float) -> bool:
        """It is not let in for now; True: that is new."""
        if self._let_in_by < inf:
            return False
        self._let_in_by = now + self._limits.worker_lost_after_s  # by then the dead do not count
        return True

    def is_due(self, runs: int, owed: int, now: float, actions: list[Action]) -> bool:
        """Whether it leaves now, though so many calls run and so many outcomes were not taken."""
        if not runs + owed:
            return True
        if now >= self._let_in_by:
            actions.append(Tell("warning", f"leaves with {runs + owed} calls: it is not let in any more"))
            return True
        self._done_at = inf if runs else min(self._done_at, now)
        silent_s = now - max(self._heard_at, self._done_at)
        most_s = self._limits.broker_away_max_s
        if silent_s >= most_s:
            text = f"leaves with {owed} outcomes, which the broker has not taken for {most_s:g} s"
            actions.append(Tell("warning", text))
            return True
        if silent_s >= self._limits.worker_lost_after_s and not self._told:
            self._told = True
            until = f"for {most_s:g} s, or until it is told to stop once more"
            text = f"{owed} outcomes wait for the broker, which says nothing: {until}"
            actions.append(Tell("warning", text))
        return False
