"""``zfarm doctor``: a checkup of a farm, as a table and sentences for people or as JSON for programs.

The JSON object is stable: ``{format, zfarm, address, link, healthy, client, workers, findings, code}``, with
``client`` and ``sight`` of each worker as ``zfarm.edge.probe.Sight`` describes them, and findings as
``{level, where, code, text}``: a ``problem`` or ``warning`` will bite, a ``note`` may. ``code`` has the
``directory`` and the names of the ``modules`` that were compared; that of a worker lists those that are not
the same there, as ``zfarm.likeness.Difference`` describes them, null if that is not known.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

import zfarm
from zfarm.checkup import PROBLEM, Checkup, Finding, Seen, examine
from zfarm.face.figures import clean
from zfarm.likeness import look_here

__all__ = ["FORMAT", "main", "show", "snapshot"]

FORMAT: Final = 1
SHOWN: Final = ("numpy", "pandas", "cloudpickle")
"""Packages in the table; the others are told of where they differ."""
STYLES: Final = {"problem": "bold red", "warning": "yellow", "note": "dim"}


def main(
    address: str | None, connection: Path | None, as_json: bool, wait_s: float, modules: Sequence[str] = ()
) -> int:
    """Examine the farm, print what is found, and return the exit code: 1 if something will bite.

    Without any address an embedded farm is started and examined, and with it this host; without ``modules``
    those of this directory are compared.

    Raises:
        ModuleNotFoundError: one of ``modules`` cannot even be imported here.
        FarmError: no such farm, no answer, or access denied; the text says which, and what to do.
    """
    code = look_here(modules)
    lacking = [name for name in modules if name.partition(".")[0] not in code.modules]
    if lacking:
        raise ModuleNotFoundError(
            f"a program in {code.directory} could not import {', '.join(lacking)} either"
        )
    where = address or (str(connection) if connection is not None else None)
    with zfarm.Executor(where) as farm:
        checkup = examine(farm, wait_s, code)
        keys = _link_of(farm)
    if not keys:
        text = "the link has no CURVE keys: whoever can reach it may read everything and run code"
        checkup.findings.insert(0, Finding(PROBLEM, "link", "keys", text))
    if as_json:
        json.dump(snapshot(checkup, keys), sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    else:
        show(checkup, keys, Console(highlight=False))
    return int(not checkup.healthy)


def _link_of(farm: zfarm.Executor) -> str:
    """How the way to the broker is guarded; empty: not at all."""
    if not farm.address.startswith("tcp://"):
        return "a local socket of this user"
    return "CURVE: encrypted and authenticated" if getattr(farm._link.road, "keys", False) else ""


def snapshot(checkup: Checkup, link: str) -> dict[str, Any]:
    """The JSON object."""
    return {
        "format": FORMAT,
        "zfarm": zfarm.__version__,
        "address": checkup.address,
        "link": link,
        "healthy": checkup.healthy,
        "client": msgspec.to_builtins(checkup.client),
        "workers": [msgspec.to_builtins(worker) for worker in checkup.workers],
        "findings": [msgspec.to_builtins(finding) for finding in checkup.findings],
        "code": {"directory": checkup.code.directory, "modules": sorted(checkup.code.modules)},
    }


def show(checkup: Checkup, link: str, console: Console) -> None:
    """Print it for people."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in (
        "",
        "host",
        "slots",
        "cores",
        "Python",
        "zfarm",
        "numpy",
        "pandas",
        "cloudpickle",
        "clock",
    ):
        table.add_column(column)
    client = Seen("", checkup.client.host, 0, 0, checkup.client)
    table.add_row(*_row("client", client))
    for worker in checkup.workers:
        table.add_row(*_row("worker", worker))
    console.print(f"{clean(checkup.address)} ({link or 'no keys'})")
    console.print(table)
    if checkup.code.modules:
        names = ", ".join(sorted(checkup.code.modules))
        console.print(f"modules of {clean(checkup.code.directory)} compared: {clean(names)}")
    console.print()
    for finding in checkup.findings:
        style = STYLES[finding.level]
        line = Text.assemble((f"{finding.level:8}", style), f" {clean(finding.where)}: {clean(finding.text)}")
        console.print(line)
    if checkup.healthy:
        console.print(Text("nothing here will bite", "green"))


def _row(kind: str, seen: Seen) -> list[str]:
    sight = seen.sight
    if sight is None:
        return [kind, clean(seen.host), str(seen.slots), *["?"] * 7]
    versions = [sight.packages.get(name, "-") for name in SHOWN]
    clock = f"{seen.clock_s:+.1f} s" if seen.worker else ""
    slots = str(seen.slots) if seen.worker else ""
    facts = [clean(fact) for fact in (sight.python, sight.zfarm, *versions)]
    return [kind, clean(seen.host), slots, str(sight.cores), *facts, clock]
