"""Whose turn it is among clients: of those that wait, the one whose calls have had the least run time.

This is start-time fair queueing (Goyal, Vin and Cheng, 1996) with slots for a link and run time for bytes: a
call is charged with what it is expected to take when it is granted, and with what it took when it ends. Who
comes back after a rest begins where the others are, so that nobody saves up turns.
"""

from __future__ import annotations

from heapq import heapify, heappop, heapreplace
from typing import TYPE_CHECKING

from zfarm.core.books import ClientRecord, Task

if TYPE_CHECKING:
    from zfarm.core.broker import Broker

__all__ = ["Turns", "head"]


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


class Turns:
    """The clients with something in their queues, during one dispatch."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._heap = [(client.served_us, n, client) for n, client in enumerate(broker.ready.values())]
        heapify(self._heap)

    def first(self) -> Task | None:
        """The next task in turn; clients whose queues turn out to be empty leave the round."""
        heap = self._heap
        while heap:
            client = heap[0][2]
            task = head(client)
            if task is not None:
                return task
            heappop(heap)
            del self._broker.ready[client.session]
        return None

    def served(self) -> None:
        """Tasks of the client whose turn it was were taken out of its queue."""
        heap = self._heap
        served_us, n, client = heap[0]
        self._broker.serve(served_us)
        if client.queue:
            heapreplace(heap, (client.served_us, n, client))
        else:
            heappop(heap)
            del self._broker.ready[client.session]
