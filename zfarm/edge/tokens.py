"""The line with which one new worker joins: the broker's address and key, and a key of its own; no socket.

Whoever has the line is that worker. So it is read from a file or a pipe, never from arguments or environment.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import sys
from pathlib import Path
from typing import Final

import msgspec

from zfarm.edge.places import TOKEN_PREFIX as PREFIX
from zfarm.edge.places import read_private
from zfarm.edge.principals import enrol, keys_path
from zfarm.edge.security import WORKER, Access, KeyPair, load_connection, parse_tcp
from zfarm.errors import ConfigurationError

__all__ = ["new_token", "read_token", "token_of"]

TOKEN_MAX: Final = 4096
"""Characters of a token: some 300 are usual."""


class _Token(msgspec.Struct, array_like=True):
    address: str
    server: str
    public: str
    secret: str
    name: str
    format: int = 1


FORMAT: Final = 2
"""Of a token. Before, its address was that of a door for all roles."""


def new_token(broker: Path, name: str = "", address: str = "") -> str:
    """Register a fresh worker key with the broker whose connection file this is; the line that joins with it.

    ``address`` replaces the first one of the file, say by the name by which other hosts know the broker; with
    the port of the clients' door it names the broker, and the line has the workers' door.

    Raises:
        ConfigurationError: the broker's files cannot be used, or the name is taken.
    """
    connection = load_connection(broker)
    address = connection.door(WORKER, address) if address else connection.addresses[WORKER][0]
    name = name or f"worker-{secrets.token_hex(4)}"
    pair = enrol(keys_path(broker), name, WORKER)
    token = _Token(address, connection.server, pair.public, pair.secret, name, FORMAT)
    return PREFIX + base64.urlsafe_b64encode(msgspec.json.encode(token)).decode().rstrip("=")


def token_of(source: str) -> str:
    """The text in the private file ``source``, or on standard input if that is ``-``.

    Raises:
        ConfigurationError: the file is not there or open to others.
    """
    if source == "-":
        return sys.stdin.readline(TOKEN_MAX + 1)
    return read_private(Path(source)).decode("utf-8", "replace")


def read_token(text: str) -> Access:
    """What a worker needs to join.

    Raises:
        ConfigurationError: ``text`` is no token; no word of it is repeated, since it is a secret.
    """
    line = text.strip()
    if not line.startswith(PREFIX) or len(line) > TOKEN_MAX:
        raise ConfigurationError(f"this is no token: it must be the one line that begins with {PREFIX}")
    try:
        code = line.removeprefix(PREFIX)
        raw = base64.b64decode(code + "=" * (-len(code) % 4), altchars=b"-_", validate=True)
        token = msgspec.json.decode(raw, type=_Token)
        keys, server = KeyPair(token.public, token.secret), KeyPair(token.server, token.server).public
    except (binascii.Error, msgspec.MsgspecError, ValueError, RecursionError):
        raise ConfigurationError("this token is damaged: copy the whole line, or make a new one") from None
    if token.format != FORMAT:
        raise ConfigurationError(
            f"this token is of another version of zfarm (format {token.format}, this one reads {FORMAT}): "
            "revoke its key, and make a new one with `zfarm token`"
        )
    parse_tcp(token.address)
    return Access(token.address, "", server, keys, token.name)
