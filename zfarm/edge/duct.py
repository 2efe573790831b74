"""The worker's end of its duct, where clients dial it for items of files and large results.

Its key was made for this process and is known to nobody before the broker has told it. Whoever dials is let
in for the streams alone that the broker has permitted, for as long as there are any.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

import zmq
from zmq.utils import z85

from zfarm.edge.frames import receive_rest, send_frames
from zfarm.edge.items import ITEMS_HELD, topic_frame
from zfarm.edge.links import Links
from zfarm.edge.loop import Loop
from zfarm.edge.security import KeyPair, fingerprint, parse_tcp
from zfarm.edge.sockets import (
    Context,
    Line,
    Socket,
    bind,
    hang_up,
    is_up,
    kick,
    line_of,
    new_socket,
    sender_of,
)
from zfarm.edge.unfinished import Unfinished
from zfarm.edge.wire import Frame
from zfarm.edge.zap import LISTENS, Doorkeeper
from zfarm.errors import ConfigurationError
from zfarm.settings import settings

__all__ = ["DUCT_DOMAIN", "Duct"]

DUCT_DOMAIN: Final = "zfarm.duct"
"""The ZAP domain of a worker's duct."""
READER: Final = "reader"
"""What a client is there: no role of the farm, whose keys open nothing here."""
TURN_MESSAGES: Final = 100
STRANGERS_MAX: Final = 256
"""Connections that have not said yet what they want; the oldest are ended first. Each takes a descriptor of
this worker, which needs some for its children, and anybody may connect."""
CANARY_S: Final = settings.canary_interval_s
LINGER_MS: Final = 200
"""Without, the library (4.3.5) aborts when it has taken some parts of a message, and not the rest, and the
other end hangs up in this very moment."""

_DONTWAIT: Final = int(zmq.DONTWAIT)
_log: Final = logging.getLogger("zfarm.worker")


class Duct:
    """The worker's end: where clients dial, each let in by a key that the broker has told."""

    def __init__(
        self, loop: Loop, context: Context, port: int, ipv6: bool, on_seen: Callable[[int, bool], None]
    ) -> None:
        """Listen on ``port``, or on any that is free (0, and if that one is taken). ``on_seen`` hears which
        stream has a reader here, and which has none any more.

        Raises:
            ConfigurationError: no port can be had.
            RuntimeError: somebody without a key was let in.
        """
        self._loop = loop
        self._on_seen = on_seen
        self._keys = KeyPair.fresh()
        self._leases: dict[bytes, tuple[int, str]] = {}  # topic to lease and the principal that may have it
        self._table: dict[bytes, str] = {}  # key to principal
        self._readers: dict[bytes, set[Line]] = {}
        self._links = Links()
        self.refused = 0
        """Subscriptions refused, since whoever sent them may not."""
        self.crowded = 0
        """Connections ended since too many others had not said anything either."""
        self._keeper = Doorkeeper(context, {}, domains={DUCT_DOMAIN.encode(): frozenset((READER,))})
        self._keeper.start()
        host = "[::]" if ipv6 else "0.0.0.0"
        size_max = settings.subscription_bytes_max
        self.socket: Socket = new_socket(context, zmq.XPUB, f"tcp://{host}", size_max, held=ITEMS_HELD)
        self._unfinished = Unfinished(self.socket, size_max, hang_up, active=True)
        try:
            self.socket.setsockopt(zmq.XPUB_MANUAL, 1)
            self.port = parse_tcp(self._bind(host, port))[1]
            here = "[::1]" if ipv6 else "127.0.0.1"
            self._keeper.check_ports({f"tcp://{here}:{self.port}": LISTENS}, self._keys.public)
        except BaseException:
            self.close()
            raise
        loop.add_source(self.socket, self._read)
        self._timers = [
            loop.add_timer(self._check, settings.unfinished_check_s),
            loop.add_timer(self._watch_keeper, CANARY_S),
        ]

    def _bind(self, host: str, port: int) -> str:
        if port:
            try:
                return bind(self.socket, f"tcp://{host}:{port}", self._keys, DUCT_DOMAIN)
            except ConfigurationError as error:
                _log.warning("the duct is at another port, which a firewall may not let through: %s", error)
        return bind(self.socket, f"tcp://{host}:*", self._keys, DUCT_DOMAIN)

    @property
    def closed(self) -> bool:
        """Nobody gets in any more."""
        return bool(self.socket.closed)

    @property
    def said(self) -> str:
        """What the broker is told of it."""
        return f":{self.port} {self._keys.public}"

    @property
    def unwelcome(self) -> int:
        """How often somebody was refused or disconnected here, for whatever reason."""
        return self.refused + self.denied + self.ended + self.crowded

    @property
    def denied(self) -> int:
        """Handshakes that were refused, since nobody is known by that key."""
        return self._keeper.denied

    @property
    def ended(self) -> int:
        """Connections that were ended since what they sent had no end."""
        return self._unfinished.ended

    def admit(self, lease: int, key: str) -> None:
        """Whoever shows this key may have this stream."""
        principal = f"{READER}:{READER}:{fingerprint(key)}"
        self._leases[topic_frame(str(lease))] = lease, principal
        self._table[z85.decode(key.encode())] = principal
        self._tell_keeper()

    def dismiss(self, lease: int) -> None:
        """Nobody may have it any more; whoever may have nothing else is disconnected."""
        topic = topic_frame(str(lease))
        self._leases.pop(topic, None)
        self._readers.pop(topic, None)
        known = {principal for _, principal in self._leases.values()}
        if len(known) < len(self._table):
            self._table = {key: principal for key, principal in self._table.items() if principal in known}
            self._tell_keeper()
            self._links.end_all_but(known)

    def _tell_keeper(self) -> None:
        self._keeper.replace(dict.fromkeys(self._table, (READER, READER)))

    def publish(self, lease: int, frames: Sequence[Frame]) -> None:
        """Send items of this stream to its reader, as far as there is room. It never waits."""
        send_frames(self.socket, [topic_frame(str(lease)), *frames])

    def close(self) -> None:
        """Close it. Harmless when done before."""
        if self.socket.closed:
            return
        self._loop.remove_source(self.socket)
        for timer in getattr(self, "_timers", ()):
            timer.cancel()
        self._unfinished.close()
        self.socket.close(linger=LINGER_MS)
        self._keeper.stop()

    # ------------------------------------------------------------ who comes and goes

    def _check(self) -> None:
        self._unfinished.meet()
        self._unfinished.check(self._loop.now)
        self.crowded += self._unfinished.thin_out(STRANGERS_MAX)

    def _watch_keeper(self) -> None:
        if not self._keeper.alive:
            _log.error("the duct is closed: the handler that checks keys has ended, so nobody gets in")
            for topic in [*self._readers]:
                self._gone(topic, all_of=True)
            self.close()

    def _read(self) -> None:
        self._unfinished.meet()
        for _ in range(TURN_MESSAGES):
            if self.socket.closed:
                return
            try:
                part = self.socket.recv(_DONTWAIT, copy=False)
            except zmq.Again:
                return
            frames = receive_rest(self.socket, part, 1)
            text = part.bytes
            topic, principal = text[1:], sender_of(part)
            if frames is not None:
                self._unfinished.heard(part, frames, principal)
            if frames is not None and text[:1] == b"\0":
                self.socket.setsockopt(zmq.UNSUBSCRIBE, topic)
                self._gone(topic, line_of(part))
            elif frames is None or text[:1] != b"\1" or not self._comes(part, topic, principal):
                self.refused += 1
                kick(part)

    def _comes(self, part: zmq.Frame, topic: bytes, principal: str) -> bool:
        """Whoever subscribes may do so, and did not before on this connection."""
        lease, reader = self._leases.get(topic, (0, ""))
        line = line_of(part)
        readers = self._readers.get(topic, set())
        if not reader or principal != reader or line is None or line in readers:
            return False
        if self._links.get(line) is None:
            self._links.sweep()
            self._links.note(line, principal, part)
        self.socket.setsockopt(zmq.SUBSCRIBE, topic)
        first = not readers  # else this client has dialled anew, and its old connection is about to end
        readers.add(line)
        self._readers[topic] = readers
        if first:
            self._on_seen(lease, True)
        return True

    def _gone(self, topic: bytes, line: Line | None = None, all_of: bool = False) -> None:
        """Some reader has left, or its connection has ended."""
        readers = self._readers.get(topic)
        if readers is None:
            return
        readers -= {one for one in readers if all_of or one == line or not is_up(one)}
        if not readers:
            del self._readers[topic]
            self._on_seen(self._leases[topic][0], False)
