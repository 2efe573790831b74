"""Whose turn it is: the principal whose calls have held slots for the least time, and the like among its
clients.

This is start-time fair queueing (Goyal, Vin and Cheng, 1996) with slots for a link and their time for bytes:
a call is charged with what it is expected to take when it is granted, and with what it took when it ends,
whatever its end is; see zfarm.core.ledger and zfarm.core.meter. Who
comes back after a rest begins where the others are, so that nobody saves up turns. Who comes with many
clients shares his turns among them, and has no more.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heapreplace
from typing import TYPE_CHECKING

from zfarm.core.accounts import Account
from zfarm.core.books import ClientRecord, Task

if TYPE_CHECKING:
    from zfarm.core.broker import Broker

__all__ = ["Round", "Turns", "head"]

Seats = list[tuple[float, int, ClientRecord]]
"""A heap of clients, by what they were served with."""


def head(client: ClientRecord) -> Task | None:
    """The first task of the queue that is still queued; what is not is dropped from the queue."""
    queue = client.queue
    while queue:
        task = queue[0]
        if task.worker is None and task.outcome is None:
            return task
        queue.popleft()
    if client.others:
        client.refill()
        return head(client)
    return None


class Round:
    """Clients that take turns, those of one account as one."""

    def __init__(self, broker: Broker, clients: Iterable[ClientRecord]) -> None:
        self._broker = broker
        seats: dict[Account, Seats] = {}
        for n, client in enumerate(clients):
            seats.setdefault(client.account, []).append((client.served_us, n, client))
        for among in seats.values():
            heapify(among)
        self._heap = [(account.served_us, n, account, seats[account]) for n, account in enumerate(seats)]
        heapify(self._heap)

    def __bool__(self) -> bool:
        return bool(self._heap)

    @property
    def client(self) -> ClientRecord:
        """Whose turn it is, while anybody is there."""
        return self._heap[0][3][0][2]

    def served(self, stays: bool = True) -> None:
        """It had its turn: whoever comes anew begins where it was. ``stays``: it wants another one."""
        served_us, n, account, among = self._heap[0]
        client_us, m, client = among[0]
        if served_us > self._broker.served_us:
            self._broker.served_us = served_us
        if client_us > account.turn_us:
            account.turn_us = client_us
        if stays:
            heapreplace(among, (client.served_us, m, client))
        else:
            heappop(among)
        if among:
            heapreplace(self._heap, (account.served_us, n, account, among))
        else:
            heappop(self._heap)

    def leave(self) -> None:
        """Whose turn it is takes no part any more."""
        among = self._heap[0][3]
        heappop(among)
        if not among:
            heappop(self._heap)


class Turns:
    """The clients with something in their queues, during one dispatch."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._round = Round(broker, broker.ready.values())

    def first(self) -> Task | None:
        """The next task in turn; clients whose queues turn out to be empty leave the round."""
        turns = self._round
        while turns:
            task = head(turns.client)
            if task is not None:
                return task
            del self._broker.ready[turns.client.session]
            turns.leave()
        return None

    def served(self) -> None:
        """Tasks of the client whose turn it was were taken out of its queue."""
        client = self._round.client
        self._round.served(stays=bool(client.queue))
        if not client.queue:
            del self._broker.ready[client.session]
