"""The link of a socket that has dialled its broker: watched, and dialled anew where the library gives up.

The library connects again by itself, but not after it has read something that makes no sense, such as a byte
that was damaged on the way. It knows no message.

A link that ends is told by one event, and that the library will try again by another, right after it. Where
the second does not come, it has given up. There is an event that names a breach of protocol, but to ask for
it is dangerous: to tell it the library (4.3.5) overwrites the reason for which it was about to hang up. It
then does not, reads no more, and aborts the process if the other side hangs up before us and a ping is due.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from math import inf
from typing import Final

import zmq

from zfarm.edge.security import KeyPair
from zfarm.edge.sockets import Socket, connect, dial_anew, disconnect

__all__ = ["NO_PROTOCOL", "REDIAL_S", "STUCK_S", "UNJUDGED", "UNKNOWN", "Redial"]

REDIAL_S: Final = (0.1, 1.0)
"""How long to wait, at least and at most, before dialling anew where the library has given up."""
STUCK_S: Final = (3.0, 8.0)
"""How long, at least and at most, the library may take to connect again before we dial anew."""

UNKNOWN: Final = 400
"""Why a handshake failed: the broker does not know the key. No use to dial anew with it."""
UNJUDGED: Final = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
"""Why a handshake failed: nobody says. The library tries again."""
NO_PROTOCOL: Final = int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
"""Why a handshake failed: what came was not what belongs there."""

_DONTWAIT: Final = int(zmq.DONTWAIT)
_POLLIN: Final = int(zmq.POLLIN)
_WATCHED: Final = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
)


class Redial:
    """Keeps one socket connected to one address."""

    def __init__(
        self,
        socket: Socket,
        address: str,
        server: str,
        keys: KeyPair | None,
        on_link: Callable[[bool], None] = lambda up: None,
        on_failure: Callable[[int], None] = lambda why: None,
    ) -> None:
        """Watch ``socket``, which is to be connected to ``address`` by ``dial``.

        Within ``watch_link`` and ``flush``, ``on_link`` is called when the link has come up or gone down, and
        ``on_failure`` when a handshake has failed: with UNKNOWN, UNJUDGED, NO_PROTOCOL, or the status that
        the broker gave instead of a judgement.
        """
        self.up = False
        self._socket = socket
        self._place = address, server, keys
        self._on_link = on_link
        self._on_failure = on_failure
        self._due = self._stuck_at = inf
        self._left = False  # by the library, unless it says now that it tries again
        self._shaking = False  # it ended in the handshake, and nobody has said why
        self._told = False  # why the handshake failed
        self._unknown = False
        self._given_up = False  # by us: what is told until it is dialled anew is of the link that was
        self.monitor: Socket = socket.get_monitor_socket(_WATCHED)

    def dial(self) -> None:
        """Connect, for the first time. Raises ConfigurationError: the address cannot be used."""
        connect(self._socket, *self._place)

    def hang_up(self) -> None:
        """Give the link up, with all that is on its way, and dial anew a little later."""
        disconnect(self._socket, self._place[0])
        self._given_up, self._left = True, False
        self._due = time.monotonic() + random.uniform(*REDIAL_S)
        self._down()

    def watch_link(self) -> None:
        """Read the socket's monitor; the handler for ``Loop.add_source(it.monitor, ...)``."""
        while not self.monitor.closed and int(self.monitor.getsockopt(zmq.EVENTS)) & _POLLIN:
            head, _ = self.monitor.recv_multipart(_DONTWAIT)
            self._note(int.from_bytes(head[:2], "little"), int.from_bytes(head[2:6], "little"))

    def _note(self, what: int, value: int) -> None:
        if self._given_up:
            return
        if what == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._due = self._stuck_at = inf
            self._left = self._told = self._unknown = False
            self.up = True
            self._on_link(True)
        elif what == zmq.EVENT_DISCONNECTED:
            self._shaking = not self.up and not self._told
            self._left, self._told = True, False
            if not self._unknown:
                self._due = time.monotonic() + random.uniform(*REDIAL_S)
            self._down()
        elif what == zmq.EVENT_CONNECT_RETRIED:
            if self._left:
                self._left, self._due = False, self._stuck_at
        else:
            self._told = True
            self._unknown = what == zmq.EVENT_HANDSHAKE_FAILED_AUTH and value == UNKNOWN
            self._on_failure(UNJUDGED if what == UNJUDGED else value)

    def _down(self) -> None:
        if self.up:
            self.up = False
            self._stuck_at = time.monotonic() + random.uniform(*STUCK_S)  # unless the library is faster
            self._on_link(False)

    def flush(self) -> float:
        """Dial anew when it is time; seconds until then. For ``Loop.add_flusher``."""
        left_s = inf if self._due == inf else self._due - time.monotonic()
        if left_s > 0:
            return left_s
        self.watch_link()  # it may have come up just now
        if self._due > time.monotonic() or self.monitor.closed:
            return 0.0
        self._due = self._stuck_at = inf
        self._given_up = False
        dial_anew(self._socket, self._place[0])
        if self._left:
            self._left = False
            if self._shaking:
                self._on_failure(NO_PROTOCOL)
        return inf

    def close(self) -> None:
        """Watch no more; to be called before the socket is closed. Harmless when done before."""
        if not self.monitor.closed:
            self._socket.disable_monitor()
            self.monitor.close(linger=0)
