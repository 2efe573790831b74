"""Who asks for what, and when: the workloads of a simulated farm.

A Task is one submission as its client sees it; what really happened to it (its runs) is noted here by
checkers.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import structs

from tests.simulation.bulk import pieces
from tests.simulation.endless import may_last
from tests.simulation.exclusion import exclude
from tests.simulation.narrow import burden
from tests.simulation.promptness import PRIORITY_MAX
from zfarm.core.greeting import book_key
from zfarm.core.named import digest_of
from zfarm.messages import ERROR, MIXED, VALUE, Demand, Named, Need, Outcome, Setup

if TYPE_CHECKING:
    from random import Random

    from tests.simulation.farm import Farm
    from tests.simulation.faults import Mix
    from tests.simulation.processes import ClientProcess, WorkerProcess


@dataclass(slots=True, eq=False)
class Item:
    """One call of a user's function."""

    run_s: float
    fails: bool = False
    deadly: float = 0.0
    """How likely it kills its child, each time that it runs; 1.0: a poison."""
    emits: int = 0
    """Items that it emits while it runs."""
    nested: list[list[Item]] = field(default_factory=list)
    """Calls that it submits itself and waits for, one task each."""


@dataclass(slots=True, eq=False)
class Run:
    """One run of a task on a child."""

    task: Task
    worker: WorkerProcess
    child: int
    started_at: float
    finished: bool = False
    ended_at: float = 0.0
    interrupted: bool = False
    """Its child died meanwhile."""
    raised: bool = False
    """It ended in an error for which the task wants to be run again."""
    emitted: int = 0
    overshot_at: float | None = None
    """When it had more memory in use than it may."""
    filed: int = 0
    """Pieces of files, which are a stream of their own, and of its result."""
    result_at: int = 0
    """It has come to its end, and its result is on its way, from this item on."""
    delivery_heard: bool = False
    """Its worker knows that."""
    plain: int = 0
    """Items of which each one counts."""
    gauged: int = 0
    """Items of which only the latest counts."""
    printed: dict[int, int] = field(default_factory=dict)
    """Lines by their source, dropped ones included."""


@dataclass(slots=True, eq=False)
class Reader:
    """Who reads the stream of a task, and what was handed on so far."""

    pause_s: float
    lazy: bool = False
    """It begins late, pauses for long, or gives up for a while: it may miss something."""
    attempt: int = 0
    run: int = -1
    next: int = 1
    used: int = 0
    missed: int = 0
    gap: int = 0
    """The last item of this attempt that could not be had."""
    plain: int = 0
    gauge: int = 0
    over: bool = False


@dataclass(slots=True, eq=False)
class Task:
    """One submission, and what became of it."""

    token: int
    client: str
    name: str
    function: bytes
    setup: bytes
    parts: list[Item]
    max_attempts: int
    submitted_at: float
    on_end: Callable[[Task], None] | None = None
    flaky: float = 0.0
    """How likely it raises what it wants to be run again for, each time that it comes to its end."""
    timeout_s: float = 0.0
    memory: int = 0
    hungry: float = 0.0
    """After what part of its run it has too much memory in use, if it has a limit."""
    grace_s: float | None = None
    """It is cancelled with force, if at all."""
    endless: bool = False
    """It ends only when it is stopped."""
    demand: Demand | None = None
    needs: tuple[Need, ...] = ()
    keep: bool = False
    """Its result stays at its worker."""
    pieces: int = 0
    """Of its result, if that is large."""
    ballast: bytes = b""
    """What makes it large."""
    gives: bytes = b""
    """What makes its result large."""
    priority: int = 0
    number: int = 0
    outcome: Outcome | None = None
    safe: bool = False
    """Its client was told that it is in the journal."""
    given_up: bool = False
    """With its client, which lived: that it is safe may be heard after that."""
    asked_by: ClientProcess | None = None
    """Whoever waits for it: its client, or who took the job over."""
    shown_to: list[ClientProcess] = field(default_factory=list)
    """Who has heard of its outcome: more than one only if one had the job after the other."""
    abandoned: bool = False
    """Its client is gone: nobody waits for it any more."""
    cancel_asked_at: float | None = None
    cancelled_at: float | None = None
    prompt: bool = False
    """It was submitted to an idle farm."""
    running_told: bool = False
    sent: bool = False
    """It was put into the pipe of a child: from then on it may start at any moment."""
    unsure: bool = False
    """The broker died or gave the client up while this was open: nobody knows what runs."""
    runs: list[Run] = field(default_factory=list)
    runs_allowed: int = 1
    raised_at: float | None = None
    """When the broker heard that it has raised and is to be run again."""
    heard: dict[tuple[str, int, int], int] = field(default_factory=dict)
    """The last line that a client has heard, by its life, run and source."""
    silent: dict[int, int] = field(default_factory=dict)
    """Lines that were told to be dropped, and nothing has come after them."""
    reader: Reader | None = None
    taker: Reader | None = None
    """The reader of its files, which every client is."""
    blames: int = 0
    """Deaths of children while this very call ran, and losses of workers that held it."""

    @property
    def items(self) -> int:
        return len(self.parts) if len(self.parts) > 1 else 0

    @property
    def once(self) -> bool:
        """It may start once only, whatever happens."""
        return self.max_attempts == 1

    @property
    def exclusive(self) -> bool:
        """It must never run in two places at once."""
        return self.demand is not None and self.demand.exclusive

    @property
    def body(self) -> bytes:
        return b"%d" % self.token + self.ballast

    @property
    def run_s(self) -> float:
        return sum(item.run_s for item in self.parts)

    @property
    def waits(self) -> bool:
        """It has been submitted, and it has neither started nor ended."""
        return not self.runs and self.outcome is None and not self.abandoned

    @property
    def raised_blob(self) -> bytes:
        """What comes home when it has raised, and may not be run again."""
        return b"r%d" % self.token

    def outcome_of_run(self) -> tuple[int, bytes]:
        """What a run of it that comes to its end gives: kind and blob."""
        failed = sum(item.fails for item in self.parts)
        if not failed:
            return VALUE, b"v%d" % self.token
        if self.items:
            return MIXED, b"m%d" % self.token
        return ERROR, b"e%d" % self.token

    def split(self, farm: Farm) -> list[Task]:
        """The smaller tasks that take the place of a batch which was lost."""
        middle = len(self.parts) // 2
        halves = [self.parts[:middle], self.parts[middle:]] if middle > 2 else [[part] for part in self.parts]
        tasks = [
            new_task(farm, self.client, self.name, self.function, self.setup, half, self.max_attempts)
            for half in halves
        ]
        for task in tasks:
            task.demand, task.priority, task.needs = self.demand, self.priority, self.needs
        return tasks


def new_task(
    farm: Farm,
    client: str,
    name: str,
    function: bytes,
    setup: bytes,
    parts: list[Item],
    max_attempts: int = 3,
    on_end: Callable[[Task], None] | None = None,
) -> Task:
    """A task with a fresh token, entered in the farm's register."""
    token = len(farm.tasks) + 1
    task = Task(token, client, name, function, setup, parts, max_attempts, farm.now, on_end)
    farm.tasks[token] = task
    return task


def setup_of(session: str, realm: int, initializer: bytes = b"", tasks_max: int = 0) -> bytes:
    """A realm of that client. ``initializer`` says what becomes of it: empty, ``fails`` or ``dies``."""
    setup = Setup(
        realm=f"{session}/{realm}",
        cwd="/",
        path=(),
        initializer=initializer,
        max_tasks_per_child=tasks_max,
    )
    return msgspec.msgpack.encode(setup)


def named(mix: Mix, function: bytes) -> bytes:
    """A function as programs send it: a large one has a name."""
    if len(function) < mix.settings.named_from_bytes:
        return function
    known = Named(function)
    known.digest = digest_of(function)
    return known


def demand_on(stock: tuple[dict[str, int], tuple[str, ...]], rng: Random) -> Demand | None:
    """What a worker with this stock can meet: all that there is of something, or a part of it."""
    resources, labels = stock
    wanted = [(name, rng.choice((has, has, max(1, has // 2)))) for name, has in sorted(resources.items())]
    taken = tuple(pair for pair in wanted if rng.random() < 0.8)
    needed = tuple(label for label in labels if rng.random() < 0.5)
    return Demand(taken, needed) if taken or needed else None


class Person:
    """The user of one client: submits in waves, cancels now and then, and may leave."""

    def __init__(self, farm: Farm, client: ClientProcess) -> None:
        self.farm = farm
        self.name = client.name
        self.tasks: list[Task] = []
        mix, rng = farm.mix, farm.rng
        self._realms: list[tuple[Any, ...]] = [(realm,) for realm in range(rng.choice(mix.realms))]
        if rng.random() < mix.broken_realm_share:
            self._realms.append((99, rng.choice((b"fails", b"dies"))))
        if rng.random() < mix.limited_realm_share:
            self._realms.append((98, b"", rng.randint(1, 5)))
        self._session = f"{client.name}.s"
        at = 0.0
        for _ in range(rng.randint(1, mix.waves_max)):
            wave = rng.choice(mix.waves)
            farm.after(at, partial(WAVES[wave], self))
            at += rng.random() * mix.wave_gap_s
        if rng.random() < mix.leave_share:
            at = rng.random() * (at + 5.0)
            farm.after(at, self.leave)
        farm.plans_until = max(farm.plans_until, farm.now + at)

    @property
    def setups(self) -> list[bytes]:
        """The realms of this user's calls; those of somebody with another key are others."""
        session = book_key(self.client.principal, self._session)
        return [setup_of(session, *realm) for realm in self._realms]

    @property
    def client(self) -> ClientProcess:
        """Who speaks for this user now: others may take its job over."""
        return self.farm.clients[self.name]

    def hand(self, *entry: Any) -> None:
        """Let the present client do this."""
        self.client.hand(*entry)

    def submit(self, name: str, parts: list[Item], on_end: Any = None, setup: bytes = b"") -> Task | None:
        """Submit one task, and cancel it some time later if the dice say so."""
        if not self.client.alive or self.client.left:
            return None
        farm = self.farm
        mix, rng = farm.mix, farm.rng
        setup = setup or rng.choice(self.setups)
        attempts = rng.choice((1, 2, 3, 3, 3))
        if mix.once_share and rng.random() < mix.once_share:
            attempts = 1
        function = named(mix, b"function " + name.encode())
        task = new_task(farm, self.name, name, function, setup, parts, attempts, on_end)
        if mix.timeout_share and rng.random() < mix.timeout_share:
            task.timeout_s = rng.choice((0.0005, 0.02, 1.0))
        if mix.memory_share and rng.random() < mix.memory_share:
            task.memory = 1000 + task.token
            task.hungry = rng.choice((0.0, 0.0, 0.2, 0.98, 1.0))
        if mix.flaky_share and attempts > 1 and not task.items and rng.random() < mix.flaky_share:
            task.flaky = rng.choice((0.5, 0.9))
        task.pieces = pieces(mix, rng)
        burden(task, mix)
        if mix.choosy_share:
            self.choose(task)
            delay = rng.choice((0.001, 0.1, 3.0)) * rng.random()
            farm.after(delay, partial(self.hand, "why", task))
        if mix.exclusive_share:
            exclude(task, mix.exclusive_share, farm)
        if mix.needs_share and not self.client.job and rng.random() < mix.needs_share:
            task.needs = tuple(rng.sample(farm.library.all, rng.randint(1, min(3, len(farm.library.all)))))
        if mix.archived_share:
            task.needs = farm.library.archived(task.needs, mix.archived_share, task.token)
            if self.client.job and mix.archived_share == 1.0:  # such files outlive its client as well
                task.needs = tuple(structs.replace(need, archived=True) for need in farm.library.all[:2])
        if mix.keep_share and not self.client.job and not task.items:
            task.keep = rng.random() < mix.keep_share
        if mix.hinted_share and task.needs and rng.random() < mix.hinted_share:
            near = f"host-{rng.choice(list(mix.slots))}"
            task.needs = (structs.replace(task.needs[0], near=near), *task.needs[1:])
        self.tasks.append(task)
        self.hand("submit", task)
        if mix.stream_share:
            self.read(task)
        if rng.random() < mix.cancel_share:
            delay = rng.choice((0.0, 0.0005, 0.01, 0.5, 3.0)) * rng.random()
            if mix.force_share and rng.random() < mix.force_share:
                task.grace_s = rng.choice((0.0, 0.0, 0.01, 0.5))
            farm.after(delay, partial(self.hand, "cancel", task))
        may_last(self, task)
        return task

    def choose(self, task: Task) -> None:
        """Give a task a priority, and say where it may run: somewhere, or it would never come to its end."""
        rng, mix = self.farm.rng, self.farm.mix
        task.priority = rng.choice((0, 0, 0, PRIORITY_MAX, -3))
        if rng.random() < mix.choosy_share:
            task.demand = demand_on(rng.choice(list(mix.stocks.values())), rng)

    def item(self, run_s: float) -> Item:
        """A call of about that length; some fail, some die."""
        mix, rng = self.farm.mix, self.farm.rng
        deadly = rng.choice((0.3, 1.0)) if rng.random() < mix.deadly_share else 0.0
        item = Item(run_s * (0.5 + rng.random()), rng.random() < mix.fail_share, deadly)
        if mix.stream_share and rng.random() < mix.stream_share:
            item.emits = rng.randint(0, mix.items_max)
        return item

    def read(self, task: Task) -> None:
        """Read the stream of a task, most of the time at once."""
        farm = self.farm
        mix, rng = farm.mix, farm.rng
        if rng.random() < 0.2:
            return  # nobody is interested
        task.reader = Reader(rng.random() * mix.reader_pause_s, rng.random() < mix.late_readers)
        farm.books.unread.add(task.token)
        if not task.reader.lazy:
            self.hand("listen", task)
            return
        at = rng.choice((0.0, 0.01, 1.0)) * rng.random()
        farm.after(at, partial(self.hand, "listen", task))
        if rng.random() < 0.5:
            at += rng.random()
            farm.after(at, partial(self.hand, "unlisten", task))
            farm.after(at + rng.random(), partial(self.hand, "listen", task))

    def leave(self) -> None:
        """Ctrl-C: whatever is open is cancelled."""
        self.hand("leave")


def short_calls(person: Person) -> None:
    """Some hundred calls of ten microseconds, at once."""
    setup = person.setups[0]
    for _ in range(person.farm.rng.randint(20, person.farm.mix.short_max)):
        person.submit("short", [person.item(10e-6)], setup=setup)


def middling_calls(person: Person) -> None:
    """Calls of about a millisecond, a few at a time."""
    rng = person.farm.rng
    for n in range(rng.randint(3, 25)):
        person.farm.after(n * rng.random() * 0.002, partial(person.submit, "middling", [person.item(1e-3)]))


def long_calls(person: Person) -> None:
    """A few calls of many seconds."""
    for _ in range(person.farm.rng.randint(1, 4)):
        person.submit("long", [person.item(person.farm.rng.choice((0.3, 2.0, 6.0)))])


def bimodal_calls(person: Person) -> None:
    """One function that is quick most of the time, and then is not: what the broker measured deceives it."""
    rng = person.farm.rng
    for _ in range(rng.randint(10, 60)):
        run_s = rng.choice((0.5, 3.0)) if rng.random() < 0.07 else 100e-6
        person.submit("bimodal", [person.item(run_s)])


def batches(person: Person) -> None:
    """What a map sends: many items in one task."""
    rng = person.farm.rng
    for _ in range(rng.randint(1, 8)):
        run_s = rng.choice((20e-6, 1e-3, 20e-3))
        person.submit("batch", [person.item(run_s) for _ in range(rng.randint(2, 30))])


def one_by_one(person: Person) -> None:
    """Each call is submitted when the one before has ended."""
    left = person.farm.rng.randint(2, 15)

    def submit_next(_ended: Task | None = None) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            person.submit("single", [person.item(200e-6)], submit_next)

    submit_next()


def nested_calls(person: Person) -> None:
    """Calls that submit calls and wait for them, enough of them to fill every slot."""
    rng = person.farm.rng
    for _ in range(rng.randint(1, 6)):
        person.submit("parent", [nest(rng, person, depth=rng.choice((1, 1, 2)))])
    for n in range(rng.choice((0, 30))):  # short ones keep coming meanwhile
        person.farm.after(n * rng.random() * 0.002, partial(person.submit, "tiny", [person.item(200e-6)]))


def nest(rng: Random, person: Person, depth: int) -> Item:
    item = person.item(0.2 if person.farm.mix.leaving_s else 2e-3)
    if depth:
        item.nested = [[nest(rng, person, depth - 1)] for _ in range(rng.randint(1, 3))]
    return item


WAVES: dict[str, Callable[[Person], None]] = {
    "short": short_calls,
    "middling": middling_calls,
    "long": long_calls,
    "bimodal": bimodal_calls,
    "batches": batches,
    "one by one": one_by_one,
    "nested": nested_calls,
}
