"""Tasks with large arguments and results, in a module that children import quickly."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from zfarm.edge import shared

MIB = 1024 * 1024


def ones(mib: int, value: float = 1.0) -> Any:
    return np.full(mib * MIB // 8, value)


def total(array: Any) -> float:
    return float(array.sum())


def spoil(array: Any) -> tuple[float, str]:
    """Write to it; and the file that it is mapped from."""
    at = array.ctypes.data
    with open("/proc/self/maps", encoding="utf-8") as maps:
        lines = [line.split() for line in maps]
    (path,) = (
        words[-1]
        for words in lines
        if int(words[0].split("-")[0], 16) <= at < int(words[0].split("-")[1], 16)
    )
    array += 1
    return float(array.sum()), path


def look(thing: Any) -> tuple[int, bool, float]:
    return id(thing), thing["array"].flags.writeable, float(thing["array"].sum())


def kept() -> int:
    return len(shared._kept)


def make(value: float, mib: int = 17) -> Any:
    return {"array": np.full(mib * MIB // 8, value), "small": value}


def total_of(*things: Any) -> float:
    return float(sum(thing["array"].sum() + thing["small"] for thing in things))


def spoil_in(thing: Any) -> float:
    thing["array"][:] = 0
    return total_of(thing)


def grown(thing: Any, by: float) -> Any:
    return {"array": thing["array"] + by, "small": thing["small"]}


def sizes_of(*files: Any) -> list[int]:
    return [os.path.getsize(file) for file in files if isinstance(file, os.PathLike)]
