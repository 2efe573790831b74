"""The broker towards clients, and the peers of all: who they are, what they submit, cancel and ask for.
It grants nothing.

The broker's machine (zfarm.core.broker) is a reception that has workers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Final

from msgspec import structs

from zfarm.core.accounts import Kit
from zfarm.core.books import ClientRecord, WorkerRecord
from zfarm.core.greeting import LOCAL, bare, book_key, mismatch, principal_of
from zfarm.core.headroom import Headroom
from zfarm.core.ledger import Ledger
from zfarm.core.machine import NOW
from zfarm.core.naming import functions_of, make_room
from zfarm.core.orphans import Orphans
from zfarm.core.pinboard import Pinboard
from zfarm.core.routes import Routes
from zfarm.messages import (
    CANCELLED,
    HELLO_MAX,
    REFUSED,
    Ask,
    Attach,
    Attached,
    Blob,
    Bye,
    Call,
    Cancel,
    Chunks,
    Drop,
    Echo,
    Fate,
    Fetch,
    Forget,
    Hello,
    JobTask,
    Listen,
    Message,
    Outcome,
    Payload,
    Peer,
    Pin,
    Pulse,
    Refused,
    Send,
    Submit,
    Versions,
    Welcome,
)
from zfarm.settings import Settings

if TYPE_CHECKING:
    from zfarm.core.stall import Stall

__all__ = ["Handler", "Reception"]

Handler = Callable[[Any, Any, Payload, float], None]
LIFE_TASKS: Final = 1 << 24
"""Task numbers that belong to one life of a job's client. The next one has others: a journal does not keep
the numbers of what was forgotten, and a worker that comes back may still run those."""
LEFT_MAX: Final = 10_000
"""Clients of one key that are gone, of which it is known that no earlier link is to be heard any more. Such a
link is read late by seconds, while the broker has much to do."""
LAST_HELLO: Final = HELLO_MAX + 1
"""No Hello has this number: whoever said Bye says no other one."""


class Reception(Ledger):
    """Peers, and what the clients among them want."""

    deadline: float
    orphans: Orphans
    stall: Stall

    def __init__(self, epoch: int, versions: Versions, limits: Settings, journal: bool = False) -> None:
        super().__init__(epoch, limits, journal)
        self.versions = versions
        self.peers: dict[Peer, ClientRecord | WorkerRecord] = {}
        self.known: Collection[str] | None = None
        """The principals that may have sessions; None: all who come."""
        self.refusing = ""
        """Why no new task is taken at the moment; empty: they are. Set by the shell."""
        self.headroom = Headroom(limits)
        """What the disk of the journal has room for. The shell looks."""
        self.items_addresses = "", ""
        """Where workers publish items, and where clients get them; empty: they take the way of all messages.
        Set by the shell."""
        self.archive: Peer | None = None
        """Who gives what the broker keeps beyond the life of programs; None: nobody. Set by the shell."""
        self.routes = Routes(self)  # type: ignore[arg-type]  # a reception is always that of a broker
        self.pinboard = Pinboard(self)  # type: ignore[arg-type]
        self._left: dict[str, OrderedDict[str, tuple[str, int]]] = {}
        """Sessions that ended, and lives that spoke for jobs among them, by principal: who did so last, and
        the number of its last Hello."""
        self._strangers: dict[Peer, bool] = {}
        self.lost_links: dict[Peer, ClientRecord] = {}
        """Whose they were, until it says Hello again: what still comes from there shows that it lives."""
        self._from_client: dict[type, Handler] = {
            Submit: self._on_submit,
            Cancel: self._on_cancel,
            Ask: self._on_ask,
            Forget: self._on_forget,
            Pulse: self._on_pulse,
            Bye: self._on_bye,
            Listen: self.routes.on_listen,
            Fetch: self.routes.on_fetch,
            Chunks: self.routes.on_chunks,
            Pin: self.pinboard.on_pin,
        }

    # ------------------------------------------------------------ clients

    def _on_hello(self, peer: Peer, message: Hello, now: float, principal: str) -> None:
        if not self._fits(peer, message.versions):
            return
        key = book_key(principal, message.session)
        client = self.clients.get(key)
        if self._comes_late(key, client, message):
            return
        if client is None and self._left_by(key)[0] not in (message.life, None):
            self._taken_over(peer, message.job)  # and has ended since
            return
        if client is None and (full := self._crowded(principal)):
            self._refuse(peer, "FarmBusy", full)
            return
        if client is None and message.job and self.accounts.job(principal, message.job) is not None:
            self._refuse(
                peer,
                "JobExists",
                f"there is a job {message.job!r} already: attach to it, or choose another name",
            )
            return
        if client is None:
            name, job = message.name, message.job
            client = self.enroll(key, None, message.host, message.pid, name, job, now, message.life)
        if client.life != message.life:
            self._taken_over(peer, client.job)
            return
        client.hello_seen = message.number
        self.routes.shows(client, "" if isinstance(peer, tuple) else message.key)  # no child dials anybody
        client.ended = []  # what waits for the journal it asks for anew
        client.booked = []
        client.unknown = []
        client.lacks = []
        self._bind(client, peer, now)
        welcome = self._welcome(books=client.books)
        self._send(peer, structs.replace(welcome, topic=key, items=self.items_addresses[1]))
        self.routes.tell(client)
        if client.away:
            client.away = False
            self.tell("info", f"client {client.host}/{client.pid} is back", "clients are back")

    def _comes_late(self, key: str, client: ClientRecord | None, message: Hello) -> bool:
        """It was said over a link that was given up since, by a client that has spoken over another one, or
        has left. What follows was settled long ago: calls that were cancelled since, or that have run."""
        if client is None:
            life, number = self._left_by(key)
            return life == message.life and message.number < number
        return client.life == message.life and message.number < client.hello_seen

    def _left_by(self, key: str) -> tuple[str | None, int]:
        """Who spoke last for a session that has ended, and the number of its last Hello; None: nobody."""
        left = self._left.get(principal_of(key))
        return left[key] if left is not None and key in left else (None, 0)

    def _crowded(self, principal: str) -> str:
        """Why there can be no further client with this key; empty: there can be one. Each child of a worker
        may have one in its task."""
        account = self.accounts.of(principal)
        most = self.limits.client_sessions_max
        if account is None or len(account.sessions) < most:
            return ""
        most += self.slots() + len(self.workers) * self.limits.blocked_children_max
        if len(account.sessions) < most:
            return ""
        self.refusals["clients"] = self.refusals.get("clients", 0) + 1
        return (
            f"there are {len(account.sessions)} clients with this key, present or away, its limit "
            "(ZFARM_CLIENT_SESSIONS_MAX): shut executors down that are not needed, or use keys of their own"
        )

    def knows(self, key: str) -> bool:
        """Whether the owner of a session may have one."""
        owner = principal_of(key)
        return self.known is None or owner == LOCAL or owner in self.known

    def _taken_over(self, peer: Peer, job: str) -> None:
        self._refuse(peer, "JobTakenOver", f"job {job!r} was taken over by another program")

    def _on_attach(self, peer: Peer, message: Attach, now: float, principal: str) -> None:
        if not self._fits(peer, message.versions):
            return
        client = self.accounts.job(principal, message.job)
        if self.stalled and (client is None or self.headroom.dry or self.stall.enrols(client.session)):
            self._refuse(peer, "FarmBusy", f"no job can be taken over: {self.stalled}")
            return
        if client is None:
            jobs = self.accounts.jobs(principal)
            known = f"there are {', '.join(jobs[:20])}" if jobs else "there is none"
            self._refuse(peer, "JobUnknown", f"this farm has no job {message.job!r}; {known}")
            return
        if message.life in client.former:  # it asked twice, and another one came in between
            self._taken_over(peer, client.job)
            return
        if client.life != message.life:
            if self._left_by(book_key(principal, message.life))[0] is not None:
                text = f"job {client.job!r} is a new one: that of the program that asks for it has ended"
                self._refuse(peer, "JobUnknown", text)
                return
            highest = max(client.tasks, default=0)
            client.lives = max(client.lives, highest // LIFE_TASKS) + 1
            self.hand_over(client, message.life)
            self.routes.shows(client, "")
            if self.stalled:
                self.record(client)
            client.submit_seen = 0
            if client.peer is not None:  # what it still sends is not of this job any more
                self.gone(client.peer, now)
            self._forget_link(client)
            if self.stalled:
                return  # it asks again, and it will be written then or there is no room for it
        tasks = [JobTask(t.number, t.function.name, t.items) for t in client.tasks.values()]
        most = self.limits.batch_calls_max
        first = client.lives * LIFE_TASKS + 1
        for start in range(0, max(1, len(tasks)), most):
            part = tasks[start : start + most]
            self._send(peer, Attached(message.job, bare(client.session), part, len(tasks), first))

    def _on_submit(self, client: ClientRecord, message: Submit, payload: Payload, now: float) -> None:
        client.submit_seen = message.number
        if message.forgets:
            self.forget(client, message.forgets)
        first_setup = len(message.names)
        first_body = first_setup + message.setups
        roomy = self._is_roomy(client, message, payload, first_body)
        functions = functions_of(self, client, message, payload)
        if functions is None:
            self._refuse(client.peer, "ProtocolError", "the digest of a function is not that of its bytes")
            return
        setups = [bytes(payload[i]) for i in range(first_setup, first_body)]
        tasks = client.tasks
        refused: list[int] = []
        text = ""
        last_function = last_setup = -1
        kit: Kit | None = None
        for i, call in enumerate(message.calls, first_body):
            known = tasks.get(call.task)
            if known is not None:
                if known.outcome is not None:
                    self.show(known)
                elif self.journal:
                    client.booked.append(call.task)
            elif (function := functions[call.function]) is None:
                client.unknown.append(call.task)  # it must be submitted again, with its function
            elif not call.begun and (
                full := ("" if roomy else self._full(client, payload[i]))
                or (self._too_choosy(client, message, call) if call.demand else "")
            ):
                refused.append(call.task)
                text = full
            else:
                if client.unrecorded:  # its calls that may have begun are taken all the same
                    self.record(client)
                if kit is None or call.function != last_function or call.setup != last_setup:
                    last_function, last_setup = call.function, call.setup
                    kit = self.accounts.kit(client, function, setups[last_setup])
                demand = message.demands[call.demand - 1] if call.demand else None
                needs = message.needs[call.needs - 1] if call.needs else ()
                task = self.accept(client, call, kit, payload[i], not call.begun, demand, needs)
                if call.begun:
                    self.doubt(task, now)
        if client.booked or client.unknown:
            self.touch(client)
        if self.orphans:
            here = [call.task for call in message.calls if functions[call.function] is not None]
            self.orphans.claimed(client, here, now)
        self.make_ready(client)
        if refused:
            make_room(self, client)  # what came with them is not to be kept for nothing
            self.refusals["tasks"] = self.refusals.get("tasks", 0) + len(refused)
            self.touch(client)
            fate = Fate(host="", worker="", text=text)
            said = [(Outcome(task=n, kind=REFUSED, deaths=(fate,)), b"") for n in refused]
            # the journal may still have the same of an earlier life of this client: that is written first
            (client.ended if client.session in self.dropped else client.refused).extend(said)
        for function in functions:  # a repeated submit must not leave a function behind that no task needs
            if function is not None and not function.refs:
                self.functions.rest(function)

    def _too_choosy(self, client: ClientRecord, message: Submit, call: Call) -> str:
        """Why this client can have no further line of calls that wait; empty: it can."""
        lines, most = client.lines, self.limits.client_demands_max
        if len(lines) < most or message.demands[call.demand - 1] in lines:
            return ""
        return (
            f"calls of this client wait with {most} different demands, its limit (ZFARM_CLIENT_DEMANDS_MAX)"
        )

    def _is_roomy(self, client: ClientRecord, message: Submit, payload: Payload, first_body: int) -> bool:
        """All of it is within every limit, perhaps without the functions that nobody needs now. If not, each
        call has to be looked at."""
        calls, size = len(message.calls), sum(map(len, payload))
        roomy = self._has_room(client, calls, size) or (
            make_room(self, client, message.digests) and self._has_room(client, calls, size)
        )
        if roomy and self.headroom.take(self.headroom.price(calls, size, payload)):
            return True
        self.headroom.spend(sum(map(len, payload[:first_body])))
        return False

    def _has_room(self, client: ClientRecord, calls: int, size: int) -> bool:
        """So many further tasks of so many bytes are within every limit: none needs a look of its own."""
        limits, account = self.limits, client.account
        return (
            not (self.stalled or self.refusing)
            and self.tasks + calls <= limits.tasks_max
            and account.tasks + calls <= limits.client_tasks_max
            and account.bytes + size <= limits.client_bytes_max
            and self.accounts.bytes + size <= limits.broker_bytes_max
        )

    def _full(self, client: ClientRecord, body: Blob) -> str:
        """Why this client cannot have a further task with this body now; empty: it can."""
        limits = self.limits
        if self.stalled or self.refusing:
            return self.stalled or self.refusing
        if self.tasks >= limits.tasks_max:
            return f"the farm holds {self.tasks} tasks, its limit (ZFARM_TASKS_MAX)"
        total = self.accounts.bytes
        if total >= limits.broker_bytes_max:
            return (
                f"the farm holds {total >> 20} MiB of calls and results, its limit (ZFARM_BROKER_BYTES_MAX)"
            )
        account = client.account
        several = len(account.sessions)
        who = "this client has" if several == 1 else f"the {several} clients with this key have"
        if account.tasks >= limits.client_tasks_max:
            return f"{who} {account.tasks} tasks there, its limit (ZFARM_CLIENT_TASKS_MAX)"
        if account.bytes >= limits.client_bytes_max:
            return f"{who} {account.bytes >> 20} MiB there, its limit (ZFARM_CLIENT_BYTES_MAX)"
        if not self.headroom.take(self.headroom.price(1, len(body), (body,))):
            return self.headroom.text
        return ""

    def _on_cancel(self, client: ClientRecord, message: Cancel, payload: Payload, now: float) -> None:
        self.touch(client)
        for number in message.tasks:
            task = client.tasks.get(number)
            if task is None:
                client.unknown.append(number)
                if message.force:  # else it may run, and its client submits it again
                    self.orphans.cancelled(client, number, now)
            elif task.outcome is not None:
                continue  # it was shown when it ended, and is shown again when asked
            elif task.worker is None and task.spent and not message.force:
                task.cancelling = True  # it may have begun: the worker that comes back with it will say
            elif task.worker is None:
                self.orphans.cancelled(client, number, now)
                self.settle(task, Outcome(task=number, kind=CANCELLED, deaths=task.deaths), b"")
            elif message.force and not message.grace_us:
                task.worker.stops.append(task.lease)
                self.touch(task.worker)
                self.charge(task, now)
                self.settle(task, Outcome(task=number, kind=CANCELLED, deaths=task.deaths), b"")
            elif task.began and not message.force:
                client.began.append(number)
            else:
                task.cancelling = True
                task.grace_us = max(task.grace_us, message.grace_us)
                task.worker.revokes.append(task.lease)
                self.touch(task.worker)

    def _on_ask(self, client: ClientRecord, message: Ask, payload: Payload, now: float) -> None:
        self.touch(client)
        for number in message.tasks:
            task = client.tasks.get(number)
            if task is None:
                client.unknown.append(number)
            elif task.outcome is not None:
                self.show(task)
            elif task.began:
                client.began.append(number)

    def _on_forget(self, client: ClientRecord, message: Forget, payload: Payload, now: float) -> None:
        self.forget(client, message.tasks)

    def _on_pulse(self, client: ClientRecord, message: Pulse, payload: Payload, now: float) -> None:
        if client.away:
            client.away = False
            self.tell("info", f"client {client.host}/{client.pid} is back", "clients are back")
        written = not self.stalled  # else it would say that what was forgotten is, too
        self._send(client.peer, Echo(message.number, self.slots(), written))

    def _on_bye(self, client: ClientRecord, message: Bye, payload: Payload, now: float) -> None:
        client.hello_seen = LAST_HELLO
        if client.job and client.tasks:  # they go on without it
            self.gone(client.peer, now)
            self._forget_link(client)
        else:
            self.drop_client(client, now)

    def drop_client(self, client: ClientRecord, now: float) -> None:
        """Forget a client: what waits is dropped, what runs is stopped."""
        if client.peer is not None:
            del self.peers[client.peer]
        self._forget_link(client)
        self._remember_left(client)
        self.drop(client, now)
        self.routes.drop(client.session)
        self.pinboard.over(client)
        self.orphans.stop_of(client.session)

    def _remember_left(self, client: ClientRecord) -> None:
        owner = principal_of(client.session)
        left = self._left.setdefault(owner, OrderedDict())
        lives = (*client.former, client.life) if client.job else ()
        for key in (*(book_key(owner, life) for life in lives), client.session):
            left[key] = client.life, client.hello_seen
            left.move_to_end(key)
        while len(left) > LEFT_MAX:
            left.popitem(last=False)

    # ------------------------------------------------------------ peers and sending

    def _fits(self, peer: Peer, theirs: Versions) -> bool:
        text = mismatch(self.versions, theirs)
        if text:
            self._refuse(peer, "VersionMismatch", text)
        return not text

    def _refuse(self, peer: Peer, code: str, text: str) -> None:
        self._send(peer, Refused(code=code, text=text))
        self.tell("warning", f"refused a peer: {text}", "peers were refused")

    def _welcome(self, grants: int = 0, books: int = 0) -> Welcome:
        slots, most = self.slots(), self.limits.payload_bytes_max
        about = self.epoch, self.versions, len(self.workers), slots, grants, self.journal, books
        return Welcome(*about, blob_bytes=most)

    def _bind(self, record: ClientRecord | WorkerRecord, peer: Peer, now: float) -> None:
        """From now on this record speaks through ``peer``; what still comes from its old link is a
        stranger's."""
        other = self.peers.get(peer)
        if other is not None and other is not record:  # one link, one peer: the last word counts
            other.peer = None
            if isinstance(other, ClientRecord) and not other.tasks:  # it has gone without a word
                self.drop_client(other, now)
        if record.peer is not None and record.peer != peer:
            self.peers.pop(record.peer, None)
            self.actions.append(Drop(record.peer))
        record.peer = peer
        if isinstance(record, ClientRecord):
            self._forget_link(record)
            record.last_peer = peer
        record.heard_at = now
        self.peers[peer] = record
        self._strangers.pop(peer, None)  # it would hear so after its Welcome, and believe it

    def _forget_link(self, client: ClientRecord) -> None:
        if self.lost_links.get(client.last_peer) is client:
            del self.lost_links[client.last_peer]

    def _send(self, peer: Peer, message: Message, payload: Payload = ()) -> None:
        if peer is not None:
            self.actions.append(Send(peer, message, payload))

    def gone(self, peer: Peer, now: float) -> None:
        """The link of this peer is dead, and so are the tunnels through it.

        Nothing more can be sent there until somebody says Hello or Join again.
        """
        through = [other for other in self.peers if isinstance(other, tuple) and other[0] == peer]
        for lost in (peer, *through):
            record = self.peers.pop(lost, None)
            if record is not None:
                record.peer = None
                self.deadline = NOW
            if isinstance(record, ClientRecord):
                self.lost_links[lost] = record
            if isinstance(record, WorkerRecord):  # what waits to be granted there would never be
                unsaid = record.unsaid()
                for task in [one for one in record.granted if one.lease in unsaid]:
                    self.give_back(task)
