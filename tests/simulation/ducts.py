"""Ducts of some simulated farms: pipes from workers straight to clients, and what must hold of them.

A pipe loses what it holds when it breaks, outlives the broker, cannot be reached for some pairs, and its two
ends hear of its death at different times. The dice are of their own: other farms stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from msgspec import structs

from zfarm import messages as m

if TYPE_CHECKING:
    from tests.simulation.farm import Farm
    from tests.simulation.faults import Mix
    from tests.simulation.processes import ClientProcess, WorkerProcess

SHARE = 0.5
"""Of the farms in which files or large results travel, the part that has ducts."""
WITHOUT = frozenset((1606, 940000213, 920000979, 900001157))
"""Farms that stay as they were: no others are known to catch the planted bugs that they catch."""


def _dice(mix: Mix) -> Random | None:
    """Those of this farm; None: it has no ducts."""
    files = mix.bulk_share or (mix.stream_share and mix.files_share)
    rng = Random(f"ducts {mix.seed}")
    return rng if files and mix.seed not in WITHOUT and rng.random() < SHARE else None


def let_dial(mix: Mix) -> None:
    """In some farms clients may dial workers."""
    rng = _dice(mix)
    if rng is not None:
        mix.settings = dataclasses.replace(
            mix.settings,
            duct_from_bytes=rng.choice((1, 30, 200)),
            duct_wait_s=rng.choice((0.001, 0.05, 2.0)),
            duct_shunned_s=rng.choice((0.5, 600.0)),
        )


class Line:
    """One connection from a client to a worker."""

    def __init__(self, ducts: Ducts, client: ClientProcess, worker: WorkerProcess, duct: str) -> None:
        self.ducts, self.client, self.worker, self.duct = ducts, client, worker, duct
        self.latency_s = ducts.rng.uniform(0.2, 3.0) * ducts.rng.choice((1, 1, 30)) * ducts.farm.mix.latency_s
        self.key = client.machine._hello.key
        self.leases: set[int] = set()
        """For which the client waits there."""
        self.up = False
        """The worker has let the client in."""
        self.reached = False
        """The worker has answered."""
        self.refused = False
        """It has said that it expects nobody."""
        self.dead = False
        self._last = 0.0
        self._flight: deque[Any] = deque()

    def later(self, what: Any) -> None:
        """Do this when what was said before has arrived, unless it is lost with the line."""
        farm = self.ducts.farm
        self._flight.append(what)
        self._last = max(farm.now + self.latency_s * (0.5 + self.ducts.rng.random()), self._last + 1e-9)
        farm.at(self._last, self._arrive)

    def _arrive(self) -> None:
        if self._flight:
            self._flight.popleft()()

    def snap(self) -> None:
        """It breaks: both ends hear of it, each in its time, and some of what is in flight is lost."""
        ducts, farm = self.ducts, self.ducts.farm
        if self.dead:
            return
        self.dead = True
        ducts.lines.remove(self)
        survive = ducts.rng.randint(0, len(self._flight))
        while len(self._flight) > survive:
            self._flight.pop()
            farm.story.probe("a duct loses what it holds")
        half_open_s = farm.mix.half_open_s
        told = max(self._last + 1e-9, farm.now + ducts.rng.random() * half_open_s)
        farm.at(told, partial(self.client.hand, "duct broke", self.duct, self.reached, self.refused))
        farm.after(ducts.rng.random() * half_open_s, self._noticed)

    def _noticed(self) -> None:
        seen = self.ducts.ends[self.worker.session].seen
        for lease in [lease for lease, line in seen.items() if line is self]:
            del seen[lease]
            self.worker.hand("call", "duct_down", lease)


class End:
    """The duct of one worker, as its shell has it."""

    def __init__(self) -> None:
        self.admitted: dict[int, str] = {}
        self.seen: dict[int, Line] = {}


class Ducts:
    """All ducts of a farm."""

    def __init__(self, farm: Farm) -> None:
        self.farm = farm
        self.rng = Random(f"pipes {farm.mix.seed}")
        self.on = _dice(farm.mix) is not None
        self.frail = 0.0 if farm.mix.calm else self.rng.choice((0.0, 0.02, 0.2))
        """How likely a line breaks, for each message that it is given."""
        self.ends: dict[str, End] = {}
        self.keys: dict[str, ClientProcess] = {}
        self.lines: list[Line] = []
        self._reach: dict[tuple[str, str], float] = {}
        self._ways: dict[int, tuple[int, int]] = {}
        """Of each stream, the last item that went over the duct at first, and the last other one."""
        self._heard: set[int] = set()
        """Streams whose readers are seen at their ducts, as far as the machines of their workers know."""

    # ------------------------------------------------------------ births

    def equip(self, process: Any) -> None:
        """A worker has a duct, and a client a key, if this farm is of that kind."""
        if not self.on or getattr(process, "near", False):
            return
        if hasattr(process, "children"):
            self.ends[process.session] = End()
            process.machine.duct = process.session
        elif process.tunnel is None:
            key = f"key no. {len(self.keys) + 1}"
            self.keys[key] = process
            process.machine.show(key)

    # ------------------------------------------------------------ what machines want

    def do(self, process: Any, action: m.Action) -> None:
        """Do what a machine wants of the ducts."""
        if isinstance(action, m.Admit):
            self._admit(process, action)
        elif isinstance(action, m.Dismiss):
            self._dismiss(process, action.lease)
        elif isinstance(action, m.PublishItems):
            self._publish(process, action)
        elif isinstance(action, m.Dial):
            self._dial(process, action)
        elif isinstance(action, m.HangUp):
            self._hang_up(process, action)

    def _admit(self, worker: WorkerProcess, action: m.Admit) -> None:
        task, _ = self.farm.books.granted.get(action.lease, (None, "")) if action.lease > 0 else (None, "")
        task, _ = self.farm.books.granted.get(-action.lease, (task, ""))
        client = self.keys.get(action.key)
        assert client is not None, f"{worker.name} lets a stranger in for the stream {action.lease}"
        if task is not None:
            owner = task.asked_by
            mine = owner is not None and owner.session == client.session
            assert mine, f"{worker.name} lets {client.name} in for what is of {task.client}: {action}"
        self.ends[worker.session].admitted[action.lease] = action.key
        self.farm.story.probe("a stream is offered over a duct")

    def _dismiss(self, worker: WorkerProcess, lease: int) -> None:
        end = self.ends[worker.session]
        key = end.admitted.pop(lease)
        end.seen.pop(lease, None)
        self._heard.discard(lease)
        if key not in end.admitted.values():
            for line in [one for one in self.lines if one.worker is worker and one.key == key]:
                line.snap()

    def _publish(self, worker: WorkerProcess, action: m.PublishItems) -> None:
        lease = action.items.lease
        assert lease in self._heard, f"{worker.name} sends {action.items} over a duct where nobody is seen"
        self.sent(worker, action.items, action.payload, direct=True)
        line = self.ends[worker.session].seen.get(lease)
        if line is not None and not line.dead:
            line.later(partial(self._arrived, line, action.items, action.payload))
            self.farm.story.probe("items over a duct")
            if self.farm.chaos and self.rng.random() < self.frail:
                self.farm.after(line.latency_s * self.rng.random(), line.snap)

    def _arrived(self, line: Line, items: m.Items, payload: Any) -> None:
        for blob in payload:
            task = self.farm.tasks[abs(int(bytes(blob).split(b"/")[0]))]
            owner = task.asked_by
            mine = owner is not None and owner.session == line.client.session
            assert mine, f"{line.client.name} has {blob!r} of {task.client}"
        if items.lease in line.leases:
            line.client.hand("direct", line.duct, items, payload)

    def _dial(self, client: ClientProcess, action: m.Dial) -> None:
        line = next((one for one in self.lines if one.client is client and one.duct == action.duct), None)
        if line is None:
            worker = self.farm.lives[action.duct]
            line = Line(self, client, worker, action.duct)
            self.lines.append(line)
            line.later(partial(self._knock, line))
        line.leases.add(action.lease)
        line.later(partial(self._subscribe, line, action.lease))

    def _reachable(self, line: Line) -> bool:
        """Some pairs cannot reach each other for a while, and some never."""
        pair = line.client.name, line.worker.name
        if pair not in self._reach:
            self._reach[pair] = self.rng.choice((0.0, 0.0, 0.0, 3.0, 1e9))
        return self.farm.now >= self._reach[pair]

    def _knock(self, line: Line) -> None:
        end = self.ends[line.worker.session]
        if not self._reachable(line):
            self.farm.story.probe("a duct cannot be reached")
            self.farm.after(self.rng.choice((0.01, 5.0)), line.snap)
        elif not line.worker.alive:
            line.snap()
        else:
            line.reached = True
            line.up = line.key in end.admitted.values()
            if not line.up:  # the last stream has ended meanwhile
                self.farm.story.probe("a duct is dialled in vain")
                line.refused = True
                line.snap()

    def _subscribe(self, line: Line, lease: int) -> None:
        end = self.ends[line.worker.session]
        admitted = end.admitted.get(lease) == line.key
        if line.up and line.worker.alive and admitted and lease in line.leases:
            end.seen[lease] = line
            line.worker.hand("call", "duct_up", lease)

    def _hang_up(self, client: ClientProcess, action: m.HangUp) -> None:
        for line in [one for one in self.lines if one.client is client and one.duct == action.duct]:
            line.leases.discard(action.lease)
            if not line.leases:
                line.snap()

    # ------------------------------------------------------------ what must hold

    def tells(self, name: str, arguments: Sequence[Any]) -> None:
        """The machine of a worker is told something of its duct."""
        if name == "duct_up":
            self._heard.add(arguments[0])
        elif name == "duct_down":
            self._heard.discard(arguments[0])

    def sent(self, worker: WorkerProcess, items: m.Items, payload: Any, direct: bool) -> None:
        """A worker sends items, maybe again: those of one stream are on one way at a time."""
        if not self.on or not payload or items.lease > 0:
            return
        over, other = self._ways.get(items.lease, (0, 0))
        if items.last <= max(over, other):
            return  # they were asked for again
        token, number, _ = map(int, bytes(payload[0]).split(b"/"))
        reader = self.farm.tasks[-token].taker
        if reader is not None and reader.run in (number, -1):
            used = reader.used
            what = f"{worker.name} sends {items}, used is {used}"
            if direct:
                assert used >= other, f"{what}: on two ways, {other} went by the broker"
            elif items.lease in self._heard:
                assert used >= over, f"{what}: on two ways, {over} went over the duct"
        if direct and other > over:
            self.farm.story.probe("a stream moves to a duct")
        elif not direct and over > other:
            self.farm.story.probe("a stream moves back from a duct")
        self._ways[items.lease] = (items.last, other) if direct else (over, items.last)

    def died(self, process: Any) -> None:
        """This process is gone: its lines break."""
        for line in [one for one in self.lines if process in (one.client, one.worker)]:
            line.snap()

    def unrest(self) -> list[str]:
        """What is still there at rest."""
        found = [f"{name} still lets in {end.admitted}" for name, end in self.ends.items() if end.admitted]
        living = {worker.session for worker in self.farm.all_workers()}
        return [text for text in found if text.split()[0] in living] + [
            f"{line.client.name} still waits for {line.leases} at {line.duct}" for line in self.lines
        ]

    # ------------------------------------------------------------ what goes wrong

    def let_fail(self) -> None:
        """Schedule the breaks and the forgeries of this farm."""
        farm, rng = self.farm, Random(f"breaks {self.farm.mix.seed}")
        if not self.on or farm.mix.calm:
            return
        for what, rate in (
            (self._break_one, rng.choice((0.0, 1.0, 10.0))),
            (self._forge, rng.choice((0.0, 2.0, 30.0))),
            (self._eavesdrop, rng.choice((0.0, 10.0))),
        ):
            at = rng.expovariate(rate) if rate else farm.mix.faults_s
            while at < farm.mix.faults_s:
                farm.at(at, what)
                at += rng.expovariate(rate)

        rng = Random(f"keys {self.farm.mix.seed}")
        rate = 30.0 if rng.random() < 0.1 else 0.0
        at = rng.expovariate(rate) if rate else farm.mix.faults_s
        while at < farm.mix.faults_s:
            farm.at(at, partial(self._rekey, rng))
            at += rng.expovariate(rate)

    def _rekey(self, rng: Random) -> None:
        """A client shows another key from now on, as does the program that takes its job over."""
        offered = {key for end in self.ends.values() for key in end.admitted.values()}
        clients = [self.keys[key] for key in sorted(offered)]
        clients = [one for one in clients if one.alive and one.link is not None and not one.left]
        if clients:
            client = rng.choice(clients)
            key = f"key no. {len(self.keys) + 1}"
            self.keys[key] = client
            client.machine.show(key)
            said = client.machine._hello
            client.machine._hello = structs.replace(said, number=said.number + 1)
            if client.link is not None:
                client.link.send(client.machine._hello, ())
            self.farm.story.probe("a client shows another key")

    def _eavesdrop(self) -> None:
        """A client asks for a stream that is somebody else's, and is offered over a duct."""
        offered = [lease for end in self.ends.values() for lease in end.admitted]
        curious = [one for one in self.farm.clients.values() if one.alive and one.link is not None]
        if offered and curious:
            client = self.rng.choice(curious)
            others = [lease for lease in offered if lease not in client.machine.inflow.read]
            if others and client.link is not None:
                self.farm.story.probe("a client asks for the stream of another one")
                client.link.send(m.Listen([m.Listening(self.rng.choice(others), 1, 0)], "its key"), ())

    def _break_one(self) -> None:
        if self.lines:
            self.rng.choice(self.lines).snap()

    def _forge(self) -> None:
        """A worker says something over its duct about a stream that is not had there."""
        up = [line for line in self.lines if line.up]
        if up:
            line = self.rng.choice(up)
            line.later(partial(self._forged, line))

    def _forged(self, line: Line) -> None:
        inflow = line.client.machine.inflow
        mine = inflow.dialling.had_at(line.duct)
        others = [stream for lease, stream in inflow.read.items() if lease < 0 and lease not in mine]
        if others and line.client.alive:
            stream = self.rng.choice(others)
            self.farm.story.probe("forged items over a duct")
            items = m.Items(stream.lease, stream.next, stream.next)
            line.client.hand("direct", line.duct, items, [b"forged"])

    def heal(self) -> None:
        """Whoever could not be reached for a while can be now."""
        self._reach = {pair: until for pair, until in self._reach.items() if until >= 1e9}
