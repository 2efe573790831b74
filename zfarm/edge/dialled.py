"""The ducts that a client has dialled: which streams it has there, and what comes; it decides nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from zfarm.edge import wire
from zfarm.edge.duct import DuctReader
from zfarm.edge.items import stream_address, topic_frame
from zfarm.edge.loop import Loop
from zfarm.edge.security import KeyPair
from zfarm.edge.sockets import Context
from zfarm.errors import ConfigurationError
from zfarm.messages import Items, Payload

__all__ = ["Dialled"]

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
        on_end: Callable[[str, bool], None],
    ) -> None:
        """``broker`` is where that is, for workers on its host. ``on_items`` gets what comes over which duct,
        ``on_end`` which has ended, and whether it was reached before."""
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
                reader = DuctReader(
                    self._context, where, self._keys, lambda reached: self._ended(duct, reached)
                )
            except ConfigurationError as error:
                _log.warning("files come by way of the broker: %s", error)
                self._loop.call_soon(lambda: self._on_end(duct, False))
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

    def _ended(self, duct: str, reached: bool) -> None:
        reader = self._readers.get(duct)
        if reader is not None:
            self._receive(duct)  # what came before
            self._close(duct)
            self._on_end(duct, reached)

    def _close(self, duct: str) -> None:
        reader = self._readers.pop(duct)
        self._loop.remove_source(reader.monitor)
        self._loop.remove_source(reader.socket)
        reader.close()
