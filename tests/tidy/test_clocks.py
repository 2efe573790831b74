"""Who asks what day it is: only for people to read and for new names, so a clock that jumps moves no task."""

from __future__ import annotations

import ast

from tests.tidy.sources import Source, sources

WALL = {"time", "time_ns", "now", "utcnow", "today"}
"""Of the modules ``time`` and ``datetime``."""
ASKED = {
    "zfarm/archive.py": "since when a file is kept, as told to people",
    "zfarm/brokershell.py": "a number for this start of a broker",
    "zfarm/checkup.py": "whether the clocks of two hosts go alike",
    "zfarm/edge/journal.py": "a number for the first start; the age of the oldest outcome, as told to people",
    "zfarm/edge/places.py": "when a farm was started, as told to people",
    "zfarm/edge/principals.py": "when a key was made, as told to people",
    "zfarm/edge/probe.py": "whether the clocks of two hosts go alike",
    "zfarm/edge/security.py": "when a broker was started, as told to people",
    "zfarm/edge/store.py": "which files were not used for longest, over all workers of a host: they go first",
    "zfarm/face/dashboard.py": "the time of day on the screen",
    "zfarm/face/status.py": "the time of day on the page",
    "zfarm/naming.py": "since when a file is kept, as told to people",
}


def asks_the_wall_clock(source: Source) -> bool:
    """Whether there is a call such as ``time.time()`` in this file."""
    return any(
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr in WALL) in {("time", True), ("datetime", True), ("date", True)}
        for node in ast.walk(source.tree)
    )


def test_the_time_of_day_decides_nothing() -> None:
    asking = {source.name for source in sources("zfarm") if asks_the_wall_clock(source)}
    assert asking == set(ASKED), "time.monotonic() is for intervals; who needs a date stands in ASKED"
