"""ZeroMQ contexts and sockets with every option set as zfarm wants it; it knows no message and no port.

Nothing here relies on a default of the library: linger is 0 so that nothing hangs, no routing id is ever
chosen, sizes and handshakes have limits, and CURVE sockets refuse whoever the ZAP handler does not know.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import socket as sockets
from collections.abc import Iterator
from functools import cache
from typing import Any, Final, TypeAlias

import zmq

from zfarm.edge.security import KeyPair
from zfarm.errors import ConfigurationError
from zfarm.settings import settings

__all__ = [
    "IPC_PATH_MAX",
    "Line",
    "Socket",
    "bind",
    "close_context",
    "connect",
    "dial_anew",
    "disconnect",
    "far_end",
    "hang_up",
    "ipc_path",
    "is_up",
    "kick",
    "line_of",
    "new_context",
    "new_socket",
    "sender_of",
]

Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"
Socket: TypeAlias = "zmq.Socket[bytes]"

IPC_PATH_MAX: Final = 107
"""Bytes in the path of a local socket on Linux (103 on macOS, where the library itself says no)."""
VERSION_MIN: Final = (4, 3, 5)
"""Of libzmq: older ones have known holes."""
HEARTBEAT_MS: Final = 5_000
HEARTBEAT_TIMEOUT_MS: Final = 15_000
KEEPALIVE_S: Final = 5
KEEPALIVES_MAX: Final = 3
"""In how many pauses of that length nothing may come: as long as a heartbeat may take."""
BACKLOG: Final = 1024
MESSAGES_HELD: Final = 256
"""High-water mark in each direction: a turn sends one message per peer, so this many turns are in flight."""


def new_context() -> Context:
    """A context that closes without waiting for unsent messages; end it with close_context.

    Raises:
        ConfigurationError: the library is too old or was built without CURVE.
    """
    if zmq.zmq_version_info() < VERSION_MIN or not zmq.has("curve"):
        raise ConfigurationError(
            f"pyzmq {zmq.__version__} uses libzmq {zmq.zmq_version()}"
            f"{'' if zmq.has('curve') else ' without CURVE'}; zfarm needs 4.3.5 or later with CURVE: "
            "install pyzmq from a wheel (pip install --force-reinstall --only-binary :all: pyzmq)"
        )
    context: Context = zmq.Context()
    context.setsockopt(zmq.LINGER, 0)
    # after the context was made (which seeds it from the time) and before its first socket (which draws from
    # it): the ids that a ROUTER gives to peers start at a number that nobody can guess
    ctypes.CDLL(None).srand(ctypes.c_uint(int.from_bytes(os.urandom(4), "little")))
    return context


def close_context(context: Context) -> None:
    """Close every socket of ``context`` and end it; unsent messages are dropped."""
    context.destroy(linger=0)


def new_socket(context: Context, kind: int, address: str, size_max: int, held: int = MESSAGES_HELD) -> Socket:
    """A socket of ``kind`` for ``address`` with what all share; frames above ``size_max`` bytes stay out."""
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, held)
    socket.setsockopt(zmq.RCVHWM, held)
    socket.setsockopt(zmq.MAXMSGSIZE, size_max)
    socket.setsockopt(zmq.HANDSHAKE_IVL, max(1, int(settings.handshake_s * 1000)))
    socket.setsockopt(zmq.BACKLOG, BACKLOG)
    if address.startswith("tcp://") and "[" in address:
        socket.setsockopt(zmq.IPV6, 1)
    return socket


def _watch_peers(socket: Socket) -> None:
    """Have the kernel find out which of those who dialed are gone; a local peer that is gone is seen at once.

    They ping, and a ping that nothing follows ends their link, too. Who is dialed does not ping:
    the library (4.3.5) aborts the process if it wants to ping on a link that has died while reading from it
    was paused since RCVHWM messages waited.
    """
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, KEEPALIVES_MAX)


def _ping(socket: Socket) -> None:
    """Find out whether the broker is there, also behind a network that swallows everything.

    Reading must never pause then (see above): what the broker sends is bounded by what it was asked for.
    """
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)


def bind(socket: Socket, address: str, keys: KeyPair | None, domain: str) -> str:
    """Bind as a CURVE server with ``keys``, its peers judged by ZAP under ``domain``; the address it got.

    Raises:
        ConfigurationError: the address cannot be bound; or it is TCP and there are no keys.
    """
    if keys is not None:
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
        socket.setsockopt(zmq.ZAP_DOMAIN, domain.encode())
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without a handler nobody gets in, instead of everybody
    elif not address.startswith(("ipc://", "inproc://")):
        raise ConfigurationError(f"{address} needs keys: only local sockets work without")
    ipc_path(address)
    if address.startswith("tcp://"):
        _watch_peers(socket)
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise ConfigurationError(
            f"cannot listen on {address}: {error.strerror}{_remedy(error.errno)}"
        ) from None
    bound = socket.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(bound, bytes)
    return bound.rstrip(b"\0").decode()


def _remedy(number: int | None) -> str:
    if number == errno.EADDRINUSE:
        return "; another program listens there: stop it or choose another port"
    if number in (errno.ENODEV, errno.EADDRNOTAVAIL):
        return "; no interface of this host has that address: use one that has, or 0.0.0.0 for all"
    if number == errno.EACCES:
        return "; ports below 1024 are for root: choose a higher one"
    return ""


def connect(socket: Socket, address: str, server: str, keys: KeyPair | None, once: bool = False) -> None:
    """Connect, for the first time, as a CURVE client with ``keys`` to the broker with the key ``server``;
    with ``once`` the library does not try again whatever happens.

    Raises:
        ConfigurationError: the address cannot be used; or it is TCP and there are no keys.
    """
    assert not socket.getsockopt(zmq.LAST_ENDPOINT), "options are set once: see dial_anew"
    if keys is not None:
        socket.setsockopt(zmq.CURVE_SERVERKEY, server.encode())
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
    elif not address.startswith(("ipc://", "inproc://")):
        raise ConfigurationError(f"{address} needs keys: only local sockets work without")
    ipc_path(address)
    if address.startswith("tcp://"):
        _ping(socket)
    first_ms, most_ms = _retry_ms(os.getpid(), address.startswith("ipc://"))
    socket.setsockopt(zmq.RECONNECT_IVL, -1 if once else first_ms)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 0 if once else most_ms)
    if once:
        socket.setsockopt(zmq.CONNECT_TIMEOUT, max(1, int(settings.handshake_s * 1000)))
    _dial(socket, address)


def dial_anew(socket: Socket, address: str) -> None:
    """Give up the library's connection to ``address``, which may not try any more, for a new one.

    No option is set again: RCVHWM or SNDHWM of a socket whose old connection has not ended altogether crashes
    the library (4.3.5), which tells the other half of that connection of it, though it is freed already.

    Raises:
        ConfigurationError: the address cannot be used.
    """
    disconnect(socket, address)
    _dial(socket, address)


def disconnect(socket: Socket, address: str) -> None:
    """Disconnect from ``address``. Harmless when the library has given it up itself."""
    with contextlib.suppress(zmq.ZMQError):
        socket.disconnect(address)


def _dial(socket: Socket, address: str) -> None:
    try:
        socket.connect(address)
    except zmq.ZMQError as error:
        raise ConfigurationError(f"cannot connect to {address!r}: {error.strerror}") from None


@cache
def _retry_ms(pid: int, local: bool) -> tuple[int, int]:
    """First and longest pause between attempts, of this process: a fleet must not knock in step."""
    rng = random.SystemRandom()
    if local:
        return rng.randint(20, 50), rng.randint(200, 400)
    return rng.randint(100, 1000), rng.randint(5_000, 15_000)


def ipc_path(address: str) -> str | None:
    """The path in an ipc address, None for other addresses.

    Raises:
        ConfigurationError: the path is longer than a local socket's name may be.
    """
    if not address.startswith("ipc://"):
        return None
    path = address.removeprefix("ipc://")
    if len(os.fsencode(path)) > IPC_PATH_MAX:
        raise ConfigurationError(
            f"the path of the local socket {path} has {len(os.fsencode(path))} bytes, at most {IPC_PATH_MAX} "
            "are possible: set XDG_RUNTIME_DIR or TMPDIR to a shorter directory"
        )
    return path


def kick(frame: zmq.Frame) -> bool:
    """Disconnect the peer that ``frame`` came from just now; False when that cannot be done any more.

    The descriptor may have been given to another connection since: the peer's address must still fit.
    """
    try:
        with _borrowed(int(frame.get(zmq.SRCFD))) as link:
            if link.family != sockets.AF_UNIX and str(frame.get("Peer-Address")) != link.getpeername()[0]:
                return False
            link.shutdown(sockets.SHUT_RDWR)
    except (zmq.ZMQError, OSError):
        return False
    return True


@contextlib.contextmanager
def _borrowed(fd: int) -> Iterator[sockets.socket]:
    """A second handle on the connection behind ``fd``. Raises OSError: it is none any more."""
    try:
        own = os.dup(fd)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        own = fd  # those who connected have taken all there are, and can be ended all the same
    try:
        link = sockets.socket(fileno=own)
    except OSError:  # the library has closed it, and the number names something else by now
        if own != fd:
            os.close(own)
        raise
    try:
        yield link
    finally:
        if own == fd:
            link.detach()
        link.close()


def sender_of(part: zmq.Frame) -> str:
    """The principal that ``part`` came from, as the ZAP handler named it; empty: nobody that it knows."""
    try:
        return str(part.get("User-Id"))
    except zmq.ZMQError:
        return ""


# ---------------------------------------------------------------- connections that are kept in mind

Line: TypeAlias = "tuple[int, Any]"
"""A connection: its descriptor, and the far end's address with its port, so that a descriptor which was
given to another connection since is not mistaken for it."""


def line_of(part: zmq.Frame) -> Line | None:
    """The connection on which ``part`` has just come; None when it is gone already."""
    try:
        fd = int(part.get(zmq.SRCFD))
        name = far_end(fd)
        return (fd, name) if str(part.get("Peer-Address")) == name[0] else None
    except (zmq.ZMQError, OSError):
        return None


def far_end(fd: int) -> Any:
    """The address of the other side of the connection behind ``fd``. Raises OSError: there is none."""
    with _borrowed(fd) as link:
        return link.getpeername()


def is_up(line: Line) -> bool:
    """Whether this connection is still there."""
    try:
        return bool(far_end(line[0]) == line[1])
    except OSError:
        return False


def hang_up(line: Line) -> bool:
    """Disconnect; False when it is gone already."""
    try:
        with _borrowed(line[0]) as link:
            if link.getpeername() != line[1]:
                return False
            link.shutdown(sockets.SHUT_RDWR)
    except OSError:
        return False
    return True
