"""Which simulated calls give large results, how their children deliver those, and what must hold then."""

from __future__ import annotations

import dataclasses
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from zfarm import messages as m

if TYPE_CHECKING:
    from tests.simulation.children import Child
    from tests.simulation.faults import Mix
    from tests.simulation.people import Reader, Run, Task

PIECES_MAX = 40
AT_ONCE_MAX = 4


def let_deliver(mix: Mix) -> None:
    """In some farms calls give large results; not those of jobs, whose results the broker keeps."""
    rng = Random(f"bulk {mix.seed}")
    mix.bulk_share = 0.0 if mix.jobs else rng.choice((0.0, 0.0, 0.1, 0.5))
    if not mix.bulk_share or mix.stream_share:
        return
    mix.published = rng.random() < 0.7
    mix.reader_pause_s = rng.choice((0.0, 1e-3, 50e-3))
    if not mix.calm:
        mix.item_loss = rng.choice((0.0, 0.05, 0.5))
    window = rng.choice((4, 16, 32_768))
    mix.settings = dataclasses.replace(
        mix.settings,
        stream_window_items=window,
        stream_buffer_items=2 * window,
        stream_grace_s=rng.choice((0.05, 2.0)),
        stream_patience_s=rng.choice((0.5, 30.0)),
    )


def pieces(mix: Mix, rng: Random) -> int:
    """Of how many pieces the result of a call is; 0: it travels with its report."""
    return rng.choice((1, 5, PIECES_MAX)) if mix.bulk_share and rng.random() < mix.bulk_share else 0


def deliver(child: Child, call: m.ChildCall, task: Task, run: Run) -> None:
    """The call has come to its end: its result goes first."""
    run.result_at = run.filed + 1
    child.say("child_delivers", call.seq, False)
    _send(child, call, task, run, task.pieces)


def _send(child: Child, call: m.ChildCall, task: Task, run: Run, left: int) -> None:
    if not child.alive or child.running is not run:
        return
    farm = child.farm
    again = partial(_send, child, call, task, run)
    if child.paused:
        farm.story.probe("waits in its delivery")
        child.blocked = partial(again, left)
        return
    if not left:
        child.say("child_delivers", call.seq, True)
        child.delivered = partial(child.finish, call, task)
        return
    count = farm.rng.randint(1, min(left, AT_ONCE_MAX))
    number = task.runs.index(run)
    blobs = [b"%d/%d/%d" % (-task.token, number, run.filed + n + 1) for n in range(count)]
    run.filed += count
    child.say("child_emitted", call.seq, blobs, False, True)
    farm.after(farm.rng.random() * 1e-3, partial(again, left - count))


def wanted(task: Task, reader: Reader, last: int) -> None:
    """A client has items of the files of a task up to the ``last``: of a result nothing but its first piece,
    or what was sent together with that, unless it has used that."""
    begun = task.runs[reader.run].result_at if reader.run >= 0 else 0
    if begun and reader.used < begun:
        assert last < begun + AT_ONCE_MAX, f"the result of task {task.token} comes unasked, up to {last}"


def whole(task: Task, outcome: m.Outcome) -> None:
    """A client hears how a call has ended: a large value is there by then, all of it."""
    heard = [run for run in task.runs if run.delivery_heard]
    stopped = outcome.kind == m.TIMEOUT and len(heard) == len(task.runs)
    assert not stopped, f"task {task.token} has timed out while its result was on its way"
    if not task.pieces or outcome.kind != m.VALUE:
        return
    what = f"the result of task {task.token}"
    reader = task.taker
    assert reader is not None, f"{what} was told of, and nothing of it has come"
    assert outcome.filed == reader.next - 1, (
        f"{what} is said to end at {outcome.filed}, not {reader.next - 1}"
    )
    assert reader.used == outcome.filed, f"{what} was told of, and its client has {reader.used} pieces"
    assert reader.gap <= outcome.filed - task.pieces, f"{what} lacks what came up to {reader.gap}"
