"""How many workers each key has in the books, and whether it may have one more; it knows no message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from zfarm.core.greeting import principal_of

__all__ = ["Crews"]


class Crews:
    """The workers of every key, present or silent: one that died counts until it is lost."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._sessions: Counter[str] = Counter()  # by principal; none has zero
        self._told: set[str] = set()  # of whom it is known that they are too many
        self.refused = 0
        """Times that one was not let in: who waits asks again and again."""

    def enter(self, session: str) -> None:
        """A worker is in the books now."""
        principal = principal_of(session)
        self._sessions[principal] += 1
        self._told.discard(principal)

    def leave(self, session: str) -> None:
        """It is not any more."""
        principal = principal_of(session)
        self._sessions[principal] -= 1
        if not self._sessions[principal]:
            del self._sessions[principal]
            self._told.discard(principal)

    def full(self, session: str) -> str:
        """Why this worker, which is not in the books, must wait; empty: it need not."""
        many = self._sessions[principal_of(session)]
        if many < self._most:
            return ""
        self.refused += 1
        return (
            f"there are {many} workers with this key, its limit (ZFARM_WORKER_SESSIONS_MAX); one that is "
            "silent counts until it is lost: it asks again, or give it a key of its own"
        )

    def news(self, session: str) -> bool:
        """Whether nobody was told yet that the key of this worker has too many."""
        principal = principal_of(session)
        new = principal not in self._told
        self._told.add(principal)
        return new

    def check(self, sessions: Iterable[str]) -> None:
        """Each worker counts once, and no key has more than it may."""
        assert self._sessions == Counter(map(principal_of, sessions)), "workers were counted wrong"
        assert all(many <= self._most for many in self._sessions.values()), "a key has too many workers"
