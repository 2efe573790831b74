"""The terms of a call: what ``Executor.options`` was told, checked once and carried by what it submits."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from zfarm.arguments import SECONDS_MAX, seconds_of, shown
from zfarm.messages import Demand
from zfarm.placement import demand_labels, demand_of, demand_resources
from zfarm.settings import settings

if TYPE_CHECKING:
    from zfarm.edge.bales import Bale
    from zfarm.handles import FileHandle

__all__ = ["FORWARD", "LISTENED", "PLAIN", "Terms"]

NAME_MAX: Final = 200
ATTEMPTS_MAX: Final = 1000
PRIORITY_MAX: Final = 1_000_000
MEMORY_MIN: Final = 16 * 1024**2
MEMORY_MAX: Final = 1024**5
SIZE: Final = re.compile(r"(\d{1,15}(?:\.\d{1,9})?) *(B|[kMGT]i?B)", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for the calls of one view of a farm."""

    timeout_us: int = 0
    max_attempts: int = settings.max_attempts
    counted: bool = False  # max_attempts was said, and is not only what it is without a word
    retry_on: tuple[type[Exception], ...] = ()
    priority: int = 0
    name: str = ""
    force_cancel: bool = False
    memory_bytes: int = 0
    resources: tuple[tuple[str, int], ...] = ()
    labels: tuple[str, ...] = ()
    exclusive: bool = False
    demand: Demand | None = None  # resources, labels and exclusive in one
    output: str = ""
    keep: bool = False
    files: tuple[tuple[str, FileHandle], ...] = ()  # for the scratch directory of the call
    scratch: bool | str = False
    handles: tuple[FileHandle | Bale, ...] = ()  # of all files that the call needs

    def placing(self, keep: bool) -> Any:
        """What its child has to prepare; None: nothing. ``keep``: the result goes into a store there."""
        room = bool(self.files or self.scratch)
        if not (room or keep):
            return None
        from zfarm.edge.workplace import CWD, Placing

        return Placing(self.files, self.scratch == CWD, room, keep)

    @property
    def alone(self) -> bool:
        """Each item of a map travels alone: what holds for a call must hold for each of them."""
        special = self.timeout_us or self.memory_bytes or self.retry_on or self.files or self.scratch
        return bool(special) or self.exclusive or self.max_attempts == 1

    def but(self, **given: Any) -> Terms:
        """These terms with what is ``given`` in place of what was.

        Raises:
            TypeError, ValueError: an option that cannot be; the text says which and what could.
        """
        if given.get("retries") is not None and given.get("max_attempts") is not None:
            raise ValueError("retries and max_attempts say the same (max_attempts is retries + 1): give one")
        chosen = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in given.items():
            chosen.update(_READ[name](value))
        chosen["handles"] = tuple(handle for _, handle in chosen["files"])
        chosen["demand"] = demand_of(chosen["resources"], chosen["labels"], chosen["exclusive"])
        if chosen["retry_on"] and not chosen["counted"]:
            raise ValueError("retry_on needs retries: how often a call may be run again, such as retries=3")
        if chosen["retry_on"] and chosen["max_attempts"] == 1:
            raise ValueError(
                "retry_on and retries=0 contradict each other: give retries=1 or more, or no retry_on"
            )
        return Terms(**chosen)


def _timeout(value: Any) -> dict[str, Any]:
    if value is None:
        return {"timeout_us": 0}
    seconds = seconds_of("timeout", value)
    if not 0 < seconds <= SECONDS_MAX:
        raise ValueError(f"timeout must be greater than 0 seconds and at most ten years, not {value!r}")
    return {"timeout_us": max(1, int(seconds * 1e6))}


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least} to {most}, not {shown(value)}")
    return value


def _attempts(value: Any) -> dict[str, Any]:
    if value is None:
        return {"max_attempts": settings.max_attempts, "counted": False}
    return {"max_attempts": _whole("max_attempts", value, 1, ATTEMPTS_MAX), "counted": True}


def _retries(value: Any) -> dict[str, Any]:
    if value is None:
        return {"max_attempts": settings.max_attempts, "counted": False}
    return {"max_attempts": _whole("retries", value, 0, ATTEMPTS_MAX - 1) + 1, "counted": True}


def _retry_on(value: Any) -> dict[str, Any]:
    if value is None:
        return {"retry_on": ()}
    kinds = value if isinstance(value, tuple) else (value,)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise TypeError(
                f"retry_on must be an exception class, or a tuple of them such as (OSError, EOFError); "
                f"{kind!r} is none that may be retried"
            )
    if not kinds:
        raise ValueError("retry_on names no exception; None retries none")
    return {"retry_on": tuple(dict.fromkeys(kinds))}


def _priority(value: Any) -> dict[str, Any]:
    return {"priority": _whole("priority", value, -PRIORITY_MAX, PRIORITY_MAX)}


def _name(value: Any) -> dict[str, Any]:
    if value is None:
        return {"name": ""}
    if not isinstance(value, str):
        raise TypeError(f"name must be a string, not {type(value).__name__}")
    if not value or len(value) > NAME_MAX or not value.isprintable():
        raise ValueError(f"name must have 1 to {NAME_MAX} printable characters, not {value[:300]!r}")
    return {"name": value}


def _switch(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return {name: value}


def _memory(value: Any) -> dict[str, Any]:
    if value is None:
        return {"memory_bytes": 0}
    if isinstance(value, str):
        size = _size(value)
    elif isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"memory must be a whole number of bytes, or a text such as '2GiB', not {type(value).__name__}"
        )
    else:
        size = value
    if not MEMORY_MIN <= size <= MEMORY_MAX:
        raise ValueError(
            f"memory must be from 16MiB (a child that does nothing needs some) to 1024TiB, not {shown(value)}"
        )
    return {"memory_bytes": size}


def _size(text: str) -> int:
    found = SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(
            f"memory cannot be {text!r}: say a number and its unit, such as '500MB' (of 1000 kB) or '2GiB' "
            "(of 1024 MiB); the units are B, kB, MB, GB, TB, KiB, MiB, GiB and TiB"
        )
    unit = found[2].lower()
    base = 1024 if "i" in unit else 1000
    return int(float(found[1]) * base ** " kmgt".index(unit[0] if unit != "b" else " "))


def _resources(value: Any) -> dict[str, Any]:
    return {"resources": demand_resources(value)}


def _labels(value: Any) -> dict[str, Any]:
    return {"labels": demand_labels(value)}


FORWARD: Final = "forward"
LISTENED: Final = (FORWARD, "keep")
"""With these, what a call prints and logs comes home."""
_OUTPUTS: Final = (*LISTENED, "off")


def _output(value: Any) -> dict[str, Any]:
    if value is None:
        return {"output": ""}
    if value not in _OUTPUTS:
        raise ValueError(f"output must be one of {', '.join(_OUTPUTS)}, or None, not {value!r}")
    return {"output": value}


def _files(value: Any) -> dict[str, Any]:
    from zfarm.fetching import placed

    return {"files": placed(value)}


def _scratch(value: Any) -> dict[str, Any]:
    if not isinstance(value, bool) and (not isinstance(value, str) or value != "cwd"):
        raise ValueError(f"scratch must be True, False or 'cwd', not {value!r}")
    return {"scratch": value}


_READ: Final[Mapping[str, Callable[[Any], dict[str, Any]]]] = {
    "files": _files,
    "scratch": _scratch,
    "memory": _memory,
    "timeout": _timeout,
    "retries": _retries,
    "max_attempts": _attempts,
    "retry_on": _retry_on,
    "priority": _priority,
    "name": _name,
    "force_cancel": partial(_switch, "force_cancel"),
    "resources": _resources,
    "labels": _labels,
    "output": _output,
    "keep": partial(_switch, "keep"),
    "exclusive": partial(_switch, "exclusive"),
}

PLAIN: Final = Terms()
