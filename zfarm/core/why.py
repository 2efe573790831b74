"""Why a task is where it is, read from the broker's books; all it notes there is who was told so.

Each reason has a code, which stays, and a sentence for people. The sentence goes on from "task N: ".
"""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, Final

from zfarm.core.books import ClientRecord, Task, WorkerRecord
from zfarm.core.elsewhere import LOOK_AGAIN_S
from zfarm.core.greeting import LOCAL, bare, principal_of, sees
from zfarm.core.leaving import room_for
from zfarm.core.lines import Line
from zfarm.core.placing import suited
from zfarm.messages import (
    BROKEN,
    CANCELLED,
    ERROR,
    LOST,
    MEMORY,
    MIXED,
    OVERSIZED,
    TIMEOUT,
    VALUE,
    Demand,
    Peer,
    Reason,
    Send,
    Why,
)

if TYPE_CHECKING:
    from zfarm.core.broker import Broker

__all__ = ["answer", "explain", "unmet", "warn_unmet", "wish"]

Explained = tuple[str, str]
"""Code and sentence."""

LOOKED_AT_MAX: Final = 10_000
"""Tasks of a queue that are looked at to find the place of one."""
SILENT_BEATS: Final = 2.5
"""A worker that has missed so many beats is said to be silent."""
NAMED_MAX: Final = 3
"""Workers that are named in a sentence."""
ENDINGS: Final = {
    VALUE: "with a value",
    ERROR: "with an exception",
    MIXED: "with an exception of some of its items",
    CANCELLED: "as cancelled",
    LOST: "as lost",
    BROKEN: "with a broken initializer",
    TIMEOUT: "at its timeout",
    MEMORY: "at its memory limit",
    OVERSIZED: "as too large for its broker",
}


def answer(broker: Broker, peer: Peer, message: Why, now: float, principal: str) -> Reason:
    """The Reason for who asked; of what it may not see it hears no more than of what there is not."""
    record = broker.peers.get(peer)
    if not message.others:
        clients = [record] if isinstance(record, ClientRecord) else []
    else:
        clients = [
            client
            for key, client in broker.clients.items()
            if _may_ask(principal, key) and _is_called(client, key, message.owner)
        ]
    tasks = [client.tasks[message.task] for client in clients if message.task in client.tasks]
    if len(tasks) == 1:
        (task,) = tasks
        code, text = explain(broker, task, now)
        if broker.stalled and code not in ("unwritten", "journal"):
            text += f". What ends now is told later: {broker.stalled}"
        owner = bare(task.client.session)[:8]
        return Reason(message.number, message.task, code, text, task.function.name, owner)
    if tasks:
        owners = ", ".join(f"{bare(task.client.session)[:8]}/{task.number}" for task in tasks[:20])
        return Reason(message.number, message.task, "ambiguous", f"several clients have one: say {owners}")
    text = "the broker does not know it: it has not arrived yet, or its outcome was fetched already"
    if broker.stalled or broker.refusing:
        full = broker.stalled or broker.refusing
        text = f"the broker does not know it, and takes no new tasks: {full}"
    return Reason(message.number, message.task, "unknown", text)


def _may_ask(principal: str, key: str) -> bool:
    of_worker = principal != LOCAL and principal.startswith("worker:")
    return principal_of(key) == principal if of_worker else sees(principal, key)


def _is_called(client: ClientRecord, key: str, owner: str) -> bool:
    return bare(key).startswith(owner) or owner in (client.name, f"{client.host}/{client.pid}")


def explain(broker: Broker, task: Task, now: float) -> Explained:
    """Why this task is where it is."""
    client = task.client
    if task.outcome is not None and broker.stalled:
        how = ENDINGS.get(task.outcome.kind, "")
        return (
            "unwritten",
            f"it has ended {how}, and its client hears of it as soon as it can: {broker.stalled}",
        )
    if task.outcome is not None:
        return "ended", f"it has ended {ENDINGS.get(task.outcome.kind, '')}, and its client was told so"
    if task.worker is not None:
        return _at_worker(broker, task, task.worker, now)
    if task.until and task.spent:
        return "in-doubt", (
            "it may begin once only, and may have begun under the broker before this one: for up to "
            f"{_seconds(task.until - now)} a worker may come back with it"
        )
    if task.until and task.shuns and task.until <= task.shuns_until + LOOK_AGAIN_S:
        return "elsewhere", (
            f"it has killed its child on {task.deaths[-1].worker}, and waits up to "
            f"{_seconds(task.shuns_until - now)} for a slot of another worker"
        )
    if task.until and task.exclusive and not task.tries:
        return "exclusive", (
            "it must never run in two places at once, and may still run where it did before: for up to "
            f"{_seconds(task.until - now)} that worker may come back with it"
        )
    if task.until:
        return "backoff", (
            f"it has raised what it is to be run again for: run {task.attempts + 1} of at most "
            f"{task.max_attempts} begins in {_seconds(task.until - now)}"
        )
    if client.held:
        return "restart", (
            "the broker was started anew, and grants nothing of before until its workers could come back "
            f"with what they run: for {_seconds(broker.hold_until - now)} more"
        )
    return _waiting(broker, task, now)


def _at_worker(broker: Broker, task: Task, worker: WorkerRecord, now: float) -> Explained:
    ago = _seconds(now - task.granted_at)
    silent = now - worker.heard_at
    more = ", and is being cancelled" if task.cancelling else ""
    if silent > SILENT_BEATS * broker.limits.beat_interval_s:
        lost = broker.limits.worker_lost_after_s
        more += f"; that worker is silent for {_seconds(silent)}, and lost after {lost:g} s"
    where = f"on {worker.host} (worker {worker.short_name})"
    if task.lease in worker.waiting:
        return "nested", f"it runs {where}, granted {ago} ago, and waits for calls of its own{more}"
    if task.began:
        run = f", run {task.attempts + 1} of at most {task.max_attempts}" if task.attempts else ""
        return "running", f"it runs {where}, granted {ago} ago{run}{more}"
    if task.needs:
        return "files", f"it was granted {ago} ago, and starts {where} when all its files are there{more}"
    before = 0
    for lease in worker.leases:
        if lease == task.lease:
            break
        before += 1
    if before >= max(worker.room, worker.own_room, 1):  # who leaves has no room, and still runs what it holds
        return "behind", f"it waits {where} behind {before} calls that were granted before it{more}"
    return "starting", f"it was granted {ago} ago and starts {where}, or runs for a moment already{more}"


def _waiting(broker: Broker, task: Task, now: float) -> Explained:
    """Why a task in a queue or line is not granted."""
    workers = list(broker.workers.values())
    if broker.stall.full:
        return "journal", f"nothing is granted, since too many outcomes wait to be written: {broker.stalled}"
    if not workers:
        return "no-workers", "no worker is there: start one with `zfarm worker`"
    demand = task.demand
    if demand is not None:
        missing = unmet(broker, demand)
        if missing:
            return "unmet", f"{missing}; it waits for a worker that has"
        workers = [worker for worker in workers if worker.suits(demand)]
    rooms = {worker: room_for(worker, task.client) for worker in workers}
    opened = [worker for worker in workers if rooms[worker]]
    what = "workers" if demand is None or not wish(demand) else f"workers that have {wish(demand)}"
    if not opened:
        return "closed", f"none of the {len(workers)} {what} takes calls now: {_closed(workers, now)}"
    if demand is not None and not any(worker.affords(demand) for worker in opened):
        return "resources", f"it takes {wish(demand)}, and that is not free: {_taken(opened, demand)}"
    free = [worker for worker in opened if len(worker.leases) < rooms[worker]]
    if demand is not None:
        free = [worker for worker in free if worker.affords(demand)]
    before = _place_of(task)
    crowd = sum(other is not task.client for other in {**broker.ready, **broker.choosy}.values())
    queue = _turn(before)
    if crowd:
        queue += f", and {_some(crowd, 'other client takes', 'other clients take')} turns with it"
    if free:
        return "next", f"it is about to be granted: {queue}"
    slots = sum(rooms[worker] for worker in opened)
    return "slots", f"all {slots} slots of {len(opened)} {what} are taken; {queue}"


def _turn(before: int) -> str:
    if not before:
        return "it is the next one of this client"
    calls = _some(before, "call of this client goes", "calls of this client go")
    return f"{'more than ' if before >= LOOKED_AT_MAX else ''}{calls} before it"


def _some(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _closed(workers: list[WorkerRecord], now: float) -> str:
    parts = []
    for worker in workers[:NAMED_MAX]:
        if worker.aside_until:
            left = _seconds(worker.aside_until - now)
            parts.append(f"{worker.short_name} is set aside for {left}, since its children keep dying")
        elif worker.peer is None:
            parts.append(f"{worker.short_name} has lost its link {_seconds(now - worker.heard_at)} ago")
        else:
            how = "has no room" if not worker.draining else "drains"
            more = ", and takes only what its own calls wait for" if worker.children else ""
            parts.append(f"{worker.short_name} {how}{more}")
    return "; ".join(parts) + ("; and others" if len(workers) > NAMED_MAX else "")


def _taken(workers: list[WorkerRecord], demand: Demand) -> str:
    parts = []
    for worker in workers[:NAMED_MAX]:
        short = [
            f"{amount_text(worker.taken[name])} of {amount_text(worker.resources[name])} {name} taken"
            for name, amount in demand.resources
            if worker.resources[name] - worker.taken[name] < amount
        ]
        parts.append(f"{worker.short_name} has {', '.join(short)} by {len(worker.takes)} calls")
    return "; ".join(parts) + ("; and others" if len(workers) > NAMED_MAX else "")


def _place_of(task: Task) -> int:
    """How many tasks of its client stand before it, about: in its own queue or line."""
    client = task.client
    if task.demand is not None:
        line = client.lines.get(task.demand)
        return line.place_of(task, LOOKED_AT_MAX) if line is not None else 0
    lower = (client.others[rank] for rank in sorted(client.others, reverse=True))
    before = 0
    for other in islice(chain(client.queue, *lower), LOOKED_AT_MAX):
        if other is task:
            break
        before += other.worker is None and other.outcome is None
    return before


# ---------------------------------------------------------------- demands in words


def unmet(broker: Broker, demand: Demand) -> str:
    """What of this demand no worker has; empty: one has it all."""
    workers = list(broker.workers.values())
    if any(worker.suits(demand) for worker in workers):
        return ""
    for label in demand.labels:
        if not any(label in worker.labels for worker in workers):
            return f"it needs label {label}, and no worker has it"
    for name, amount in demand.resources:
        most = max((worker.resources.get(name, 0) for worker in workers), default=0)
        if most < amount:
            have = f"no worker has more than {amount_text(most)}" if most else "no worker has any"
            return f"it takes {name}={amount_text(amount)}, and {have}"
    return f"it needs {wish(demand)}, and no worker has all of that together"


def wish(demand: Demand) -> str:
    """A demand in words."""
    return ", ".join([*(f"{name}={amount_text(n)}" for name, n in demand.resources), *demand.labels])


def amount_text(thousandths: int) -> str:
    """An amount as users write it."""
    return f"{thousandths // 1000}" if not thousandths % 1000 else f"{thousandths / 1000:.3f}".rstrip("0")


def _seconds(seconds: float) -> str:
    seconds = max(0.0, seconds)
    return f"{seconds:.1f} s" if seconds >= 0.1 else f"{seconds * 1000:.0f} ms"


# ---------------------------------------------------------------- what nobody can run


def warn_unmet(broker: Broker, now: float) -> None:
    """Tell clients, once for each line, that no worker can run what waits there."""
    for client in broker.choosy.values():
        for line in client.lines:
            task = line.head() if broker.workers and not suited(broker, line) else None
            if task is None:
                line.unmet_since = 0.0
            elif not line.unmet_since:
                line.unmet_since = now
            elif not line.said and now - line.unmet_since >= broker.limits.beat_interval_s:
                _say(broker, client, line, task)


def _say(broker: Broker, client: ClientRecord, line: Line, task: Task) -> None:
    line.said = True
    text = f"{task.function.name} waits: {unmet(broker, line.demand)}"
    broker.tell("warning", text)
    if client.peer is not None:
        reason = Reason(0, task.number, "unmet", text, task.function.name)
        broker.actions.append(Send(client.peer, reason))
