"""Calls that must never run in two places at once: who submits some, and the checker of it (I7)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from msgspec import structs

from zfarm import messages as m
from zfarm.core.delivering import GONE_OVER

if TYPE_CHECKING:
    from tests.simulation.farm import Farm
    from tests.simulation.faults import Mix
    from tests.simulation.people import Task
    from tests.simulation.processes import WorkerProcess


def let_exclude(mix: Mix) -> None:
    """In some farms calls are exclusive, and in some of those workers are cut off and stopped all the time,
    for longer than they may be silent. The dice are of their own: the other farms stay as they are."""
    rng = Random(f"exclusive {mix.seed}")
    mix.exclusive_share = rng.choice((0.0, 0.0, 0.0, 0.0, 0.0, 0.3, 1.0))
    if mix.exclusive_share and mix.calm:
        mix.waves, mix.waves_max = ("long", "middling"), 4
    if not mix.exclusive_share or mix.calm or rng.random() < 0.5:
        mix.exclusive_share *= 1.0 if mix.calm else 0.3
        return
    mix.exclusive_share = 1.0
    mix.waves, mix.waves_max, mix.wave_gap_s = ("long", "long", "bimodal"), 4, 2.0
    mix.faults_s, mix.deadly_share, mix.needs_share = 12.0, 0.0, 0.0
    mix.slots = {"w0": 6, "w1": 6, "w2": 6}
    mix.embedded, mix.broker_back_s = False, 0.2
    mix.half_open_s, mix.reconnect_s = rng.choice(((0.1, 0.1), (3.0, 3.0)))
    mix.slow_share = rng.choice((0.0, 0.7))
    mix.settings = dataclasses.replace(
        mix.settings, beat_interval_s=0.25, worker_lost_after_s=2.5, restart_hold_s=1.0
    )
    mix.rates["kill broker"] = 0.3 if mix.reconnect_s > 1.0 else 1e-9
    mix.rates["cut off"], mix.rates["stop a worker"] = rng.choice(((1.0, 0.1), (0.5, 0.5), (0.1, 1.0)))


def cut_off(farm: Farm) -> None:
    """A worker is not heard for longer than it may be silent; what was said to it before may come late."""
    link = _some_worker(farm).link
    seconds = farm.rng.uniform(3.0, 9.0)
    link.stall(seconds, up=True, down=False)
    link.stall(farm.rng.choice((0.5, 1.5, 2.4, seconds)), up=False, down=True)


def stop_a_worker(farm: Farm) -> None:
    """SIGSTOP of a worker, and its children run on."""
    worker = _some_worker(farm)
    if worker.alive:
        worker.stop(farm.rng.uniform(3.0, 9.0))


def _some_worker(farm: Farm) -> WorkerProcess:
    return farm.rng.choice(list(farm.workers.values()))


def exclude(task: Task, share: float, farm: Farm) -> None:
    """Let a task be exclusive if the dice say so; batches are not: their items travel alone."""
    rng = farm.rng
    if not task.items and rng.random() < share:
        task.demand = structs.replace(task.demand or m.Demand(), exclusive=True)


class Exclusion:
    """When each worker spoke, what of that it knows to be heard, and where exclusive calls run."""

    farm: Farm
    granted: dict[int, tuple[Task, str]]
    _excuse: Callable[[Task], None]

    def __init__(self) -> None:
        super().__init__()
        self._spoke: dict[str, dict[int, float]] = {}
        """When each worker sent which beat, by name."""
        self._heard: dict[str, float] = {}
        """When each worker sent the last of those of which it knows that the broker has heard them."""
        self._cut: set[int] = set()

    def one_place(self, what: str, task: Task) -> None:
        """A call starts: if it is exclusive, no other run of it goes on."""
        if task.exclusive:
            others = [run for run in task.runs if not run.ended_at]
            assert not others, f"{what} is exclusive, and runs in two places at once: {others}"

    def speaks_of_itself(self, worker: WorkerProcess, message: m.Message) -> None:
        """A worker sends this now."""
        if isinstance(message, m.Beat | m.Join):
            self._spoke.setdefault(worker.session, {})[message.beat] = self.farm.now
        elif isinstance(message, m.Reports):
            for report in message.reports:
                if report.kind == m.CUT and report.lease not in self._cut:
                    self._cut.add(report.lease)
                    task, _ = self.granted[report.lease]
                    if report.fate is not None and report.fate.text == GONE_OVER:
                        self.farm.story.probe("a result that nobody takes any more")
                        assert task.pieces, f"task {task.token} had not given a large result"
                        task.blames += 1
                        continue
                    if not task.exclusive:
                        assert task.grace_s is not None, f"task {task.token} is not exclusive, and was cut"
                        self.farm.story.probe("a child ends by an interrupt")
                        continue
                    task.blames += 1
                    if task.runs and not task.runs[-1].interrupted:
                        self._excuse(task)  # what it says of its end was not read yet, and will not be
                        task.runs[-1].interrupted = task.runs[-1].worker is worker

    def hears(self, worker: WorkerProcess, message: m.Message) -> None:
        """A worker notes this message of a broker."""
        if isinstance(message, m.Grants | m.Noted):
            spoke = self._spoke.get(worker.session, {}).get(message.beat, 0.0)
            self._heard[worker.session] = max(self._heard.get(worker.session, 0.0), spoke)

    def cuts_off(self, worker: WorkerProcess) -> None:
        """A worker stops its exclusive calls: has it really had no word for so long?"""
        self.farm.story.probe("exclusive calls are stopped")
        assert not self.farm.mix.calm, f"{worker.name} stops exclusive calls, and nothing goes wrong"
        silent = self.farm.now - self._heard.get(worker.session, 0.0)
        least = 0.7 * self.farm.mix.settings.worker_lost_after_s
        assert silent > least, f"{worker.name} stops exclusive calls after {silent} s without a word"
