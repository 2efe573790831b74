"""One seed from birth to judgement: faults on, faults off, and then the farm must come to rest."""

from __future__ import annotations

import gc
import traceback
from collections import Counter
from dataclasses import dataclass

from tests.simulation.farm import Farm
from tests.simulation.faults import heal, let_faults_happen, mix_of
from tests.simulation.people import Person
from tests.simulation.rest import RESTLESS, Rest, unrest

REST_S = 3000.0
"""Virtual seconds after the last fault, or the last task that ended, within which a farm must be at rest."""
GIVEN_UP_S = 1000.0
"""The same for farms with a planted bug, since one that hangs is what takes longest. The seeds of every run
need less without one."""
SETTLE_S = 2.5
"""How long it must have been at rest before it counts."""
QUIET_S = 2.5
"""How long a farm at rest is listened to."""


@dataclass
class Result:
    """What became of one seed."""

    seed: int
    failure: str
    digest: str
    probes: Counter[str]
    events: int
    virtual_s: float
    farm: Farm

    def report(self, last: int = 200) -> str:
        """The failure with the end of its story."""
        mix = self.farm.mix
        return f"seed {self.seed}\n{mix}\n{self.farm.story.text(last)}\n{self.failure}"


def simulate(seed: int, keep: int | None = 200) -> Result:
    """Run one seed; a failure is told in the result, not raised."""
    failure = ""
    farm = Farm(mix_of(seed), keep)
    try:
        _live(farm)
    except Exception:  # a machine must never raise, and a checker raises what it found
        failure = traceback.format_exc()
    return Result(seed, failure, farm.story.digest, farm.story.probes, farm.events, farm.now, farm)


def spare_the_collector() -> None:
    """For processes that only run seeds: a farm is large, and garbage when it is over."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


def _live(farm: Farm) -> None:
    mix = farm.mix
    for n, name in enumerate(mix.slots):
        farm.start_worker(name, near=mix.embedded and n == 0)
    people = [Person(farm, farm.start_client(f"c{n}")) for n in range(mix.clients)]
    if mix.watched:
        farm.broker.hand("watch", True)
    let_faults_happen(farm)
    farm.ducts.let_fail()
    farm.run(mix.faults_s)
    heal(farm)
    farm.ducts.heal()
    healed_at = farm.now
    left, rest = [""], Rest(farm)
    while left and farm.now < (end := max(healed_at, farm.books.ended_at) + REST_S):
        farm.run(end, rest.reached)
        farm.run(farm.now + SETTLE_S)  # what is in flight arrives
        left = unrest(farm)
    assert not left, f"{REST_S} s after the last event there is no rest:\n  " + "\n  ".join(left)
    farm.books.quiet_kinds = set()
    farm.run(farm.now + QUIET_S)
    noisy = farm.books.quiet_kinds & RESTLESS
    assert not noisy, f"at rest, and yet this was sent: {sorted(noisy)}"
    left = unrest(farm)
    assert not left, "it did not stay at rest:\n  " + "\n  ".join(left)
    if farm.disk is not None:
        kept = farm.disk.open | farm.disk.settled
        assert not kept, f"the journal still needs {kept}"
    for person in people:
        for task in person.tasks:
            known = task.outcome is not None or task.abandoned or not task.number
            assert known, f"task {task.token} was forgotten"
