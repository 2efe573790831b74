"""What a broker keeps to itself while its journal cannot be written. It knows no disk.

Only what tells of a fact that is not written, or lets something begin that must be written first, has to
wait: outcomes, Booked, Unknown, Thanks, grants of calls that may begin once only, who has a job, and the
number in an Echo, which says that what a client has forgotten is forgotten here as well. All of it
waits where the books have it, not in a queue of messages, so that who comes back meanwhile hears it once, and
what is stopped meanwhile is not granted. All else is said as ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import structs

from zfarm.core import outbox
from zfarm.core.books import ClientRecord, WorkerRecord
from zfarm.core.machine import NOW
from zfarm.messages import (
    REFUSED,
    Action,
    Append,
    Attached,
    Booked,
    Dropped,
    Echo,
    Ended,
    Grants,
    Revoke,
    Send,
    Thanks,
    Unknown,
)

if TYPE_CHECKING:
    from zfarm.core.broker import Broker

__all__ = ["Stall"]

RECORD_BYTES: Final = 512
"""What a record costs beside its payload, about."""


class Stall:
    """The time from a turn that the journal did not take to one that it does."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._later: list[Action] = []  # of the turn that was not taken
        self._counted = 0
        self.bytes = 0
        """Of the records that wait, about."""

    @property
    def full(self) -> bool:
        """So much waits that nothing more is granted."""
        return self.bytes >= self._broker.limits.journal_backlog_bytes

    def begin(self, actions: list[Action], reason: str) -> list[Action]:
        """The journal did not take the Append of this turn, the last one: what is to be done all the same.

        Its records wait, and so does what rests on them, until ``end``; ``reason`` is for people.
        """
        broker = self._broker
        broker.stalled = reason
        rest: list[Action] = []
        for action in actions:
            if isinstance(action, Append):
                broker.records[:0] = action.records
            elif not isinstance(action, Send):
                rest.append(action)
            elif isinstance(action.message, Echo):
                rest.append(Send(action.peer, structs.replace(action.message, number=0)))
            elif not self._take_back(action):
                rest.append(action)
        broker.dropped = {record.client for record, _ in broker.records if isinstance(record, Dropped)}
        self._counted = self.bytes = 0
        self.count()
        return rest + self.say()

    def _take_back(self, action: Send) -> bool:
        """Put what would have been said back to where it came from; False: it may be said."""
        record, message = self._broker.peers.get(action.peer), action.message
        if isinstance(message, Attached):
            self._later.append(action)
        elif isinstance(record, ClientRecord):
            if isinstance(message, Ended):
                for pair in zip(message.outcomes, action.payload, strict=True):
                    (record.refused if pair[0].kind == REFUSED else record.ended).append(pair)
            elif isinstance(message, Booked):
                record.booked.extend(message.tasks)
            elif isinstance(message, Unknown):
                record.unknown.extend(message.tasks)
            else:
                return False
            self._broker.touch(record)
        elif isinstance(record, WorkerRecord):
            if isinstance(message, Thanks):
                record.thanks.extend(message.leases)
            elif isinstance(message, Grants):
                record.granted.extend(record.leases[lease.lease] for lease in message.leases)
            elif isinstance(message, Revoke):
                at_once = message.force and not message.grace_us
                (record.stops if at_once else record.revokes).extend(message.leases)
            else:
                return False
            self._broker.touch(record)
        else:
            return False
        return True

    def say(self) -> list[Action]:
        """What this turn may say to the peers that it has something for; they stay touched."""
        actions: list[Action] = []
        for record in self._broker.touched.values():
            if isinstance(record, ClientRecord):
                actions.extend(outbox.client_messages(record, self._broker.limits, stalled=True))
            else:
                actions.extend(outbox.worker_messages(record, self._broker.limits, stalled=True))
        return actions

    def count(self) -> None:
        """See how much waits by now."""
        records = self._broker.records
        for _, payload in records[self._counted :]:
            self.bytes += RECORD_BYTES + sum(map(len, payload))
        self._counted = len(records)

    def end(self) -> None:
        """The journal may take it now: the next turn writes all that waits, and says all the rest."""
        broker = self._broker
        broker.stalled = ""
        broker.dropped = set()
        for client in broker.clients.values():
            if client.unrecorded:
                broker.record(client)
        self.bytes = self._counted = 0
        broker.actions.extend(self._later)
        self._later = []
        broker.deadline = NOW
