"""The processes of a simulated farm: each drives a production machine, and does what that says.

What all of them have, a clock and turns, stands in process.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tests.simulation.archive import ARCHIVE, Archive
from tests.simulation.children import Children
from tests.simulation.foyer import Foyer
from tests.simulation.fullness import write_what_fits, written_first
from tests.simulation.keyring import Gate
from tests.simulation.narrow import judge_message, settings_of
from tests.simulation.network import Link
from tests.simulation.people import Task
from tests.simulation.process import Process
from tests.simulation.rogues import VERSIONS
from tests.simulation.shelves import CHUNK, Shelf, give
from zfarm import messages as m
from zfarm.core.broker import Broker
from zfarm.core.client import Client
from zfarm.core.greeting import LOCAL, book_key, principal_of
from zfarm.core.worker import Worker

if TYPE_CHECKING:
    from tests.simulation.farm import Farm


ASKING = ("cancel", "why")
READING = ("listen", "unlisten", "took")
"""What is asked of a future. Those who attach to a job go on reading its streams."""


class BrokerProcess(Process):
    """The broker: a ROUTER and a machine."""

    def __init__(self, farm: Farm, epoch: int) -> None:
        super().__init__(farm, "broker")
        self.epoch = epoch
        self.watched = False
        self.machine = Broker(epoch, VERSIONS, self.clock, settings_of(farm, epoch), farm.disk is not None)
        self.gate = Gate(self)
        self.archive = Archive(self)
        self.foyer = Foyer(self)
        self._parked = 0
        self.machine.archive = ARCHIVE
        farm.books.broker_born()
        if farm.disk is not None:
            self.machine.restore(self.gate.inherited(farm.disk), self.clock)
            self.machine.check()
            farm.books.restored(self.machine.clients, self.clock)
        self.gate.see_keys()
        self.hand("advance")

    def arrived(self, peer: Any, message: m.Message, payload: m.Payload) -> None:
        """A message came in from a link."""
        self.hand("message", peer, message, payload)

    def lost(self, peer: Any) -> None:
        """The router knows that this peer's connection is dead."""
        self.hand("gone", peer)

    def lose_power(self) -> None:
        self.farm.kill_broker(self.farm.rng.random() * self.farm.mix.broker_back_s)

    def take(self, entry: tuple[Any, ...], clock: float) -> None:
        kind = entry[0]
        if kind == "message":
            _, peer, message, payload = entry
            principal = self.farm.network.whose.get(peer, LOCAL)
            if not self.gate.admits(principal):
                return
            if isinstance(message, m.Tunnel):
                worker, channel, owner, (message, payload) = peer, message.channel, message.owner, payload
                hear = partial(self._hear_tunnel, worker, channel, owner)
                self.foyer.receive((worker, channel), message, payload, clock, hear)
            elif isinstance(message, m.TunnelClosed):
                self.end((peer, message.channel), clock)
            else:
                self.foyer.receive(peer, message, payload, clock, partial(self._hear, peer, principal))
        elif kind == "gone":
            self.farm.story.tell(self.farm.now, "broker", "loses", entry[1])
            self.end(entry[1], clock)
        elif kind == "archive":
            self.machine.routes.on_archive(entry[1], entry[2], entry[3], clock)
        elif kind == "keys":
            self.gate.follow_keys(entry[1])
        elif kind == "watch":
            self.watched = entry[1]
            self.machine.watch(entry[1], clock)
        elif kind == "room" and self.machine.stalled:
            write_what_fits(self)

    def _hear(self, peer: Any, principal: str, message: Any, payload: m.Payload, clock: float) -> None:
        judge_message(self.farm, self.machine, peer, message, payload)
        self.farm.books.heard(peer, message, principal)
        self.machine.receive(peer, message, payload, clock, principal)

    def _hear_tunnel(
        self, worker: Any, channel: int, owner: str, message: Any, payload: m.Payload, clock: float
    ) -> None:
        if not isinstance(message, m.Hello) or self.farm.books.may_tunnel(worker, owner, message):
            self.farm.books.heard((worker, channel), message, principal_of(owner))
        judge_message(self.farm, self.machine, (worker, channel), message, payload)
        self.machine.tunnelled(worker, channel, owner, message, payload, clock)

    def end(self, peer: Any, clock: float) -> None:
        """The link of this peer, or its tunnel, is dead."""
        self.foyer.gone(peer, clock, partial(self._hear_end, peer))

    def _hear_end(self, peer: Any, message: None, payload: m.Payload, clock: float) -> None:
        self.farm.books.gone(peer)
        self.machine.gone(peer, clock)

    def waits_from(self, peer: Any) -> bool:
        return peer in self.machine.foyer or super().waits_from(peer)

    def turned(self, clock: float) -> None:
        self.foyer.turned(clock)

    def advanced(self) -> None:
        before, self._parked = self._parked, len(self.machine.parked)
        if self._parked < before:
            self.stirs()  # a retry whose time has come, and that may wait for a slot now
        self.farm.books.broker_advanced()

    def checked(self, actions: list[m.Action]) -> list[m.Action]:
        return written_first(self, actions)

    def perform(self, action: m.Action) -> None:
        farm = self.farm
        if isinstance(action, m.Send):
            farm.story.tell(farm.now, "broker", "says", action)
            farm.books.broker_says(action.peer, action.message)
            farm.books.judge_nearness(action.message)
            peer, message, payload = action.peer, action.message, action.payload
            if peer == ARCHIVE:
                self.archive.hear(message)
                return
            if isinstance(peer, tuple):
                peer, message, payload = peer[0], m.Tunnel(channel=peer[1]), (message, payload)
            if not farm.network.send(peer, message, payload) and farm.mix.gone_is_told:
                self.hand("gone", action.peer)
        elif isinstance(action, m.Tell):
            self._told(action)
        elif isinstance(action, m.Append):
            farm.story.tell(farm.now, "broker", "appends", tuple(record for record, _ in action.records))
        elif isinstance(action, m.Publish):
            assert self.watched, f"a note for nobody: {action.note}"
            farm.story.tell(farm.now, "broker", "notes", type(action.note).__name__)
        elif isinstance(action, m.Drop):
            farm.story.tell(farm.now, "broker", "drops", action.peer)
        else:
            raise AssertionError(f"a broker cannot do {action}")


class WorkerProcess(Process):
    """A worker: a link, a machine and its children."""

    machine: Worker
    link: Link

    def __init__(self, farm: Farm, name: str, session: str, near: bool) -> None:
        super().__init__(farm, name)
        self.principal = farm.keys.issue("worker", name)
        self.session = book_key(self.principal, session)
        self.near = near
        self.draining = False
        self.slots = farm.mix.slots[name]
        self.finished = False
        self.lost = False
        """The broker has not heard of this life for too long, at some time or other."""
        self.kept_out_s = 0.0
        """How long it waited to be let in, at most: its key had workers enough."""
        self._kept_out_since = -1.0
        self.children = Children(self)
        self.shelf = Shelf(self)
        self.link = Link(farm, name, partial(self.hand, "message"), near, self.principal)
        self.link.denied = partial(farm.worker_locked_out, self)
        resources, labels = farm.mix.stocks.get(name, ({}, ()))
        self.resources = resources
        self.labels = labels
        self.machine = Worker(
            session, VERSIONS, self.slots, f"host-{name}", 1, self.clock, farm.mix.settings, resources, labels
        )
        self.machine.lacking.chunk_bytes = CHUNK
        farm.ducts.equip(self)
        self.hand("advance")

    def die(self) -> None:
        super().die()
        self.link.close()
        self.farm.ducts.died(self)
        self.children.die()
        self.farm.books.worker_died(self)

    def lose_power(self) -> None:
        self.farm.kill_worker(self, self.farm.rng.random() * self.farm.mix.worker_back_s)

    def take(self, entry: tuple[Any, ...], clock: float) -> None:
        kind = entry[0]
        if kind == "message":
            message, payload = entry[1:]
            if isinstance(message, m.Tunnel):
                self.children.tunnel(message.channel, *payload)
            else:
                self.farm.books.hears(self, message)
                self.machine.receive(m.BROKER, message, payload, clock)
        elif kind == "call":
            name, *arguments = entry[1:]
            self.draining |= name == "drain"
            self.farm.story.tell(self.farm.now, self.name, name, tuple(_tellable(part) for part in arguments))
            if name == "child_died":  # what it left behind comes last
                child, seq, number, code, text, left = arguments
                self.machine.child_died(child, seq, number, code, text, clock, left)
            else:
                if name == "child_delivers":
                    self.children.heard_delivery(arguments[0])
                self.farm.ducts.tells(name, arguments)
                getattr(self.machine, name)(*arguments, clock)
        elif kind == "tunnel":
            message, payload = entry[1:]
            if isinstance(message, m.Tunnel):
                message = m.Tunnel(message.channel, self.machine.owner_of(message.channel))
            self.link.send(message, payload)

    def perform(self, action: m.Action) -> None:
        farm = self.farm
        if isinstance(action, m.Tell):
            self._told(action)
            if action.text.startswith("no word from the broker"):
                farm.books.cuts_off(self)
            elif action.text.startswith("not let in yet") and self._kept_out_since < 0:
                self._kept_out_since = farm.now
            return
        farm.story.tell(farm.now, self.name, "does", action)
        if isinstance(action, m.Send):
            farm.books.worker_says(self, action.message)
            if isinstance(action.message, m.Items):
                farm.ducts.sent(self, action.message, action.payload, False)
            self.link.send(action.message, action.payload)
        elif isinstance(action, m.StartChild):
            self.children.start(action.child)
        elif isinstance(action, m.RunCalls):
            self.children.run(action.child, action.run, action.payload)
        elif isinstance(action, m.TakeBack):
            self.children.take_back(action.child)
        elif isinstance(action, m.LimitChild):
            self.children.limit(action.child, action.memory_bytes)
        elif isinstance(action, m.DoomChild):
            self.children.doom(action.child, action.at)
        elif isinstance(action, m.InterruptChild):
            self.children.interrupt(action.child)
        elif isinstance(action, m.PauseChild):
            self.children.pause_child(action.child, action.paused)
        elif isinstance(action, m.ToldDelivered):
            self.children.delivered(action.child, action.seq)
        elif isinstance(action, m.Admit | m.Dismiss) or (
            isinstance(action, m.PublishItems) and action.direct
        ):
            farm.ducts.do(self, action)
        elif isinstance(action, m.PublishItems):
            farm.ducts.sent(self, action.items, action.payload, False)
            farm.network.publish(self, action.topic, action.items, action.payload)
        elif isinstance(action, m.StopChild):
            self.children.stop(action.child, action.kill)
        elif isinstance(action, m.SeekBlob | m.StoreChunk | m.BuildTree | m.DropBlob | m.PinBlobs):
            self.shelf.do(action)
        elif isinstance(action, m.Finished):
            self.finished = True
            self.die()
            if farm.mix.leaving_s:
                farm.start_worker(self.name)
        elif isinstance(action, m.Connected):
            if self._kept_out_since >= 0:
                self.kept_out_s = max(self.kept_out_s, farm.now - self._kept_out_since)
            self._kept_out_since = -1.0
        else:
            raise AssertionError(f"a worker should not do {action}")


class ClientProcess(Process):
    """A client: a machine, a way to the broker, and a shell that splits the batches that were lost."""

    machine: Client

    def __init__(
        self, farm: Farm, name: str, session: str, tunnel: Any = None, job: str = "", attach: bool = False,
        principal: str = LOCAL,
    ) -> None:  # fmt: skip
        super().__init__(farm, name)
        self.principal = principal
        self.session = book_key(principal, session)
        """As the broker's books call it."""
        self.job = job
        self.life = session
        self.attaching = attach
        """It has not heard yet which tasks the job has: what people want has to wait."""
        self.over = False
        """The broker has refused it."""
        self._later: list[tuple[Any, ...]] = []
        self.tunnel = tunnel
        self.left = False
        self.disowned = False
        """It lives in a child, and was told that nobody is there in whose name it could speak: rightly."""
        self.books = 0  # of the broker it has last heard of
        if tunnel is None:
            self.link = Link(farm, name, partial(self.hand, "message"), principal=principal)
            self.link.denied = partial(farm.locked_out, self)
        settings = farm.mix.settings
        self.machine = Client(session, VERSIONS, "host-c", 1, name, self.clock, settings, job, attach)
        self.machine.subscribe(tunnel is None and farm.mix.published)
        self.machine.inflow.files = True
        self.machine.giving.chunk_bytes = CHUNK
        farm.ducts.equip(self)
        self.hand("advance")

    def die(self) -> None:
        super().die()
        self.farm.ducts.died(self)
        if self.link is not None:
            self.link.close()

    def lose_power(self) -> None:
        self.farm.kill_client(self)

    def take(self, entry: tuple[Any, ...], clock: float) -> None:
        kind = entry[0]
        if kind == "message":
            _, message, payload = entry
            if isinstance(message, m.Want):
                self.farm.books.wanted(self, message)
            elif isinstance(message, m.Stranger) and message.later:
                self.farm.story.probe("a client in a child has nobody to speak for")
                child = self.tunnel.args[0]
                owner = child.owner.worker.machine.owner_of(child.number)
                known = self.session in self.farm.broker.machine.clients
                self.disowned = not known and owner not in self.farm.living_sessions()
            self.machine.receive(m.BROKER, message, payload, clock)
        elif kind == "direct":
            self.machine.direct_items(entry[1], entry[2], entry[3], clock)
        elif kind == "duct broke":
            self.machine.duct_broke(entry[1], entry[2], clock, entry[3])
        elif self.left:
            return  # whoever has left can ask for nothing more
        elif self.attaching and kind != "advance":
            self._later.append(entry)
        elif kind in (READING if not self.job else ()) + ASKING and entry[1].asked_by is not self:
            pass  # that future was lost with the program that was here before
        elif kind == "submit":
            self._submit(entry[1])
        elif kind == "cancel":
            self._cancel(entry[1])
        elif kind == "listen":
            task = entry[1]
            if not task.reader.over and not self.machine.listen(task.number):
                self.farm.books.stream_forgotten(task)
        elif kind == "why":
            self.machine.why(entry[1].token, entry[1].number)
            self.machine.look()
        elif kind == "let_go":
            self.farm.books.lets_go(self, entry[1])
            self.machine.let_go(entry[1].at, entry[1].need.digest, entry[1].need.size)
        elif kind == "unlisten":
            self.machine.unlisten(entry[1].number)
        elif kind == "took":
            task, attempt, number, files = entry[1:]
            self.farm.books.used(task, attempt, number, files)
            self.machine.took(-task.number if files else task.number, attempt, number)
        elif kind == "leave":
            self.left = True
            self.farm.books.client_left(self)
            self.machine.leave()

    def perform(self, action: m.Action) -> None:
        farm = self.farm
        if isinstance(action, m.Tell):
            self._told(action)
            return
        farm.story.tell(farm.now, self.name, "does", action)
        if isinstance(action, m.Send):
            self.send(action.message, action.payload)
            if isinstance(action.message, m.Bye):
                self.die()
                farm.comes_back(self)
        elif isinstance(action, m.Resolve):
            self._resolve(action)
        elif isinstance(action, m.Dial | m.HangUp):
            farm.ducts.do(self, action)
        elif isinstance(action, m.Give):
            farm.after(farm.rng.random() * 1e-3, partial(self._give, action))
        elif isinstance(action, m.Safe):
            farm.story.probe("safe")
            task = farm.tasks[action.token]
            task.safe = not task.given_up
        elif isinstance(action, m.TakenOver):
            self.session = book_key(self.principal, action.session)
            self.attaching = False
            self.machine.adopt(action.session, farm.books.taken_over(self, action.tasks))
            for entry in self._later:
                self.hand(*entry)
        elif isinstance(action, m.Rejected):
            self.over = True
            self.die()
            farm.books.rejected(self, action.code)
        elif isinstance(action, m.Arrived):
            self._arrived(action)
        elif isinstance(action, m.Missed):
            task = farm.tasks[action.token]
            farm.books.missed(task, action)
            self.hand("took", task, action.attempt, action.last, action.files)
        elif isinstance(action, m.Explained):
            farm.books.explained(self, action.reason)
        elif isinstance(action, m.Heard):
            farm.books.heard_of(self.life, farm.tasks[action.token], action)
        elif isinstance(action, m.Looked):
            farm.books.looked(action.picture)
        elif isinstance(action, m.StreamOver):
            farm.books.stream_over(farm.tasks[action.token], action.files)
        elif isinstance(action, m.Running):
            farm.books.running(farm.tasks[action.token])
        elif isinstance(action, m.Connected):
            if self.books and self.books != action.welcome.books:
                farm.books.new_books_at[self.name] = farm.now
            self.books = action.welcome.books
        else:
            raise AssertionError(f"a client should not do {action}")

    def send(self, message: m.Message, payload: m.Payload) -> None:
        """Over the link, or through the tunnel of the child that it lives in."""
        if self.link is not None:
            self.link.send(message, payload)
        else:
            self.tunnel(message, payload)

    def _give(self, action: m.Give) -> None:
        if self.alive:
            give(self, action)

    def _submit(self, task: Task) -> None:
        number = self.machine.submit(
            task.token, task.name, task.function, task.setup, task.body, task.items, task.max_attempts,
            int(task.timeout_s * 1e6), task.priority, task.memory, task.demand, task.needs,
        )  # fmt: skip
        self.farm.books.submitted(self, number, task)

    def _arrived(self, action: m.Arrived) -> None:
        farm, task = self.farm, self.farm.tasks[action.token]
        reader = farm.books.arrived(task, action)
        last = action.first + len(action.blobs) - 1
        pause = reader.pause_s * farm.rng.random()
        if reader.lazy and farm.chaos and farm.rng.random() < 0.1:
            pause = farm.rng.choice((1.0, 10.0)) * farm.rng.random()
        farm.after(pause, partial(self.hand, "took", task, action.attempt, last, action.files))

    def _cancel(self, task: Task) -> None:
        if task.outcome is None and task.number:
            self.farm.books.cancel_asked(task)
            grace_s = task.grace_s
            self.machine.cancel(task.number, grace_s is not None, int((grace_s or 0.0) * 1e6))

    def _resolve(self, action: m.Resolve) -> None:
        task = self.farm.tasks[action.token]
        if task.outcome is not None and self.job:
            self.farm.books.shown_again(self, task, action.outcome)
            return
        self.farm.books.resolved(self, task, action.outcome, action.blob)
        self.farm.books.is_kept(self, action.blob)
        self.farm.books.ends_filed(task, action.outcome)
        self.farm.books.all_heard(self.life, task, action.outcome)
        if action.outcome.kind == m.LOST and task.items > 1:
            for part in task.split(self.farm):
                self.farm.clients.get(self.name, self).hand("submit", part)
        elif task.on_end is not None:
            task.on_end(task)


def _tellable(part: Any) -> Any:
    return part if isinstance(part, int | str | Sequence | m.Message) else repr(part)
