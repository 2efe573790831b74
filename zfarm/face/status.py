"""``zfarm status``: one picture of a farm, as tables for people or as JSON for programs.

The JSON object is stable: names stay, keys are only added, and ``format`` changes if that ever fails. Times
are in seconds, sizes in bytes, percentages 0 to 100; counters count since the broker was started::

    format     1
    zfarm      version of this command
    address    the farm that was asked
    brokers    [{address, epoch, uptime_s}]
    slots      {total, busy}
    tasks      {queued, running, values, errors, cancelled, lost, retried}
    refusals   {name of the limit or rule: how often it was met}
    refusing   why no new task is taken now, as when the disk of the journal is full; empty: they are taken
    unmet      {what no worker has: how many tasks wait for it}
    queue      [{call, tasks, first}]: the functions with the most queued tasks; ``zfarm why`` takes ``first``
    workers    [{worker, host, pid, state, slots, room, running, leased, done, failed, deaths, last_seen_s,
                 uptime_s, aside_s, duct (where clients may dial it; empty: nowhere),
                 vitals: {cpu_percent, load_1m, cpus, memory_bytes, memory_available_bytes,
                 swap_percent, disk_free_bytes, rss_bytes, processes, shared_bytes,
                 duct_refused}}]
    clients    [{client, host, pid, name, queued, leased, ended, away}]
    running    [{task, call, client, worker, age_s, items, attempt}]; items > 0: a part of a map
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Final

from rich.console import Console

import zfarm
from zfarm.core.view import View, worker_state
from zfarm.face.panels import Scene, screenful
from zfarm.messages import Picture, WorkerPicture

__all__ = ["FORMAT", "main", "show", "snapshot"]

FORMAT: Final = 1


def main(address: str | None, connection: Path | None, as_json: bool) -> int:
    """Ask the farm, print what it says, and return the exit code.

    Raises:
        FarmError: no such farm, no answer, or access denied; the text says which, and what to do.
    """
    from zfarm.monitor import Monitor, find_farm

    with Monitor(lambda: find_farm(address, connection)) as monitor:
        picture = monitor.look()
    if as_json:
        json.dump(snapshot(picture, monitor.address), sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    else:
        show(picture, monitor.title, Console(highlight=False))
    return 0


def show(picture: Picture, title: str, console: Console) -> None:
    """Print the picture for people, under ``title``."""
    view = View()
    view.take(picture, 0.0)
    scene = Scene(view, title, now=0.0, wall=time.time(), versions=f"zfarm {zfarm.__version__}")
    console.print(screenful(scene, whole=True))


def snapshot(picture: Picture, address: str) -> dict[str, Any]:
    """The picture as the JSON object that the first lines of this file describe."""
    view = View()
    view.take(picture, 0.0)
    farm = picture.farm
    queue = sorted(picture.queue.items(), key=lambda item: (-item[1], item[0]))
    return {
        "format": FORMAT,
        "zfarm": zfarm.__version__,
        "address": address,
        "brokers": [{"address": address, "epoch": farm.epoch, "uptime_s": farm.uptime_s}],
        "slots": {"total": farm.slots, "busy": min(view.running_now, farm.slots)},
        "tasks": {
            "queued": view.waiting_now,
            "running": view.running_now,
            **_facts(farm, "values", "errors", "cancelled", "lost", "retried"),
        },
        "refusals": dict(picture.refusals),
        "refusing": farm.refusing,
        "unmet": dict(picture.unmet),
        "queue": [
            {"call": name, "tasks": number, "first": picture.first.get(name, "")} for name, number in queue
        ],
        "workers": [_worker(worker) for worker in picture.workers],
        "clients": [_facts(client, *client.__struct_fields__) for client in picture.clients],
        "running": [
            {
                "task": task.task,
                "call": task.name,
                "client": task.owner,
                "worker": task.worker,
                "age_s": task.age_s,
                "items": task.items,
                "attempt": task.attempts,
                "began": task.began,
            }
            for task in picture.running
        ],
    }


def _worker(worker: WorkerPicture) -> dict[str, Any]:
    return {
        **_facts(worker, "worker", "host", "pid", "slots", "room", "done", "failed", "deaths"),
        **_facts(worker, "last_seen_s", "uptime_s", "aside_s", "duct"),
        "state": worker_state(worker),
        "leased": worker.leases,
        "running": min(worker.leases, worker.room),
        "vitals": _facts(worker.vitals, *worker.vitals.__struct_fields__),
    }


def _facts(message: object, *names: str) -> dict[str, Any]:
    return {name: getattr(message, name) for name in names}
