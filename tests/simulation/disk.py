"""The journal's file of a simulated broker: what was appended in one turn is there, or nothing of it.

It also judges: nothing may be shown to a client that is not on the disk, nothing settled twice, and nothing
that is on the disk may be unknown to the broker.
"""

from __future__ import annotations

from typing import Any

from zfarm import messages as m


class Disk:
    """Survives the broker. ``open`` and ``settled`` hold (session, task) of what the records say."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Any, Any]] = []
        self.open: set[tuple[str, int]] = set()
        self.settled: set[tuple[str, int]] = set()
        self.forgotten: set[tuple[str, int]] = set()

    def append(self, pairs: list[tuple[Any, Any]]) -> None:
        """Write and sync the records of one turn."""
        for record, _payload in pairs:
            self._follow(record)
        self.pairs.extend(pairs)

    def _follow(self, record: Any) -> None:
        if isinstance(record, m.Accepted):
            key = record.client, record.task
            assert key not in self.open | self.settled, f"{key} is accepted twice"
            self.open.add(key)
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
            self.open = {key for key in self.open if key[0] != record.client}
            self.settled = {key for key in self.settled if key[0] != record.client}

    def check_said(self, session: str, message: m.Message) -> None:
        """The broker says this to that client now."""
        if isinstance(message, m.Ended):
            for outcome in message.outcomes:
                key = session, outcome.task  # it may be shown and forgotten in one turn
                assert key in self.settled | self.forgotten, f"shown, and not on the disk: {outcome}"
        elif isinstance(message, m.Booked):
            for task in message.tasks:
                assert (session, task) in self.open | self.settled, f"booked, and not on the disk: {task}"
        elif isinstance(message, m.Unknown):
            for task in message.tasks:
                assert (session, task) not in self.open | self.settled, f"unknown, and on the disk: {task}"
