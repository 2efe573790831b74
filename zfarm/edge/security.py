"""Keys, roles and connection files: who may speak to a broker, and where it is; it opens no socket.

A broker keeps two private files. ``NAME.keys`` holds its own secret and every role's key pair and never
leaves its host; it is used again when the broker is restarted, so that peers come back by themselves.
``NAME.json``, the connection file, is what clients and workers need; it is copied to their hosts.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar

import msgspec

from zfarm.edge.places import private_directory, read_private, refuse_secret, write_private
from zfarm.errors import ConfigurationError
from zfarm.messages import PROTOCOL

__all__ = [
    "ADMIN",
    "CLIENT",
    "DOORS",
    "LOCAL",
    "MONITOR",
    "ROLES",
    "WORKER",
    "Access",
    "Connection",
    "KeyPair",
    "Principal",
    "Role",
    "ServerKeys",
    "connection_path",
    "connections_directory",
    "fingerprint",
    "load_connection",
    "new_connection",
    "notes_of",
    "parse_address",
    "parse_tcp",
    "write_connection",
]

Role: TypeAlias = Literal["client", "worker", "admin", "monitor"]
CLIENT: Final = "client"
WORKER: Final = "worker"
ADMIN: Final = "admin"
MONITOR: Final = "monitor"
ROLES: Final[tuple[Role, ...]] = (CLIENT, WORKER, ADMIN, MONITOR)
DOORS: Final[Mapping[Role, str]] = {role: f"zfarm.{role}s" for role in ROLES}
"""The ZAP domain of each role's control socket, which lets in that role and no other."""
LOCAL: Final = "local"
"""The role of peers on a local socket: only its owner can reach it, and may be client and worker alike."""
CONNECTION_ROLES: Final[tuple[Role, ...]] = (CLIENT, WORKER, MONITOR)
"""Roles whose keys stand in a connection file; an admin's key stays with the broker's own keys."""
_STAND_INS: Final[Mapping[str, tuple[Role, ...]]] = {
    CLIENT: (CLIENT, ADMIN),
    MONITOR: (MONITOR, ADMIN, CLIENT),
}
"""Whose keys serve a role, the best first: an admin may do what a client and a monitor may, and a client may
look at what is its own."""
FORMAT: Final = 2
"""Of a connection file. Before there was one address for all roles."""
CONNECTION_ENV: Final = "ZFARM_CONNECTION_FILE"

_Z85: Final = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair in Z85 text. The secret is never part of its repr."""

    public: str
    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        if not _Z85.fullmatch(self.public) or not _Z85.fullmatch(self.secret):
            raise ValueError("a key is 40 characters of Z85")

    @classmethod
    def fresh(cls) -> KeyPair:
        """A new random key pair."""
        import zmq

        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())


def fingerprint(public: str) -> str:
    """A short name of a public key (in Z85 text) for logs, lists and principals."""
    from zmq.utils import z85

    return hashlib.sha256(z85.decode(public.encode())).hexdigest()[:16]


@dataclass(frozen=True)
class Principal:
    """Somebody with a key of their own, of which the broker has the public half."""

    name: str
    role: Role
    public: str
    created_at: int = 0  # seconds since 1970

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or not _Z85.fullmatch(self.public):
            raise ValueError("a principal has a name of at most 64 plain characters and a key of 40 of Z85")


@dataclass(frozen=True)
class ServerKeys:
    """What the broker alone has: its own key pair, those that it gave to the roles, and who else may come."""

    server: KeyPair
    roles: dict[str, KeyPair]
    principals: tuple[Principal, ...] = ()

    @classmethod
    def fresh(cls) -> ServerKeys:
        """New random keys for the broker and for every role."""
        return cls(KeyPair.fresh(), {role: KeyPair.fresh() for role in ROLES})

    @classmethod
    def load_or_create(cls, path: Path) -> ServerKeys:
        """The keys in the file ``path``, which is written if there is none.

        Raises:
            ConfigurationError: the file or its directory is not private, not ours, or not readable.
        """
        if not os.path.lexists(path):
            keys = cls.fresh()
            keys.save(path)
            return keys
        return cls.load(path)

    @classmethod
    def load(cls, path: Path) -> ServerKeys:
        """The keys in the file ``path``.

        Raises:
            ConfigurationError: there is none, or it is not private, not ours, or not readable.
        """
        keys = _decode(path, cls)
        if set(keys.roles) != set(ROLES):
            raise ConfigurationError(f"{path} lacks keys of some role: remove it, new ones will be made")
        return keys

    def save(self, path: Path) -> None:
        """Write them to the file ``path``, complete or not at all, readable by its owner only.

        Raises:
            ConfigurationError: the directory is writable by others or not ours.
        """
        write_private(path, msgspec.json.encode(self))


@dataclass(frozen=True)
class Access:
    """What one peer needs to speak to a broker. ``keys`` is None on a local socket, which needs none."""

    address: str
    notes_address: str = ""
    server: str = ""
    keys: KeyPair | None = None
    name: str = ""
    farm_address: str = ""
    """By what address people name the farm, where that is another one: that of the clients' door."""


@dataclass(frozen=True)
class Connection:
    """A connection file: where a broker is and the keys to it. Secrets are never part of its repr.

    ``addresses`` tells where each role's door is; that of a role has as many as that of another, in the same
    order, unless the doors were named one by one.
    """

    name: str
    addresses: dict[Role, tuple[str, ...]]
    notes_port: int
    server: str
    keys: dict[str, KeyPair]
    format: int = FORMAT
    protocol: int = PROTOCOL
    zfarm: str = ""
    python: str = ""
    host: str = ""
    pid: int = 0
    started_at: float = 0.0  # seconds since 1970
    path: str = ""  # where it was read from; not in the file

    def access(self, role: Role, address: str = "") -> Access:
        """What a peer of ``role`` needs. ``address`` replaces the file's own: a host with the port of the
        clients' door names the broker, whatever the role; another port is dialled as it is, say a tunnel's.

        Raises:
            ConfigurationError: the file has no keys for ``role``.
        """
        owner = next((one for one in _STAND_INS.get(role, (role,)) if one in self.keys), None)
        if owner is None:
            raise ConfigurationError(
                f"the connection file {self.path} has no {role} key, only {', '.join(self.keys)}: "
                "get the complete file from the broker's host"
            )
        main = address or self._nearest(CLIENT)
        address = self.door(owner, address) if address else self._nearest(owner)
        host, _ = parse_tcp(address)
        notes = f"tcp://{host}:{self.notes_port}" if self.notes_port else ""
        return Access(address, notes, self.server, self.keys[owner], self.name, main)

    def door(self, role: Role, address: str) -> str:
        """Where the door of ``role`` is for those who know the broker by ``address``."""
        host, port = parse_tcp(address)
        main, own = self.addresses[CLIENT], self.addresses[role]
        ports = [parse_tcp(one)[1] for one in main]
        if address in own or port not in ports:
            return address
        place = main.index(address) if address in main else ports.index(port)
        return f"tcp://{host}:{parse_tcp(own[min(place, len(own) - 1)])[1]}"

    def _nearest(self, role: Role) -> str:
        """The loopback address on the broker's own host, elsewhere the first."""
        addresses = self.addresses[role]
        if self.host == socket.gethostname():
            for address in addresses:
                if parse_tcp(address)[0] in ("127.0.0.1", "[::1]", "localhost"):
                    return address
        return addresses[0]

    def subset(self, roles: Iterable[Role]) -> Connection:
        """The same connection with the keys of ``roles`` only: for users or hosts that are to have no more.

        Raises:
            ConfigurationError: a key of one of the roles is not there to be given.
        """
        for role in roles:
            if role not in self.keys:
                raise ConfigurationError(f"the connection file {self.path} has no {role} key")
        return replace(self, keys={role: self.keys[role] for role in roles})


def new_connection(
    name: str,
    addresses: Mapping[Role, Iterable[str]],
    notes_port: int,
    keys: ServerKeys,
    roles: Iterable[Role] = CONNECTION_ROLES,
) -> Connection:
    """What a broker that has just bound ``addresses``, those of each role, writes for its peers."""
    from zfarm import __version__

    return Connection(
        name=name,
        addresses={role: tuple(where) for role, where in addresses.items()},
        notes_port=notes_port,
        server=keys.server.public,
        keys={role: keys.roles[role] for role in roles},
        zfarm=__version__,
        python=platform.python_version(),
        host=socket.gethostname(),
        pid=os.getpid(),
        started_at=time.time(),
    )


# ---------------------------------------------------------------- files


def connections_directory() -> Path:
    """Where brokers of this user leave their connection files unless told otherwise."""
    from platformdirs import user_state_dir

    return Path(user_state_dir("zfarm")) / "connections"


def connection_path(name: str) -> Path:
    """The default connection file of the broker called ``name``; its keys lie beside it as ``NAME.keys``.

    Raises:
        ConfigurationError: the name cannot be a file's name.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} is no name for a broker: use letters, digits, dots, dashes and underscores"
        )
    return connections_directory() / f"{name}.json"


def write_connection(path: Path, connection: Connection) -> None:
    """Write the connection file: complete or not at all, readable by its owner only.

    Raises:
        ConfigurationError: the directory is writable by others or not ours.
    """
    whole: dict[str, Any] = msgspec.to_builtins(connection)
    del whole["path"]
    write_private(path, msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n")


def load_connection(path: Path | str) -> Connection:
    """Read a connection file.

    Raises:
        ConfigurationError: there is none, it is open to others, or it is not what it should be.
    """
    found = _decode(Path(path), _Format, "Connection").format
    if found != FORMAT:
        whose = "an older" if found < FORMAT else "a newer"
        raise ConfigurationError(
            f"the connection file {path} is of {whose} zfarm (format {found}, this one reads {FORMAT}): "
            "start the broker with this version of zfarm, which writes its file anew, and copy that; "
            "who has a key of their own gets a file by `zfarm key revoke` and `zfarm key new`"
        )
    connection = _decode(Path(path), Connection)
    for role in ROLES:
        if not connection.addresses.get(role):
            raise ConfigurationError(f"{path} is no connection file of zfarm: it has no address for {role}s")
        for address in connection.addresses[role]:
            parse_tcp(address)
    return replace(connection, path=str(path))


@dataclass(frozen=True)
class _Format:
    """What tells a connection file of another version, which may have all else in another form."""

    server: str
    format: int = 1


T = TypeVar("T")


def _decode(path: Path, kind: type[T], name: str = "") -> T:
    try:
        return msgspec.json.decode(read_private(path), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{path} is no {name or kind.__name__} file of zfarm: {error}") from None


# ---------------------------------------------------------------- addresses

_TCP: Final = re.compile(r"tcp://(?P<host>\[[0-9a-fA-F:.%]+\]|[A-Za-z0-9._*-]+):(?P<port>\d{1,5}|\*)")


def parse_tcp(address: str) -> tuple[str, int]:
    """Host and port of ``tcp://HOST:PORT``; port 0 (to bind any free one) may also be written as ``*``.

    Raises:
        ConfigurationError: it has another form.
    """
    match = _TCP.fullmatch(address)
    port = int(match["port"].replace("*", "0")) if match else -1
    if match is None or port > 65535:
        raise ConfigurationError(f"{address!r} is no address: it must look like tcp://HOST:PORT")
    return match["host"], port


def notes_of(address: str) -> str:
    """Where the notes of an embedded farm at the local ``address`` are published."""
    return address.rpartition("/")[0] + "/notes"


def parse_address(
    address: str = "",
    role: Role = CLIENT,
    connection_file: Path | str = "",
    environ: Mapping[str, str] = os.environ,
) -> Access:
    """What is needed to reach the broker that a user names.

    ``address`` is tcp://HOST:PORT, ipc://PATH, a connection file, or the name of a broker of this user on
    this host; or empty, if a connection file is named. Keys for TCP come from ``connection_file``, else from
    ZFARM_CONNECTION_FILE, else from a connection file in the default directory that has this address.

    Raises:
        ConfigurationError: the address has no known form, or there are no keys for it; and what to do.
    """
    refuse_secret(address)
    if address.startswith("ipc://"):
        return Access(address, notes_of(address))
    if address and "://" not in address:
        looks_like_file = os.sep in address or address.endswith(".json")
        return load_connection(address if looks_like_file else connection_path(address)).access(role)
    if address:
        _, port = parse_tcp(address)
        if not port:
            raise ConfigurationError(f"{address!r} has no port: it must look like tcp://HOST:PORT")
    chosen = connection_file or environ.get(CONNECTION_ENV, "")
    if chosen:
        return load_connection(chosen).access(role, address)
    if not address:
        raise ConfigurationError(
            "no broker is named: give an address like tcp://HOST:PORT or a connection file, "
            f"or set {CONNECTION_ENV}"
        )
    found = _found_by_address(address)
    if found is None:
        raise ConfigurationError(
            f"no keys for {address}: copy the connection file from the broker's host (zfarm broker says "
            f"where it is) and name it with --connection FILE or {CONNECTION_ENV}, or put it into "
            f"{connections_directory()}"
        )
    return found.access(role, address)


def _found_by_address(address: str) -> Connection | None:
    """The newest connection file in the default directory that has ``address``."""
    directory = connections_directory()
    if not directory.is_dir():
        return None
    private_directory(directory)
    files = [load_connection(path) for path in sorted(directory.glob("*.json"))]
    fitting = [file for file in files if any(address in where for where in file.addresses.values())]
    return max(fitting, key=lambda file: file.started_at, default=None)
