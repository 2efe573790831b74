"""Where messages of clients wait that would keep the broker from others; what they mean it does not know.

While several clients are granted calls, a turn of the broker is to stay short, and nobody may fill it. What
clients say has a price, about what the broker does for it, and how long turns really take says what that is
worth. Who has said least is heard first, by the price of it, as in zfarm.core.turns; all clients of an
account as one, and among them the like. Who has said less than others is heard at once. When a turn is full,
the rest waits here for as long again as that turn took: half of the time is for workers, and for whoever says
little.

To a client that waits here its link is slow, and that is all. Nothing overtakes anything else of its peer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from math import inf
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from msgspec import structs

from zfarm.core.books import ClientRecord
from zfarm.core.greeting import LOCAL
from zfarm.core.machine import NOW
from zfarm.messages import Ask, Cancel, Forget, Message, Payload, Peer, Submit

if TYPE_CHECKING:
    from zfarm.core.broker import Broker

__all__ = ["Foyer", "Hear", "price_us"]

Hear: TypeAlias = Callable[[Any, Payload, float], None]
"""Takes a message, or None for the end of its peer's link, with its payload, and the time."""

MESSAGE_US: Final = 30.0
CALL_US: Final = 12.0
TASK_US: Final = 1.5
BYTE_US: Final = 0.005
"""What a message is charged with, and what for each call, task that it names otherwise, and byte in it."""
PART_CALLS: Final = 20
"""A Submit of more calls is heard in parts, so that turns end in time."""
AT_ONCE: Final = 4
"""Who is ahead of others by less than this part of a turn does not wait."""
ALONE: Final = 8
"""So many times as much is heard in a turn while nobody else wants the farm."""
LEARNED: Final = 0.2
"""Weight of the last full turn in what prices are worth."""
WORTH_MAX: Final = 8.0
"""So much longer than its price may what is said seem to take: turns have other things to do, too."""
ENTRY_BYTES: Final = 1000
CALL_BYTES: Final = 300
"""What a message, and each call in it, takes in memory beside its payload."""
PARTIES_MAX: Final = 1024
"""Parties that are remembered though none of them waits; those that owe nothing are forgotten first."""


def price_us(message: Message | None, payload: Payload) -> float:
    """What a client is charged with for saying this."""
    us = MESSAGE_US + BYTE_US * sum(map(len, payload))
    if type(message) is Submit:
        us += CALL_US * len(message.calls) + TASK_US * len(message.forgets)
    elif isinstance(message, Ask | Cancel | Forget):
        us += TASK_US * len(message.tasks)
    return us


def _parts(message: Any, payload: Payload) -> Iterator[tuple[Any, Payload]]:
    """A Submit of many calls as several."""
    calls = PART_CALLS
    if type(message) is not Submit or len(message.calls) <= calls:
        yield message, payload
        return
    bodies = len(message.names) + message.setups
    named = [*message.digests, *[b""] * (bodies - len(message.digests))]
    head = list(payload[:bodies])
    for start in range(0, len(message.calls), calls):
        part = structs.replace(message, calls=message.calls[start : start + calls])
        yield part, [*head, *payload[bodies + start : bodies + start + calls]]
        message = structs.replace(message, forgets=[])
        head = [b"" if name else blob for name, blob in zip(named, head, strict=True)]  # it was just sent


class _Party:
    """The clients of one account."""

    __slots__ = ("at_us", "name", "rows", "said_us")

    def __init__(self, name: str, said_us: float) -> None:
        self.name = name
        self.said_us = said_us  # what it has been charged with, and where it has begun
        self.at_us = 0.0  # the same of that peer of it which was heard last
        self.rows: list[tuple[float, int, _Row]] = []  # a heap of those that wait, by what they have said


class _Row:
    """What one peer has said that was not heard yet, the first first."""

    __slots__ = ("party", "peer", "said_us", "waiting")

    def __init__(self, peer: Peer, party: _Party) -> None:
        self.peer = peer
        self.party = party
        self.said_us = party.at_us
        self.waiting: deque[tuple[float, int, Hear, Any, Payload]] = deque()  # with prices and sizes


class Foyer:
    """What waits, and what everybody has said lately, of one broker."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.deadline = inf
        self._rows: dict[Peer, _Row] = {}
        self._parties: dict[str, _Party] = {}
        self._heap: list[tuple[float, int, _Party]] = []  # those that have rows, by what they have said
        self._count = 0
        self._bytes = 0
        self._at_us = 0.0  # what that party had said that was heard last
        self._turn_us = 0.0  # price of what the broker hears in this turn
        self._worth = 1.0  # microseconds of a full turn for each one of its price
        self._resume_at = NOW

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, peer: Peer) -> bool:
        """Something of this peer waits."""
        return peer in self._rows

    def waiting(self) -> set[str]:
        """The accounts of those who wait."""
        return {row.party.name for row in self._rows.values()}

    @property
    def most_us(self) -> float:
        """The price of what is heard in one turn while several clients want the farm."""
        return self._broker.limits.turn_us / self._worth

    def receive(self, peer: Peer, message: Any, payload: Payload, now: float, hear: Hear) -> None:
        """``peer`` says this: ``hear`` it now, or in its turn."""
        broker = self._broker
        row = self._rows.get(peer)
        record = broker.peers.get(peer)
        if row is None:
            if not isinstance(record, ClientRecord) or now >= broker.accounts.contended_until:
                hear(message, payload, now)
                return
            us = price_us(message, payload)
            party = self._party(record.account.name)
            if party.said_us + us <= self._at_us + self.most_us / AT_ONCE:
                party.said_us += us
                self._turn_us += us
                hear(message, payload, now)
                return
            row = self._rows[peer] = self._queue(_Row(peer, party))
        broker.coming(peer, now)
        for part, blobs in _parts(message, payload):
            self._put(row, part, blobs, hear)

    def gone(self, peer: Peer, now: float, hear: Hear) -> None:
        """The link of this peer is dead: that is heard after what it has said. What waits of clients behind
        it is lost with it."""
        for other in [one for one in self._rows if isinstance(one, tuple) and one[0] == peer]:
            self._strike(other)
        row = self._rows.get(peer)
        if row is None:
            hear(None, (), now)
        elif row.waiting[-1][3] is not None:
            self._put(row, None, (), hear)

    def expel(self, known: Collection[str]) -> None:
        """Only the ``known`` principals are heard from now on."""
        for peer, row in list(self._rows.items()):
            name = row.party.name
            if name not in known and not name.startswith(f"{LOCAL}/"):
                self._strike(peer)

    def advance(self, now: float) -> None:
        """Hear what this turn has room for."""
        self.deadline = inf
        if not self._rows:
            return
        contended = now < self._broker.accounts.contended_until
        if contended and now < self._resume_at:
            self.deadline = self._resume_at
            return
        for peer in list(self._rows):
            self._hear_stranger(peer, now)
        most_us = self.most_us if contended else ALONE * self.most_us
        most_bytes = self._broker.limits.foyer_bytes_max
        while self._heap and (self._turn_us < most_us or self._bytes > most_bytes):
            self._hear_next(now)
        if self._rows:
            self.deadline = NOW

    def turned(self, began: float, took_s: float) -> None:
        """The turn that began then has ended, after so long."""
        us, self._turn_us = self._turn_us, 0.0
        if not us:
            return
        if us >= self.most_us / 2:
            worth = min(max(took_s * 1e6 / us, 1 / WORTH_MAX), WORTH_MAX)
            self._worth += LEARNED * (worth - self._worth)
        if self._rows and began < self._broker.accounts.contended_until:
            self._resume_at = began + 2 * took_s

    def sweep(self, now: float) -> None:
        """Forget what was said while nobody else wanted the farm, and who has nothing to make up for."""
        if self._rows:
            return
        if now >= self._broker.accounts.contended_until:
            self._parties.clear()
        elif len(self._parties) > PARTIES_MAX:
            ahead = {name: one for name, one in self._parties.items() if one.said_us > self._at_us}
            self._parties = dict(list(ahead.items())[-PARTIES_MAX:])

    def _party(self, name: str) -> _Party:
        party = self._parties.get(name)
        if party is None:
            party = self._parties[name] = _Party(name, self._at_us)
        elif not party.rows and party.said_us < self._at_us:
            party.said_us = self._at_us  # nobody saves up for later
        return party

    def _queue(self, row: _Row) -> _Row:
        party = row.party
        self._count += 1
        if not party.rows:
            heappush(self._heap, (party.said_us, self._count, party))
        heappush(party.rows, (row.said_us, self._count, row))
        return row

    def _put(self, row: _Row, message: Any, payload: Payload, hear: Hear) -> None:
        size = ENTRY_BYTES + sum(map(len, payload))
        if type(message) is Submit:
            size += CALL_BYTES * len(message.calls)
        row.waiting.append((price_us(message, payload), size, hear, message, payload))
        self._bytes += size
        self._broker.deadline = NOW
        self.deadline = min(self.deadline, NOW)

    def _hear_next(self, now: float) -> None:
        said_us, n, party = self._heap[0]
        if said_us < party.said_us:  # it was heard at once meanwhile
            heapreplace(self._heap, (party.said_us, n, party))
            return
        row_us, m, row = party.rows[0]
        us, size, hear, message, payload = row.waiting.popleft()
        self._at_us = max(self._at_us, party.said_us)
        party.at_us = max(party.at_us, row_us)
        party.said_us += us
        row.said_us += us
        self._turn_us += us
        self._bytes -= size
        if row.waiting:
            heapreplace(party.rows, (row.said_us, m, row))
        else:
            heappop(party.rows)
            del self._rows[row.peer]
        if party.rows:
            heapreplace(self._heap, (party.said_us, n, party))
        else:
            heappop(self._heap)
        hear(message, payload, now)

    def _hear_stranger(self, peer: Peer, now: float) -> None:
        """What a peer has said that is known no more means nothing and costs nothing, until it says hello."""
        row, peers = self._rows[peer], self._broker.peers
        while row.waiting and not isinstance(peers.get(peer), ClientRecord):
            _, size, hear, message, payload = row.waiting.popleft()
            self._bytes -= size
            hear(message, payload, now)
        if not row.waiting:
            self._strike(peer)

    def _strike(self, peer: Peer) -> None:
        """What this peer has said is not heard any more."""
        row = self._rows.pop(peer)
        party = row.party
        self._bytes -= sum(size for _, size, *_ in row.waiting)
        party.rows = [entry for entry in party.rows if entry[2] is not row]
        heapify(party.rows)
        if not party.rows:
            self._heap = [entry for entry in self._heap if entry[2] is not party]
            heapify(self._heap)

    def check(self) -> None:
        """Whoever waits is to be heard, and nobody else."""
        queued = [row for _, _, party in self._heap for _, _, row in party.rows]
        assert len(queued) == len(self._rows)
        assert all(self._rows[row.peer] is row and row.waiting for row in queued)
        assert self._bytes == sum(size for row in queued for _, size, *_ in row.waiting)
        assert all(self._parties.get(row.party.name) is row.party for row in queued)
