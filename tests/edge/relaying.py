"""A relay of items on TCP, and whoever publishes to it and reads from it."""

from __future__ import annotations

from collections.abc import Callable

from zfarm.edge.items import ItemsReader, ItemsWriter
from zfarm.edge.relay import Relay
from zfarm.edge.security import Access, ServerKeys, fingerprint
from zfarm.edge.sockets import Context


def relay_on_tcp(context: Context, keys: ServerKeys) -> Relay:
    return Relay(context, "tcp://127.0.0.1:*", "tcp://127.0.0.1:*", keys.server)


def access(keys: ServerKeys, role: str) -> Access:
    return Access("", "", keys.server.public, keys.roles[role])


def writer_of(context: Context, address: str, keys: ServerKeys, role: str = "worker") -> ItemsWriter:
    return ItemsWriter(context, address, access(keys, role))


def reader_of(
    context: Context,
    relay: Relay,
    keys: ServerKeys,
    topic: str,
    role: str = "client",
    on_link: Callable[[bool], None] = lambda up: None,
) -> ItemsReader:
    return ItemsReader(context, relay.items_address, access(keys, role), topic, on_link)


def mine_of(keys: ServerKeys) -> str:
    """How the topics begin of whoever has the shared key of clients."""
    return f"client:client:{fingerprint(keys.roles['client'].public)}"
