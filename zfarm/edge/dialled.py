"""The client's ends of ducts: what it has dialled, which streams it has there, and what comes; it decides
nothing.

A connection that ends is not made anew by the library: each is dialled once, on a socket of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Final

import zmq

from zfarm.edge import wire
from zfarm.edge.frames import FRAMES_MAX, receive_rest
from zfarm.edge.highest import Highest
from zfarm.edge.items import ITEM_FRAME_MAX, ITEMS_HELD, stream_address, topic_frame
from zfarm.edge.loop import Loop
from zfarm.edge.redial import UNKNOWN
from zfarm.edge.security import KeyPair
from zfarm.edge.sockets import Context, Socket, connect, new_socket
from zfarm.edge.wire import Frame
from zfarm.errors import ConfigurationError
from zfarm.messages import Items, Payload

__all__ = ["Dialled", "DuctReader"]

_DONTWAIT: Final = int(zmq.DONTWAIT)

_WATCHED: Final = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
)
"""Not that what came made no sense: to ask for that is dangerous (see redial.py)."""
_log: Final = logging.getLogger("zfarm")


class Dialled:
    """The client's ends of all its ducts."""

    def __init__(
        self,
        loop: Loop,
        context: Context,
        broker: str,
        keys: KeyPair,
        on_items: Callable[[str, Items, Payload], None],
        on_end: Callable[[str, bool, bool], None],
    ) -> None:
        """``broker`` is where that is, for workers on its host. ``on_items`` gets what comes over which duct,
        ``on_end`` which has ended, whether it was reached before, and whether nobody was expected there."""
        self._loop = loop
        self._context = context
        self._broker = broker
        self._keys = keys
        self._on_items = on_items
        self._on_end = on_end
        self._readers: dict[str, DuctReader] = {}
        self.received = 0
        """Bytes of items that came this way."""

    def dial(self, lease: int, duct: str) -> None:
        """Get this stream over that duct."""
        reader = self._readers.get(duct)
        if reader is None:
            said, key = duct.split(" ")
            where = f"{stream_address(self._broker, said)} {key}"
            try:
                reader = DuctReader(self._context, where, self._keys, partial(self._ended, duct))
            except (ConfigurationError, zmq.ZMQError) as error:  # or there is no descriptor left
                _log.warning("files come by way of the broker: %s", error)
                self._loop.call_soon(lambda: self._on_end(duct, False, False))
                return
            self._readers[duct] = reader
            self._loop.add_source(reader.socket, lambda: self._receive(duct))
            self._loop.add_source(reader.monitor, reader.watch_link, passive=True)
        reader.want(lease)

    def hang_up(self, lease: int, duct: str) -> None:
        """That stream is not wanted there any more, and where none is the line is cut."""
        reader = self._readers.get(duct)
        if reader is not None:
            reader.leave(lease)
            if not reader.leases:
                self._close(duct)

    def close(self) -> None:
        """Cut all lines."""
        for duct in list(self._readers):
            self._close(duct)

    def _receive(self, duct: str) -> None:
        for topic, frames in self._readers[duct].receive():
            try:
                message, payload = wire.published.decode(frames)
            except wire.Malformed as error:
                _log.warning("dropped what came over a duct and is no item: %s", error)
                continue
            if topic == topic_frame(str(message.lease)):
                self.received += sum(map(len, payload))
                self._on_items(duct, message, payload)

    def _ended(self, duct: str, reached: bool, refused: bool) -> None:
        reader = self._readers.get(duct)
        if reader is not None:
            self._receive(duct)  # what came before
            self._close(duct)
            self._on_end(duct, reached, refused)

    def _close(self, duct: str) -> None:
        reader = self._readers.pop(duct)
        self._loop.remove_source(reader.monitor)
        self._loop.remove_source(reader.socket)
        reader.close()


class DuctReader:
    """The client's end: a socket that dials one worker, once."""

    def __init__(
        self, context: Context, duct: str, keys: KeyPair, on_end: Callable[[bool, bool], None]
    ) -> None:
        """Dial ``duct``, as the broker has told it. ``on_end`` hears once, in ``watch_link``, that it has
        ended, whether it was reached before, and whether our key was not expected. Raises
        ConfigurationError."""
        self.address, server = duct.split(" ")
        self.reached = False  # the worker answered, be it that nobody is expected any more
        self.leases: set[int] = set()
        """The streams that are had here."""
        self._on_end = on_end
        self._highest = Highest()
        self.socket: Socket = new_socket(context, zmq.SUB, self.address, ITEM_FRAME_MAX, held=ITEMS_HELD)
        try:
            self.monitor: Socket = self.socket.get_monitor_socket(_WATCHED)
        except BaseException:
            self.socket.close(linger=0)
            raise
        try:
            connect(self.socket, self.address, server, keys, once=True)
        except BaseException:
            self.close()
            raise

    def want(self, lease: int) -> None:
        """Get this stream."""
        self.leases.add(lease)
        self.socket.setsockopt(zmq.SUBSCRIBE, topic_frame(str(lease)))

    def leave(self, lease: int) -> None:
        """Get it no more."""
        self.leases.discard(lease)
        self.socket.setsockopt(zmq.UNSUBSCRIBE, topic_frame(str(lease)))

    def receive(self, limit: int = 50) -> list[tuple[bytes, list[Frame]]]:
        """Up to ``limit`` messages that have arrived, by their topics."""
        got: list[tuple[bytes, list[Frame]]] = []
        for _ in range(limit):
            try:
                part = self.socket.recv(_DONTWAIT, copy=False)
            except zmq.Again:
                break
            frames = receive_rest(self.socket, part, FRAMES_MAX)
            if frames is not None and len(frames) > 1:
                got.append((part.bytes, frames[1:]))
                for frame in frames:
                    self._highest.note(frame)
        return got

    def watch_link(self) -> None:
        """Read the socket's monitor; the handler for ``Loop.add_source(it.monitor, ...)``."""
        while not self.monitor.closed and int(self.monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            head, _ = self.monitor.recv_multipart(_DONTWAIT)
            what = int.from_bytes(head[:2], "little")
            self.reached |= what in (zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_HANDSHAKE_FAILED_AUTH)
            if what != zmq.EVENT_HANDSHAKE_SUCCEEDED:
                unknown = int.from_bytes(head[2:6], "little") == UNKNOWN
                self._on_end(self.reached, what == zmq.EVENT_HANDSHAKE_FAILED_AUTH and unknown)
                return

    def close(self) -> None:
        """Close both. Harmless when done before."""
        if not self.socket.closed:
            self.socket.disable_monitor()
            self.monitor.close(linger=0)
            self.socket.close(linger=0)
