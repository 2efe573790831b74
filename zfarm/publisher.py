"""Where a worker publishes items: at the relay of its broker, and over a duct, if it has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from zfarm.errors import ConfigurationError

if TYPE_CHECKING:
    from zfarm.edge.duct import Duct
    from zfarm.edge.items import ItemsWriter
    from zfarm.edge.loop import Loop
    from zfarm.edge.security import Access
    from zfarm.edge.sockets import Context
    from zfarm.messages import Items, Payload

__all__ = ["Publisher"]


class Publisher:
    """Where a worker publishes items, from when it first has some, and its duct."""

    def __init__(self, loop: Loop, context: Context, access: Access) -> None:
        self._loop = loop
        self._context = context
        self._access = access
        self._address = ""
        self._writer: ItemsWriter | None = None
        self._duct: Duct | None = None

    def open_duct(self, port: int, on_seen: Callable[[int, bool], None]) -> Duct:
        """Let clients dial this worker at ``port``. Raises ConfigurationError: that cannot be."""
        from zfarm.edge.duct import Duct

        if self._access.keys is None:
            raise ConfigurationError("--duct is for farms over TCP: on a local socket no file is encrypted")
        ipv6 = "[" in self._access.address
        self._duct = Duct(self._loop, self._context, port, ipv6, on_seen)
        return self._duct

    def admit(self, lease: int, key: str) -> None:
        """Whoever shows this key may have this stream over the duct."""
        if self._duct is not None:
            self._duct.admit(lease, key)

    def dismiss(self, lease: int) -> None:
        """Nobody may have it there any more."""
        if self._duct is not None:
            self._duct.dismiss(lease)

    def publish_direct(self, items: Items, payload: Payload) -> None:
        """Send these over the duct."""
        from zfarm.edge import wire

        if self._duct is not None:
            self._duct.publish(items.lease, wire.encode(items, payload))

    def welcome(self, said: str) -> None:
        """The broker has said where items are published; it may be another broker now."""
        from zfarm.edge.items import stream_address

        address = stream_address(self._access.address, said)
        if address != self._address:
            self._close_writer()
            self._address = address

    def publish(self, topic: str, items: Items, payload: Payload) -> bool:
        """Publish these; False: that cannot be done now."""
        from zfarm.edge import wire
        from zfarm.edge.items import ItemsWriter

        if self._writer is None and self._address:
            self._writer = writer = ItemsWriter(self._context, self._address, self._access)
            self._loop.add_source(writer.monitor, writer.watch_link, passive=True)
        if self._writer is None or not self._writer.up:
            return False
        self._writer.publish(topic, wire.encode(items, payload))
        return True

    def close(self) -> None:
        """Close the sockets that there are."""
        if self._duct is not None:
            self._duct.close()
        self._close_writer()

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._loop.remove_source(self._writer.monitor)
            self._writer.close()
            self._writer = None
