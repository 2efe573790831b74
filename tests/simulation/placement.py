"""What must hold of calls that demand resources or labels: they run where they may, and together take no more
than there is."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.children import Child
    from tests.simulation.farm import Farm
    from tests.simulation.faults import Mix
    from tests.simulation.people import Task
    from tests.simulation.processes import ClientProcess
    from zfarm.messages import Picture, Reason


def let_choose(mix: Mix) -> None:
    """In some farms workers differ, and calls ask for this or that. The dice are of their own here, too."""
    rng = Random(f"placement {mix.seed}")
    mix.choosy_share = rng.choice((0.0, 0.0, 0.2, 0.8))
    if not mix.choosy_share:
        return
    for name in mix.slots:
        resources = {
            what: rng.choice((1, 1000, 2000, 2500)) for what in ("gpu", "disk") if rng.random() < 0.7
        }
        labels = tuple(label for label in ("zone=a", "zone=b", "ssd") if rng.random() < 0.4)
        mix.stocks[name] = resources, labels
    if rng.random() < 0.2:  # one gpu for all, and calls that are stopped while they have it
        mix.stocks = {name: ({"gpu": 1000}, ()) for name in mix.slots}
        mix.slots = dict.fromkeys(mix.slots, 4)
        mix.waves, mix.waves_max, mix.wave_gap_s = ("long", "middling"), 4, 0.1
        mix.choosy_share, mix.cancel_share, mix.force_share = 0.9, 0.8, 1.0
        mix.clients, mix.realms, mix.deadly_share, mix.timeout_share = 2, (1,), 0.0, 0.0


class Placement:
    """Who runs what, as an onlooker sees it."""

    farm: Farm
    numbers: dict[tuple[str, int], Task]
    choosy: dict[int, Task]
    """Tasks that have neither started nor ended, and do not run anywhere."""
    _able_since: float | None

    def allowed(self, what: str, child: Child, task: Task) -> None:
        """It may run here, and all that run here together take no more than there is."""
        worker = child.owner.worker
        if task.demand is None:
            return
        assert set(task.demand.labels) <= set(worker.labels), f"{what} runs on {worker.name}: {worker.labels}"
        others = [other.running.task for other in child.owner.all.values() if other.running is not None]
        for name, amount in task.demand.resources:
            demands = [dict(other.demand.resources) for other in others if other.demand is not None]
            taken = amount + sum(demand.get(name, 0) for demand in demands)
            has = worker.resources.get(name, 0)
            assert taken <= has, f"{what} runs on {worker.name} with {name}: {taken} of {has} taken"
            if taken == has and len(demands) > 1:
                self.farm.story.probe("a resource is shared out to the last bit")
        self.farm.story.probe("a call that does not run anywhere")

    def explained(self, client: ClientProcess, reason: Reason) -> None:
        """The broker says why a task is where it is: no more than what may be so."""
        task = self.farm.tasks.get(reason.number)
        if task is not None and task.asked_by is not client:
            return  # an answer to a program that had the job before
        if task is None:  # nobody has asked: so it is said of tasks that no worker can run
            assert not reason.number, f"an answer to no question: {reason}"
            task = self.numbers[client.session, reason.task]
        what = f"task {task.token} is said to be: {reason.code} ({reason.text})"
        known = {"running": task.sent, "resources": task.demand is not None}
        own = task.number == reason.task
        assert own, what
        assert known.get(reason.code, True), what
        assert reason.code != "ambiguous", what
        if self.farm.mix.calm and self.farm.now > 1.0:
            assert reason.code not in ("unmet", "no-workers", "restart", "in-doubt"), what
        self.farm.story.probe(f"why: {reason.code}")

    def looked(self, picture: Picture) -> None:
        """The broker shows its workers: each has a name of its own."""
        names = [worker.worker for worker in picture.workers]
        assert len(set(names)) == len(names), f"two workers of one name: {names}"

    def judge_choosy(self) -> None:
        """What does not run anywhere does not wait for long beside a worker that could run it now either."""
        if not self.choosy or not self._some_fits():
            self._able_since = None
        elif self._able_since is None:
            self._able_since = self.farm.now
        else:
            took = self.farm.now - self._able_since
            assert took < self.farm.mix.idle_bound_s, f"a call with a demand that fits waited for {took} s"

    def _some_fits(self) -> bool:
        demands = {task.demand for task in self.choosy.values() if task.demand is not None}
        for worker in self.farm.workers.values():
            if self.farm.now <= worker.born + 0.5 or worker.children.busy >= worker.slots:
                continue
            left = dict(worker.resources)
            for child in worker.children.all.values():
                if child.running is not None and child.running.task.demand is not None:
                    for name, amount in child.running.task.demand.resources:
                        left[name] -= amount
            for demand in demands:
                fits = all(left.get(name, 0) >= amount for name, amount in demand.resources)
                if fits and set(demand.labels) <= set(worker.labels):
                    return True
        return False
