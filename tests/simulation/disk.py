"""The journal's file of a simulated broker: what was appended in one turn is there, or nothing of it.

It also judges: nothing may be shown to a client that is not on the disk, nothing settled twice, nothing that
is on the disk may be unknown to the broker, and nothing that may begin once only may be granted before.
"""

from __future__ import annotations

from math import inf
from random import Random
from typing import Any

from msgspec import structs

from zfarm import messages as m
from zfarm.core.greeting import bare, book_key, principal_of


class DiskFull(Exception):
    """There is no room for these records; a later try may find some."""


class Disk:
    """Survives the broker. ``open`` and ``settled`` hold (session, task) of what the records say."""

    def __init__(self, seed: int = 0) -> None:
        self.dice = Random(f"room {seed}")
        self.pairs: list[tuple[Any, Any]] = []
        self.open: set[tuple[str, int]] = set()
        self.settled: set[tuple[str, int]] = set()
        self.forgotten: set[tuple[str, int]] = set()
        self.begun: dict[tuple[str, int], int] = {}
        """Of those that may begin once only: the lease; 0: none."""
        self.lives: dict[str, str] = {}
        """Who speaks for each client."""
        self.sessions: set[str] = set()
        """Those that have begun and not ended."""
        self.upgraded = False
        """It was written by an earlier version once; none comes back to it."""
        self.full = False
        self.was_full = False
        self.seen = inf
        """Bytes for new tasks, as the broker saw them before its turn."""
        self.former: dict[str, set[str]] = {}
        """Who did before."""
        self.raised: set[int] = set()
        """Leases that ended in an error for which their task is run again."""

    def living(self) -> list[tuple[Any, Any]]:
        """The records, but for those of sessions that have ended."""
        kept: list[tuple[Any, Any]] = []
        ended: dict[str, int] = {}
        for place, (record, _) in enumerate(self.pairs):
            if isinstance(record, m.Dropped):
                ended[record.client] = place
        for place, pair in enumerate(self.pairs):
            if place > ended.get(pair[0].client, -1):
                kept.append(pair)
        return kept

    def aged(self) -> Disk:
        """The same of an earlier version, which named owners without their fingerprints."""
        old = Disk()
        old.was_full, old.dice = self.was_full, self.dice
        old.upgraded = True
        old.append(
            [(structs.replace(record, client=_bare(record.client)), blobs) for record, blobs in self.pairs]
        )
        return old

    def append(self, pairs: list[tuple[Any, Any]]) -> None:
        """Write and sync the records of one turn; nothing of them while the disk is full."""
        if self.full:
            raise DiskFull
        self.write(pairs)

    def write(self, pairs: list[tuple[Any, Any]]) -> None:
        """The same, if there is room for these whatever others need."""
        for record, _payload in pairs:
            self._follow(record)
        self.pairs.extend(pairs)

    def _follow(self, record: Any) -> None:
        if isinstance(record, m.Enrolled):
            self.former.setdefault(record.client, set()).add(self.lives.get(record.client, ""))
            self.lives[record.client] = record.life
            self.sessions.add(record.client)
        if isinstance(record, m.Accepted):
            key = record.client, record.task
            assert key not in self.open | self.settled, f"{key} is accepted twice"
            self.open.add(key)
            if record.max_attempts == 1:
                self.begun[key] = 0
        elif isinstance(record, m.Begun):
            self.begun[record.client, record.task] = record.lease
        elif isinstance(record, m.Retried):
            assert (record.client, record.task) in self.open, f"run again, and not open: {record}"
            self.raised.add(record.lease)
        elif isinstance(record, m.Settled):
            key = record.client, record.outcome.task
            assert key in self.open, f"{key} is settled, and was not open"
            self.open.discard(key)
            self.settled.add(key)
        elif isinstance(record, m.Forgotten):
            for task in record.tasks:
                assert (record.client, task) in self.settled, f"{task} is forgotten before it is settled"
                self.settled.discard((record.client, task))
                self.forgotten.add((record.client, task))
        elif isinstance(record, m.Dropped):
            self.sessions.discard(record.client)
            self.open = {key for key in self.open if key[0] != record.client}
            self.settled = {key for key in self.settled if key[0] != record.client}

    def check_said(self, session: str, message: m.Message) -> None:
        """The broker says this to that client or worker now."""
        if isinstance(message, m.Ended):
            for outcome in message.outcomes:
                key = session, outcome.task  # it may be shown and forgotten in one turn
                if outcome.kind == m.REFUSED:
                    assert key not in self.open | self.settled, f"refused, and on the disk: {outcome}"
                    continue
                assert key in self.settled | self.forgotten, f"shown, and not on the disk: {outcome}"
        elif isinstance(message, m.Grants):
            for lease in message.leases:
                key = message.owners[lease.owner], lease.task
                assert self.begun.get(key, lease.lease) == lease.lease, (
                    f"granted, and not on the disk: {lease}"
                )
        elif isinstance(message, m.Booked):
            for task in message.tasks:
                assert (session, task) in self.open | self.settled, f"booked, and not on the disk: {task}"
        elif isinstance(message, m.Unknown):
            for task in message.tasks:
                assert (session, task) not in self.open | self.settled, f"unknown, and on the disk: {task}"


def _bare(client: str) -> str:
    """How an earlier version called this session."""
    return book_key(principal_of(client).rpartition(":")[0], bare(client)) if "/" in client else client
