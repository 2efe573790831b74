"""The live dashboard as lines of text: a view of the farm laid out for a width and a height.

Rules of this file:
  1. It draws what it is given: no socket, no terminal, and the times come with the scene.
  2. Names and sentences come from other hosts and are cleaned before they are shown.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Final

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment

from zfarm.core.view import View, worker_state
from zfarm.face.figures import (
    ascii_only,
    clean,
    count,
    duration,
    meter,
    per_second,
    percent,
    plural,
    size,
    sparkline,
)
from zfarm.face.grid import Block, Cells, Column, Line, beside, fit, stack, table
from zfarm.messages import ClientPicture, TaskPicture, WorkerPicture

__all__ = ["Scene", "screenful"]

WIDE: Final = 130
"""Columns from which on the screen has a second pane, for what waits, who asks and what was said."""
PANE: Final = 46
"""Columns of that pane at least."""
NARROWEST: Final = 40
TEXTS_SHOWN: Final = 30

STATE_STYLES: Final = {
    "idle": "dim",
    "busy": "green",
    "full": "bold green",
    "draining": "yellow",
    "aside": "red",
    "silent": "bold red",
}
LEVEL_STYLES: Final = {"warning": "yellow", "error": "bold red"}


@dataclass(frozen=True, slots=True)
class Scene:
    """What is to be drawn. ``now`` is the view's clock, ``wall`` the time of day (seconds since 1970) then.

    ``away_since``: when the broker fell silent, in the view's clock; None while it answers. ``trouble``: why.
    """

    view: View
    title: str
    now: float
    wall: float
    versions: str = ""
    away_since: float | None = None
    trouble: str = ""
    keys: str = ""

    @property
    def later_s(self) -> float:
        """What has to be added to the ages in the pictures; nothing while a last picture is shown."""
        away = self.away_since is not None or self.view.farm is None
        return 0.0 if away else self.view.age_s(self.now)

    def clock(self, at: float) -> str:
        """The time of day at a moment of the view's clock."""
        return time.strftime("%H:%M:%S", time.localtime(self.wall - (self.now - at)))


@dataclass(frozen=True, slots=True)
class screenful:  # noqa: N801 - used like a function, `console.print(screenful(scene))`
    """A rich renderable: the screen, exactly as high as it is told; as high as it likes if ``whole``."""

    scene: Scene
    whole: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(NARROWEST, options.max_width)
        height = options.height or options.max_height
        if self.whole:
            width, height = min(width, WIDE - 1), 100_000
        dull = self.scene.away_since is not None
        for line in _lines(self.scene, width, height, self.whole):
            for text, style in _stripped(line) if self.whole else line:
                if options.ascii_only:
                    text = ascii_only(text)
                if dull and "reverse" not in style:
                    style = f"dim {style}"
                if text:
                    yield Segment(text, console.get_style(style))
            yield Segment.line()


def _stripped(line: Line) -> Line:
    """Without blanks at its end: what is printed once may go to a file."""
    while line and not line[-1][0].strip():
        line = line[:-1]
    return [*line[:-1], (line[-1][0].rstrip(), line[-1][1])] if line else line


def _lines(scene: Scene, width: int, height: int, whole: bool) -> list[Line]:
    head = _head(scene, width)
    foot = [] if whole else [_foot(scene, width)]
    room = max(0, height - len(head) - len(foot))
    blocks = _blocks(scene)
    if whole:
        blocks = [block for block in blocks if block.wants(width)]
    if scene.view.farm is None:
        body = []
    elif width < WIDE:
        body = stack(blocks[:2] + blocks[3:] if height < 40 else blocks, width, room)
    else:
        right = max(PANE, width // 3)
        left = stack(blocks[:2], width - right - 2, room)
        body = beside(left, stack(blocks[2:], right, room), width - right - 2)
    body += [[] for _ in range(0 if whole else room - len(body))]
    return [fit(line, width) for line in (head + body)[: height - len(foot)] + foot]


# ------------------------------------------------------------------ the top


def _head(scene: Scene, width: int) -> list[Line]:
    farm = scene.view.farm
    dot = " · "
    name: Line = [(" zfarm ", "bold reverse"), (" ", ""), (clean(scene.title), "bold"), ("  ", "")]
    if farm is None:
        text = "no broker has answered yet" if scene.away_since is None else _away(scene)
        return [name, [], [(f" {text} ", "bold reverse yellow")]]
    facts = [f"up {duration(farm.uptime_s + scene.later_s)}", plural(farm.clients, "client"), scene.versions]
    facts.append(f"epoch {farm.epoch}")
    used = sum(cell_len(text) for text, _ in name)
    while facts and used + len(dot.join(facts)) > width:
        facts.pop()
    lines = [[*name, (dot.join(fact for fact in facts if fact), "dim")]]
    if scene.away_since is not None:
        rest = "" if scene.trouble else "; this is the last picture"
        lines.append([(f" {_away(scene)}{rest} ", "bold reverse red")])
    return [*lines, _totals(scene, width), _speed(scene, width)]


def _away(scene: Scene) -> str:
    assert scene.away_since is not None
    text = f"no answer since {scene.clock(scene.away_since)} ({duration(scene.now - scene.away_since)})"
    return f"{text}: {clean(scene.trouble)}" if scene.trouble else text


def _totals(scene: Scene, width: int) -> Line:
    farm = scene.view.farm
    assert farm is not None
    line: Line = []
    for word, number, style in (
        ("queued", scene.view.waiting_now, "bold"),
        ("running", scene.view.running_now, "bold cyan"),
        ("done", farm.values, "bold green"),
        ("errors", farm.errors, "bold red"),
        ("lost", farm.lost, "bold red"),
        ("cancelled", farm.cancelled, "bold yellow"),
        ("retried", farm.retried, "bold yellow"),
    ):
        item: Line = [(f" {word} ", "dim"), (count(number, 6), style if number else "dim")]
        width -= sum(cell_len(text) for text, _ in item)
        if width < 0:
            break  # half a number says something else
        line += item
    return line


def _speed(scene: Scene, width: int) -> Line:
    view, farm = scene.view, scene.view.farm
    assert farm is not None
    busy, slots = view.running_now, farm.slots
    full, empty = meter(busy, slots, 10)
    slots_line: Line = [(" slots ", "dim"), (full, "cyan"), (empty, "dim"), (f" {busy:,}/{slots:,} ", "")]
    if not view.rated:
        return slots_line
    failing = view.failed_per_s
    right: Line = [(f" failing {per_second(failing, 6)}/s ", "red" if failing else "dim"), *slots_line]
    room = width - sum(cell_len(text) for text, _ in right) - 12
    return [
        (f" {per_second(view.ended_per_s, 7):>7}/s ", "bold"),
        (sparkline(view.history, max(0, min(room, 60))), "green"),
        *right,
    ]


def _foot(scene: Scene, width: int) -> Line:
    left: Line = [(f" {scene.keys}" if scene.keys else "", "dim")]
    if scene.view.stale and scene.view.farm is not None and scene.away_since is None:
        left.append(("  catching up: some notes were missed", "yellow"))
    clock = f"{scene.clock(scene.now)} "
    return [*fit(left, width - len(clock)), (clock, "dim")]


# ------------------------------------------------------------------ the blocks


def _blocks(scene: Scene) -> list[Block]:
    """Workers and running tasks, the main pane; then clients, queue and texts."""
    view, farm = scene.view, scene.view.farm
    if farm is None:
        return []
    queue = sorted(view.queue.items(), key=lambda item: (-item[1], item[0]))
    unmet: list[Line] = [
        [(f" {count(tasks, 5)} wait: {clean(text)}", "yellow")] for text, tasks in sorted(view.unmet.items())
    ]
    if farm.refusing:
        unmet.insert(0, [(f" no new tasks are taken: {clean(farm.refusing)}", "red")])
    return [
        Block(
            "workers",
            f"{farm.workers:,}  slots {farm.slots:,}",
            lambda width: 1 + len(view.workers),
            lambda width, height: _workers(scene, width, height),
            least=3,
            weight=3,
        ),
        Block(
            "running",
            f"{view.running_now:,}",
            lambda width: 1 + len(view.running),
            lambda width, height: _running(scene, width, height),
            least=3,
            weight=3,
        ),
        Block(
            "clients",
            f"{farm.clients:,}",
            lambda width: 1 + len(view.clients),
            lambda width, height: _clients(scene, width, height),
            least=2,
        ),
        Block(
            "queue",
            f"{view.waiting_now:,}",
            lambda width: len(unmet) + len(queue),
            lambda width, height: [*unmet, *_queue(queue, view.first, width, height - len(unmet))][:height],
        ),
        Block(
            "recent",
            "",
            lambda width: len(_texts(scene, width)),
            lambda width, height: _texts(scene, width)[:height] or [[(" nothing yet", "dim")]],
        ),
    ]


WORKER_COLUMNS: Final = (
    Column("host", 0),
    Column("pid", 7, right=True, rank=1),
    Column("runs", 6, right=True),
    Column("done", 6, right=True),
    Column("fail", 4, right=True),
    Column("died", 4, right=True, rank=2),
    Column("cpu", 4, right=True),
    Column("load", 4, right=True, rank=4),
    Column("mem", 4, right=True, rank=3),
    Column("rss", 4, right=True, rank=3),
    Column("swap", 4, right=True, rank=7),
    Column("disk", 4, right=True, rank=7),
    Column("up", 6, right=True, rank=6),
    Column("seen", 5, right=True, rank=5),
    Column("duct", 6, right=True, rank=5),
    Column("state", 8),
)


def _workers(scene: Scene, width: int, height: int) -> list[Line]:
    def cells(worker: WorkerPicture) -> Cells:
        vitals, state = worker.vitals, worker_state(worker, scene.later_s)
        known = vitals.memory_bytes > 0
        used = 100 * (1 - vitals.memory_available_bytes / vitals.memory_bytes) if known else 0.0
        return {
            "host": (clean(worker.host), "bold"),
            "pid": (str(worker.pid), "dim"),
            "runs": (f"{min(worker.leases, worker.room)}/{worker.slots}", "cyan" if worker.leases else "dim"),
            "done": (count(worker.done, 6), ""),
            "fail": _bad(worker.failed),
            "died": _bad(worker.deaths),
            "cpu": _level(vitals.cpu_percent, 101, known),
            "load": (_load(vitals.load_1m) if known else "", ""),
            "mem": _level(used, 90, known),
            "rss": (size(vitals.rss_bytes) if known else "", ""),
            "swap": _level(vitals.swap_percent, 50, known),
            "disk": (size(vitals.disk_free_bytes) if known else "", ""),
            "up": (duration(worker.uptime_s + scene.later_s), "dim"),
            "seen": (duration(worker.last_seen_s + scene.later_s), "red" if state == "silent" else "dim"),
            "duct": (f":{clean(worker.duct).rpartition(':')[2]}" if worker.duct else "", "dim"),
            "state": (state, STATE_STYLES[state]),
        }

    rows = sorted(scene.view.workers, key=lambda w: (w.host, w.pid))
    ducts = any(worker.duct for worker in rows)
    columns = [column for column in WORKER_COLUMNS if ducts or column.title != "duct"]
    return table(columns, rows, cells, width, height) if rows else [[(" none has joined", "yellow")]]


TASK_COLUMNS: Final = (
    Column("call", 0, least=26),
    Column("task", 9, right=True, rank=3),
    Column("age", 6, right=True),
    Column("try", 3, right=True, rank=2),
    Column("worker", 20, rank=1),
    Column("client", 20, rank=4),
)


def _running(scene: Scene, width: int, height: int) -> list[Line]:
    workers = {worker.worker: f"{clean(worker.host)}/{worker.pid}" for worker in scene.view.workers}
    clients = {client.client: _client_name(client) for client in scene.view.clients}

    def cells(task: TaskPicture) -> Cells:
        name = clean(task.name) + (f" ×{task.items}" if task.items else "")
        return {
            "call": (name, "bold"),
            "task": (str(task.task), "dim"),
            "age": (duration(task.age_s + scene.later_s), "cyan"),
            "try": (str(task.attempts) if task.attempts > 1 else "", "yellow"),
            "worker": (workers.get(task.worker) or clean(task.worker), ""),
            "client": (clients.get(task.owner) or clean(task.owner), "dim"),
        }

    rows = sorted(scene.view.running, key=lambda task: -task.age_s)
    return table(TASK_COLUMNS, rows, cells, width, height) if rows else [[(" nothing", "dim")]]


CLIENT_COLUMNS: Final = (
    Column("client", 0),
    Column("queued", 7, right=True),
    Column("running", 7, right=True),
    Column("ended", 7, right=True),
    Column("state", 5),
)


def _clients(scene: Scene, width: int, height: int) -> list[Line]:
    def cells(client: ClientPicture) -> Cells:
        return {
            "client": (_client_name(client), "bold"),
            "queued": (count(client.queued, 7), "" if client.queued else "dim"),
            "running": (count(client.leased, 7), "cyan" if client.leased else "dim"),
            "ended": (count(client.ended, 7), ""),
            "state": ("away", "yellow") if client.away else ("here", "dim"),
        }

    rows = sorted(scene.view.clients, key=lambda c: (-c.leased - c.queued, c.host, c.pid))
    return table(CLIENT_COLUMNS, rows, cells, width, height) if rows else [[(" none", "dim")]]


def _client_name(client: ClientPicture) -> str:
    place = f"{clean(client.host)}/{client.pid}"
    return f"{clean(client.name)} {place}" if client.name else place


def _queue(queue: Sequence[tuple[str, int]], first: Mapping[str, str], width: int, height: int) -> list[Line]:
    """What waits, and one task of each function, for `zfarm why`."""
    if not queue:
        return [[(" nothing waits", "dim")]]
    if len(queue) > height:  # one line, as much as fits
        line: Line = []
        for name, number in queue:
            line += [(f" {clean(name)} ", "bold"), (count(number, 9), ""), ("  ", "")]
        return [line]
    bar = max(0, min(20, width - 44))
    lines: list[Line] = []
    for name, number in queue[:height]:
        full, empty = meter(number, queue[0][1], bar)
        label = fit([(f" {clean(name)}", "bold"), (f"  {first.get(name, '')}", "dim")], width - bar - 12)
        lines.append([*label, (f"{count(number, 9):>9}  ", ""), (full, "cyan"), (" " * len(empty), "")])
    return lines


def _texts(scene: Scene, width: int) -> list[Line]:
    """What was said last, the newest first, wrapped; what was said again and again stands there once."""
    lines: list[Line] = []
    newest_first = reversed(scene.view.texts)
    for (level, text), group in islice(
        groupby(newest_first, lambda said: (said.level, said.text)), TEXTS_SHOWN
    ):
        first, *others = group
        style = LEVEL_STYLES.get(level, "")
        shown = clean(text) + (f" (×{1 + len(others)})" if others else "")
        head, *rest = textwrap.wrap(shown, max(20, width - 11)) or [""]
        lines.append([(f" {scene.clock(first.at)} ", "dim"), (head, style)])
        lines += [[(" " * 10 + more, style)] for more in rest]
    return lines


def _bad(number: int) -> tuple[str, str]:
    return (count(number, 4), "bold red") if number else ("0", "dim")


def _load(load: float) -> str:
    return f"{load:.1f}" if load < 99.95 else count(load, 4)


def _level(value: float, high: float, known: bool) -> tuple[str, str]:
    return (percent(value), "bold red" if value >= high else "") if known else ("", "")
