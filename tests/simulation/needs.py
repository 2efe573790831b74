"""Which simulated farms have calls that need files, and when such a call may end without them; and what the
broker has seen of whom."""

from __future__ import annotations

import dataclasses
from math import inf
from random import Random
from typing import TYPE_CHECKING, Any

from tests.simulation.handles import Handles
from tests.simulation.shelves import closure
from zfarm import messages as m
from zfarm.core.errands import plain
from zfarm.core.nearness import host_of

if TYPE_CHECKING:
    from tests.simulation.farm import Farm
    from tests.simulation.faults import Mix
    from tests.simulation.people import Task
    from tests.simulation.processes import ClientProcess


def let_need(mix: Mix) -> None:
    """In some farms calls need files."""
    rng = Random(f"needs {mix.seed}")
    mix.needs_share = rng.choice((0.0, 0.0, 0.3, 1.0))
    if not mix.needs_share or mix.calm:
        mix.needs_share = 0.0
        return
    mix.near_share = rng.choice((0.0, 0.0, 1.0))
    mix.gone_share = rng.choice((0.0, 0.0, 0.02))
    mix.damage_share = rng.choice((0.0, 0.0, 0.1))
    mix.disk_failures = rng.choice((0.0, 0.0, 0.05))
    mix.archived_share = Random(f"archive {mix.seed}").choice((0.0, 0.0, 0.5, 1.0))
    mix.hinted_share = Random(f"near {mix.seed}").choice((0.0, 0.5, 1.0, 1.0))
    window = rng.choice((16, 32, 4096))
    mix.settings = dataclasses.replace(
        mix.settings,
        wants_window_bytes=window,
        gives_window_bytes=rng.choice((16, 64, 4096)),
        give_kept_s=rng.choice((2.0, 10.0)),
    )


class Known:
    """What the broker's end of the network has seen of one session."""

    __slots__ = ("beat", "heard_at", "numbers", "peer", "said_goodbye", "went_with")

    def __init__(self, peer: Any, heard_at: float) -> None:
        self.peer = peer
        self.heard_at = heard_at
        self.beat = 0.0
        self.said_goodbye = False
        self.went_with: set[int] = set()
        """Leases that may have begun where a worker has stopped."""
        self.numbers: dict[int, int] = {}
        """The number of the last Grants that each lease was in."""

    def leaves(self, message: m.Bye | m.Leave) -> None:
        """It says goodbye."""
        self.said_goodbye = True
        if isinstance(message, m.Leave):
            self.went_with = set(message.leases)
        else:
            self.beat = inf  # and no Hello after that


class Needs(Handles):
    """What happened to files, as an onlooker sees it."""

    farm: Farm
    numbers: dict[tuple[str, int], Task]
    granted: dict[int, tuple[Task, str]]

    def __init__(self) -> None:
        super().__init__()
        self.placed: dict[int, bool] = {}
        self.excused: set[m.Need] = set()
        """Files that came damaged twice, or for which a disk had no room."""

    def wanted(self, client: ClientProcess, message: m.Want) -> None:
        """A client is asked for files: by a worker that holds a lease on one of its own tasks."""
        task = self.numbers.get((client.session, message.task))
        assert task is not None, f"{client.name} is asked for files of task {message.task}: {message}"
        granted = self.granted.get(message.lease)
        assert granted is None or granted[0] is task, f"files of {task.token} for another lease: {message}"

    def wanted_of_archive(self, message: m.Want) -> None:
        """The archive is asked for files: of a task that needs them, for a lease on that."""
        task = self.numbers.get((message.owner, message.task))
        assert task is not None, f"the archive is asked for files of task {message.task}: {message}"
        granted = self.granted.get(message.lease)
        assert granted is None or granted[0] is task, f"files of {task.token} for another lease: {message}"
        own = closure(self.farm, task, archived=True)
        assert all(one.digest in own for one in message.wants), f"{task.token} does not need all of {message}"

    def judge_nearness(self, message: m.Message) -> None:
        """The broker grants leases: what is near to a host goes elsewhere only if there is no free slot."""
        farm = self.farm
        if not isinstance(message, m.Grants) or "fill disk" in farm.mix.rates:
            return  # what waits for the journal was placed in a turn before
        workers = farm.broker.machine.workers.values()
        for lease in message.leases:
            here = [worker for worker in workers if lease.lease in worker.leases]
            host = host_of(here[0].leases[lease.lease]) if here else ""
            if not host or self.placed.get(lease.lease) or lease.lease >> 32 != farm.broker.epoch:
                continue
            self.placed[lease.lease] = True
            task = here[0].leases[lease.lease]
            free = [w for w in workers if w.host == host and w.open and len(w.leases) < w.room]
            taken = task.demand is None and not task.shuns and here[0].host != host and free
            assert not taken, f"{lease} went to {here[0].host}, and {host} has a free slot"
            farm.story.probe("a call goes where its needs are" if here[0].host == host else "or elsewhere")

    def missing(self, what: str, task: Task) -> None:
        """A task ended since a file cannot be had: something has happened to one that it needs."""
        library = self.farm.library
        needs = [plain(need) for need in task.needs]
        needed = {part for need in needs for part in (need, *library.contents[need.digest].parts)}
        needed |= {m.Need(need.digest, need.size) for need in task.needs}
        why = any(need in self.excused or need.digest in library.gone for need in needed)
        assert why, f"{what} needs files, and nothing has happened to them"
        self.farm.story.probe("a file cannot be had")
