"""The sockets of broker, client and worker, and what may be sent and received there; it knows no machine.

No call here ever blocks, but for one look at who listens where we were never let in. What a peer cannot take
now waits in an outbox. The broker's outboxes have a bound: a peer beyond it is lost as if its link had
broken, which the machines repair. What a client or worker sends is kept by its machine anyway until it is
confirmed, so their outboxes hold references and need no bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence
from math import inf
from pathlib import Path
from typing import Final, NamedTuple

import zmq

from zfarm.edge.drawn import ROUTING_ID, Drawn
from zfarm.edge.frames import FRAMES_MAX, OVERHEAD, Outbox, receive_rest, send_frames
from zfarm.edge.knock import is_something_else
from zfarm.edge.links import Links
from zfarm.edge.places import Claim, claim_socket
from zfarm.edge.redial import NO_PROTOCOL, UNJUDGED, UNKNOWN, Redial
from zfarm.edge.security import CLIENT, DOORS, LOCAL, Access, KeyPair
from zfarm.edge.sockets import (
    Context,
    Line,
    Socket,
    bind,
    hang_up,
    ipc_path,
    kick,
    new_socket,
)
from zfarm.edge.unfinished import Unfinished, largest_message
from zfarm.edge.wire import FRAME_BYTES_MAX, Frame
from zfarm.errors import AccessDenied, BrokerUnreachable, FarmError
from zfarm.settings import settings

__all__ = [
    "DealerPort",
    "Received",
    "RouterPort",
]

FLUSH_S: Final = 0.005
"""A peer that can take more makes the socket's descriptor ready; should we miss that, we look after this."""
MISUNDERSTOOD_MAX: Final = settings.misunderstandings_max
MISUNDERSTOOD_S: Final = settings.misunderstood_within_s
"""So many messages that make no sense, each within so many seconds after the one before, are no accident."""

_UNKNOWN_KEY: Final = (
    "the broker at {} does not know our key, or this is not the door for it, as each role has its own: "
    "get a new connection file or token from its host"
)
_WRONG_SERVER: Final = (
    "what listens at {} has another server key than our connection file says, or our key came too often: "
    "get a new one from the broker's host"
)
_NO_CURVE: Final = "what listens at {} does not speak as a broker of zfarm does: is that the right port?"
_NO_JUDGE: Final = "the broker at {} cannot check keys at the moment (status {})"

_DONTWAIT: Final = int(zmq.DONTWAIT)
_EVENTS: Final = zmq.EVENTS
_POLLIN: Final = int(zmq.POLLIN)


class Received(NamedTuple):
    """One message and who sent it; ``role`` and ``principal`` come from the key that the peer showed."""

    peer: bytes
    role: str
    principal: str
    frames: list[Frame]


def _readable(socket: Socket) -> bool:
    return bool(int(socket.getsockopt(_EVENTS)) & _POLLIN)


class RouterPort:
    """One control socket of the broker: the door of one role, or a local one."""

    def __init__(
        self,
        context: Context,
        address: str,
        keys: KeyPair | None = None,
        on_lost: Callable[[bytes], None] = lambda peer: None,
        domain: str = DOORS[CLIENT],
        mark: bytes = b"",
        share: int = 1,
    ) -> None:
        """Listen on ``address``, with the broker's ``keys`` unless it is a local one.

        ``on_lost`` is called, within ``send`` or ``flush``, with a peer whose connection is gone. ``domain``
        is the ZAP domain: it says which role is let in. The names of all peers begin with ``mark``. ``share``
        ports share what all messages that are unfinished may have.

        Raises:
            ConfigurationError: it cannot be bound, is in use, or lacks keys.
        """
        self.on_lost = on_lost
        self.dropped = 0
        """Messages lost since a peer's outbox was full."""
        self.refused = 0
        """Messages thrown away since their form or sender was not as it must be."""
        self.crowded = 0
        """Connections ended since their key had as many as it may."""
        self.kicked = 0
        """Connections ended since too much was wrong with their messages."""
        self.known: Container[str] | None = None
        """The principals that may speak; None: all whom the ZAP handler let in."""
        self.secure = keys is not None
        """Whether there is anything to ``check``: who comes has a key, and is not only this user."""
        self._keys = keys
        self._domain = domain
        self._mark = mark
        self._unmarked = len(mark)  # where the routing id begins in a peer's name
        self._links = Links()
        self._outboxes: dict[bytes, Outbox] = {}
        path = ipc_path(address)
        self._claim: Claim | None = claim_socket(Path(path)) if path else None
        size_max = FRAME_BYTES_MAX + OVERHEAD
        self.socket = new_socket(context, zmq.ROUTER, address, size_max)
        self.on_coming: Callable[[bytes], None] = lambda peer: None
        """Called with a peer of which a large message goes on to come."""
        self.unfinished = Unfinished(
            self.socket, largest_message(size_max), self._end,
            active=self.secure, share=share, coming=self._coming, mute_s=settings.mute_s,
        )  # fmt: skip
        """What has begun to come and does not end; to be checked a few times a second."""
        self._drawn = Drawn(context, self.socket, self.secure)
        try:
            self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            self.socket.setsockopt(zmq.ROUTER_HANDOVER, 0)
            self.address = bind(self.socket, address, keys, domain)
        except BaseException:
            self.close()
            raise
        self.addresses = [self.address]
        """All on which it listens."""

    def listen(self, address: str) -> None:
        """Listen on a further ``address``, under the same keys and domain.

        Raises:
            ConfigurationError: it cannot be bound, or is in use.
        """
        if "[" in address:
            self.socket.setsockopt(zmq.IPV6, 1)
        self.addresses.append(bind(self.socket, address, self._keys, self._domain))

    def receive(self, limit: int = 200) -> list[Received]:
        """Up to ``limit`` messages that have arrived; whoever sends what is no message is disconnected."""
        socket = self.socket
        self.unfinished.meet()
        got: list[Received] = []
        mark = self._mark
        for number in range(limit):
            if number and not _readable(socket):
                break
            try:
                part = socket.recv(_DONTWAIT, copy=False)
            except zmq.Again:
                break
            peer = mark + part.bytes
            role, principal = self._who(part) if self.secure else (LOCAL, LOCAL)
            frames = None
            if part.more:
                frames = receive_rest(socket, socket.recv(_DONTWAIT, copy=False), FRAMES_MAX)
            if frames is None or not role or (self.secure and not self._known(peer, principal, part)):
                if not role and frames is not None and self._end_chosen(part.bytes, frames):
                    continue
                self.refused += 1
                kick(part)
                link = self._links.get(peer)
                if frames is None and (not self.secure or (link is not None and link.principal == principal)):
                    self.kick(peer)  # what it has said is lost: it may come back, and say who it is again
                continue
            self.unfinished.heard(part, frames, principal)
            got.append(Received(peer, role, principal, frames))
        return got

    @staticmethod
    def _who(part: zmq.Frame) -> tuple[str, str]:
        """Role and principal behind a message; no role for a stranger, which ZAP lets nobody be."""
        try:
            user = str(part.get("User-Id"))
            kind = str(part.get("Socket-Type"))
        except zmq.ZMQError:
            return "", ""
        return (user.partition(":")[0], user) if kind == "DEALER" else ("", "")

    def _known(self, peer: bytes, principal: str, part: zmq.Frame) -> bool:
        """Whether this principal may speak here; its connection is noted when it does so first."""
        if self.known is not None and principal not in self.known:
            return False
        start = self._unmarked
        if len(peer) != start + ROUTING_ID or peer[start]:  # it chose its own, which might be that of another
            return False
        link = self._links.get(peer)
        if link is None or link.principal != principal:
            if link is not None:  # what the other one said on this routing id is not this one's
                self.forget(peer)
                self.on_lost(peer)
            if self._links.of(principal) >= settings.client_links_max:
                self.sweep()
                if self._links.of(principal) >= settings.client_links_max:
                    self.crowded += 1
                    return False
            self._links.note(peer, principal, part)
            self._drawn.met(peer[start:])
        return True

    def _end_chosen(self, routing_id: bytes, frames: Sequence[Frame]) -> bool:
        """Disconnect who has chosen an id that is to be given, if that is what we were told by ourselves."""
        chosen = self._drawn.chosen(routing_id, frames)
        for one in chosen or ():
            self.refused += 1
            self.kick(self._mark + one)
        return chosen is not None

    def host_of(self, peer: bytes) -> str:
        """The address that this peer comes from; empty: it is not known, or local."""
        link = self._links.get(peer)
        return "" if link is None or link.line is None else str(link.line[1][0])

    def fault(self, peer: bytes) -> bool:
        """Something was wrong with what ``peer`` sent; True when that was once too often, and it is ended."""
        link = self._links.get(peer)
        if link is None:
            return False
        link.faults += 1
        if link.faults < settings.faults_max:
            return False
        self.kicked += 1
        self.kick(peer)
        return True

    def expel(self, known: Container[str]) -> int:
        """From now on only the ``known`` principals may speak; others are disconnected, and lost at once."""
        self.known = known
        ended = self._links.end_all_but(known)
        for peer in ended:
            self.forget(peer)
            self.on_lost(peer)
        return len(ended)

    def kick(self, peer: bytes) -> None:
        """Disconnect ``peer``, which is lost at once."""
        self._links.end(peer)
        self.forget(peer)
        self.on_lost(peer)

    def _coming(self, line: Line) -> None:
        peer = self._links.at(line)
        if peer is not None:
            self.on_coming(peer)

    def _end(self, line: Line) -> bool:
        """Disconnect; False when it is gone already."""
        peer = self._links.at(line)
        if peer is None:  # nothing that it said was read
            return hang_up(line)
        self.kick(peer)
        return True

    def check(self, now: float) -> None:
        """Disconnect who does not end a message, says none, or has an id that is to be given to others; to be
        called a few times a second."""
        self.unfinished.check(now)
        self._drawn.draw()

    def sweep(self) -> None:
        """Forget the connections that have gone; ``on_lost`` is told. To be called now and then."""
        for peer in self._links.sweep():
            self.forget(peer)
            self.on_lost(peer)

    def send(self, peer: bytes, frames: Sequence[Frame]) -> None:
        """Give a message to ``peer`` or keep it in its outbox; ``on_lost`` is told of a peer that is gone."""
        message = [peer[self._unmarked :], *frames]
        outbox = self._outboxes.get(peer)
        if outbox is None:
            try:
                send_frames(self.socket, message)
                return
            except zmq.Again:
                outbox = self._outboxes[peer] = Outbox()
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
                self.on_lost(peer)
                return
        if not outbox.add(message):
            self.dropped += len(outbox.messages) + 1
            self.forget(peer)
            self.on_lost(peer)

    def flush(self) -> float:
        """Send what waits and can go now; seconds until the next look. For ``Loop.add_flusher``."""
        if not self._outboxes:
            return inf
        lost = []
        for peer, outbox in list(self._outboxes.items()):
            try:
                while outbox.messages:
                    send_frames(self.socket, outbox.messages[0])
                    outbox.sent()
            except zmq.Again:
                continue
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
                lost.append(peer)
            del self._outboxes[peer]
        for peer in lost:
            self.on_lost(peer)
        if lost:
            return 0.0  # machines may have something to say about it
        return FLUSH_S if self._outboxes else inf

    def forget(self, peer: bytes) -> None:
        """Drop what waits for ``peer``."""
        self._outboxes.pop(peer, None)

    def waiting(self, peer: bytes) -> int:
        """Messages that wait for ``peer``."""
        outbox = self._outboxes.get(peer)
        return len(outbox.messages) if outbox else 0

    def close(self) -> None:
        """Close the socket; what waits is dropped. Harmless when done before."""
        self.unfinished.close()
        self._drawn.close()
        self.socket.close(linger=0)
        self._outboxes.clear()
        if self._claim is not None:
            self._claim.release()


class DealerPort:
    """A client's or worker's one connection to the broker.

    Encryption does not protect the one bit of a frame that says whether more follows: one that was flipped
    joins two messages to a malformed one. Then the port gives the connection up and dials anew.
    """

    def __init__(
        self,
        context: Context,
        access: Access,
        on_trouble: Callable[[FarmError], None] = lambda error: None,
        on_link: Callable[[bool], None] = lambda up: None,
    ) -> None:
        """Connect as ``access`` says.

        ``on_trouble`` is called, within ``watch_link`` or ``flush``, with AccessDenied or BrokerUnreachable
        when we are not let in; ``on_link`` when the connection has come up or gone down. Once it has been up,
        only a key that is refused is such trouble: all else may pass.

        Raises:
            ConfigurationError: the address cannot be used.
        """
        self.address = access.address
        self.on_trouble = on_trouble
        self.on_link = on_link
        self._outbox = Outbox()
        self._failures = 0  # of handshakes, since one went well
        self._known = False  # it has been up
        self._misunderstood = 0
        self._misunderstood_at = -inf
        self.socket = new_socket(context, zmq.DEALER, access.address, FRAME_BYTES_MAX + OVERHEAD)
        self._redial = Redial(
            self.socket, access.address, access.server, access.keys, self._note_link, self._failed
        )
        self.monitor = self._redial.monitor
        self.watch_link = self._redial.watch_link
        """Read the socket's monitor; the handler for ``Loop.add_source(port.monitor, ...)``."""
        try:
            self._redial.dial()
        except BaseException:
            self.close()
            raise

    @property
    def up(self) -> bool:
        """Whether the connection is there, as far as is known."""
        return self._redial.up

    def receive(self, limit: int = 200) -> list[list[Frame]]:
        """Up to ``limit`` messages that have arrived; after what is no message the link is made anew."""
        socket = self.socket
        got: list[list[Frame]] = []
        for number in range(limit):
            if number and not _readable(socket):
                break
            try:
                part = socket.recv(_DONTWAIT, copy=False)
            except zmq.Again:
                break
            frames = receive_rest(socket, part, FRAMES_MAX)
            if frames is None:
                self.misunderstood()
                break
            got.append(frames)
        return got

    def send(self, frames: Sequence[Frame]) -> None:
        """Send a message, or keep it in the outbox while the broker is away or slow."""
        message = list(frames)
        if not self._outbox.messages:
            try:
                send_frames(self.socket, message)
                return
            except zmq.Again:
                pass  # to the outbox
        self._outbox.keep(message)

    def flush(self) -> float:
        """Send what waits and can go now; seconds until the next look. For ``Loop.add_flusher``."""
        outbox = self._outbox
        left_s = self._redial.flush()
        if self.socket.closed:
            return inf  # since it had no success
        try:
            while outbox.messages:
                send_frames(self.socket, outbox.messages[0])
                outbox.sent()
        except zmq.Again:
            return min(FLUSH_S, left_s)
        return left_s

    def misunderstood(self) -> bool:
        """One side got a message that makes no sense: give the connection up, with all that is on its way.

        What was lost is then found out as after any broken link. False: too often, and nothing was done.
        """
        now = time.monotonic()
        recently = now - self._misunderstood_at < MISUNDERSTOOD_S
        self._misunderstood, self._misunderstood_at = recently * self._misunderstood + 1, now
        if self._misunderstood > MISUNDERSTOOD_MAX:
            return False
        self._redial.hang_up()
        return True

    @property
    def unsent(self) -> int:
        """Messages in the outbox."""
        return len(self._outbox.messages)

    def _note_link(self, up: bool) -> None:
        if up:
            self._failures = 0
            self._known = True
        self.on_link(up)

    def _failed(self, why: int) -> None:
        """A handshake failed: for good, or the broker died in it, or the network harmed it, but not twice."""
        if why == UNKNOWN:
            self.on_trouble(AccessDenied(_UNKNOWN_KEY.format(self.address)))
            return
        self._failures += 1
        if self._known or self._failures != 2:
            return
        if why == UNJUDGED:
            text = _NO_CURVE if is_something_else(self.address) else _WRONG_SERVER
            self.on_trouble(AccessDenied(text.format(self.address)))
        elif why == NO_PROTOCOL:
            self.on_trouble(AccessDenied(_NO_CURVE.format(self.address)))
        else:
            self.on_trouble(BrokerUnreachable(_NO_JUDGE.format(self.address, why)))

    def close(self, linger_ms: int = 0) -> None:
        """Close the socket; what was not sent within ``linger_ms`` is dropped. Harmless when done before."""
        if not self.socket.closed:
            self._redial.close()
            self.socket.close(linger=linger_ms)
