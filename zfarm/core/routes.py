"""Which lease has a stream, whose it is and who sends it: the broker's part in streams, and in the files that
calls need. It keeps no item and no chunk.

A client may speak of the streams of its own tasks only, a worker of its own leases only; anything else
changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfarm.core.books import ClientRecord, WorkerRecord
from zfarm.messages import (
    Chunk,
    Chunks,
    Fetch,
    Items,
    Listen,
    Listening,
    Payload,
    Printed,
    Progress,
    Send,
    Sent,
    Streaming,
    Streams,
    Want,
)

if TYPE_CHECKING:
    from zfarm.core.broker import Broker

__all__ = ["Routes"]


class Route:
    """The way of one stream."""

    __slots__ = ("attempt", "offered", "owner", "sure", "task", "worker")

    def __init__(self, owner: str, task: int, worker: WorkerRecord, attempt: int) -> None:
        self.owner = owner
        self.task = task
        self.worker = worker
        self.attempt = attempt
        self.sure = True  # its worker has named it since it joined
        self.offered = False  # over the duct of its worker


class Routes:
    """All streams of one broker, by lease."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._routes: dict[int, Route] = {}

    # ------------------------------------------------------------ from workers

    def on_streams(self, worker: WorkerRecord, message: Streams, payload: Payload, now: float) -> None:
        """A worker has streams, or has no more of them."""
        told: dict[str, list[Streaming]] = {}
        for one in message.streams:
            route = self._routes.get(one.lease) or self._new_route(worker, one)
            if route is not None and route.worker is worker:
                route.sure, route.offered = True, bool(one.duct)
                fresh = self._streaming(one.lease, route)
                told.setdefault(route.owner, []).append(fresh)
        gone: dict[str, list[int]] = {}
        leases = message.gone
        if message.last:
            of_worker = [(lease, route) for lease, route in self._routes.items() if route.worker is worker]
            leases = [*leases, *(lease for lease, route in of_worker if not route.sure)]
        for lease in leases:
            route = self._routes.get(lease)
            if route is not None and route.worker is worker:
                del self._routes[lease]
                gone.setdefault(route.owner, []).append(lease)
        for owner, streams in told.items():
            self._to_client(owner, Streams(streams))
        self._tell_gone(gone)

    @staticmethod
    def _streaming(lease: int, route: Route) -> Streaming:
        return Streaming(lease, "", route.task, route.attempt, route.worker.duct if route.offered else "")

    def _tell_gone(self, gone: dict[str, list[int]]) -> None:
        most = self._broker.limits.batch_calls_max
        for owner, leases in gone.items():
            for start in range(0, len(leases), most):
                self._to_client(owner, Streams([], leases[start : start + most]))

    def _runs_elsewhere(self, one: Streaming) -> bool:
        """Its task runs under another lease: this one is stopped, and its client is not to go over to it."""
        client = self._broker.clients.get(one.owner)
        task = client.tasks.get(abs(one.task)) if client is not None else None
        return task is not None and task.worker is not None

    def _new_route(self, worker: WorkerRecord, one: Streaming) -> Route | None:
        task = worker.leases.get(abs(one.lease))
        if task is not None:
            number = task.number if one.lease > 0 else -task.number
            route = Route(task.client.session, number, worker, len(task.deaths) + task.tries + 1)
        elif self._runs_elsewhere(one):
            return None
        elif abs(one.lease) >> 32 != self._broker.epoch:  # from before this broker was started
            route = Route(one.owner, one.task, worker, 1)
        else:
            return None
        self._routes[one.lease] = route
        return route

    def on_items(self, worker: WorkerRecord, message: Items | Sent, payload: Payload, now: float) -> None:
        """Items that were fetched, and how far others were sent."""
        route = self._routes.get(message.lease)
        if route is not None and route.worker is worker:
            self._to_client(route.owner, message, payload)

    def on_progress(self, worker: WorkerRecord, message: Progress, payload: Payload, now: float) -> None:
        """A task says how far it is."""
        task = worker.leases.get(message.number)
        if task is not None:
            progress = Progress(task.number, message.done, message.total, message.note)
            self._to_client(task.client.session, progress)

    def on_printed(self, worker: WorkerRecord, message: Printed, payload: Payload, now: float) -> None:
        """A task has printed something."""
        task = worker.leases.get(message.number)
        if task is not None:
            told = Printed(task.number, message.source, message.dropped, worker.host)
            self._to_client(task.client.session, told, payload)

    def on_want(self, worker: WorkerRecord, message: Want, payload: Payload, now: float) -> None:
        """A worker wants files that a call needs: only of its own leases, and only from their clients."""
        task = worker.leases.get(message.lease)
        if task is None or not task.needs:
            refusals = self._broker.refusals
            refusals["files"] = refusals.get("files", 0) + 1
            return
        owner, wants = task.client.session, message.wants
        if any(need.archived for need in task.needs):
            kept = [one for one in wants if one.archived]
            wants = [one for one in wants if not one.archived]
            if kept or not wants:
                self._to_archive(
                    worker, Want(message.lease, kept, message.taken, task.number, worker.host, owner)
                )
            if kept and not wants:
                return
        self._to_client(owner, Want(message.lease, wants, message.taken, task.number, worker.host))

    def _to_archive(self, worker: WorkerRecord, want: Want) -> None:
        """The broker's own archive is asked; where there is none, that is the answer."""
        archive = self._broker.archive
        if archive is not None:
            self._send(archive, want)
        elif want.wants:
            text = "this broker keeps no files (--files none)"
            chunks = [Chunk(one.digest, one.size, one.at, text=text) for one in want.wants]
            self._send(worker.peer, Chunks(want.lease, want.task, chunks), [b""] * len(chunks))

    def on_archive(self, owner: str, message: Chunks, payload: Payload, now: float) -> None:
        """The archive gives what the worker with that lease has asked for."""
        client = self._broker.clients.get(owner)
        if client is not None:
            self.on_chunks(client, message, payload, now)

    # ------------------------------------------------------------ from clients

    def on_chunks(self, client: ClientRecord, message: Chunks, payload: Payload, now: float) -> None:
        """A client sends files to the worker that has its call."""
        task = client.tasks.get(message.task)
        if task is not None and task.worker is not None and task.lease == message.lease and task.needs:
            self._send(task.worker.peer, message, payload)

    def on_listen(self, client: ClientRecord, message: Listen, payload: Payload, now: float) -> None:
        """A client says how far its readers are. It may read its own streams only, so its key opens those at
        the ducts of their workers."""
        told: dict[str, tuple[WorkerRecord, list[Listening]]] = {}
        for one in message.listens:
            route = self._routes.get(one.lease)
            if route is not None and route.owner == client.session:
                told.setdefault(route.worker.session, (route.worker, []))[1].append(one)
        for worker, listens in told.values():
            self._send(worker.peer, Listen(listens, client.key if worker.duct else ""))

    def on_fetch(self, client: ClientRecord, message: Fetch, payload: Payload, now: float) -> None:
        """A client misses items."""
        route = self._routes.get(message.lease)
        if route is not None and route.owner == client.session:
            self._send(route.worker.peer, message)

    # ------------------------------------------------------------ comings and goings

    def tell(self, client: ClientRecord) -> None:
        """A client has a new link: tell it of all its streams."""
        streams = [
            self._streaming(lease, route)
            for lease, route in self._routes.items()
            if route.owner == client.session
        ]
        most = self._broker.limits.batch_calls_max
        for start in range(0, len(streams), most):
            self._to_client(client.session, Streams(streams[start : start + most]))

    def lose(self, worker: WorkerRecord) -> None:
        """A worker is gone, and what it kept."""
        gone: dict[str, list[int]] = {}
        for lease in [lease for lease, route in self._routes.items() if route.worker is worker]:
            gone.setdefault(self._routes.pop(lease).owner, []).append(lease)
        self._tell_gone(gone)

    def doubt(self, worker: WorkerRecord) -> None:
        """A worker has joined again: it will name the streams that it has."""
        for route in self._routes.values():
            if route.worker is worker:
                route.sure = False

    def shows(self, client: ClientRecord, key: str) -> None:
        """A client shows this key at ducts from now on, and no other one opens its streams there any more."""
        if client.key and key != client.key:  # all routes are looked at: not for everybody who comes
            self._shut(client.session)
        client.key = key

    def drop(self, session: str) -> None:
        """A client is gone for good, and what it was permitted with it."""
        self._shut(session)
        for lease in [lease for lease, route in self._routes.items() if route.owner == session]:
            del self._routes[lease]

    def _shut(self, session: str) -> None:
        """Nobody may have the streams of this client over ducts; also such as are about to be offered."""
        for lease, route in self._routes.items():
            if lease < 0 and route.owner == session and route.worker.duct:
                self._send(route.worker.peer, Listen([Listening(lease, 0, 0)]))

    def _to_client(
        self, owner: str, message: Streams | Items | Sent | Progress | Printed | Want, payload: Payload = ()
    ) -> None:
        client = self._broker.clients.get(owner)
        if client is not None:
            self._send(client.peer, message, payload)

    def _send(self, peer: object, message: object, payload: Payload = ()) -> None:
        if peer is not None:
            self._broker.actions.append(Send(peer, message, payload))

    def check(self) -> None:
        """Every stream comes from a worker that is there."""
        for route in self._routes.values():
            assert self._broker.workers.get(route.worker.session) is route.worker
