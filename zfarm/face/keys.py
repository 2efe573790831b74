"""``zfarm key`` and ``zfarm token``: who may come to a broker; it reads the command line and prints answers.

They are for the broker's host and user, and change its keys file, which a running broker follows.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich_click as click

__all__ = ["add_commands"]

_ROLES = ("client", "worker", "admin", "monitor")


def add_commands(group: click.RichGroup) -> None:
    """Give ``group`` the commands of this file."""
    group.add_command(key)
    group.add_command(token)


def _broker_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--connection",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="ZFARM_CONNECTION_FILE",
        metavar="FILE",
        help="The broker's own connection file, beside which its keys lie.  [default: that of the farm]",
    )(
        click.option("--farm", default="default", show_default=True, help="Name of the farm, without FILE.")(
            function
        )
    )


def _broker(connection: Path | None, farm: str) -> Path:
    from zfarm.edge.security import connection_path

    return connection or connection_path(farm)


@click.group()
def key() -> None:
    """Make, list and revoke the keys of those who may come to a broker.

    For the broker's host. A broker that runs follows within a second: whose key was revoked is disconnected.
    """


@key.command()
@click.argument("name")
@click.option(
    "--role", type=click.Choice(_ROLES), required=True, help="What the key may do; nothing else is possible."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Connection file to write.  [default: NAME.json, here]",
)
@_broker_option
def new(name: str, role: Any, out: Path | None, connection: Path | None, farm: str) -> None:
    """Let NAME in: write a connection file with a key of its own, and register that key.

    Hand the file over on a safe way and keep no copy: whoever has it is NAME.
    """
    from zfarm.edge.principals import new_principal
    from zfarm.edge.security import fingerprint

    made = new_principal(_broker(connection, farm), name, role, Path(os.path.abspath(out or f"{name}.json")))
    (pair,) = made.keys.values()
    click.echo(f"{role} {name} has the key {fingerprint(pair.public)}")
    click.echo(f"connection file: {made.path}  (keep it secret: whoever has it is {name})")


@key.command("list")
@_broker_option
def list_keys(connection: Path | None, farm: str) -> None:
    """List every key that may connect."""
    from rich.console import Console
    from rich.table import Table

    from zfarm.edge.principals import keys_path, known
    from zfarm.edge.security import ServerKeys

    table = Table("name", "role", "fingerprint", "since", box=None, pad_edge=False)
    for one in known(ServerKeys.load(keys_path(_broker(connection, farm)))):
        since = "shared, in the connection file" if one.shared else _date(one.created_at)
        table.add_row(one.name, one.role, one.fingerprint, since)
    Console(highlight=False).print(table)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


@key.command()
@click.argument("which", metavar="NAME|FINGERPRINT")
@_broker_option
def revoke(which: str, connection: Path | None, farm: str) -> None:
    """Let a key in no more, and disconnect who uses it.

    Calls of a client with that key are cancelled, those that run are stopped, and its jobs end; what a worker
    with that key ran runs elsewhere. A new key of the same name is somebody else's.

    The shared key of a role (client, worker, admin, monitor) is replaced: the broker writes the fresh one
    into its connection file, and copies of the old file are worth nothing any more.
    """
    from zfarm.edge.principals import keys_path
    from zfarm.edge.principals import revoke as take_away

    gone = take_away(keys_path(_broker(connection, farm)), which)
    click.echo(f"{gone.role} {gone.name} with the key {gone.fingerprint} is out")


@click.command()
@click.option("--name", default="", help="Name of the worker's key.  [default: a random one]")
@click.option(
    "--address",
    default="",
    metavar="tcp://HOST:PORT",
    help="Where the new worker reaches the broker: by the port of the clients, or another (a tunnel's)."
    "  [default: as in the connection file]",
)
@_broker_option
def token(name: str, address: str, connection: Path | None, farm: str) -> None:
    """Print one line with which one new worker joins: `zfarm worker --token-file FILE`.

    The line is a secret, and registered until `zfarm key revoke` takes it back. For the broker's host; say
    `zfarm token | ssh HOST zfarm worker --token-file -`.
    """
    from zfarm.edge.tokens import new_token

    click.echo(new_token(_broker(connection, farm), name, address))
