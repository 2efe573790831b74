"""``zfarm put``, ``get``, ``ls`` and ``rm``: files that a broker keeps by name, for people and for programs.

The JSON of ``zfarm ls`` is stable: ``{format, files: [{name, bytes, files, directory, since, digest,
owner}]}`` with ``since`` in seconds since 1970; ``owner`` is empty but with ``--all``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import rich_click as click

from zfarm.face.codes import reading, writing

if TYPE_CHECKING:
    from zfarm.courier import Courier
    from zfarm.edge.security import Access
    from zfarm.naming import NamedFile

__all__ = ["FORMAT", "add_file_commands"]

FORMAT: Final = 1

_connection = click.option(
    "--connection",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Connection file: where the broker is, and the keys to it.",
)
_farm = click.option(
    "--farm", "address", metavar="ADDRESS", help="The farm, if it is not the only one on this machine."
)
_quiet = click.option("--quiet", "-q", is_flag=True, help="Show no bar; without a terminal there is none.")


def add_file_commands(group: click.RichGroup) -> None:
    """Give ``group`` the commands of this file."""
    for one in (put, get, ls, rm):
        group.add_command(one)


def _courier(address: str | None, connection: Path | None, admin: bool = False) -> Courier:
    from zfarm.courier import Courier
    from zfarm.edge.security import ADMIN, CLIENT
    from zfarm.errors import ConfigurationError
    from zfarm.monitor import find_farm

    def find() -> Access:
        try:
            access = find_farm(address, connection, ADMIN if admin else CLIENT)
        except ConfigurationError as error:
            if admin:
                raise
            try:
                access = find_farm(address, connection, ADMIN)  # who has no other key
            except ConfigurationError:
                raise error from None
        if access.keys is None:
            raise ConfigurationError(
                f"{access.address} is an embedded farm: it ends with its program and keeps nothing by name"
            )
        return access

    return Courier(find)


@click.command()
@click.argument("path", type=click.Path())
@click.option("--name", help="What to call it.  [default: the last part of PATH]")
@_farm
@_connection
@_quiet
def put(path: str, name: str | None, address: str | None, connection: Path | None, quiet: bool) -> int:
    """Have the farm keep the file or directory PATH, for any program: farm.handle(NAME).

    Prints its name and digest once it is safe on the broker's disk. What is there already is not sent again;
    if this or the broker is stopped, doing it again goes on from there.
    """
    from zfarm.edge.catalogue import check_archived_name
    from zfarm.fetching import bytes_of
    from zfarm.fetching import put as hold
    from zfarm.loading import bar
    from zfarm.naming import upload

    name = check_archived_name(name or os.path.basename(os.path.abspath(path)) or "root")
    with _courier(address, connection) as courier:
        with reading():
            handle = hold(path)
        with bar(name, bytes_of(handle), not quiet) as moved:
            upload(courier, handle, name, moved)
        click.echo(f"{name}  {handle.digest}  {_size(courier.moved_bytes)} sent")
    return 0


@click.command()
@click.argument("name")
@click.argument("dest", required=False, type=click.Path(path_type=Path))
@_farm
@_connection
@_quiet
def get(name: str, dest: Path | None, address: str | None, connection: Path | None, quiet: bool) -> int:
    """Write what the farm keeps as NAME to DEST, or to NAME in this directory.

    DEST may be a directory to put it into. A file that is there is replaced, a directory is not. If it is
    stopped, doing it again goes on from there.
    """
    from zfarm.fetching import check_target
    from zfarm.loading import bar
    from zfarm.naming import fetch, find

    with _courier(address, connection) as courier:
        handle, known = find(courier, name)
        target = Path(os.path.abspath(dest or name))
        with writing(target):
            if dest is not None and target.is_dir() and not (handle.is_directory and not os.listdir(target)):
                target /= name
            check_target(target, handle)
            with bar(name, known.size + (handle.size if handle.is_directory else 0), not quiet) as moved:
                fetch(courier, handle, target, moved)
    click.echo(str(target))
    return 0


@click.command()
@click.argument("name", required=False)
@click.option("--all", "everybody", is_flag=True, help="Those of all keys; for admins.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs; its names stay.")
@_farm
@_connection
def ls(name: str | None, everybody: bool, as_json: bool, address: str | None, connection: Path | None) -> int:
    """List what the farm keeps by name: size, files, since when, digest. Ends with 1 if there is no NAME."""
    from zfarm.naming import named

    with _courier(address, connection, everybody) as courier:
        found = [named(entry) for entry in courier.names("" if everybody else name or "", everybody)]
    if everybody and name:
        found = [one for one in found if one.name == name]
    if as_json:
        json.dump({"format": FORMAT, "files": list(map(snapshot, found))}, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        _print(found, everybody)
    return int(bool(name) and not found)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--owner", default="", help="That of another key, as `zfarm ls --all` shows it; for admins.")
@_farm
@_connection
def rm(names: tuple[str, ...], owner: str, address: str | None, connection: Path | None) -> int:
    """Have the farm keep NAME no more. Calls that still need it fail."""
    from zfarm.errors import FileUnknown, TransferError

    kept: list[TransferError] = []
    with _courier(address, connection, bool(owner)) as courier:
        for name in names:
            try:
                courier.discard(name, owner)
            except TransferError as error:
                kept.append(error)
    if kept:
        unknown = all(isinstance(error, FileUnknown) for error in kept)
        raise (FileUnknown if unknown else TransferError)("\n".join(map(str, kept)))
    return 0


def snapshot(one: NamedFile) -> dict[str, Any]:
    """A name in the JSON object."""
    return {
        "name": one.name,
        "bytes": one.size,
        "files": one.files,
        "directory": one.is_directory,
        "since": one.kept_since.timestamp(),
        "digest": one.digest,
        "owner": one.owner,
    }


def _print(found: Sequence[NamedFile], everybody: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (*(("OWNER",) if everybody else ()), "NAME"):
        table.add_column(column, overflow="fold")
    for column in ("SIZE", "FILES"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("SINCE", no_wrap=True)
    table.add_column("DIGEST", no_wrap=True)
    for one in found:
        files = f"{one.files:,}" if one.is_directory else ""
        since = one.kept_since.astimezone().strftime("%Y-%m-%d %H:%M")
        name = one.name + ("/" if one.is_directory else "")
        cells = [*([one.owner] if everybody else []), name, _size(one.size), files, since, one.digest[:12]]
        table.add_row(*map(Text, cells))
    if found:
        Console(highlight=False).print(table)


def _size(count: int) -> str:
    from rich.filesize import decimal

    return decimal(count)
