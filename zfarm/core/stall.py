"""What a broker keeps to itself while its journal cannot be written. It knows no disk.

Only what tells of a fact that is not written, or lets something begin that must be written first, has to
wait: outcomes, Booked, Unknown, Thanks, grants of calls that may begin once only, and the word in an Echo
which says that what a client has forgotten is forgotten here as well. All of it waits where the books have
it, not in a queue of messages, so that who comes back meanwhile hears it once, and what is stopped meanwhile
is not granted. Who takes a job over is not answered until that is written, and asks again. All else is said
as ever.

A disk that has little room gets what fits: outcomes that are written are said, and once they are forgotten
there is room for others. Who could only be written whole would wait for ever on a disk that it fills itself.
"""

from __future__ import annotations

from functools import partial
from math import inf
from typing import TYPE_CHECKING

from msgspec import structs

from zfarm.core import outbox
from zfarm.core.books import ANY_LEASE, ClientRecord, WorkerRecord
from zfarm.core.headroom import RECORD_BYTES
from zfarm.core.machine import NOW
from zfarm.messages import (
    REFUSED,
    Accepted,
    Action,
    Append,
    Attached,
    Begun,
    Booked,
    Dropped,
    Echo,
    Ended,
    Enrolled,
    Forgotten,
    Grants,
    Payload,
    Record,
    Revoke,
    Send,
    Settled,
    Thanks,
    Unknown,
)

if TYPE_CHECKING:
    from zfarm.core.broker import Broker

__all__ = ["Stall"]


def _tasks(record: Record) -> list[int]:
    """The tasks that a record is about; none: it is about their client."""
    if isinstance(record, Enrolled | Dropped):
        return []
    if isinstance(record, Forgotten):
        return record.tasks
    return [record.outcome.task if isinstance(record, Settled) else record.task]


class Stall:
    """The time from a turn that the journal did not take to one that it does."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._counted = 0
        self._unwritten: set[tuple[str, int]] = set()
        """Clients and tasks of the records that wait, without what was forgotten."""
        self._enrolling: set[str] = set()
        """Clients of which it waits to be written who speaks for them."""
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
                rest.append(Send(action.peer, structs.replace(action.message, written=False)))
            elif not self._take_back(action):
                rest.append(action)
        self._recount()
        return rest + self.say()

    def _recount(self) -> None:
        broker = self._broker
        broker.dropped = {record.client for record, _ in broker.records if isinstance(record, Dropped)}
        self._clear()
        self.count()

    def _clear(self) -> None:
        self._counted = self.bytes = 0
        self._unwritten.clear()
        self._enrolling.clear()

    def _take_back(self, action: Send) -> bool:
        """Put what would have been said back to where it came from; False: it may be said."""
        record, message = self._broker.peers.get(action.peer), action.message
        if isinstance(message, Attached):
            pass  # it asks again
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
        self.count()  # what was granted just now, too
        actions: list[Action] = []
        for record in self._broker.touched.values():
            if isinstance(record, ClientRecord):
                waits = partial(self._waits, record.session)
                actions.extend(outbox.client_messages(record, self._broker.limits, waits))
            else:
                actions.extend(outbox.worker_messages(record, self._broker.limits, self._waits))
        return actions

    def _waits(self, client: str, task: int) -> bool:
        """What the books say about this task is not written. Of a client whose former life is not known to
        have ended nothing is certain."""
        return (client, task) in self._unwritten or client in self._broker.dropped

    def count(self) -> None:
        """See how much waits by now."""
        records = self._broker.records
        for record, payload in records[self._counted :]:
            self.bytes += RECORD_BYTES + sum(map(len, payload))
            if isinstance(record, Enrolled):
                self._enrolling.add(record.client)
            elif not isinstance(record, Forgotten):
                self._unwritten.update((record.client, task) for task in _tasks(record))
        self._counted = len(records)

    def enrols(self, client: str) -> bool:
        """Whether it is not written yet who speaks for this client."""
        self.count()
        return client in self._enrolling

    # ------------------------------------------------------------ from here on there may be room

    def pick(self, room: float = inf, spare: float = 0) -> list[tuple[Record, Payload]]:
        """Take what can be written now from the records that wait: all, or what fits into ``room`` bytes.

        Of what fits, only records that give room back use the last ``spare`` bytes, and half of them those of
        who speaks for a client: whoever takes a job over gives room back next. The order of the records of a
        task stays, and that of a client's beginnings and ends; nothing overtakes those, and an end overtakes
        nothing. What may begin once only is recorded last: who is killed before the grant is said must take
        it for begun. That it may have begun earlier is written with the call itself or not at all: who is
        killed between the two would have it run again. After this, ``wrote`` or ``put_back`` has to follow.
        """
        broker = self._broker
        self.count()  # what this turn has recorded may be put back as well
        costs = [broker.headroom.price_of(*pair) for pair in broker.records]
        if sum(costs) <= room - spare:
            picked, broker.records = broker.records, []
            return picked
        doubts = {
            (pair[0].client, pair[0].task): cost
            for pair, cost in zip(broker.records, costs, strict=True)
            if isinstance(pair[0], Begun) and pair[0].lease == ANY_LEASE
        }
        paid: set[tuple[str, int]] = set()  # doubts of calls that were picked
        picked, kept = [], []
        behind: set[str] = set()  # clients of which some records wait on
        over: set[str] = set()  # those whose beginning or end waits on, and all that comes after it
        held: set[tuple[str, int]] = set()
        for pair, cost in zip(broker.records, costs, strict=True):
            record = pair[0]
            client, tasks = record.client, _tasks(record)
            least = 0 if isinstance(record, Forgotten | Dropped) else spare
            begins = isinstance(record, Begun) and record.lease != ANY_LEASE
            doubt = isinstance(record, Begun) and (client, record.task) in paid
            if isinstance(record, Accepted):
                cost += doubts.get((client, record.task), 0)
            if isinstance(record, Enrolled):
                least = spare / 2
                waits = False
            else:
                waits = any((client, task) in held for task in tasks) if tasks else client in behind
            if waits or client in over or begins or (cost > room - least and not doubt):
                kept.append(pair)
                behind.add(client)
                held.update((client, task) for task in tasks)
                if not tasks:
                    over.add(client)
            else:
                picked.append(pair)
                room -= 0 if doubt else cost
                if isinstance(record, Accepted):
                    paid.add((client, record.task))
        broker.records = kept
        return picked

    def put_back(self, picked: list[tuple[Record, Payload]]) -> None:
        """They could not be written."""
        self._broker.records[:0] = picked
        self._counted = len(self._broker.records)

    def wrote(self) -> None:
        """What was picked is written: if that was all, the next turn says all the rest."""
        if not self._broker.records:
            self.end()
            return
        self._recount()
        self._broker.deadline = NOW

    def end(self) -> None:
        """The journal may take it now: the next turn writes all that waits, and says all the rest."""
        broker = self._broker
        broker.stalled = ""
        broker.dropped = set()
        for client in broker.clients.values():
            if client.unrecorded:
                broker.record(client)
        self._clear()
        broker.deadline = NOW
