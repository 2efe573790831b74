"""The functions that are measured: importable, and next to nothing in themselves."""

from __future__ import annotations

import os
import time
from typing import Any


def noop(*_: object) -> None:
    """Nothing."""


def sleep_1ms(*_: object) -> None:
    """Wait as little as a system can."""
    time.sleep(0.001)


def hold(gate: str) -> None:
    """Occupy a slot until the named pipe is opened for writing."""
    with open(gate, "rb"):
        pass


def same(thing: Any) -> Any:
    """What it is given."""
    return thing


def first(array: Any) -> float:
    """The first number of an array: of how it got here, nearly nothing else."""
    return float(array[0])


def pid(*_: object) -> int:
    """Who runs this."""
    return os.getpid()
