"""The virtual clock and all that lives on it: one broker, its workers and clients, and the network.

Equal times are ordered by the seeded generator, so that races are explored; nothing else is random. What a
process does stands in processes.py; what goes wrong, and when, in faults.py; what must hold all the while,
in checkers.py.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from functools import partial
from math import inf

from tests.simulation.checkers import Books
from tests.simulation.disk import Disk
from tests.simulation.ducts import Ducts
from tests.simulation.faults import Mix
from tests.simulation.handles import Kept
from tests.simulation.keyring import Keyring
from tests.simulation.network import Network
from tests.simulation.people import Task
from tests.simulation.process import Process
from tests.simulation.processes import BrokerProcess, ClientProcess, WorkerProcess
from tests.simulation.shelves import Library, Store
from tests.simulation.story import Story

EVENTS_MAX = 1_000_000
"""More than any seed needs; a farm that goes on beyond it runs in circles."""


class Farm:
    """One simulated farm, all of it decided by ``mix`` and its seed."""

    def __init__(self, mix: Mix, keep: int | None = 200) -> None:
        self.mix = mix
        self.rng = random.Random(mix.seed * 2 + 1)
        self.now = 0.0
        self.events = 0
        self.chaos = True
        self.plans_until = 0.0
        """When the last of the people will have done the last thing that they have in mind."""
        self.story = Story(keep)
        self.books = Books(self)
        self.network = Network(self)
        self.keys = Keyring(self)
        self.ducts = Ducts(self)
        self.disk = Disk(mix.seed) if mix.journal else None
        self.tasks: dict[int, Task] = {}
        self.library = Library(random.Random(f"library {mix.seed}"))
        self.stores: dict[str, Store] = {}
        self.kept: list[Kept] = []
        """Every result that was kept."""
        if mix.damage_share:
            self.library.lies.update(need.digest for need in self.library.all[:1])
        self._heap: list[tuple[float, float, int, Callable[[], object]]] = []
        self._pushed = 0
        self._epoch = 100
        self._lives = 0
        self.broker = BrokerProcess(self, self._epoch)
        self.workers: dict[str, WorkerProcess] = {}
        """The present life of each worker, by name."""
        self.leaving: list[WorkerProcess] = []
        """Those that drain, or have drained."""
        self.lives: dict[str, WorkerProcess] = {}
        """Every life there ever was, by session."""
        self.clients: dict[str, ClientProcess] = {}
        """The clients of people, by name. Those inside children belong to their children."""
        self.former: list[ClientProcess] = []
        """Clients whose jobs others have taken over, dead or alive."""

    # ------------------------------------------------------------ the clock

    def at(self, time: float, what: Callable[[], object]) -> None:
        """Do ``what`` at this virtual time."""
        self._pushed += 1
        heapq.heappush(self._heap, (time, self.rng.random(), self._pushed, what))

    def after(self, delay: float, what: Callable[[], object]) -> None:
        """Do ``what`` so many virtual seconds from now."""
        self.at(self.now + delay, what)

    def run(self, until: float, enough: Callable[[], bool] | None = None) -> None:
        """Let virtual time pass; ``enough`` is asked now and then and may end it early."""
        heap = self._heap
        ask_at = self.now
        while heap and heap[0][0] <= until:
            if enough is not None and heap[0][0] >= ask_at:
                if enough():
                    return
                ask_at = heap[0][0] + 0.5
            self.now, _, _, what = heapq.heappop(heap)
            self.events += 1
            assert self.events < EVENTS_MAX, "this farm runs in circles"
            what()
        self.now = max(self.now, until) if until < inf else self.now

    # ------------------------------------------------------------ births and deaths

    def start_worker(self, name: str, near: bool = False, after: WorkerProcess | None = None) -> None:
        """A new life of this worker, unless it is alive, or shares a process with a broker that is not.

        ``after``: a life that drains, and may be left alone with that.
        """
        before = self.workers.get(name)
        alive = before is not None and before.alive and before is not after
        if alive or (near and not self.broker.alive):
            return
        self._lives += 1
        worker = WorkerProcess(self, name, f"{name}.{self._lives}", near)
        self.story.tell(self.now, name, "starts", worker.session)
        self.workers[name] = self.lives[worker.session] = worker

    def start_client(self, name: str) -> ClientProcess:
        """A client of people."""
        job = f"job {name}" if self.mix.jobs else ""
        key = self.keys.issue("client", name)
        self.clients[name] = client = ClientProcess(self, name, f"{name}.s", job=job, principal=key)
        return client

    def take_over(self, name: str) -> None:
        """Another program attaches to the job of this client, whether that is dead or alive."""
        before = self.clients[name]
        if before.over:
            return
        self._lives += 1
        self.story.tell(self.now, name, "is taken over", self._lives)
        key = before.principal
        after = ClientProcess(self, name, f"{name}.{self._lives}", job=before.job, attach=True, principal=key)
        self.former.append(before)
        self.clients[name] = after

    def kill_broker(self, back_after: float) -> None:
        """``kill -9`` of the broker, which comes back with no memory and a higher epoch."""
        if not self.broker.alive:
            return
        self.story.tell(self.now, "broker", "dies")
        self.broker.die()
        self.books.broker_died()
        self.network.broker_died()
        for worker in self.workers.values():
            if worker.near and worker.alive:
                self.kill_worker(worker, None)
        self.after(back_after, self._restart_broker)

    def _restart_broker(self) -> None:
        self._epoch += 1
        there = set(self.disk.sessions) if self.disk is not None else set()
        disk, renewed = self.disk, self.keys.renewed
        if disk is not None and self.mix.old_journal and not (disk.full or disk.upgraded or renewed):
            self.story.probe("a journal of an earlier version")
            self.disk = disk.aged()
        self.broker = BrokerProcess(self, self._epoch)
        self.books.judge_heirs(there)
        self.story.tell(self.now, "broker", "starts", self._epoch)
        for worker in list(self.workers.values()):
            if worker.near:
                self.start_worker(worker.name, near=True)

    def kill_worker(self, worker: WorkerProcess, back_after: float | None) -> None:
        """``kill -9`` of a worker's process; its children die with it."""
        if not worker.alive:
            return
        self.story.tell(self.now, worker.name, "dies", worker.session)
        worker.die()
        if back_after is not None:
            self.after(back_after, lambda: self.start_worker(worker.name, worker.near))

    def kill_client(self, client: ClientProcess) -> None:
        """``kill -9`` of a client; nobody will ever ask for its tasks again, unless they are of a job."""
        if client.alive:
            self.story.tell(self.now, client.name, "dies")
            client.die()
            if client.job:
                self.comes_back(client)
            else:
                self.books.client_died(client)

    def comes_back(self, client: ClientProcess) -> None:
        """The program of a job has ended; some time later another one attaches to it."""
        if client is self.clients.get(client.name) and client.job:
            back = self.rng.random() * self.mix.worker_back_s
            self.plans_until = max(self.plans_until, self.now + back)
            self.after(back, partial(self._come_back, client))
        elif client.job:
            self.books.former_ended(client)

    def _come_back(self, client: ClientProcess) -> None:
        if client is self.clients[client.name]:
            self.take_over(client.name)

    # ------------------------------------------------------------ keys

    def broker_follows(self) -> None:
        """The keys file has changed."""
        self.broker.hand("keys", frozenset(self.keys.known))

    def worker_locked_out(self, worker: WorkerProcess) -> None:
        """A worker has learned that its key is not known: it ends, and is started anew with another one."""
        present = self.workers[worker.name] is worker
        self.kill_worker(worker, self.rng.random() * self.mix.worker_back_s if present else None)

    def locked_out(self, client: ClientProcess) -> None:
        """A client has learned that its key is not known; its user gets a new one of the same name."""
        client.die()
        self.books.revokes_client(client)  # and of what was asked for meanwhile, too
        if client is self.clients.get(client.name) and not client.left:
            back = self.rng.random() * self.mix.worker_back_s
            self.plans_until = max(self.plans_until, self.now + back)
            self.after(back, partial(self._come_anew, client))

    def _come_anew(self, before: ClientProcess) -> None:
        if before is not self.clients[before.name]:
            return
        name, job = before.name, before.job
        key = self.keys.issue("client", name)
        attach = bool(job) and self.rng.random() < 0.5
        self.story.tell(self.now, name, "comes with", key)
        self.books.comes_anew(name)
        self._lives += attach
        life = f"{name}.{self._lives}" if attach else f"{name}.s"  # its session is called as that before it
        self.former.append(before)
        self.clients[name] = ClientProcess(self, name, life, job=job, attach=attach, principal=key)

    # ------------------------------------------------------------ looking at it

    def processes(self) -> list[Process]:
        """All that live, in a stable order; those in children left out."""
        found: list[Process] = [self.broker, *self.all_workers(), *self.clients.values(), *self.former]
        return [process for process in found if process.alive]

    def living_sessions(self) -> set[str]:
        """Of all clients, those in children among them."""
        children = [child for worker in self.all_workers() for child in worker.children.all.values()]
        inner = [child.client for child in children if child.client is not None]
        return {one.session for one in (*self.clients.values(), *self.former, *inner) if one.alive}

    def all_workers(self) -> list[WorkerProcess]:
        """The present life of each worker, and those that still drain."""
        leaving = [worker for worker in self.leaving if worker is not self.workers[worker.name]]
        return [worker for worker in (*self.workers.values(), *leaving) if worker.alive]
