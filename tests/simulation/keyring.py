"""Keys of their own for the peers of some simulated farms: whose they are, and the fault that takes one away.

Principals look as in the books of a broker; a client or worker whose key is revoked is cut off at once,
learns it when it dials again, and comes back with a new key of its old name. What must hold of it all stands
in revocation.py.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from zfarm import messages as m
from zfarm.core import owners
from zfarm.core.greeting import LOCAL, principal_of

if TYPE_CHECKING:
    from tests.simulation.disk import Disk
    from tests.simulation.farm import Farm
    from tests.simulation.faults import Mix
    from tests.simulation.processes import BrokerProcess

SHARE = 0.1
"""Of the farms in which something goes wrong, the part in which keys are revoked."""


def let_revoke(mix: Mix) -> None:
    """In some farms each peer has a key, and some of them are revoked. The dice are of their own: the other
    farms stay as they are."""
    rng = Random(f"expel {mix.seed}")
    if mix.calm or rng.random() >= SHARE:
        return
    mix.keyed = True
    mix.embedded = False  # in a broker's process there is nobody else
    mix.one_crew = rng.random() < 0.2
    mix.revoked = tuple(
        (rng.random() * mix.faults_s, rng.choice(("client", "worker", "worker")))
        for _ in range(rng.randint(1, 3))
    )
    mix.journal |= rng.random() < 0.5
    mix.old_journal = rng.random() < 0.6
    if rng.random() < 0.3:  # calls that run when the key of their worker goes
        mix.exclusive_share = 1.0
        mix.waves, mix.waves_max = ("long", "long", rng.choice(mix.waves)), 4
        mix.revoked += ((rng.uniform(0.3, 2.0), "worker"),)
        mix.one_crew, mix.needs_share = False, 0.0
        if "w1" not in mix.slots:  # where they could run meanwhile
            mix.slots["w1"] = 4
            mix.stocks.update({"w1": mix.stocks["w0"]} if mix.stocks else {})


class Gate:
    """What a simulated broker does about keys."""

    def __init__(self, broker: BrokerProcess) -> None:
        self._broker = broker
        self._farm = broker.farm
        self._known: frozenset[str] = frozenset()

    def inherited(self, disk: Disk) -> list[tuple[Any, Any]]:
        """What the journal has, with the owners of today; they are written there at once."""
        written: list[tuple[m.Record, m.Payload]] = []
        pairs = list(owners.renamed(disk.living(), self._farm.keys.known, written))
        if written:
            disk.append(written)
        return pairs

    def admits(self, principal: str) -> bool:
        """Its ports let this principal speak."""
        return principal == LOCAL or principal in self._known

    def see_keys(self, known: frozenset[str] | None = None) -> None:
        """Look into the keys file."""
        if self._farm.mix.keyed:
            self._known = frozenset(self._farm.keys.known) if known is None else known
            owners.expel(self._broker.machine, self._known, self._broker.clock)
            self._farm.books.sees_keys(self._known)

    def follow_keys(self, known: frozenset[str]) -> None:
        """The keys file has changed: the machine comes first, and the ports after it."""
        self.see_keys(known)
        for peer in self._farm.network.end_all_but(self.admits):
            self._broker.end(peer, self._broker.clock)


class Keyring:
    """The keys that the broker's keys file has now. Farms without keys have one principal: everybody."""

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self._issued = 0
        self._of: dict[tuple[str, str], str] = {}
        self.known: set[str] = set()
        self.revoked: set[str] = set()
        self.renewed = False
        """Some name has had two keys."""

    def issue(self, role: str, name: str) -> str:
        """The principal of this name, with a new key if it has none that is known."""
        if not self._farm.mix.keyed:
            return LOCAL
        if role == "worker" and self._farm.mix.one_crew:
            name = "crew"
        before = self._of.get((role, name))
        if before in self.known:
            return before
        self._issued += 1
        self.renewed |= before is not None
        principal = self._of[role, name] = f"{role}:{name}:{self._issued}"
        self.known.add(principal)
        self._farm.broker_follows()
        return principal

    def admits(self, principal: str) -> bool:
        """Whoever shows this key gets in."""
        return principal == LOCAL or principal in self.known

    def may_have(self, session: str) -> bool:
        """The owner of this session gets in."""
        return self.admits(principal_of(session))

    def revoke(self, principal: str) -> None:
        """Strike a key; the broker hears of it if there is one."""
        farm = self._farm
        farm.story.tell(farm.now, "keys", "without", principal)
        self.known.discard(principal)
        self.revoked.add(principal)
        farm.broker_follows()


def let_keys_go(farm: Farm) -> None:
    """Schedule the revocations of this farm."""
    dice = Random(f"whose {farm.mix.seed}")
    for at, role in farm.mix.revoked:
        farm.at(at, partial(_revoke_somebody, farm, role, dice))


def _revoke_somebody(farm: Farm, role: str, dice: Random) -> None:
    """`zfarm key revoke`; now and then the broker dies while it sees to that."""
    if role == "client":
        client = farm.clients[dice.choice(sorted(farm.clients))]
        if client.left or not farm.keys.admits(client.principal):
            return
        farm.story.probe("the key of a client is revoked")
        farm.keys.revoke(client.principal)
        farm.books.revokes_client(client)
    else:
        worker = farm.workers[dice.choice(sorted(farm.workers))]
        if not farm.keys.admits(worker.principal):
            return
        farm.story.probe("the key of a worker is revoked")
        farm.keys.revoke(worker.principal)
    if dice.random() < 0.6 and farm.broker.alive:
        farm.broker.doomed = dice.randint(0, 3)
