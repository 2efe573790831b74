"""Workers that drain while nobody takes their place before they have gone: the fault, and what must hold."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING

from zfarm import messages as m
from zfarm.core.greeting import bare

if TYPE_CHECKING:
    from tests.simulation.farm import Farm
    from tests.simulation.faults import Mix
    from tests.simulation.people import Task
    from tests.simulation.processes import WorkerProcess

SHARE = 0.06
"""Of the farms in which something goes wrong, the part in which all workers drain at once."""

LEAVES_S = 300.0
"""Longer than any of these calls takes with all that it waits for, faults included."""


def let_leave(mix: Mix) -> None:
    """In some farms all workers drain while calls wait for calls of their own. The dice are of their own: the
    other farms stay as they are."""
    rng = Random(f"leave {mix.seed}")
    if mix.calm or mix.keyed or rng.random() >= SHARE:
        return
    names = list(mix.slots)[: rng.choice((1, 1, 2))]
    mix.slots = {name: rng.choice((1, 1, 2, 4)) for name in names}
    mix.stocks = {name: stock for name, stock in mix.stocks.items() if name in names}
    mix.embedded = False
    mix.waves, mix.waves_max = ("nested", "nested", rng.choice(mix.waves)), 4
    mix.leaving_s = tuple(rng.random() ** 3 * mix.faults_s for _ in range(rng.randint(2, 8)))
    mix.rates.pop("drain", None)


def let_stay(task: Task, worker: WorkerProcess) -> None:
    """Some of the calls that a call there waits for can run there only."""
    if worker.farm.mix.leaving_s and worker.labels and task.token % 2:
        task.demand = m.Demand((), worker.labels)


def let_workers_leave(farm: Farm) -> None:
    """Schedule when they drain."""
    for at in farm.mix.leaving_s:
        farm.at(at, partial(_drain_all, farm))


def _drain_all(farm: Farm) -> None:
    """SIGTERM for all workers; others take their places as soon as they have gone, and not before."""
    for worker in farm.workers.values():
        if worker.alive:
            worker.hand("call", "drain")


class Leaving:
    """Who drains, as the broker's end of the network hears of it, and what it is given then."""

    farm: Farm
    granted: dict[int, tuple[Task, str]]

    def __init__(self) -> None:
        super().__init__()
        self._leaving: dict[str, list[str]] = {}
        """Workers' lives that have said that they drain, and the clients in their children whose calls
        wait."""

    def says_room(self, session: str, message: m.Message) -> None:
        """The broker hears this from a worker."""
        if isinstance(message, m.Join):  # a new broker does not know yet
            self._leaving.pop(session, None)
        elif isinstance(message, m.Room) and message.draining:
            names = [f"{bare(session)}.{child}" for child in message.children]
            self._leaving[session] = names
            if message.own and self.farm.mix.leaving_s:
                self.farm.after(LEAVES_S, partial(self._must_have_left, session))

    def _must_have_left(self, session: str) -> None:
        worker = self.farm.lives[session]
        stays = worker.alive and not self.farm.chaos
        assert not stays, f"{session} has drained for {LEAVES_S} s, and stays"

    def may_be_granted(self, session: str, task: Task, lease: int) -> None:
        """A fresh lease for a worker: one that drains gets only what its own calls wait for."""
        names = self._leaving.get(session)
        if names is not None and lease not in self.granted:
            assert task.client in names, (
                f"{session} drains, and is granted task {task.token} of {task.client}"
            )
            self.farm.story.probe("granted to a worker that drains")

    def may_be_fed(self, worker: WorkerProcess, task: Task) -> None:
        """A call is sent to a child: of a worker that drains it is one that another call there waits for."""
        if worker.draining:
            own = task.client.startswith(f"{bare(worker.session)}.")
            assert own, f"{worker.name} drains, and begins task {task.token} of {task.client}"
