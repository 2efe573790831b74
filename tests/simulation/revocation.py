"""What must hold of keys that are taken away: what they had ends, nothing is left of them, and nobody else
notices."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tests.simulation.rogues import VERSIONS
from zfarm import messages as m
from zfarm.core.broker import Broker
from zfarm.core.greeting import LOCAL, bare, book_key, principal_of

if TYPE_CHECKING:
    from tests.simulation.farm import Farm
    from tests.simulation.people import Task
    from tests.simulation.processes import ClientProcess

PARTING = m.Stranger | m.Refused
"""What a client in a child still hears: its worker's key is good, and nobody knows its session."""


class Revocation:
    """Who may have what, as an onlooker sees it."""

    farm: Farm
    numbers: dict[tuple[str, int], Task]
    _gone: set[str]
    _abandon: Callable[[ClientProcess], None]

    def __init__(self) -> None:
        super().__init__()
        self._let_in: frozenset[str] = frozenset()
        """The keys that the present broker has seen in its file."""
        self._seen_at = -1.0

    def knows(self, session: str) -> bool:
        """The owner of this session has a key, as far as the broker can know."""
        owner = principal_of(session)
        return owner == LOCAL or owner in self._let_in

    def revokes_client(self, client: ClientProcess) -> None:
        """From now on nobody is owed what this client has asked for."""
        self._abandon(client)

    def comes_anew(self, name: str) -> None:
        """There is a client of this name again."""
        self._gone.discard(name)

    def sees_keys(self, known: frozenset[str]) -> None:
        """The broker has seen its keys file, in this turn."""
        self._let_in, self._seen_at = known, self.farm.now

    def judge_owners(self) -> None:
        """Nobody without a key is in the books, right after the turn in which the broker has seen that."""
        if self.farm.mix.keyed:
            broker = self.farm.broker.machine
            held = [owner for owner, _ in broker.orphans.kept()]
            strangers = [key for key in (*broker.clients, *broker.workers, *held) if not self.knows(key)]
            assert not strangers, f"their keys were revoked, and the broker keeps {strangers}"

    def judge_heirs(self, sessions: set[str]) -> None:
        """A broker was started on a journal with these sessions: those go on whose owners have keys."""
        for session in sessions:
            owner = principal_of(session)
            heirs = [key for key in self._let_in if owner in (key, key.rpartition(":")[0])]
            if owner == LOCAL or heirs:
                key = book_key(heirs[0], bare(session)) if heirs else session
                assert key in self.farm.broker.machine.clients, f"{session} was in the journal, and is lost"

    def must_wait(self, session: str) -> bool:
        """Its key has as many workers as it may, and this is none of them."""
        workers = self.farm.broker.machine.workers
        crew = [one for one in workers if principal_of(one) == principal_of(session)]
        return session not in workers and len(crew) >= self.farm.mix.settings.worker_sessions_max

    def may_tunnel(self, peer: Any, owner: str, hello: m.Hello) -> bool:
        """A worker that the broker knows speaks for a client in one of its children, in a known name."""
        broker = self.farm.broker.machine
        key = book_key(principal_of(owner), hello.session)
        return peer in broker.peers and (owner in broker.clients or key in broker.clients)

    def may_hear(self, peer: Any, session: str | None, message: m.Message) -> None:
        """The broker says this to somebody: whose key was revoked hears nothing."""
        farm = self.farm
        if not farm.mix.keyed or self._seen_at == farm.now:  # what was to be said before goes to nobody
            return
        link = peer[0] if isinstance(peer, tuple) else peer
        if link not in farm.network.routes:
            return  # that link has ended: nobody hears it
        whose = farm.network.whose.get(link, LOCAL)
        assert whose == LOCAL or whose in self._let_in, f"{peer} was expelled, and hears {message}"
        mine = session is None or self.knows(session)
        assert mine or isinstance(message, PARTING), f"{session} was expelled, and hears {message}"
        if isinstance(message, m.Grants):
            owners = [owner for owner in message.owners if not self.knows(owner)]
            assert not owners, f"granted for {owners}, who were expelled"

    def judge_causes(self, what: str, task: Task, outcome: m.Outcome) -> None:
        """A client hears how a task ended: after no more runs than it may have, and if it is said that a
        worker's key was revoked, one was."""
        attempts = len(outcome.deaths) + outcome.tries
        own = outcome.kind in (m.VALUE, m.ERROR, m.MIXED)
        assert attempts + own <= task.max_attempts, f"{what} ran once too often: {outcome}"
        for fate in outcome.deaths:
            if "was revoked" in fate.text:
                gone = [key for key in self.farm.keys.revoked if key.startswith("worker:")]
                assert gone, f"{what} is said to have ended so: {fate}"
                self.farm.story.probe("an attempt was lost with a worker's key")

    def journal_agrees(self) -> None:
        """The journal was written: it has nobody whom the broker does not know any more."""
        disk = self.farm.disk
        if self.farm.mix.keyed and disk is not None:
            strangers = sorted(session for session in disk.sessions if not self.knows(session))
            assert not strangers, f"their keys were revoked, and the journal keeps {strangers}"


def remains(farm: Farm) -> Iterator[str]:
    """What the broker of a farm at rest still has of those whose keys were revoked, and its journal."""
    if not farm.keys.revoked:
        return
    broker = farm.broker.machine
    revoked = re.compile(f"({'|'.join(map(re.escape, farm.keys.revoked))})(?![0-9])")
    for path, text in strings(broker, "Broker", set()):
        # evidence of workers and calls that were, and which sessions have ended
        past = any(name in path for name in (".suspects", ".well", "._left"))
        if revoked.search(text) and not past:
            yield f"the broker still has {path} = {text}"
    if farm.disk is not None:
        replayed = Broker(1 << 20, VERSIONS, 0.0, farm.mix.settings, journal=True)
        replayed.restore(farm.disk.pairs, 0.0)
        written = sorted(client.session for client in broker.clients.values() if not client.unrecorded)
        if sorted(replayed.clients) != written:
            yield f"the journal has {sorted(replayed.clients)}, and the broker {written}"


def strings(thing: Any, path: str, seen: set[int]) -> Iterator[tuple[str, str]]:
    """Every text that hangs on a machine, with the attributes that lead to it."""
    if isinstance(thing, str):
        yield path, thing
        return
    if id(thing) in seen or callable(thing):
        return
    seen.add(id(thing))
    if isinstance(thing, dict):
        for key, value in thing.items():
            yield from strings(key, f"{path} key", seen)
            yield from strings(value, f"{path}[]", seen)
    elif hasattr(thing, "__iter__") and not isinstance(thing, bytes | bytearray | memoryview):
        for part in list(thing):
            yield from strings(part, f"{path}[]", seen)
    elif type(thing).__module__.startswith("zfarm.core"):
        slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
        fields = getattr(thing, "__struct_fields__", ())
        for name in dict.fromkeys([*getattr(thing, "__dict__", ()), *slots, *fields]):
            yield from strings(getattr(thing, name, None), f"{path}.{name}", seen)
