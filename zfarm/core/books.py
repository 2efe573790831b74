"""The broker's books: tasks, functions, clients and workers as facts; who decides about them is
zfarm.core.broker.

A task is queued, leased or ended, exactly one of the three, and that is derived from facts: it has an outcome
(ended), or a lease (leased), or neither (queued). There is no status word to keep in step.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import TypeAlias

import msgspec

from zfarm.core.accounts import Account, Kit
from zfarm.core.lines import Lines
from zfarm.core.meter import Meter
from zfarm.core.named import Told, digest_of
from zfarm.messages import WORKER_LABEL, Blob, Demand, Fate, Need, Outcome, Peer, Vitals

__all__ = ["ANY_LEASE", "Amounts", "ClientRecord", "Function", "Functions", "Task", "WorkerRecord"]

Amounts: TypeAlias = tuple[tuple[str, int], ...]
"""Of resources, in thousandths."""
ANY_LEASE = -1
"""In place of the lease that a task had begun with: an earlier broker's, which nobody here knows."""
FUNCTIONS_KEPT = 256
"""Functions remembered after their last task, for their measured run times."""
FUNCTION_BYTES_KEPT = 16 * 1024
"""A function larger than this is forgotten with its last task."""
RISE = 0.5
FALL = 0.1
"""Weights of a longer and of a shorter run in the measured run time: quick to believe in long calls, slow
to forget them, so that a function that is short most of the time does not let calls queue up behind a
long one."""
RUN_US_MAX = 100_000.0
"""Runs longer than this count as this long: all that matters of them is that they are not short."""
THANKS_AT_ONCE = 256
"""Thanks wait for something to travel with, or for the next beat: alone they would wake the worker for
nothing. Unless a report was large, which the worker holds until it is thanked."""
CALL_US = 12
"""What one call costs beside its run, so that calls that take no time do not pile up without limit."""


class Function:
    """A function's pickle, shared by its tasks, with what is known about its run time."""

    __slots__ = ("blob", "digest", "mean_us", "name", "refs", "well", "well_before")

    def __init__(self, blob: bytes, name: str, digest: bytes = b"") -> None:
        self.blob = blob
        self.digest = digest  # that it goes by; empty: it travels whole with each message
        self.name = name
        self.refs = 0  # clients with tasks of it
        self.mean_us = 0.0  # per item; 0: never measured
        self.well = ""  # the worker where a call of it ended well last
        self.well_before = ""  # another one where that was so before

    def expected_us(self, items: int) -> int:
        """The run time to expect of one call, or of a batch of ``items``; 0: not known."""
        if not self.mean_us:
            return 0
        return int(self.mean_us * (items or 1)) + CALL_US

    def ended_well(self, worker: str) -> None:
        """A call of it has ended with a value or an error there, and not where one did last."""
        self.well, self.well_before = worker, self.well

    def died(self, worker: str) -> None:
        """A child has died there under a call of it: that it ends well there proves nothing."""
        if self.well == worker:
            self.well, self.well_before = self.well_before, ""
        elif self.well_before == worker:
            self.well_before = ""

    def measured(self, run_us: int, items: int) -> None:
        """Learn from one run."""
        run = min(max(run_us, 1) / (items or 1), RUN_US_MAX)
        mean = self.mean_us
        self.mean_us = run if not mean else mean + (RISE if run > mean else FALL) * (run - mean)


class Functions:
    """Functions by their bytes, each stored once; a bounded number outlives its last task."""

    def __init__(self, named_from: int) -> None:
        """Those of ``named_from`` bytes and more go by their digest."""
        self._known: OrderedDict[tuple[bytes, str], Function] = OrderedDict()
        self._named_from = named_from

    def __len__(self) -> int:
        return len(self._known)

    def intern(self, blob: bytes, name: str, digest: bytes = b"") -> Function:
        """The one Function with these bytes and this name; ``digest`` is theirs, if that is known."""
        key = (blob, name)
        function = self._known.get(key)
        if function is None:
            if not digest and len(blob) >= self._named_from:
                digest = digest_of(blob)
            function = self._known[key] = Function(blob, name, digest)
        else:
            self._known.move_to_end(key)
            function.digest = function.digest or digest
        return function

    def rest(self, function: Function) -> None:
        """No task needs this function any more: keep it for its measured run time, unless that costs too
        much."""
        if len(function.blob) > FUNCTION_BYTES_KEPT:
            self._known.pop((function.blob, function.name), None)
            return
        if len(self._known) > FUNCTIONS_KEPT:
            for key, candidate in self._known.items():
                if not candidate.refs:
                    del self._known[key]
                    return

    def referenced(self) -> int:
        """How many clients have tasks of how many functions; for check()."""
        return sum(function.refs for function in self._known.values())


class Task(msgspec.Struct, gc=False, eq=False):
    """One call and its one outcome.

    A struct that the garbage collector does not track: a farm holds millions, and the one cycle (client to
    task to
    client) is cut when the task is forgotten or its client dropped.
    """

    client: ClientRecord
    number: int
    function: Function
    kit: Kit
    body: Blob
    items: int
    max_attempts: int
    lease: int = 0  # without a worker: the one lost with it, which may come back; negative: it ended
    worker: WorkerRecord | None = None
    expected_us: int = 0
    advance_us: float = 0.0  # paid in advance for its lease, until it is charged with what that held
    granted_at: float = 0.0
    shared_us: float = -1.0  # of its worker's meter at its grant; below 0: it has a slot of its own
    paid_us: float = 0.0  # for its last lease, which may come back with its worker
    began: bool = False
    cancelling: bool = False
    deaths: tuple[Fate, ...] = ()
    shuns: str = ""  # the worker where it has killed its child last
    shuns_until: float = 0.0  # 0: it has not been about to go there again
    losses: int = 0  # of workers that held it and were not known to run it
    tries: int = 0  # errors for which it is run again
    outcome: Outcome | None = None
    blob: Blob = b""
    timeout_us: int = 0
    memory_bytes: int = 0
    priority: int = 0
    grace_us: int = 0  # it is being stopped, and has that long to end by itself
    spent: int = 0  # of one that may begin once only: the lease that it may have begun with
    until: float = 0.0  # parked: it has no lease, and gets none until then
    stray: bool = False  # its lease was taken over: its place in the queue may still be there
    demand: Demand | None = None  # it waits in a line of its client, and not in the queue
    needs: tuple[Need, ...] = ()  # blobs that its client has

    @property
    def attempts(self) -> int:
        """How many of its attempts are used up."""
        return len(self.deaths) + self.tries

    @property
    def shares(self) -> bool:
        """Its lease has no slot of its own: it is short, and waits with others."""
        return self.shared_us >= 0.0

    @property
    def once(self) -> bool:
        """It may begin once only: what may have begun is never granted again."""
        return self.max_attempts == 1

    @property
    def exclusive(self) -> bool:
        """It must never run in two places at once."""
        return self.demand is not None and self.demand.exclusive

    @property
    def written_first(self) -> bool:
        """It is not granted while the journal is behind: the next broker must know that it may have begun."""
        return self.once or self.exclusive


class ClientRecord:
    """One client: its tasks, its queue, and what this turn has for it."""

    __slots__ = (
        "account",
        "away",
        "began",
        "booked",
        "books",
        "ended",
        "ended_count",
        "former",
        "functions",
        "heard_at",
        "held",
        "hello_seen",
        "host",
        "job",
        "key",
        "kits",
        "lacks",
        "last_peer",
        "leased",
        "life",
        "lines",
        "lives",
        "name",
        "named_bytes",
        "names",
        "others",
        "passed",
        "peer",
        "pid",
        "pinned",
        "queue",
        "rank",
        "refused",
        "served_us",
        "session",
        "setups",
        "submit_seen",
        "tasks",
        "unforgotten",
        "unknown",
        "unrecorded",
    )

    def __init__(
        self, session: str, peer: Peer, host: str, pid: int, name: str, job: str, now: float
    ) -> None:
        self.session = session
        self.books = 0
        self.peer = peer
        self.last_peer = peer  # also when that link is dead
        self.host = host
        self.pid = pid
        self.name = name
        self.job = job  # its tasks outlive it under this name; empty: they do not
        self.key = ""  # that it shows at the ducts of workers
        self.life = ""  # of a job: who speaks for it, and nobody else does
        self.lives = 0  # that have spoken for it before
        self.former: tuple[str, ...] = ()  # the last of them
        self.held = False  # after a restart of the broker: granted nothing until its workers could return
        self.heard_at = now
        self.away = False
        self.tasks: dict[int, Task] = {}
        self.queue: deque[Task] = deque()  # may also hold tasks that are queued no more; they are passed over
        self.rank = 0  # the priority of the tasks in ``queue``; ``others`` has those of lower ones
        self.others: dict[int, deque[Task]] = {}
        self.passed = 0  # calls that went before the first of the queue; see zfarm.core.nearness
        self.lines = Lines()  # what waits and does not run anywhere
        self.served_us = 0.0  # time that its calls held slots, and where it has begun; see zfarm.core.turns
        self.account = Account("")  # until it is entered
        self.kits: dict[tuple[Function, bytes], Kit] = {}
        self.functions: dict[Function, int] = {}  # and in how many kits and names each is
        self.names: OrderedDict[bytes, Function] = OrderedDict()  # what it has sent, last used last
        self.named_bytes = 0
        self.lacks: list[bytes] = []
        self.setups: dict[bytes, tuple[bytes, int]] = {}  # the one copy of each, and in how many kits it is
        self.leased = 0
        self.ended_count = 0
        self.unforgotten = 0  # outcomes kept until the client says that they arrived
        self.ended: list[tuple[Outcome, Blob]] = []
        self.refused: list[tuple[Outcome, Blob]] = []  # of what was not accepted
        self.unrecorded = False  # it came while the journal could not be written, which knows nothing of it
        self.began: list[int] = []
        self.unknown: list[int] = []
        self.submit_seen = 0  # the number of its last Submit
        self.hello_seen = 0  # and of the last Hello of this life
        self.booked: list[int] = []
        self.pinned: set[str] = set()  # hosts that were told of its handles

    def held_bytes(self) -> int:
        """What it has: bodies that wait or run, outcomes that are kept, functions and setups."""
        size = sum(len(task.body) + len(task.blob) for task in self.tasks.values())
        return size + sum(len(function.blob) for function in self.functions) + sum(map(len, self.setups))

    def pay(self, us: float) -> None:
        """It has had so much, or gets so much back."""
        self.served_us += us
        self.account.served_us += us

    def enqueue(self, task: Task, front: bool = False) -> None:
        """Put a task of whatever priority into its place: behind its like, or before them."""
        if task.demand is not None:
            self.lines.put(task, task.demand, front)
            return
        rank = task.priority
        if rank > self.rank or not self.queue:
            if self.queue:
                self.others[self.rank] = self.queue
            self.queue, self.rank = deque(), rank
        queue = self.queue if rank == self.rank else self.others.setdefault(rank, deque())
        if front:
            queue.appendleft(task)
        else:
            queue.append(task)

    def sort_out(self) -> None:
        """Take the tasks that are parked out of the queue."""
        self.queue = deque(task for task in self.queue if not task.until)
        kept = {rank: deque(t for t in queue if not t.until) for rank, queue in self.others.items()}
        self.others = {rank: queue for rank, queue in kept.items() if queue}
        self.refill()
        self.lines.sort_out()

    def refill(self) -> None:
        """The queue has come to its end: go on with the next lower priority, if there is one."""
        if self.others and not self.queue:
            self.rank = max(self.others)
            self.queue = self.others.pop(self.rank)


class WorkerRecord:
    """One worker: its slots, the leases it holds, and what this turn has for it."""

    __slots__ = (
        "answer",
        "aside_until",
        "beat",
        "children",
        "crowded",
        "deaths",
        "done",
        "draining",
        "duct",
        "expected_us",
        "failed",
        "granted",
        "grants_number",
        "heard_at",
        "host",
        "joined_at",
        "labels",
        "leases",
        "meter",
        "name",
        "own_room",
        "peer",
        "pid",
        "repeated",
        "resources",
        "revokes",
        "room",
        "session",
        "slots",
        "stops",
        "suspects",
        "taken",
        "takes",
        "thank_now",
        "thanks",
        "told",
        "vitals",
        "waiting",
        "well",
        "well_before",
    )

    def __init__(
        self,
        session: str,
        peer: Peer,
        slots: int,
        host: str,
        pid: int,
        now: float,
        resources: dict[str, int] | None = None,
        labels: Iterable[str] = (),
        name: str = "",
    ) -> None:
        self.session = session
        self.peer = peer
        self.slots = slots
        self.resources = resources or {}  # in thousandths, as all amounts
        self.duct = ""  # where clients may dial it, and the key that it shows there
        self.name = name  # in pictures
        own = (label for label in labels if not label.startswith(WORKER_LABEL))
        self.labels = frozenset((*own, f"{WORKER_LABEL}={name}"))
        self.taken = dict.fromkeys(self.resources, 0)
        self.takes: dict[int, Amounts] = {}  # leases, and what each of them takes
        self.room = slots
        self.host = host
        self.pid = pid
        self.heard_at = now
        self.joined_at = now
        self.leases: dict[int, Task] = {}
        self.meter = Meter(slots, now)
        self.expected_us = 0
        self.crowded = False  # it gave calls back: no call is granted ahead of a free slot until it reports
        self.draining = False
        self.own_room = 0  # of one that drains: as room, for calls that those in these children wait for
        self.children: frozenset[int] = frozenset()
        self.grants_number = 0  # of the last Grants or joining
        self.repeated: dict[int, int] = {}  # leases granted again, and the number of the Grants that did it
        self.done = 0
        self.failed = 0
        self.deaths = 0
        self.suspects: dict[tuple[str, int, bytes], tuple[str, bytes]] = {}
        """What died here since a call ended well: calls, or all of one function; whose, and which that is."""
        self.well: tuple[str, float] = "", 0.0  # whose call ended well here last, and when
        self.well_before: tuple[str, float] = "", 0.0  # the same of somebody else
        self.aside_until = 0.0  # it is granted nothing until then; 0: it is not set aside
        self.vitals = Vitals()
        self.waiting: frozenset[int] = frozenset()  # leases whose calls wait for nested ones
        self.told = Told()  # functions that it was sent over its link
        self.granted: list[Task] = []
        self.revokes: list[int] = []
        self.stops: list[int] = []
        self.thanks: list[int] = []
        self.thank_now = False
        self.beat = 0  # the number of its last Beat or Join
        self.answer = False  # and it wants to hear that it was heard

    def unsaid(self) -> set[int]:
        """Leases here of calls that may begin once only, of which it was not told: that is not written, or
        was a moment ago."""
        once = {task.lease for task in self.granted if task.once and task.worker is self}
        return once - self.repeated.keys()

    def has_room(self, room: int) -> None:
        """It takes leases for so many slots."""
        self.room = room
        self.meter.slots = max(room, self.slots)

    def suits(self, demand: Demand) -> bool:
        """It could run such a call if it had nothing else to do."""
        has = self.resources
        return self.labels.issuperset(demand.labels) and all(
            has.get(name, 0) >= amount for name, amount in demand.resources
        )

    def affords(self, demand: Demand) -> bool:
        """It has left what such a call takes; asked of one that suits."""
        return all(self.resources[name] - self.taken[name] >= amount for name, amount in demand.resources)

    def take(self, lease: int, amounts: Amounts) -> None:
        """This lease takes so much, and what is not there it does not get: a worker that came back may hold
        leases that were given up."""
        if lease in self.takes:
            return
        has, taken = self.resources, self.taken
        got = [(name, min(amount, has[name] - taken[name])) for name, amount in amounts if name in has]
        for name, amount in got:
            taken[name] += amount
        self.takes[lease] = tuple(got)

    def give(self, lease: int) -> None:
        """What this lease has taken is free again."""
        for name, amount in self.takes.pop(lease, ()):
            self.taken[name] -= amount

    @property
    def open(self) -> bool:
        """It may be granted something, as soon as it has a free slot."""
        return self.peer is not None and self.room > 0 and not self.aside_until

    @property
    def has_messages(self) -> bool:
        """Whether this turn has something for it that does not wait for the next beat."""
        thanks = self.thanks
        return bool(
            self.granted
            or self.revokes
            or self.stops
            or self.answer
            or (thanks and (self.thank_now or self.draining or len(thanks) >= THANKS_AT_ONCE))
        )

    @property
    def short_name(self) -> str:
        """A name for people: unique enough, and short."""
        return f"{self.host}/{self.pid}"
