"""The broker's side of functions that a client names: what it has sent before, and what it must send again.

A name holds for the client that has sent the function, and for nobody else; and that it is the digest of what
was sent is verified here, once, so that workers can trust it whoever's calls they run.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from zfarm.core.named import digest_of

if TYPE_CHECKING:
    from zfarm.core.books import ClientRecord, Function
    from zfarm.core.reception import Reception
    from zfarm.messages import Payload, Submit

__all__ = ["functions_of", "make_room"]

NAMES_MAX: Final = 256
"""Functions that one client can name."""


def functions_of(
    broker: Reception, client: ClientRecord, message: Submit, payload: Payload
) -> list[Function | None] | None:
    """The functions of a Submit, None in place of those that the client must send (again), and has been told
    so. None alone: one has another digest than it says, and nothing was changed."""
    digests = message.digests
    if not digests:
        intern = broker.functions.intern
        return [intern(bytes(payload[i]), name) for i, name in enumerate(message.names)]
    for digest, body in zip(digests, payload, strict=False):
        if digest and len(body) and digest not in client.names and digest_of(body) != digest:
            return None
    functions = [
        _named(broker, client, digest, bytes(body), name)
        if digest
        else broker.functions.intern(bytes(body), name)
        for digest, body, name in zip(digests, payload, message.names, strict=False)
    ]
    _forget(broker, client)
    return functions


def _named(broker: Reception, client: ClientRecord, digest: bytes, body: bytes, name: str) -> Function | None:
    known = client.names.get(digest)
    if known is not None:
        client.names.move_to_end(digest)
        return known if known.name == name else broker.functions.intern(known.blob, name, digest)
    if not body:
        client.lacks.append(digest)
        return None
    function = broker.functions.intern(body, name, digest)
    broker.accounts.name(client, function)
    return function


def _forget(broker: Reception, client: ClientRecord) -> None:
    """Keep what was named last."""
    most = broker.limits.named_kept_bytes
    while len(client.names) > 1 and (client.named_bytes > most or len(client.names) > NAMES_MAX):
        broker.unname(client, [next(iter(client.names))])


def make_room(broker: Reception, client: ClientRecord, wanted: Collection[bytes] = ()) -> bool:
    """Forget the functions that no task needs now, but those that are ``wanted``; whether there were any. Of
    other clients, too, if the broker as a whole is full."""
    full = broker.accounts.bytes >= broker.limits.broker_bytes_max
    sessions = broker.clients.values() if full else client.account.sessions.values()
    freed = False
    for one in sessions:
        idle = [
            digest
            for digest, function in one.names.items()
            if one.functions[function] == 1 and not (one is client and digest in wanted)
        ]
        broker.unname(one, idle)
        freed = freed or bool(idle)
    return freed
