"""The doors of a broker: a control socket for each role, and where each of them is; it knows no message.

Each door has a ZAP domain of its own, in which one role is let in: whatever a key may not do, it cannot even
say. Two sockets may give the same routing id, so a peer's name begins with a byte that tells its door.
A door stands one, two or three ports after the clients', unless it is named or was elsewhere before.
"""

from __future__ import annotations

import logging
import socket as sockets
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from math import inf
from typing import Final

from zfarm.edge.ports import Received, RouterPort
from zfarm.edge.security import (
    ADMIN,
    CLIENT,
    DOORS,
    MONITOR,
    ROLES,
    WORKER,
    Connection,
    KeyPair,
    Role,
    parse_tcp,
)
from zfarm.edge.sockets import Context
from zfarm.edge.wire import Frame
from zfarm.errors import ConfigurationError

__all__ = ["EMITS_ASIDE", "ITEMS_ASIDE", "NOTES_ASIDE", "Doors", "beside", "dialable", "from_here", "plan"]

_MARKS: Final[Mapping[Role, bytes]] = {CLIENT: b"c", WORKER: b"w", ADMIN: b"a", MONITOR: b"m"}
"""What the names of peers at a door begin with."""
_PORT_MAX: Final = 65535
_ASIDE: Final[Mapping[Role, int]] = {CLIENT: 0, WORKER: 1, ADMIN: 2, MONITOR: 3}
"""How many ports after the clients' door a door stands. A firewall opens them in a row, with those below."""
NOTES_ASIDE: Final = 4
EMITS_ASIDE: Final = 5
ITEMS_ASIDE: Final = 6
"""The same of what is no door: notes, and the streams of workers and to clients."""
_WILDCARDS: Final[Mapping[str, str]] = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
"""Hosts that stand for all addresses of this one, and the one at which it reaches itself."""
_LOCAL_MARK: Final = b"l"
"""The same on a local socket: there a peer may choose its own routing id, which begins with anything."""

log: Final = logging.getLogger("zfarm.broker")


class Doors:
    """All control sockets of a broker, as one."""

    def __init__(
        self,
        context: Context,
        addresses: str | Mapping[Role, Sequence[str]],
        keys: KeyPair | None = None,
        on_lost: Callable[[bytes], None] = lambda peer: None,
    ) -> None:
        """Listen on one local address for whoever comes, or with the broker's ``keys`` on those of each role.

        ``on_lost`` is called, within ``send`` or ``flush``, with a peer whose connection is gone.

        Raises:
            ConfigurationError: one cannot be bound, is in use, or lacks keys.
        """
        self.ports: list[RouterPort] = []
        """One for each door."""
        self._of: dict[int, RouterPort] = {}  # by the first byte of a peer's name
        try:
            if isinstance(addresses, str):
                port = RouterPort(context, addresses, keys, on_lost, mark=_LOCAL_MARK)
                self._add(_LOCAL_MARK[0], port)
            else:
                for role, where in addresses.items():
                    self._open(context, role, where, keys, on_lost)
        except BaseException:
            self.close()
            raise

    def _add(self, mark: int, port: RouterPort) -> None:
        self.ports.append(port)
        self._of[mark] = port

    def _open(
        self,
        context: Context,
        role: Role,
        where: Sequence[str],
        keys: KeyPair | None,
        on_lost: Callable[[bytes], None],
    ) -> None:
        mark = _MARKS[role]
        try:
            port = RouterPort(context, where[0], keys, on_lost, DOORS[role], mark, len(_MARKS))
            self._add(mark[0], port)
            for more in where[1:]:
                port.listen(more)
        except ConfigurationError as error:
            if role == CLIENT:
                raise
            raise ConfigurationError(
                f"the door of {role}s: {error}, or name another place with --{role}-bind tcp://HOST:PORT"
            ) from None

    @property
    def addresses(self) -> dict[Role, list[str]]:
        """Where each role's door was bound."""
        return {role: self._of[mark[0]].addresses for role, mark in _MARKS.items() if mark[0] in self._of}

    @property
    def refused(self) -> int:
        """Messages thrown away since their form or sender was not as it must be."""
        return sum(port.refused for port in self.ports)

    @property
    def kicked(self) -> int:
        """Connections ended since too much was wrong with their messages."""
        return sum(port.kicked for port in self.ports)

    @property
    def crowded(self) -> int:
        """Connections ended since their key had as many as it may."""
        return sum(port.crowded for port in self.ports)

    @property
    def dropped(self) -> int:
        """Messages lost since a peer's outbox was full."""
        return sum(port.dropped for port in self.ports)

    @property
    def unfinished(self) -> int:
        """Connections ended since a message on them did not end."""
        return sum(port.unfinished.ended for port in self.ports)

    @property
    def mute(self) -> int:
        """Connections ended since nothing was said on them."""
        return sum(port.unfinished.mute for port in self.ports)

    @property
    def watched(self) -> bool:
        """Whether there is anything for ``check_unfinished`` to do."""
        return any(port.secure for port in self.ports)

    def tell_coming(self, on_coming: Callable[[bytes], None]) -> None:
        """Call this, within ``check_unfinished``, with each peer of which a large message goes on to come."""
        for port in self.ports:
            port.on_coming = on_coming

    def check_unfinished(self, now: float) -> None:
        """As RouterPort.check, of all doors."""
        for port in self.ports:
            port.check(now)

    def send(self, peer: bytes, frames: Sequence[Frame]) -> None:
        """As RouterPort.send, at the peer's own door."""
        self._of[peer[0]].send(peer, frames)

    def host_of(self, peer: Hashable) -> str:
        """As of its port; of a peer in this very process nothing is known."""
        return self._of[peer[0]].host_of(peer) if isinstance(peer, bytes) else ""

    def fault(self, peer: bytes) -> bool:
        """As RouterPort.fault."""
        return self._of[peer[0]].fault(peer)

    def forget(self, peer: bytes) -> None:
        """As RouterPort.forget."""
        self._of[peer[0]].forget(peer)

    def flush(self) -> float:
        """As RouterPort.flush, of all doors."""
        soonest = inf
        for port in self.ports:
            soonest = min(soonest, port.flush())
        return soonest

    def sweep(self) -> None:
        """As RouterPort.sweep, of all doors."""
        for port in self.ports:
            port.sweep()

    def expel(self, known: Container[str]) -> int:
        """As RouterPort.expel, of all doors."""
        return sum(port.expel(known) for port in self.ports)

    def receive(self, limit: int = 200) -> list[Received]:
        """Up to ``limit`` messages of each door."""
        return [got for port in self.ports for got in port.receive(limit)]

    def close(self) -> None:
        """Close all. Harmless when done before."""
        for port in self.ports:
            port.close()


# ---------------------------------------------------------------- where they are


def dialable(address: str) -> str:
    """The address that others dial when ``address`` was bound: a wildcard stands for this host's name."""
    host, port = parse_tcp(address)
    return f"tcp://{sockets.gethostname() if host in _WILDCARDS else host}:{port}"


def from_here(address: str) -> str:
    """The address at which this very host reaches what is bound to ``address``."""
    host, port = parse_tcp(address)
    return f"tcp://{_WILDCARDS.get(host, host)}:{port}"


def beside(bind: str, aside: int, doors: Mapping[Role, Sequence[str]]) -> str:
    """The address so many ports after ``bind``; at any free port if that one is taken or to be one of the
    ``doors``, or if ``bind`` is at any. It is for what peers are told the address of, and can do without.
    """
    host, port = parse_tcp(bind)
    wanted = port + aside
    taken = {parse_tcp(address)[1] for where in doors.values() for address in where}
    if port and wanted <= _PORT_MAX and wanted not in taken and _is_free(host, wanted):
        return f"tcp://{host}:{wanted}"
    return f"tcp://{host}:*"


def _is_free(host: str, port: int) -> bool:
    family = sockets.AF_INET6 if host.startswith("[") else sockets.AF_INET
    try:
        sockets.create_server(("" if host == "*" else host.strip("[]"), port), family=family).close()
    except OSError as error:
        log.warning("port %d of %s cannot be had: %s; a free one is taken", port, host, error.strerror)
        return False
    return True


def plan(
    binds: Sequence[str], named: Mapping[Role, Sequence[str]], before: Connection | None
) -> dict[Role, list[str]]:
    """Where to bind each door of a broker whose clients come to ``binds``.

    A door that is ``named`` is there. Else, if clients came to the same places ``before``, it is where it was
    then, so that its peers find it; else as many ports after each of ``binds`` as its role says, and at any
    free port beside one that is any free port.

    Raises:
        ConfigurationError: two doors would be at one place, or there is no such port.
    """
    here = [parse_tcp(bind)[1] for bind in binds]  # a host may have been named in another way
    same = before is not None and here == [parse_tcp(one)[1] for one in before.addresses.get(CLIENT, ())]
    planned: dict[Role, list[str]] = {}
    for role in ROLES:
        old = before.addresses.get(role, ()) if same and before is not None else ()
        if role == CLIENT:
            planned[role] = list(binds)
        elif named.get(role):
            planned[role] = list(named[role])
        elif len(old) == len(binds):
            ports = [parse_tcp(address)[1] for address in old]
            planned[role] = [
                f"tcp://{parse_tcp(bind)[0]}:{port}" for bind, port in zip(binds, ports, strict=True)
            ]
        else:
            planned[role] = [_aside(bind, role) for bind in binds]
    taken: dict[tuple[str, int], Role] = {}
    for role, addresses in planned.items():
        for address in addresses:
            place = parse_tcp(address)
            if place[1] and place in taken:
                other = role if role != CLIENT else taken[place]
                raise ConfigurationError(
                    f"{address} would be the door of {taken[place]}s and of {role}s: "
                    f"name another place with --{other}-bind tcp://HOST:PORT"
                )
            taken[place] = role
    return planned


def _aside(bind: str, role: Role) -> str:
    host, port = parse_tcp(bind)
    if port and port + _ASIDE[role] > _PORT_MAX:
        raise ConfigurationError(
            f"there is no port for {role}s {_ASIDE[role]} after {bind}: name one with "
            f"--{role}-bind tcp://HOST:PORT"
        )
    return f"tcp://{host}:{port + _ASIDE[role] if port else 0}"
