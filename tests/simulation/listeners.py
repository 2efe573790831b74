"""What tasks print in a simulated farm, and what must hold of it: each line once, in order, or counted."""

from __future__ import annotations

import dataclasses
from random import Random
from typing import TYPE_CHECKING

from zfarm import messages as m

if TYPE_CHECKING:
    from tests.simulation.children import Child
    from tests.simulation.farm import Farm
    from tests.simulation.faults import Mix
    from tests.simulation.people import Task

LINE = b"%08d/%04d/%08d\n"
LINE_BYTES = len(LINE % (0, 0, 0))


def let_print(mix: Mix) -> None:
    """In some farms calls print, or emit what only counts as the latest. The dice are of their own."""
    mix.gauge_share = Random(f"gauges {mix.seed}").choice((0.0, 0.0, 0.5)) if mix.stream_share else 0.0
    rng = Random(f"prints {mix.seed}")
    mix.print_share = rng.choice((0.0, 0.0, 0.3, 1.0))
    if mix.print_share:
        burst = rng.choice((100, 1000, mix.settings.output_burst_bytes))
        mix.settings = dataclasses.replace(mix.settings, output_burst_bytes=burst)


def chatter(child: Child, seq: int, task: Task) -> None:
    """The call that runs in this child prints something, some of which its worker drops and counts."""
    rng, run = child.farm.rng, child.running
    if run is None or rng.random() >= child.farm.mix.print_share:
        return
    number = task.runs.index(run)
    for _ in range(rng.randint(1, 4)):
        source = rng.choice((1, 2, 3))
        dropped = rng.randint(1, 9) if rng.random() < 0.1 else 0
        first = run.printed.get(source, 0) + dropped + 1
        last = run.printed[source] = first + rng.randint(-1 if dropped else 0, 4)
        text = b"".join(LINE % (task.token, number, n) for n in range(first, last + 1))
        child.say("child_printed", seq, source, text, dropped * LINE_BYTES)


class Listeners:
    """What the clients have heard of their tasks."""

    farm: Farm

    def heard_of(self, life: str, task: Task, action: m.Heard) -> None:
        """A client hears what a task has printed."""
        said, calm = action.printed, self.farm.mix.calm
        what = f"task {task.token}"
        assert action.name == task.name, f"{what} is called {action.name}"
        assert said.host.startswith("host-w"), f"{what} printed somewhere: {said}"
        dropped, odd = divmod(said.dropped, LINE_BYTES)
        assert not odd, f"{what}: {said.dropped} bytes are no whole lines"
        skipped = task.silent.pop(said.source, 0) + dropped
        for line in bytes(action.blob).splitlines():
            token, run, number = map(int, line.split(b"/"))
            assert token == task.token, f"{what} is said to have printed {line!r}"
            key = life, run, said.source  # who had the job before hears some of it, too, and maybe later
            gap = number - task.heard.get(key, 0) - 1
            assert gap >= 0, f"{what} has printed {line!r} once, and is heard again"
            told = gap == skipped
            if key not in task.heard:  # some of what was dropped in silence may be of an earlier run
                told = dropped <= gap <= skipped
            assert told or not calm, f"{what}: {gap} lines missing before {line!r}, {skipped} told"
            task.heard[key] = number
            skipped = 0
        task.silent[said.source] = skipped
        self.farm.story.probe("output counted" if dropped else "output heard")

    def all_heard(self, life: str, task: Task, outcome: m.Outcome) -> None:
        """A task has ended: where nothing goes wrong all that it printed was heard by then."""
        if not self.farm.mix.calm or outcome.kind not in (m.VALUE, m.ERROR, m.MIXED):
            return
        number = [n for n, run in enumerate(task.runs) if run.finished][-1]
        for source, printed in task.runs[number].printed.items():
            unheard, told = printed - task.heard.get((life, number, source), 0), task.silent.get(source, 0)
            whole = unheard == told or (len(task.runs) > 1 and 0 <= unheard <= told)
            assert whole, (
                f"task {task.token} ended, {unheard} lines were not heard and {told} told to be dropped"
            )
