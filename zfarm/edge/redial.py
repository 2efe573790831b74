"""The link of a socket that only listens to its broker: watched, and dialled anew where the library gives up.

The library connects again by itself, but not after it has read something that makes no sense, such as a byte
that was damaged on the way: at best it finds out when no heartbeat has come for long. It knows no message,
and tells nobody of keys that are refused: the control connection does, which goes to the same broker with the
same key.
"""

from __future__ import annotations

import random
import time
from math import inf
from typing import Final

import zmq

from zfarm.edge.security import KeyPair
from zfarm.edge.sockets import Socket, connect, dial_anew

__all__ = ["REDIAL_S", "STUCK_S", "Redial"]

REDIAL_S: Final = (0.1, 1.0)
"""How long to wait, at least and at most, before dialling anew where the library has given up."""
STUCK_S: Final = (3.0, 8.0)
"""How long, at least and at most, the library may take to connect again before we dial anew."""

_DONTWAIT: Final = int(zmq.DONTWAIT)
_WATCHED: Final = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_DISCONNECTED


class Redial:
    """Keeps one socket connected to one address."""

    def __init__(self, socket: Socket, address: str, server: str, keys: KeyPair | None) -> None:
        """Watch ``socket``, which is to be connected to ``address`` by ``dial``."""
        self.up = False
        self._socket = socket
        self._place = address, server, keys
        self._due = inf
        self.monitor: Socket = socket.get_monitor_socket(_WATCHED)

    def dial(self) -> None:
        """Connect, for the first time. Raises ConfigurationError: the address cannot be used."""
        connect(self._socket, *self._place)

    def watch_link(self) -> None:
        """Read the socket's monitor; the handler for ``Loop.add_source(it.monitor, ...)``."""
        while int(self.monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            head, _ = self.monitor.recv_multipart(_DONTWAIT)
            what = int.from_bytes(head[:2], "little")
            if what == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.up, self._due = True, inf
            elif what == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                self._due = time.monotonic() + random.uniform(*REDIAL_S)
            elif self.up:
                self.up = False
                self._due = time.monotonic() + random.uniform(*STUCK_S)  # unless the library is faster

    def flush(self) -> float:
        """Dial anew when it is time; seconds until then. For ``Loop.add_flusher``."""
        if self._due == inf:
            return inf
        left_s = self._due - time.monotonic()
        if left_s > 0:
            return left_s
        self._due = inf
        dial_anew(self._socket, self._place[0])
        return inf

    def close(self) -> None:
        """Watch no more; to be called before the socket is closed. Harmless when done before."""
        if not self.monitor.closed:
            self._socket.disable_monitor()
            self.monitor.close(linger=0)
