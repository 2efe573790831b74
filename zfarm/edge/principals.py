"""Who has a key of their own: the principals in the keys file of a broker. It opens no socket.

The broker keeps the public half only. The secret half stands in the file or line that is handed to the
principal, and nowhere else. Every change is made under a lock and appears in the file complete or not at all.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from zfarm.edge.places import lock_of
from zfarm.edge.security import (
    ROLES,
    Connection,
    KeyPair,
    Principal,
    Role,
    ServerKeys,
    fingerprint,
    load_connection,
    write_connection,
)
from zfarm.errors import ConfigurationError

__all__ = ["Known", "enrol", "free_name", "keys_path", "known", "members", "new_principal", "revoke"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PREFIX_MIN: Final = 8
"""Digits of a fingerprint that are enough to name a key."""


@dataclass(frozen=True)
class Known:
    """One key that a broker knows, for a list. ``shared`` is that of a role, in the broker's own files."""

    name: str
    role: str
    fingerprint: str
    created_at: float
    shared: bool


def keys_path(connection: Path) -> Path:
    """Where the keys of the broker lie whose connection file is ``connection``."""
    return connection.with_suffix(".keys")


def known(keys: ServerKeys) -> list[Known]:
    """Every key that may connect, those of the roles first."""
    shared = [Known(role, role, fingerprint(pair.public), 0.0, True) for role, pair in keys.roles.items()]
    own = [
        Known(one.name, one.role, fingerprint(one.public), one.created_at, False) for one in keys.principals
    ]
    return [*shared, *own]


def members(keys: ServerKeys) -> frozenset[str]:
    """The same as principals, in the form that messages come with."""
    return frozenset(f"{one.role}:{one.name}:{one.fingerprint}" for one in known(keys))


# ---------------------------------------------------------------- changes


def _change(path: Path, how: Callable[[ServerKeys], ServerKeys]) -> None:
    if not os.path.lexists(path):
        raise ConfigurationError(
            f"there is no keys file {path}: run this on the broker's host, after its first start, "
            "and name its own connection file with --connection FILE"
        )
    with lock_of(path):
        how(ServerKeys.load(path)).save(path)


def enrol(path: Path, name: str, role: Role) -> KeyPair:
    """Let a new principal in, and return its keys, which are kept nowhere.

    Raises:
        ConfigurationError: the name cannot be one or is taken, or the keys file cannot be used.
    """
    if not _NAME.fullmatch(name) or name in ROLES:
        raise ConfigurationError(
            f"{name!r} is no name for a key: use letters, digits, dots, dashes and underscores, at most 64, "
            f"and none of {', '.join(ROLES)}"
        )
    pair = KeyPair.fresh()

    def add(keys: ServerKeys) -> ServerKeys:
        if any(one.name == name for one in keys.principals):
            raise ConfigurationError(f"there is a key called {name!r}: revoke it first, or use another name")
        return replace(
            keys, principals=(*keys.principals, Principal(name, role, pair.public, int(time.time())))
        )

    _change(path, add)
    return pair


def revoke(path: Path, which: str) -> Known:
    """Let the key called ``which`` (its name, or at least 8 digits of its fingerprint) in no more.

    The shared key of a role is replaced by a fresh one, which the broker writes into its connection file.

    Raises:
        ConfigurationError: there is no such key or more than one, or the keys file cannot be used.
    """
    revoked: list[Known] = []

    def remove(keys: ServerKeys) -> ServerKeys:
        found = [
            one
            for one in known(keys)
            if which == one.name or (len(which) >= PREFIX_MIN and one.fingerprint.startswith(which))
        ]
        if len(found) != 1:
            raise ConfigurationError(
                f"there is {'no key' if not found else 'more than one key'} called {which!r}: "
                "`zfarm key list` tells them all"
            )
        (gone,) = found
        revoked.append(gone)
        if gone.shared:
            return replace(keys, roles={**keys.roles, gone.role: KeyPair.fresh()})
        return replace(keys, principals=tuple(one for one in keys.principals if one.name != gone.name))

    _change(path, remove)
    return revoked[0]


def new_principal(broker: Path, name: str, role: Role, out: Path) -> Connection:
    """Let a new principal in, and write its connection file ``out``: its own key and no other.

    Raises:
        ConfigurationError: the broker's files cannot be used, the name is taken, or ``out`` is there.
    """
    connection = load_connection(broker)
    if os.path.lexists(out):
        raise ConfigurationError(f"{out} is there already: name another file with --out")
    pair = enrol(keys_path(broker), name, role)
    mine = replace(connection, keys={role: pair}, pid=0)
    try:
        write_connection(out, mine)
    except ConfigurationError:
        revoke(keys_path(broker), name)  # nobody has the key
        raise
    return replace(mine, path=str(out))


def free_name(role: Role) -> str:
    """A name for a key that nobody cares to name."""
    return f"{role}-{secrets.token_hex(4)}"
