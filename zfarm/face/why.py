"""``zfarm why``: the reason why one task is where it is, as a sentence for people or as JSON for programs.

The JSON object is stable: ``{format, client, task, call, code, reason}``; the codes are those of
``zfarm.reasons.Reason``, and ``ambiguous`` where several clients have a task of that number.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

import click

from zfarm.messages import Reason

__all__ = ["FORMAT", "main", "read_task"]

FORMAT: Final = 1


def main(task: str, address: str | None, connection: Path | None, as_json: bool) -> int:
    """Ask the farm, print what it says, and return the exit code: 1 if it does not know the task.

    Raises:
        FarmError: no such farm, no answer, or access denied; the text says which, and what to do.
    """
    from zfarm.monitor import Monitor, find_farm

    owner, number = read_task(task)
    with Monitor(lambda: find_farm(address, connection)) as monitor:
        reason = monitor.why(number, owner)
    if as_json:
        json.dump(snapshot(reason), sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    else:
        sys.stdout.write(f"{sentence(reason, task)}\n")
    return int(reason.code in ("unknown", "ambiguous"))


def read_task(task: str) -> tuple[str, int]:
    """Client and number of a task, from CLIENT/NUMBER or NUMBER. Raises BadParameter."""
    owner, _, number = task.rpartition("/")
    if not number.isdecimal() or len(number) > 18:
        raise click.BadParameter(f"{task!r} is no task: write CLIENT/NUMBER, as `zfarm status` shows them")
    return owner, int(number)


def sentence(reason: Reason, task: str) -> str:
    """What is said to people."""
    who = f"{reason.owner}/{reason.task}" if reason.owner else task
    name = f" ({reason.name})" if reason.name else ""
    return f"task {who}{name}: {reason.text}"


def snapshot(reason: Reason) -> dict[str, str | int]:
    """The JSON object."""
    return {
        "format": FORMAT,
        "client": reason.owner,
        "task": reason.task,
        "call": reason.name,
        "code": reason.code,
        "reason": reason.text,
    }
