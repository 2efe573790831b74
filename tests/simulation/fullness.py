"""A simulated disk that is full for a while: the fault, and what must hold meanwhile.

That nothing is said before it is written is for disk.py to judge; here it is judged that all else is said.
"""

from __future__ import annotations

from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from tests.simulation.disk import DiskFull
from zfarm import messages as m
from zfarm.core.headroom import price

if TYPE_CHECKING:
    from tests.simulation.farm import Farm
    from tests.simulation.people import Task
    from tests.simulation.processes import BrokerProcess

ANSWERS: dict[type, tuple[type, ...]] = {
    m.Pulse: (m.Echo,),
    m.Why: (m.Reason,),
    m.Hello: (m.Welcome, m.Refused, m.Stranger),  # the last one to a task whose client is not back yet
    m.Join: (m.Welcome,),
}
"""What the broker answers in the same turn, whether its disk is full or not."""


def fill_disk(farm: Farm) -> None:
    """Somebody else fills the disk of the journal for a while; the broker tries now and then."""
    disk = farm.disk
    if disk is None or disk.full:
        return
    seconds = farm.rng.choice((0.3, 3.0, 12.0)) * farm.rng.random()
    farm.story.tell(farm.now, "disk", "is full", seconds)
    disk.full = disk.was_full = True
    for n in range(1, 4):
        farm.after(seconds * n / 4, partial(_look_for_room, farm))
    farm.after(seconds, partial(empty_disk, farm))


def empty_disk(farm: Farm) -> None:
    """There is room again, and the broker sees it."""
    if farm.disk is None or not farm.disk.full:
        return
    farm.story.tell(farm.now, "disk", "has room", "")
    farm.disk.full = False
    _look_for_room(farm)


def _look_for_room(farm: Farm) -> None:
    farm.broker.hand("room")


def written_first(broker: BrokerProcess, actions: list[m.Action]) -> list[m.Action]:
    """What a broker does with these: its journal comes first, and if that takes nothing the machine knows
    what may be said all the same."""
    farm, first = broker.farm, actions[0] if actions else None
    if farm.disk is not None:
        farm.books.within_room(first.records if isinstance(first, m.Append) else [])
        look_at_room(broker)
    if isinstance(first, m.Append):
        assert farm.disk is not None, "there is no journal to append to"
        try:
            farm.disk.append(first.records)
        except DiskFull:
            farm.story.probe("disk full")
            farm.story.tell(farm.now, "broker", "cannot append", first)
            broker.machine.refusing = "the disk is full"
            actions = broker.machine.stall.begin(actions, "the disk is full")
        else:
            broker.machine.refusing = ""
            farm.books.journal_agrees()
    farm.books.must_answer(actions)
    return actions


def write_what_fits(broker: BrokerProcess) -> None:
    """There may be room for some of what waits: a disk that is full still takes a little now and then."""
    disk, stall = broker.farm.disk, broker.machine.stall
    assert disk is not None, "without a disk nothing waits for it"
    spare = disk.dice.choice((0, 4000))
    picked = stall.pick(disk.dice.choice((0, 6000, 20_000, 60_000)), spare) if disk.full else stall.pick()
    if not picked:
        return
    rest = bool(broker.machine.records)
    if disk.dice.random() < 0.2 and disk.full:
        stall.put_back(picked)
        return
    disk.write(picked)
    broker.farm.story.tell(broker.farm.now, "broker", "appends late", tuple(record for record, _ in picked))
    if rest:
        broker.farm.story.probe("written in part")
    stall.wrote()


def look_at_room(broker: BrokerProcess) -> None:
    """See what the disk has for new tasks: of one that was full, not always enough."""
    disk = broker.farm.disk
    assert disk is not None, "there is a disk to look at"
    if disk.was_full:
        disk.seen = disk.dice.choice((inf, inf, 60_000, 8000, 2000, 0, -1)) if broker.farm.chaos else inf
        broker.machine.headroom.see(disk.seen, "the disk has little room")


class Fullness:
    """Whether everybody is answered, as an onlooker sees it."""

    farm: Farm
    by_peer: dict[Any, str]

    def __init__(self) -> None:
        super().__init__()
        self._asked: list[tuple[Any, type]] = []
        self._fresh: set[tuple[Any, int]] = set()
        """Peers and the numbers of new tasks of theirs that came while the broker could not write."""
        self._submitted: set[tuple[str, int]] = set()
        self._begun: set[tuple[str, int]] = set()
        """What may have begun, and is taken whether there is room or not."""

    def asks(self, peer: Any, message: m.Message) -> None:
        """The broker is about to note this message."""
        if type(message) in ANSWERS and (peer in self.by_peer or isinstance(message, m.Hello | m.Join)):
            self._asked.append((peer, type(message)))
        session = self.by_peer.get(peer)
        if isinstance(message, m.Submit) and session is not None:
            numbers = {(session, call.task) for call in message.calls if not call.begun}
            self._begun |= {(session, call.task) for call in message.calls if call.begun}
            broker = self.farm.broker.machine
            if broker.stalled and session in broker.clients and session not in broker.dropped:
                self._fresh |= {(peer, number) for _, number in numbers - self._submitted}
            self._submitted |= numbers
        elif isinstance(message, m.Bye):  # who has left waits for no answer
            self._asked = [(one, kind) for one, kind in self._asked if one != peer]
            self._fresh = {(one, number) for one, number in self._fresh if one != peer}

    def within_room(self, records: list[tuple[Any, Any]]) -> None:
        """These are all the records of a turn: what is new among them has room on the disk."""
        disk = self.farm.disk
        assert disk is not None, "only a disk has too little room"
        cost = sum(
            price(1, len(payload[-1]))
            for record, payload in records
            if isinstance(record, m.Accepted) and (record.client, record.task) not in self._begun
        )
        assert not cost or cost <= disk.seen, f"accepted for {cost} bytes, and there were {disk.seen}"

    def must_answer(self, actions: list[m.Action]) -> None:
        """The broker does this after its turn."""
        if not self._asked and not self._fresh:
            return
        said = [(action.peer, action.message) for action in actions if isinstance(action, m.Send)]
        kinds = {(peer, type(message)) for peer, message in said}
        asked, self._asked = self._asked, []
        for peer, kind in asked:
            heard = any((peer, answer) in kinds for answer in ANSWERS[kind])
            known = any(peer == one and type(message) is m.Welcome for one, message in said)
            if peer in self.by_peer and not known:
                again = kind is m.Join and peer in self.farm.broker.machine.peers
                assert heard or again, f"{peer} said {kind.__name__} and was not answered"
        fresh, self._fresh = self._fresh, set()
        ended = [
            (peer, one) for peer, message in said if type(message) is m.Ended for one in message.outcomes
        ]
        refused = {(peer, one.task) for peer, one in ended if one.kind == m.REFUSED}
        unknown = {(peer, number) for peer, one in said if type(one) is m.Unknown for number in one.tasks}
        records = self.farm.broker.machine.clients
        for peer, number in sorted(fresh - refused, key=str):
            record = records.get(self.by_peer.get(peer, ""))
            lacking = record is not None and number in record.unknown
            if lacking or (peer, number) in unknown:  # its function has to be sent again
                self.farm.story.probe("submitted while the disk was full, and lacking its function")
                continue
            assert peer not in self.by_peer, f"task {number} of {peer} was neither taken nor refused"
        if fresh:
            self.farm.story.probe("refused, the disk is full")

    def owes_nothing(self) -> None:
        """The broker has died, and answers nobody."""
        self._asked.clear()
        self._fresh.clear()

    def judge_refused(self, what: str, task: Task) -> None:
        """A client hears that this task was refused."""
        disk = self.farm.disk
        assert disk is not None, f"{what} was refused, and there is no disk"
        assert disk.was_full, f"{what} was refused for no reason"
        assert not task.runs or task.unsure, f"{what} was refused, and ran: {task.runs}"
        assert not task.safe, f"{what} was refused, and was safe"
