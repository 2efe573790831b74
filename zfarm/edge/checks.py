"""What must hold between the fields of a message before a core may see it; it knows no frame and no socket.

Types are checked by msgspec before. Each check gets the message and the number of blobs beside it, and raises
Malformed with a reason. CHECKS has one entry per message of every direction; a test sees to that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, Final

from zfarm import messages as m
from zfarm.edge.bounds import (
    AMOUNT_MAX,
    COUNT_MAX,
    NAME_MAX,
    NUMBER_MAX,
    RESOURCES_MAX,
    SESSION_MAX,
    TASK_NUMBER_MAX,
    Malformed,
)
from zfarm.edge.bounds import blobs as _blobs
from zfarm.edge.bounds import duct as _duct
from zfarm.edge.bounds import key as _key
from zfarm.edge.bounds import listed as _listed
from zfarm.edge.bounds import name as _name
from zfarm.edge.bounds import named as _named
from zfarm.edge.bounds import names as _names
from zfarm.edge.bounds import number as _number
from zfarm.edge.bounds import numbers as _numbers
from zfarm.edge.bounds import real as _real
from zfarm.edge.filing import FILE_CHECKS
from zfarm.edge.filing import digests as _digests
from zfarm.settings import settings

__all__ = ["CHECKS", "NAME_MAX", "Check", "Malformed"]

Check = Callable[[Any, int], None]
PATH_MAX: Final = 4096


def _versions(versions: m.Versions) -> None:
    _number("protocol", versions.protocol)
    _name("a version", versions.zfarm, versions.python, most=64)


# ---------------------------------------------------------------- messages of calls and outcomes


def _amounts(what: str, amounts: Iterable[tuple[str, int]]) -> None:
    listed = list(amounts)
    _listed(what, listed, RESOURCES_MAX)
    names = [name for name, _ in listed]
    _name("a resource", *names)
    if len(set(names)) < len(names):
        raise Malformed(f"{what} that name one twice")
    _numbers(what, [amount for _, amount in listed], AMOUNT_MAX)


def _demands(demands: Sequence[m.Demand]) -> None:
    _listed("demands", demands, settings.batch_calls_max)
    for demand in demands:
        _amounts("resources", demand.resources)
        _listed("labels", demand.labels, RESOURCES_MAX)
        _name("a label", *demand.labels)


def _needs(needs: Sequence[Sequence[m.Need]]) -> None:
    _listed("lists of files", needs, settings.batch_calls_max)
    for some in needs:
        _listed("files of a call", some, settings.call_files_max)
        _digests("a file", *some)
        _name("a host", *(need.near for need in some))


def _submit(message: m.Submit, blobs: int) -> None:
    calls, functions, setups = message.calls, len(message.names), message.setups
    _names(message.digests, functions)
    _listed("calls", calls, settings.batch_calls_max)
    _number("setups", setups, settings.blobs_max)
    _blobs(message, blobs, functions + setups + len(calls))
    if message.forgets:
        _listed("forgets", message.forgets, settings.blobs_max)
        _numbers("forgets", message.forgets)
    _name("a function's name", *message.names)
    _number("number", message.number)
    _numbers("tasks", [call.task for call in calls], TASK_NUMBER_MAX)
    # the other columns of a batch are nearly constant: their few distinct values are what is checked
    _demands(message.demands)
    _needs(message.needs)
    terms = "max_attempts", "timeout_us", "priority", "memory_bytes", "demand", "needs"
    kinds = set(map(attrgetter("function", "setup", "items", *terms), calls))
    for function, setup, items, max_attempts, timeout_us, priority, memory_bytes, demand, needs in kinds:
        _number("needs", needs, len(message.needs))
        _number("memory_bytes", memory_bytes)
        _number("demand", demand, len(message.demands))
        _number("function", function, functions - 1)
        _number("setup", setup, setups - 1)
        _number("items", items, COUNT_MAX)
        _number("max_attempts", max_attempts, COUNT_MAX, 1)
        _number("timeout_us", timeout_us)
        _number("priority", priority, COUNT_MAX, -COUNT_MAX)


def _grants(message: m.Grants, blobs: int) -> None:
    leases, owners, functions, setups = message.leases, message.owners, message.functions, message.setups
    _listed("leases", leases, settings.batch_calls_max)
    _number("number", message.number)
    _number("beat", message.beat)
    _number("functions", functions, settings.blobs_max)
    _number("setups", setups, settings.blobs_max)
    _names(message.digests, functions)
    _blobs(message, blobs, functions + setups + len(leases))
    _name("an owner", *owners)
    _numbers("leases", [lease.lease for lease in leases])
    _numbers("tasks", [lease.task for lease in leases])
    _listed("own leases", message.own, len(leases))
    _numbers("own leases", message.own)
    _demands(message.demands)
    _needs(message.needs)
    columns = "owner", "function", "setup", "items", "expected_us"
    terms = "timeout_us", "memory_bytes", "demand", "needs"
    kinds = set(map(attrgetter(*columns, *terms), leases))
    for owner, function, setup, items, expected_us, timeout_us, memory_bytes, demand, needs in kinds:
        _number("needs", needs, len(message.needs))
        _number("memory_bytes", memory_bytes)
        _number("demand", demand, len(message.demands))
        _number("owner", owner, len(owners) - 1)
        _number("function", function, functions - 1)
        _number("setup", setup, setups - 1)
        _number("items", items, COUNT_MAX)
        _number("expected_us", expected_us)
        _number("timeout_us", timeout_us)


def _fate(fate: m.Fate) -> None:
    _name("a fate's host or worker", fate.host, fate.worker)
    _name("a fate's text", fate.text, fate.stderr, fate.oom, most=settings.text_bytes_max)
    _number("peak_bytes", fate.peak_bytes)
    _number("signal", fate.signal, COUNT_MAX)
    _number("exit_code", fate.exit_code, COUNT_MAX, -COUNT_MAX)


def _reports(message: m.Reports, blobs: int) -> None:
    reports = message.reports
    _listed("reports", reports, settings.batch_calls_max)
    _blobs(message, blobs, len(reports))
    _numbers("leases", [report.lease for report in reports])
    for kind in {report.kind for report in reports}:
        if not 0 <= kind <= m.OVERSIZED or kind == m.REFUSED:
            raise Malformed(f"kinds: a worker reports kind {kind}")
    _numbers("run times", [report.run_us for report in reports])
    _numbers("times of children", [report.held_us for report in reports])
    _numbers("emitted items", [report.emitted for report in reports])
    _numbers("items of files", [report.filed for report in reports])
    for report in reports:
        if report.fate is not None:
            _fate(report.fate)
        elif report.kind in (m.LOST, m.TIMEOUT, m.MEMORY, m.MISSING, m.CUT, m.OVERSIZED):
            raise Malformed(f"the report of lost lease {report.lease} has no fate")


def _ended(message: m.Ended, blobs: int) -> None:
    outcomes = message.outcomes
    _listed("outcomes", outcomes, settings.batch_calls_max)
    _blobs(message, blobs, len(outcomes))
    _numbers("tasks", [outcome.task for outcome in outcomes])
    for kind in {outcome.kind for outcome in outcomes}:
        if not 0 <= kind <= m.OVERSIZED or kind in (m.AGAIN, m.CUT):
            raise Malformed(f"kinds: no task ends in kind {kind}")
    _numbers("run times", [outcome.run_us for outcome in outcomes])
    _numbers("tries", [outcome.tries for outcome in outcomes], COUNT_MAX)
    _numbers("emitted items", [outcome.emitted for outcome in outcomes])
    _numbers("items of files", [outcome.filed for outcome in outcomes])
    _numbers("leases", [outcome.lease for outcome in outcomes])
    for outcome in outcomes:
        for fate in outcome.deaths:
            _fate(fate)


def _run(message: m.Run, blobs: int) -> None:
    _name("a path", message.store, most=PATH_MAX)
    _name("a worker", message.worker, most=PATH_MAX)
    calls, functions = message.calls, message.functions
    _listed("calls", calls, settings.batch_calls_max)
    _number("functions", functions, settings.blobs_max)
    _names(message.digests, functions)
    _named(message.drops)
    _blobs(message, blobs, functions + message.setup + len(calls))
    _numbers("seqs", [call.seq for call in calls])
    _number("blob_bytes", message.blob_bytes)
    _numbers("functions", [call.function for call in calls], functions - 1)
    _numbers("items", [call.items for call in calls], COUNT_MAX)
    _numbers("memory_bytes", [call.memory_bytes for call in calls])


def _dones(message: m.Dones, blobs: int) -> None:
    dones = message.dones
    _listed("dones", dones, settings.batch_calls_max)
    _blobs(message, blobs, len(dones))
    _numbers("seqs", [done.seq for done in dones])
    _numbers("run times", [done.run_us for done in dones])
    for kind in {done.kind for done in dones}:
        if kind not in (m.VALUE, m.ERROR, m.MIXED, m.BROKEN, m.AGAIN):  # a child cannot say that it died
            raise Malformed(f"a child reports kind {kind}")


# ---------------------------------------------------------------- messages without payload


def _starts(message: m.Starts, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _number("seq", message.seq)


def _delivers(message: m.Delivers | m.Delivered, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _number("seq", message.seq)


def _borrow(message: m.Borrow, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _listed("sizes", message.sizes, settings.blobs_max)
    _numbers("sizes", message.sizes, settings.payload_bytes_max)


def _lent(message: m.Lent, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _listed("memory", message.memory, settings.blobs_max)
    for one in message.memory:
        _numbers("memory", [one.pid, one.fd, one.size])


def _released(message: m.Released, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _number("bytes of notes", len(message.notes), settings.header_bytes_max)


def _nothing(message: object, blobs: int) -> None:
    _blobs(message, blobs, 0)


def _tasks(message: m.Cancel | m.Ask | m.Forget | m.Booked | m.Unknown | m.Began, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _listed("tasks", message.tasks, settings.blobs_max)
    _numbers("tasks", message.tasks)


def _unknown(message: m.Unknown, blobs: int) -> None:
    _tasks(message, blobs)
    _number("seen", message.seen)
    _named(message.lacks)


def _return(message: m.Return, blobs: int) -> None:
    _leases(message, blobs)
    _number("seen", message.seen)
    _named(message.lacks)


def _leases(message: m.Return | m.Revoke | m.Thanks | m.Leave, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _listed("leases", message.leases, settings.blobs_max)
    _numbers("leases", message.leases)


def _cancel(message: m.Cancel, blobs: int) -> None:
    _tasks(message, blobs)
    _number("grace_us", message.grace_us)


def _revoke(message: m.Revoke, blobs: int) -> None:
    _leases(message, blobs)
    _number("grace_us", message.grace_us)


def _hello(message: m.Hello, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _session(message.session)
    _versions(message.versions)
    _name("a host or name", message.host, message.name)
    _name("a job", message.job)
    if message.job or message.life:
        _session(message.life)
    _number("number", message.number, m.HELLO_MAX)
    _number("pid", message.pid, COUNT_MAX)
    _key(message.key)


def _attach(message: m.Attach, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _name("a job", message.job)
    _session(message.life)
    _versions(message.versions)


def _attached(message: m.Attached, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _name("a job", message.job)
    _session(message.session)
    _listed("tasks", message.tasks, settings.blobs_max)
    _name("a function's name", *(task.name for task in message.tasks))
    _numbers("tasks", [task.task for task in message.tasks])
    _numbers("items", [task.items for task in message.tasks])
    _number("total", message.total, settings.tasks_max)
    _number("first", message.first, TASK_NUMBER_MAX)


def _session(session: str) -> None:
    if not session:
        raise Malformed("the session is empty")
    if "/" in session:
        raise Malformed("the session has a slash")
    _name("a session", session, most=SESSION_MAX)


def _pulse(message: m.Pulse, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _number("number", message.number)
    _number("open", message.open)


def _look(message: m.Look, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _number("tasks_max", message.tasks_max, COUNT_MAX)


def _welcome(message: m.Welcome, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _versions(message.versions)
    counts = message.epoch, message.workers, message.slots, message.grants, message.books
    _numbers("epoch, workers, slots, grants and books", counts)
    _number("silence_us", message.silence_us)
    _number("blob_bytes", message.blob_bytes)
    _name("a topic or an address", message.topic, message.items)


def _refused(message: m.Refused, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _name("a code", message.code)
    _name("a refusal", message.text, most=settings.text_bytes_max)


def _echo(message: m.Echo, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _numbers("number and slots", (message.number, message.slots))


def _held(held: Sequence[m.Held]) -> None:
    _listed("held leases", held, settings.held_max)
    _numbers("leases", [one.lease for one in held])
    _numbers("tasks", [one.task for one in held])
    _name("an owner", *(one.owner for one in held))
    for takes in {one.takes for one in held if one.takes}:
        _amounts("resources", takes)


def _join(message: m.Join, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _session(message.session)
    _versions(message.versions)
    _name("a host", message.host)
    _numbers("slots and pid", (message.slots, message.pid), COUNT_MAX)
    _held(message.held)
    _amounts("resources", message.resources.items())
    _number("beat", message.beat)
    _listed("labels", message.labels, RESOURCES_MAX)
    _name("a label", *message.labels)
    _duct(message.duct, own=True)


def _beat(message: m.Beat, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _number("seen", message.seen)
    _number("beat", message.beat)
    _number("room", message.room, COUNT_MAX)
    _listed("held leases", message.held, settings.held_max)
    _numbers("leases", message.held)
    _waiting(message.waiting)
    if message.vitals is not None:
        _vitals(message.vitals)


def _noted(message: m.Noted, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _number("beat", message.beat)


def _waiting(leases: Sequence[int]) -> None:
    _listed("leases that wait", leases, settings.held_max)
    _numbers("leases", leases)


def _vitals(v: m.Vitals) -> None:
    _real("a vital stat", v.cpu_percent, v.load_1m, v.swap_percent)
    sizes = (v.memory_bytes, v.memory_available_bytes, v.disk_free_bytes, v.rss_bytes, v.shared_bytes)
    _numbers("vital stats", (*sizes, v.cpus, v.processes, v.duct_refused))


def _room(message: m.Room, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _number("room", message.room, COUNT_MAX)
    _number("own room", message.own, COUNT_MAX)
    _waiting(message.waiting)
    _listed("children", message.children, settings.blocked_children_max)
    _numbers("children", message.children)


def _tunnel(message: m.Tunnel, blobs: int) -> None:
    _number("channel", message.channel, COUNT_MAX)
    _name("an owner", message.owner)
    if not blobs:
        raise Malformed("Tunnel without a frame")


def _tunnel_closed(message: m.TunnelClosed, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _number("channel", message.channel, COUNT_MAX)


# ---------------------------------------------------------------- streams


def _emits(message: m.Emits, blobs: int) -> None:
    _number("seq", message.seq)
    if not blobs:
        raise Malformed("Emits without an item")
    if message.latest:
        _blobs(message, blobs, 1)


def _streams(message: m.Streams, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _listed("streams", message.streams, settings.batch_calls_max)
    _listed("streams that are gone", message.gone, settings.batch_calls_max)
    _numbers("leases", [*message.gone, *(one.lease for one in message.streams)], least=-NUMBER_MAX)
    _numbers("tasks", [one.task for one in message.streams], least=-NUMBER_MAX)
    if any((one.lease < 0) is not (one.task < 0) for one in message.streams):
        raise Malformed("a stream that is of files and is not")
    _numbers("attempts", [one.attempt for one in message.streams], COUNT_MAX)
    _name("an owner", *(one.owner for one in message.streams))
    for duct in {one.duct for one in message.streams}:
        _duct(duct)


def _items(message: m.Items, blobs: int) -> None:
    _number("lease", message.lease, least=-NUMBER_MAX)
    _number("first", message.first, least=1)
    _number("last", message.last, least=message.first)
    if blobs:
        _blobs(message, blobs, message.last - message.first + 1)


def _sent(message: m.Sent, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _number("lease", message.lease, least=-NUMBER_MAX)
    _number("number", message.last)


def _listen(message: m.Listen, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _listed("streams", message.listens, settings.batch_calls_max)
    for one in message.listens:
        _number("lease", one.lease, least=-NUMBER_MAX)
        _numbers("next and seen", (one.next, one.seen))
    _key(message.key)


def _fetch(message: m.Fetch, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _number("lease", message.lease, least=-NUMBER_MAX)
    _number("first", message.first, least=1)
    _number("last", message.last, least=message.first)


def _progress(message: m.Progress, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _number("number", message.number)
    _real("progress", message.done, 0.0 if message.total is None else message.total)
    _name("a note", message.note)


def _printed(message: m.Printed, blobs: int) -> None:
    _blobs(message, blobs, 1)
    _number("number", message.number)
    _number("dropped", message.dropped)
    if message.source not in (1, 2, 3):
        raise Malformed(f"source {message.source}: there are outputs (1), errors (2) and records (3)")
    _name("a host", message.host)


# ---------------------------------------------------------------- pictures and notes


def _workers(workers: Iterable[m.WorkerPicture]) -> None:
    for worker in workers:
        _real("a worker's age", worker.last_seen_s, worker.uptime_s, worker.aside_s)
        _vitals(worker.vitals)


def _running(running: Iterable[m.TaskPicture]) -> None:
    _real("a task's age", *(task.age_s for task in running))


def _why(message: m.Why, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _numbers("number and task", (message.number, message.task))
    _name("an owner", message.owner)


def _reason(message: m.Reason, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _numbers("number and task", (message.number, message.task))
    _name("a code, name or owner", message.code, message.name, message.owner)
    _name("a reason", message.text, most=settings.text_bytes_max)


def _picture(message: m.Picture, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _real("the uptime", message.farm.uptime_s)
    _workers(message.workers)
    _running(message.running)


def _farm_note(note: m.FarmNote, blobs: int) -> None:
    _blobs(note, blobs, 0)
    _real("the uptime", note.farm.uptime_s)
    _running(note.running)


def _workers_note(note: m.WorkersNote, blobs: int) -> None:
    _blobs(note, blobs, 0)
    _workers(note.workers)


CHECKS: Final[dict[type, Check]] = {
    **FILE_CHECKS,
    m.Hello: _hello,
    m.Attach: _attach,
    m.Submit: _submit,
    m.Cancel: _cancel,
    m.Ask: _tasks,
    m.Forget: _tasks,
    m.Pulse: _pulse,
    m.Bye: _nothing,
    m.Look: _look,
    m.Why: _why,
    m.Reason: _reason,
    m.Welcome: _welcome,
    m.Stranger: _nothing,
    m.Refused: _refused,
    m.Attached: _attached,
    m.Booked: _tasks,
    m.Ended: _ended,
    m.Began: _tasks,
    m.Unknown: _unknown,
    m.Echo: _echo,
    m.Picture: _picture,
    m.Join: _join,
    m.Beat: _beat,
    m.Reports: _reports,
    m.Return: _return,
    m.Room: _room,
    m.Leave: _leases,
    m.Tunnel: _tunnel,
    m.TunnelClosed: _tunnel_closed,
    m.Grants: _grants,
    m.Revoke: _revoke,
    m.Thanks: _leases,
    m.Drain: _nothing,
    m.Noted: _noted,
    m.Run: _run,
    m.Dones: _dones,
    m.Starts: _starts,
    m.Waits: _nothing,
    m.Delivers: _delivers,
    m.Delivered: _delivers,
    m.Borrow: _borrow,
    m.Lent: _lent,
    m.Released: _released,
    m.Unshare: _nothing,
    m.Emits: _emits,
    m.Progress: _progress,
    m.Printed: _printed,
    m.Streams: _streams,
    m.Items: _items,
    m.Sent: _sent,
    m.Listen: _listen,
    m.Fetch: _fetch,
    m.FarmNote: _farm_note,
    m.WorkersNote: _workers_note,
    m.TextNote: _nothing,
}
