"""A farm as it might be seen, always the same one, for the tests of what people see."""

from __future__ import annotations

import math

from zfarm.core.view import View
from zfarm.messages import (
    ClientPicture,
    FarmNote,
    FarmPicture,
    Picture,
    TaskPicture,
    TextNote,
    Vitals,
    WorkerPicture,
)

GIB = 2**30
NAMES = ("simulate", "fit_model.<locals>.<lambda>", "sklearn.model.train_with_a_very_long_name_indeed")
TEXTS = (
    ("info", "worker alpha03/4033 joined with 16 slots"),
    ("warning", "worker alpha02/4022 was lost: silent for 5.2 s; its 16 leases move"),
    ("warning", "simulate runs again: killed by SIGSEGV on alpha03"),
    (
        "error",
        "refused a peer: the broker runs Python 3.11, you run Python 3.12; install the same on both sides",
    ),
)


def vitals(i: int) -> Vitals:
    return Vitals(
        cpu_percent=37.5 + i * 20,
        load_1m=3.2 + i,
        cpus=16,
        memory_bytes=64 * GIB,
        memory_available_bytes=(40 - i * 12) * GIB,
        swap_percent=2.0,
        disk_free_bytes=200 * GIB,
        rss_bytes=int(1.7 * GIB) + i * GIB,
        processes=17,
    )


def workers(number: int) -> list[WorkerPicture]:
    return [
        WorkerPicture(
            worker=f"w{i}", host=f"alpha{i:02d}", pid=4000 + i * 11, slots=16, room=16,
            leases=(0, 9, 16, 25)[i % 4], done=120_345 * i, failed=i * 3, deaths=int(i == 3), draining=i == 1,
            last_seen_s=4.2 if i == 2 else 0.3, uptime_s=4000.0, vitals=vitals(i % 4),
        )
        for i in range(number)
    ]  # fmt: skip


def clients() -> list[ClientPicture]:
    return [
        ClientPicture("c1", "laptop", 881, "fit.py", 12_045, 40, 123_456, False),
        ClientPicture("c2", "login1", 77, "", 0, 0, 3, True),
    ]


def running(number: int) -> list[TaskPicture]:
    return [
        TaskPicture(
            "c1", 1000 + i, NAMES[i % 3], f"w{i % 4}", 0.2 + i * i * 3, 64 if i % 4 == 0 else 0, 1 + (i == 5)
        )
        for i in range(number)
    ]


def farm(number: int, values: int, workers: int = 4) -> FarmPicture:
    return FarmPicture(
        number=number, uptime_s=3700 + number / 2, epoch=1_763_679_000, queued=12_045, leased=50,
        values=values, errors=17, cancelled=3, lost=1, retried=2, workers=workers,
        slots=16 * workers, clients=2,
    )  # fmt: skip


QUEUE = {"simulate": 9012, "fit_model.<locals>.<lambda>": 3000, "reduce": 33}


def picture(workers_number: int = 4, running_number: int = 12) -> Picture:
    return Picture(
        farm(1, 100_000, workers_number), workers(workers_number), clients(), running(running_number), QUEUE
    )


def view(workers_number: int = 4, running_number: int = 12) -> View:
    """A view that has followed the farm for a minute."""
    seen = View()
    first = picture(workers_number, running_number)
    seen.take(first, now=0.0)
    values = 100_000
    for number in range(2, 121):
        values += int(500 + 400 * math.sin(number / 9))
        seen.fold(
            FarmNote(farm(number, values, workers_number), first.running, QUEUE, clients()), now=number / 2
        )
    for number, (level, text) in enumerate(TEXTS, 121):
        seen.fold(TextNote(number, level, text), now=60.0)
    return seen
