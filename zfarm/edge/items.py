"""The sockets on which items of streams are published and received; both may lose some, and know no stream.

Each tells whether its connection is up: while it is not, items take the way of all messages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import zmq

from zfarm.edge.frames import FRAMES_MAX, OVERHEAD, receive_rest, send_frames
from zfarm.edge.security import Access, parse_tcp
from zfarm.edge.sockets import Context, Socket, connect, new_socket
from zfarm.edge.wire import Frame
from zfarm.settings import settings

__all__ = [
    "ITEMS_HELD",
    "ITEM_FRAME_MAX",
    "ItemsReader",
    "ItemsWriter",
    "duct_of",
    "stream_address",
    "topic_frame",
]

ITEMS_HELD: Final = 512
"""Messages of items that wait for one connection in each direction; what is beyond is lost, and fetched."""
ITEM_FRAME_MAX: Final = settings.batch_bytes_max + OVERHEAD

_DONTWAIT: Final = int(zmq.DONTWAIT)


def stream_address(control: str, said: str) -> str:
    """Where to connect for items: what a broker at ``control`` has ``said``, an address or a port."""
    if not said.startswith(":"):
        return said
    return f"tcp://{parse_tcp(control)[0]}{said}"


def duct_of(host: str, said: str) -> str:
    """Where clients dial a worker that comes from ``host`` and has ``said`` :PORT and a key. A worker chooses
    no host, so it can make nobody dial anybody else; one on the broker's own host is had where the broker is.
    Empty: nowhere, as it is not known, or known on the broker's own network alone.
    """
    if not host or host.lower().startswith("fe80:"):
        return ""
    if host.startswith("127.") or host in ("::1", "::ffff:127.0.0.1"):
        return said
    host = host.removeprefix("::ffff:")
    return f"tcp://[{host}]{said}" if ":" in host else f"tcp://{host}{said}"


def topic_frame(topic: str) -> bytes:
    """A topic on the wire. Its end is marked: the start of one is not another."""
    return topic.encode() + b"\0"


class _Watched:
    """A socket that connects, and its monitor."""

    _linger_ms = 0

    def __init__(
        self, context: Context, kind: int, address: str, access: Access, on_link: Callable[[bool], None]
    ) -> None:
        self.address = address
        self.up = False
        self._on_link = on_link
        self.socket: Socket = new_socket(context, kind, address, ITEM_FRAME_MAX, held=ITEMS_HELD)
        self.monitor: Socket = self.socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        try:
            self._prepare()
            connect(self.socket, address, access.server, access.keys)
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        """Set what must be set before it connects."""

    def watch_link(self) -> None:
        """Read the socket's monitor; the handler for ``Loop.add_source(it.monitor, ...)``."""
        while int(self.monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            head, _ = self.monitor.recv_multipart(_DONTWAIT)
            up = int.from_bytes(head[:2], "little") == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if up is not self.up:
                self.up = up
                self._on_link(up)

    def close(self) -> None:
        """Close both. Harmless when done before."""
        if not self.socket.closed:
            self.socket.disable_monitor()
            self.monitor.close(linger=0)
            self.socket.close(linger=self._linger_ms)


class ItemsWriter(_Watched):
    """Where a worker publishes items. It never waits."""

    _linger_ms = 200
    """Once it is closed. Without, the library (4.3.5) aborts when it has taken some parts of a message, and
    not the rest, and the other end hangs up in this very moment."""

    def __init__(self, context: Context, address: str, access: Access) -> None:
        """Connect to the relay at ``address`` with the keys of ``access``. Raises ConfigurationError."""
        super().__init__(context, zmq.PUB, address, access, lambda up: None)

    def publish(self, topic: str, frames: Sequence[Frame]) -> None:
        """Send to whoever has subscribed to ``topic``, as far as there is room."""
        send_frames(self.socket, [topic_frame(topic), *frames])


class ItemsReader(_Watched):
    """Where a client receives the items of its tasks."""

    def __init__(
        self, context: Context, address: str, access: Access, topic: str, on_link: Callable[[bool], None]
    ) -> None:
        """Subscribe to ``topic`` at the relay at ``address``; ``on_link`` hears, in ``watch_link``, whether
        items can come. Raises ConfigurationError."""
        self.topic = topic
        super().__init__(context, zmq.SUB, address, access, on_link)

    def _prepare(self) -> None:
        self.socket.setsockopt(zmq.SUBSCRIBE, topic_frame(self.topic))

    def receive(self, limit: int = 50) -> list[list[Frame]]:
        """Up to ``limit`` messages that have arrived, without their topic."""
        got: list[list[Frame]] = []
        for _ in range(limit):
            try:
                part = self.socket.recv(_DONTWAIT, copy=False)
            except zmq.Again:
                break
            frames = receive_rest(self.socket, part, FRAMES_MAX)
            if frames is not None and len(frames) > 1:
                got.append(frames[1:])
        return got
