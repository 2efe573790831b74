"""Links as ZeroMQ can behave: in order, no duplicates; but a link may break and lose what is in flight.

A worker or client dials with one Link for its whole life. Behind it stands at most one Connection at a
time, and each has a routing id of its own: after a break the broker sees a fresh peer. Either end may
believe for a while in a connection that is dead (half-open); a direction may stall and then deliver all at
once; and the broker's messages to a peer that is not there vanish.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from tests.simulation.faults import SLOW_S
from tests.simulation.story import encode
from zfarm.core.greeting import LOCAL
from zfarm.messages import Message, Payload

if TYPE_CHECKING:
    from tests.simulation.farm import Farm
    from tests.simulation.processes import ClientProcess, WorkerProcess

Deliver = Callable[[Message, Payload], None]


class Pipe:
    """One direction of a connection."""

    __slots__ = ("_deliver", "_farm", "_flight", "_link", "closed", "last", "stalled_until")

    def __init__(self, farm: Farm, link: Link, deliver: Deliver) -> None:
        self._farm = farm
        self._link = link
        self._deliver = deliver
        self._flight: deque[tuple[Message, Payload, bytes]] = deque()
        self.last = 0.0
        self.stalled_until = 0.0
        self.closed = False

    def send(self, message: Message, payload: Payload) -> None:
        if self.closed:
            return  # into the void: this end has not noticed yet
        self._flight.append((message, payload, encode(message)))
        at = max(self._farm.now + self._link.latency(), self.stalled_until, self.last)
        self.last = at
        self._farm.at(at, self._arrive)

    def cut(self) -> float:
        """No more is sent, and some of what is in flight is lost; when the rest will have arrived."""
        self.closed = True
        self.thin()
        return self.last if self._flight else 0.0

    def thin(self) -> None:
        """Lose a random suffix of what is in flight."""
        survive = self._farm.rng.randint(0, len(self._flight))
        while len(self._flight) > survive:
            self._flight.pop()

    def clear(self) -> None:
        self.closed = True
        self._flight.clear()

    def _arrive(self) -> None:
        if self._flight:  # not cut meanwhile
            message, payload, sealed = self._flight.popleft()
            assert encode(message) == sealed, f"changed after it was sent: {message}"
            self._deliver(message, payload)


class Connection:
    """What one handshake made: two pipes and a routing id."""

    __slots__ = ("broken", "down", "link", "peer", "up")

    def __init__(self, farm: Farm, link: Link, peer: str) -> None:
        self.peer = peer
        self.link = link
        self.broken = False
        self.up = Pipe(farm, link, partial(farm.broker.arrived, peer))
        self.down = Pipe(farm, link, self._down)

    def _down(self, message: Message, payload: Payload) -> None:
        if self.link.connection is self:
            self.link.deliver(message, payload)


class Link:
    """A dealer's way to the broker. ``near``: in the broker's process, without latency or breaks."""

    def __init__(
        self, farm: Farm, name: str, deliver: Deliver, near: bool = False, principal: str = LOCAL
    ) -> None:
        self.farm = farm
        self.name = name
        self.principal = principal
        """Whose key it shows."""
        self.denied: Callable[[], object] = lambda: None
        """Called when that key is not known any more."""
        self.deliver = deliver
        self.near = near
        self.connection: Connection | None = None
        self.open = True
        self._waiting: deque[tuple[Message, Payload]] = deque()
        mix = farm.mix
        self.latency_s = 0.0 if near else farm.rng.uniform(0.5, 1.5) * mix.latency_s
        slow = farm.rng.random() < mix.slow_share or (mix.slow_clients and name.startswith("c"))
        if slow and not near and farm.chaos:
            self.latency_s = farm.rng.choice(SLOW_S)
        self._connect_later(0.0 if near else farm.rng.random() * mix.connect_s)

    def latency(self) -> float:
        rng = self.farm.rng
        usual = self.latency_s * (0.5 + rng.random())
        return usual if rng.random() >= self.farm.mix.spike_share else min(20.0 * usual, 2.0)

    def send(self, message: Message, payload: Payload) -> None:
        if self.connection is not None:
            self.connection.up.send(message, payload)
        elif self.open:
            self._waiting.append((message, payload))

    def snap(self) -> None:
        """The connection breaks; both ends learn of it some time later, each for itself."""
        connection, farm = self.connection, self.farm
        if connection is None or connection.broken or self.near:
            return
        farm.story.tell(farm.now, self.name, "breaks", connection.peer)
        connection.broken = True
        arrived = connection.up.cut()
        connection.down.cut()
        half_open = farm.mix.half_open_s
        farm.after(farm.rng.random() * half_open, partial(self.noticed, connection))
        lost_at = max(farm.now + farm.rng.random() * half_open, arrived + 1e-9)
        farm.at(lost_at, partial(farm.network.lost, connection.peer))

    def overflow(self) -> None:
        """The router has no room for what this peer does not fetch: it gives it up, and the link lives on."""
        connection, farm = self.connection, self.farm
        if connection is not None and not connection.broken and not self.near:
            farm.story.tell(farm.now, self.name, "overflows", connection.peer)
            connection.down.thin()
            farm.broker.lost(connection.peer)

    def stall(self, seconds: float, up: bool, down: bool) -> None:
        """Nothing comes through in this direction for a while, then everything."""
        if self.connection is not None and not self.near:
            until = self.farm.now + seconds
            for pipe, chosen in ((self.connection.up, up), (self.connection.down, down)):
                if chosen:
                    pipe.stalled_until = max(until, pipe.stalled_until)

    def heal(self, latency_s: float) -> None:
        """No stall holds from now on, and nothing takes longer than usual."""
        self.latency_s = min(self.latency_s, 1.5 * latency_s)
        if self.connection is not None:
            self.connection.up.stalled_until = self.connection.down.stalled_until = 0.0

    @property
    def healthy(self) -> bool:
        """It is up, and nothing on it is held back by a stall."""
        connection = self.connection
        if connection is None or connection.broken:
            return False
        return max(connection.up.last, connection.down.last) < self.farm.now + 2.0

    def close(self) -> None:
        """The process behind this end is gone or said goodbye: what it sent may still arrive."""
        self.open = False
        connection, farm = self.connection, self.farm
        if connection is not None:
            self.connection = None
            connection.down.clear()
            if not connection.broken:
                connection.broken = True
                connection.up.closed = True
                lost_at = max(farm.now + farm.rng.random() * farm.mix.half_open_s, connection.up.last + 1e-9)
                farm.at(lost_at, partial(farm.network.lost, connection.peer))

    def noticed(self, connection: Connection) -> None:
        """The dealer's end learns that its connection is dead, and dials again."""
        if self.connection is not connection:
            return
        self.connection = None
        connection.down.clear()
        self._connect_later(self.farm.rng.random() * self.farm.mix.reconnect_s)

    def _connect_later(self, delay: float) -> None:
        self.farm.after(delay, self._connect)

    def _connect(self) -> None:
        if not self.open or self.connection is not None:
            return
        if not self.farm.broker.alive:
            self._connect_later(0.1 + self.farm.rng.random() * 0.2)
            return
        if not self.farm.keys.admits(self.principal):
            self.open = False
            self.farm.after(self.farm.rng.random() * self.farm.mix.reconnect_s, self.denied)
            return
        self.connection = self.farm.network.connected(self)
        waiting, self._waiting = self._waiting, deque()
        if self.farm.mix.queue_while_down:
            for message, payload in waiting:
                self.connection.up.send(message, payload)


class Network:
    """The broker's end of all links: who is there under which routing id."""

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self._connections = 0
        self.whose: dict[Any, str] = {}
        """The principal behind each routing id that there ever was."""
        self.routes: dict[Any, Connection] = {}
        self._flights: dict[tuple[str, str], float] = {}
        self._losing = 0

    def connected(self, link: Link) -> Connection:
        self._connections += 1
        connection = Connection(self._farm, link, f"{link.name}#{self._connections}")
        self.routes[connection.peer] = connection
        self.whose[connection.peer] = link.principal
        return connection

    def send(self, peer: Any, message: Message, payload: Payload) -> bool:
        """Send to a peer as a ROUTER does; False: there is no such peer, and the message is gone."""
        connection = self.routes.get(peer)
        if connection is None:
            return False
        connection.down.send(message, payload)
        return True

    def publish(self, worker: WorkerProcess, topic: str, message: Message, payload: Payload) -> None:
        """Send items past the broker's machine, to whoever has subscribed: in order, and some are lost."""
        farm = self._farm
        client = next((one for one in farm.clients.values() if one.session == topic and one.alive), None)
        if client is None or client.link is None or not farm.broker.alive:
            return
        if not self._losing and farm.chaos and farm.rng.random() < farm.mix.item_loss:
            self._losing = farm.rng.choice((1, 1, 3, 20))
        broken = worker.link.connection is None or client.link.connection is None
        broken |= not (farm.keys.admits(worker.principal) and farm.keys.admits(client.principal))
        if self._losing or broken:
            self._losing -= self._losing > 0
            farm.story.probe("items lost")
            return
        way = (worker.session, client.session)
        at = farm.now + worker.link.latency() + client.link.latency()
        at = self._flights[way] = max(at, self._flights.get(way, 0.0))
        farm.at(at, partial(self._published, client, message, payload))
        self._flights[way] = at + 1e-9

    @staticmethod
    def _published(client: ClientProcess, message: Message, payload: Payload) -> None:
        client.hand("message", message, payload)

    def lost(self, peer: Any) -> None:
        """The broker's end notices that this connection is dead."""
        if self.routes.pop(peer, None) is not None and self._farm.mix.gone_is_told:
            self._farm.broker.lost(peer)

    def end_all_but(self, admits: Callable[[str], bool]) -> list[Any]:
        """The broker disconnects all others, who notice that later; who they were."""
        farm = self._farm
        ended = [peer for peer in self.routes if not admits(self.whose[peer])]
        for peer in ended:
            connection = self.routes.pop(peer)
            farm.story.tell(farm.now, "broker", "ends", peer)
            connection.broken = True
            connection.up.clear()
            connection.down.cut()
            farm.after(farm.rng.random() * farm.mix.half_open_s, partial(connection.link.noticed, connection))
        return ended

    def broker_died(self) -> None:
        """Every connection breaks at once."""
        farm = self._farm
        connections, self.routes = list(self.routes.values()), {}
        for connection in connections:
            connection.broken = True
            connection.up.clear()
            connection.down.cut()
            delay = farm.rng.random() * farm.mix.half_open_s
            farm.after(delay, partial(connection.link.noticed, connection))
