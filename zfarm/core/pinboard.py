"""The way of what clients say of their handles to the stores that have what those name, and back: the part
of the broker in kept results. It keeps no handle: of each client no more than the hosts that were told
something.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from zfarm.core.books import ClientRecord, WorkerRecord
from zfarm.messages import Payload, Pin, Pinned, Send

if TYPE_CHECKING:
    from zfarm.core.broker import Broker

__all__ = ["Pinboard"]


class Pinboard:
    """Who has told which hosts of handles."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def on_pin(self, client: ClientRecord, message: Pin, payload: Payload, now: float) -> None:
        """A client says what its handles name: pass it to that worker, or another one of its host, which has
        the same store."""
        host, _, pid = message.at.rpartition("/")
        workers = self._broker.workers.values()
        there = [worker for worker in workers if worker.host == host and worker.peer is not None]
        if not there:
            return  # it will be said again
        if host not in client.pinned:
            hosts = {worker.host for worker in workers}
            client.pinned = (client.pinned & hosts) | {host}
        worker = next((worker for worker in there if str(worker.pid) == pid), there[0])
        told = structs.replace(message, owner=client.session, over=False)
        self._send(worker, told)

    def on_pinned(self, worker: WorkerRecord, message: Pinned, payload: Payload, now: float) -> None:
        """A worker answers: to a client that has told its host something."""
        client = self._broker.clients.get(message.owner)
        if client is not None and worker.host in client.pinned:
            self._send(client, Pinned(message.at, message.number, message.known))

    def over(self, client: ClientRecord) -> None:
        """This client is gone. Where that is not heard its handles end later, when nothing renews them."""
        if client.pinned:
            for worker in self._broker.workers.values():
                if worker.host in client.pinned:
                    self._send(worker, Pin("", 0, owner=client.session, over=True))

    def _send(self, record: ClientRecord | WorkerRecord, message: Pin | Pinned) -> None:
        if record.peer is not None:
            self._broker.actions.append(Send(record.peer, message))
