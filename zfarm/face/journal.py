"""``zfarm journal``: look after a journal that no broker has open; nothing heavy is imported before it runs.

The JSON object of ``stats --json`` is stable: names stay and keys are only added. Sizes are in bytes, times
in seconds::

    path, epoch, turns
    database_bytes, free_bytes, log_bytes, blob_files, blob_bytes
    clients, queued, ended, functions     queued: not ended yet; functions: with their setups
    oldest_s                              age of the oldest task; 0: there is none
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

if TYPE_CHECKING:
    from zfarm.edge.journal import Journal

__all__ = ["journal"]

_path = click.argument("path", type=click.Path(path_type=Path, dir_okay=False))


@click.group()
def journal() -> None:
    """Look after the journal of a broker that does not run: check, stats, compact.

    The journal of a running broker is refused; nothing that lives is ever removed from one.
    """


def _open(path: Path, write: bool = False) -> Journal:
    from zfarm.edge.journal import Journal

    return Journal(path, create=False, write=write)


@journal.command()
@_path
def check(path: Path) -> None:
    """Read all of a journal and compare it with its checksums.

    Says what is damaged, and where, and ends with exit code 65 if anything is.
    """
    from zfarm.face.figures import plural

    with _open(path) as opened:
        records = opened.check()
        stats = opened.stats()
    click.echo(
        f"{opened.path} is whole: {plural(records, 'record')} of {plural(stats.clients, 'client')}, "
        f"{plural(stats.queued, 'open task')}, {stats.ended} ended"
    )


@journal.command()
@_path
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
def stats(path: Path, as_json: bool) -> None:
    """Show what is in a journal, and what it takes on the disk."""
    from zfarm.face.figures import duration, size

    with _open(path) as opened:
        found = opened.stats()
    if as_json:
        json.dump(dataclasses.asdict(found), sys.stdout, indent=2)
        click.echo()
        return
    oldest = f", the oldest for {duration(found.oldest_s)}" if found.queued or found.ended else ""
    for name, text in (
        ("journal", found.path),
        ("tasks", f"{found.queued} open, {found.ended} ended and not yet taken{oldest}"),
        ("clients", f"{found.clients}"),
        ("functions", f"{found.functions}, with their setups"),
        ("tables", f"{size(found.database_bytes)}, {size(found.free_bytes)} of it free"),
        ("log", size(found.log_bytes)),
        ("large blobs", f"{size(found.blob_bytes)} in {found.blob_files} files"),
        ("openings", f"epoch {found.epoch}, turn {found.turns}"),
    ):
        click.echo(f"{name:12}{text}")


@journal.command()
@_path
def compact(path: Path) -> None:
    """Make a journal as small as what is in it; needs room for a second one meanwhile."""
    from zfarm.face.figures import size

    with _open(path, write=True) as opened:
        before = opened.stats()
        opened.compact()
        after = opened.stats()
    click.echo(f"{opened.path}: {size(before.database_bytes)} before, {size(after.database_bytes)} now")
