"""What goes wrong, and how often: each seed picks its own mix of faults and sizes, and some have none.

Faults last for a while; then all is healed and must come to rest. Nothing here judges: see checkers.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from tests.simulation.bulk import let_deliver
from tests.simulation.ducts import let_dial
from tests.simulation.exclusion import cut_off, let_exclude, stop_a_worker
from tests.simulation.foyer import let_hurry
from tests.simulation.fullness import empty_disk, fill_disk
from tests.simulation.handles import let_keep
from tests.simulation.keyring import let_keys_go, let_revoke
from tests.simulation.leaving import let_leave, let_workers_leave
from tests.simulation.listeners import let_print
from tests.simulation.needs import let_need
from tests.simulation.placement import let_choose
from tests.simulation.rogues import rogue_speaks
from tests.simulation.scarce import let_crowd, let_name
from zfarm.settings import Settings

if TYPE_CHECKING:
    from tests.simulation.farm import Farm
    from tests.simulation.network import Link

MS = 1e-3
SLOW_S = (0.1, 0.4, 0.8)


@dataclass
class Mix:
    """One seed's choice. Rates are per virtual second and process; shares are probabilities."""

    seed: int
    settings: Settings = field(default_factory=Settings)
    slots: dict[str, int] = field(default_factory=dict)
    """Workers by name, and their slots."""
    embedded: bool = False
    """The first worker shares a process with the broker."""
    clients: int = 1
    faults_s: float = 5.0
    rates: dict[str, float] = field(default_factory=dict)
    journal: bool = False
    calm: bool = False
    """Nothing goes wrong, so that efficiency can be judged."""
    watched: bool = False
    # processes
    clock_skew: float = 0.0
    turn_s: float = 50e-6
    turn_messages: int = 200
    """How many entries of its inbox a process takes in one turn; the rest waits for the next."""
    late_s: float = 1 * MS
    broker_back_s: float = 2.0
    worker_back_s: float = 4.0
    # links
    latency_s: float = 0.3 * MS
    spike_share: float = 0.0
    slow_share: float = 0.0
    """Links on which everything takes long, until the faults are over."""
    slow_clients: bool = False
    connect_s: float = 0.05
    reconnect_s: float = 1.0
    half_open_s: float = 1.0
    queue_while_down: bool = True
    gone_is_told: bool = True
    # children
    fork_s: float = 5 * MS
    stillborn_share: float = 0.0
    unborn_share: float = 0.0
    """Children that cannot be started."""
    # people
    waves: tuple[str, ...] = ("short", "middling")
    waves_max: int = 3
    wave_gap_s: float = 1.0
    short_max: int = 100
    realms: tuple[int, ...] = (1,)
    broken_realm_share: float = 0.0
    limited_realm_share: float = 0.0
    cancel_share: float = 0.0
    timeout_share: float = 0.0
    memory_share: float = 0.0
    """Tasks with a memory limit; some want more."""
    force_share: float = 0.0
    leave_share: float = 0.0
    jobs: bool = False
    """Clients' tasks outlive them, and others take them over."""
    once_share: float = 0.0
    """Tasks that may begin once only, beside those that happen to have one attempt."""
    flaky_share: float = 0.0
    deadly_share: float = 0.0
    fail_share: float = 0.0
    # placement
    stocks: dict[str, tuple[dict[str, int], tuple[str, ...]]] = field(default_factory=dict)
    """Resources and labels of each worker."""
    choosy_share: float = 0.0
    """Tasks that do not run anywhere."""
    exclusive_share: float = 0.0
    """Tasks that must never run in two places at once."""
    needs_share: float = 0.0  # calls that need files
    hinted_share: float = 0.0  # of these, those that are near to some host
    archived_share: float = 0.0
    """Of those files, the part that the broker's archive gives."""
    keep_share: float = 0.0  # calls whose results stay where they are
    near_share: float = 0.0  # clients are on the hosts of their workers
    gone_share: float = 0.0
    damage_share: float = 0.0
    disk_failures: float = 0.0
    # streams
    stream_share: float = 0.0
    """Calls that emit items."""
    items_max: int = 40
    files_share: float = 0.0
    """Of what calls emit, the part that is pieces of files."""
    bulk_share: float = 0.0  # calls with large results, which come in pieces
    gauge_share: float = 0.0
    """Of the rest, the part of which only the latest counts."""
    print_share: float = 0.0
    """Calls that print something, at their start and at their end."""
    published: bool = True
    """Items are published, and may be lost; else they go by way of the broker."""
    item_loss: float = 0.0
    """Published messages that are lost, each for itself or in a row."""
    patient: bool = True
    """Workers wait for readers for longer than any link is cut."""
    reader_pause_s: float = 0.0
    """How long readers need for what they are handed, at most."""
    late_readers: float = 0.0
    """Readers that begin late, or pause for long, or give up and come back."""
    leaving_s: tuple[float, ...] = ()  # when all workers drain at once
    # keys
    keyed: bool = False
    """Every peer has a key of its own."""
    one_crew: bool = False  # but for the workers, which share one
    revoked: tuple[tuple[float, str], ...] = ()
    """When keys are revoked, and of which role."""
    worth: float = 0.0
    """How long the broker takes in truth for what a client says, for each microsecond of its price. 0: nobody
    says so much that others have to wait for it."""
    old_journal: bool = False
    """Brokers that come back may find the journal of an earlier version."""

    @property
    def start_bound_s(self) -> float:
        """On an idle farm without faults a call starts within this."""
        return 6 * self.latency_s + 3 * self.fork_s + 5 * MS

    @property
    def cancel_bound_s(self) -> float:
        """Without faults a cancel is answered within this."""
        return 12 * self.latency_s + 5 * MS

    @property
    def chatty(self) -> bool:
        """Calls may say so much that a worker hears of their ends late."""
        return self.stream_share + self.print_share > 0

    @property
    def idle_bound_s(self) -> float:
        """Without faults no slot is free for longer than this while a call waits."""
        forks = 3 if self.settings.named_kept_bytes > 1 else 5  # where none is kept, one is often lacking
        return 12 * self.latency_s + forks * self.fork_s + 2 * self.settings.stuck_after_us * 1e-6 + 20 * MS


def mix_of(seed: int) -> Mix:
    """The mix that belongs to this seed."""
    rng = Random(seed)
    mix = Mix(seed)
    mix.settings = _settings(rng)
    mix.slots = {f"w{n}": rng.choice((1, 1, 2, 3, 4)) for n in range(rng.choice((1, 1, 2, 2, 3)))}
    mix.embedded = rng.random() < 0.25
    mix.clients = rng.choice((1, 1, 2, 3))
    mix.watched = rng.random() < 0.3
    mix.journal = rng.random() < 0.4
    mix.latency_s = rng.choice((0.05, 0.3, 1.0)) * MS
    mix.fork_s = rng.choice((1, 5, 20)) * MS
    mix.waves = tuple(rng.sample(WAVES, rng.randint(1, 3)))
    mix.waves_max = rng.choice((1, 2, 4))
    mix.wave_gap_s = rng.choice((0.01, 1.0, 3.0))
    mix.short_max = rng.choice((30, 60, 150))
    mix.realms = rng.choice(((1,), (1, 2), (3,)))
    mix.cancel_share = rng.choice((0.0, 0.0, 0.05, 0.3))
    mix.fail_share = rng.choice((0.0, 0.1))
    more = Random(f"more {seed}")
    mix.timeout_share = more.choice((0.0, 0.0, 0.1, 0.5))
    mix.force_share = more.choice((0.0, 0.0, 0.5))
    _let_flow(mix)
    mix.calm = rng.random() < 0.2
    if mix.calm:
        mix.deadly_share = 0.0
    if mix.calm:  # with more realms than children may stay, each call waits for a fork
        mix.realms = (1,)
        mix.settings = dataclasses.replace(mix.settings, children_idle_max=4)
        mix.cancel_share = rng.choice((0.0, 0.3, 0.3))
    else:
        _spoil(mix, rng)
        mix.turn_messages = more.choice((3, 200, 200))
        if (mix.items_max > 100 or mix.files_share) and mix.stream_share:
            mix.turn_messages = 200  # or it would take minutes to read what is emitted
        if more.random() < 0.1:
            _lost_starts(mix, more)
    if not mix.calm:
        mix.unborn_share = Random(f"unborn {seed}").choice((0.0, 0.0, 0.1, 0.5))
    mix.memory_share = Random(f"memory {seed}").choice((0.0, 0.0, 0.1, 0.5))
    mix.flaky_share = more.choice((0.0, 0.0, 0.1, 0.4))
    if mix.flaky_share:
        mix.settings = dataclasses.replace(mix.settings, retry_backoff_s=more.choice((0.1, 0.5, 2.0)))
    mix.settings = dataclasses.replace(
        mix.settings, worker_deaths_max=more.choice((2, 3, 5)), worker_aside_s=more.choice((2.0, 10.0))
    )
    for let in (let_choose, let_print, let_need, let_exclude, _let_outlive, let_crowd, let_name):
        let(mix)
    rng = Random(f"disk {seed}")
    if mix.journal and not mix.calm and rng.random() < 0.5:
        mix.rates["fill disk"] = rng.choice((0.2, 0.5))
        backlog = rng.choice((3000, 64 * 1024 * 1024))
        mix.settings = dataclasses.replace(mix.settings, journal_backlog_bytes=backlog)
    if not mix.calm:  # in some farms workers are stopped at once; the dice are of their own here, too
        mix.rates["stop at once"] = Random(f"stops {mix.seed}").choice((0.0, 0.0, 0.1, 0.6)) + 1e-9
    for let in (let_revoke, let_leave, let_keep, let_hurry, let_dial):
        let(mix)
    return mix


def _let_outlive(mix: Mix) -> None:
    """In some farms with a journal the clients have jobs. The dice are of their own here, too."""
    rng = Random(f"jobs {mix.seed}")
    mix.jobs = mix.journal and not mix.calm and not mix.stream_share and rng.random() < 0.5
    if mix.jobs:
        mix.rates["kill client"] = rng.choice((0.1, 0.5))
        mix.rates["take over"] = rng.choice((0.0, 0.2, 1.0)) + 1e-9
    let_deliver(mix)


def _let_flow(mix: Mix) -> None:
    """Some farms have streams. The dice are of their own, so that the other farms stay as they are."""
    rng = Random(f"streams {mix.seed}")
    mix.stream_share = rng.choice((0.0, 0.0, 0.3, 1.0))
    if not mix.stream_share:
        return
    mix.files_share = Random(f"files {mix.seed}").choice((0.0, 0.3, 1.0))
    mix.items_max = rng.choice((3, 40, 150))
    mix.published = rng.random() < 0.7
    mix.item_loss = rng.choice((0.0, 0.05, 0.5))
    mix.deadly_share = rng.choice((0.0, 0.0, 0.2))
    mix.reader_pause_s = rng.choice((0.0, 1 * MS, 50 * MS))
    mix.late_readers = rng.choice((0.0, 0.0, 0.5))
    window = rng.choice((8, 64, 32_768))
    mix.patient = rng.random() < 0.6
    patience_s, kept_s, grace_s = (60.0, 40.0, 20.0) if mix.patient else (3.0, 3.0, 0.5)
    mix.settings = dataclasses.replace(
        mix.settings, stream_window_items=window, stream_buffer_items=4 * window,
        stream_patience_s=patience_s, stream_kept_s=kept_s, stream_grace_s=grace_s,
    )  # fmt: skip


def _settings(rng: Random) -> Settings:
    """The production settings, or quicker ones: no promise hangs on their values."""
    if rng.random() < 0.2:
        return Settings(client_grace_s=rng.choice((5.0, 60.0)))
    return Settings(
        beat_interval_s=rng.choice((0.5, 1.0)),
        worker_lost_after_s=rng.choice((2.5, 5.0)),
        client_lost_after_s=rng.choice((2.5, 5.0)),
        client_grace_s=rng.choice((1.0, 5.0, 10.0)),
        batch_calls_max=rng.choice((5, 50, 2000)),
        batch_bytes_max=rng.choice((40, 4 * 1024 * 1024)),
        children_idle_max=rng.choice((1, 4)),
        restart_hold_s=rng.choice((1.0, 4.0)),
    )


def _spoil(mix: Mix, rng: Random) -> None:
    """Choose what goes wrong."""
    mix.clock_skew = rng.choice((0.0, 0.02))
    mix.turn_s = rng.choice((50e-6, 50e-6, 5 * MS))
    mix.late_s = rng.choice((1 * MS, 100 * MS))
    mix.latency_s = rng.choice((mix.latency_s, 20 * MS, 150 * MS))
    mix.spike_share = rng.choice((0.0, 0.02))
    mix.slow_share = rng.choice((0.0, 0.0, 0.5))
    mix.reconnect_s = rng.choice((0.1, 1.0, 4.0))
    mix.half_open_s = rng.choice((0.01, 1.0, 4.0))
    mix.queue_while_down = rng.random() < 0.7
    mix.gone_is_told = rng.random() < 0.7
    mix.stillborn_share = rng.choice((0.0, 0.0, 0.2))
    mix.broken_realm_share = rng.choice((0.0, 0.2))
    mix.limited_realm_share = rng.choice((0.0, 0.3))
    mix.leave_share = rng.choice((0.0, 0.3))
    mix.deadly_share = max(mix.deadly_share, rng.choice((0.0, 0.02, 0.2)))
    mix.faults_s = rng.choice((3.0, 6.0, 12.0))
    own = ("take over", "stop at once", "fill disk", "cut off", "stop a worker")  # they have their own dice
    kinds = [kind for kind in FAULTS if kind not in own]
    for kind in rng.sample(kinds, rng.randint(0, len(kinds) // 2 + 1)):
        mix.rates[kind] = rng.choice((0.05, 0.2, 0.6)) * FAULTS[kind][1]
    theme = rng.choice((None, None, None, None, _slow_joins, _slow_clients, _lost_tunnels, _lost_thanks))
    if theme is not None:
        theme(mix)


def _slow_joins(mix: Mix) -> None:
    """Workers and clients come back again and again over links that take longer than a beat."""
    mix.slow_share = 1.0
    mix.cancel_share = 0.3
    mix.half_open_s = mix.reconnect_s = 0.1
    mix.settings = dataclasses.replace(mix.settings, beat_interval_s=0.5, worker_lost_after_s=5.0)
    mix.faults_s = 12.0
    mix.rates["break"], mix.rates["overflow"] = 0.5, 4.0
    mix.waves, mix.waves_max, mix.wave_gap_s = ("bimodal", "short"), 4, 3.0


def _slow_clients(mix: Mix) -> None:
    """Clients come back over links that take longer than a beat, while calls start at once."""
    mix.settings = dataclasses.replace(mix.settings, beat_interval_s=0.5, worker_lost_after_s=2.5)
    mix.slow_clients = True
    mix.cancel_share = 0.5
    mix.queue_while_down = False
    mix.half_open_s = mix.reconnect_s = 0.1
    mix.rates["break"] = 2.0
    mix.faults_s = 12.0
    mix.waves, mix.waves_max, mix.wave_gap_s = ("middling", "short"), 4, 3.0


def _lost_tunnels(mix: Mix) -> None:
    """Clients in children lose what their worker's link loses."""
    mix.waves, mix.waves_max = ("nested",), 4
    mix.latency_s = max(mix.latency_s, 50 * MS)
    mix.rates["overflow"] = 4.0


def _lost_thanks(mix: Mix) -> None:
    """Deaths are reported, and the links break before the thanks arrive."""
    mix.slots = {"w0": 1, "w1": 1}
    mix.half_open_s = mix.reconnect_s = 0.1
    mix.latency_s = max(mix.latency_s, 20 * MS)
    mix.deadly_share = 0.4
    mix.rates["break"] = mix.rates["overflow"] = 2.0
    mix.waves = ("short", "middling")


def _lost_starts(mix: Mix, rng: Random) -> None:
    """The broker dies, and workers with it, while calls run that may begin once only."""
    mix.journal = rng.random() < 0.7
    mix.once_share = 0.7
    mix.rates["kill broker"], mix.rates["kill worker"] = 0.4, 0.8
    mix.worker_back_s = 1.0
    mix.waves, mix.waves_max, mix.wave_gap_s = ("middling", "long", "bimodal"), 4, 1.0


# ---------------------------------------------------------------- the faults


def kill_broker(farm: Farm) -> None:
    farm.kill_broker(farm.rng.random() * farm.mix.broker_back_s)


def kill_worker(farm: Farm) -> None:
    worker = farm.rng.choice(list(farm.workers.values()))
    if not worker.near:  # one in the broker's process dies with it
        farm.kill_worker(worker, farm.rng.random() * farm.mix.worker_back_s)


def kill_client(farm: Farm) -> None:
    farm.kill_client(farm.rng.choice(list(farm.clients.values())))


def take_over(farm: Farm) -> None:
    """Another program attaches to the job of a client that lives."""
    farm.take_over(farm.rng.choice(list(farm.clients)))


def die_in_turn(farm: Farm) -> None:
    """Somebody dies in the middle of the next turn that has actions."""
    processes = [process for process in farm.processes() if not getattr(process, "near", False)]
    if processes:
        farm.rng.choice(processes).doomed = farm.rng.randint(0, 3)


def stop_somebody(farm: Farm) -> None:
    processes = farm.processes()
    if processes:
        farm.rng.choice(processes).stop(farm.rng.choice((0.01, 0.3, 3.0, 8.0)) * farm.rng.random())


def kill_child(farm: Farm) -> None:
    worker = farm.rng.choice(list(farm.workers.values()))
    children = [child for child in worker.children.all.values() if child.alive]
    if children:
        farm.rng.choice(children).die(9, 0)


def drain_worker(farm: Farm) -> None:
    """SIGTERM; another one takes its place, which may be before it has gone."""
    worker = farm.rng.choice(list(farm.workers.values()))
    if worker.alive and not worker.near:
        worker.hand("call", "drain")
        farm.leaving.append(farm.workers[worker.name])
        back = farm.rng.random() * farm.mix.worker_back_s
        farm.after(back, partial(farm.start_worker, worker.name, after=worker))


def stop_worker(farm: Farm) -> None:
    """A second SIGTERM: it leaves with calls that run."""
    worker = farm.rng.choice(list(farm.workers.values()))
    if worker.alive and not worker.near:
        worker.hand("call", "stop")
        farm.leaving.append(worker)
        back = farm.rng.random() * farm.mix.worker_back_s
        farm.after(back, partial(farm.start_worker, worker.name, after=worker))


def break_link(farm: Farm) -> None:
    link = _some_link(farm)
    if link is not None:
        link.snap()


def stall_link(farm: Farm) -> None:
    """A partition: one way or both, and the connection outlives it."""
    link = _some_link(farm)
    if link is not None:
        up, down = farm.rng.choice(((True, True), (True, False), (False, True)))
        link.stall(farm.rng.choice((0.1, 1.0, 7.0)) * farm.rng.random(), up, down)


def slow_link(farm: Farm) -> None:
    """Everything takes long, up to more than a beat; nothing is lost."""
    link = _some_link(farm)
    if link is not None:
        link.latency_s = farm.rng.choice(SLOW_S)


def overflow_link(farm: Farm) -> None:
    """The broker's end has no room left for a peer that does not read."""
    link = _some_link(farm)
    if link is not None:
        link.overflow()


def _some_link(farm: Farm) -> Link | None:
    links = [process.link for process in farm.processes() if process.link is not None]
    links += [worker.link for worker in farm.all_workers()]  # more depends on these
    return farm.rng.choice(links) if links else None


FAULTS: dict[str, tuple[Callable[[Farm], None], float]] = {
    "kill broker": (kill_broker, 0.5),
    "kill worker": (kill_worker, 1.0),
    "kill client": (kill_client, 0.2),
    "die in turn": (die_in_turn, 1.0),
    "stop": (stop_somebody, 1.0),
    "kill child": (kill_child, 4.0),
    "drain": (drain_worker, 1.0),
    "break": (break_link, 3.0),
    "stall": (stall_link, 1.0),
    "slow": (slow_link, 1.0),
    "overflow": (overflow_link, 1.5),
    "rogue": (rogue_speaks, 4.0),
    "take over": (take_over, 1.0),
    "fill disk": (fill_disk, 1.0),
    "stop at once": (stop_worker, 1.0),
    "cut off": (cut_off, 1.0),
    "stop a worker": (stop_a_worker, 1.0),
}
"""What can happen, and how often at rate one, per second of the faulty phase."""

WAVES = ["short", "middling", "long", "bimodal", "batches", "one by one", "nested"]


def let_faults_happen(farm: Farm) -> None:
    """Schedule the faults of the faulty phase, each kind as a Poisson process."""
    for kind, rate in farm.mix.rates.items():
        at = farm.rng.expovariate(rate)
        while at < farm.mix.faults_s:
            farm.at(at, partial(FAULTS[kind][0], farm))
            at += farm.rng.expovariate(rate)
    let_keys_go(farm)
    let_workers_leave(farm)


def heal(farm: Farm) -> None:
    """Faults are over: nothing is doomed, stopped or stalled, and every worker comes back."""
    farm.chaos = False
    farm.mix.spike_share = 0.0
    empty_disk(farm)
    for process in farm.processes():
        process.doomed = None
        process.resume()
        if process.link is not None:
            process.link.heal(farm.mix.latency_s)
    for name, worker in farm.workers.items():
        if not worker.alive:
            farm.start_worker(name, worker.near)
