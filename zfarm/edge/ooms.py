"""What the kernel counts as killed for lack of memory: evidence for the cause of a death, never a proof.

The counters tell how many, not who. So what they show is called likely, and only what they counted within
the last moments counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Evidence", "Ooms"]

_UNKNOWN: Final = -1


class Evidence(NamedTuple):
    """``text`` says why it is likely that memory ran out, if anything does; ``known``: there are counters."""

    text: str
    known: bool


class _Counts(NamedTuple):
    group: int
    host: int


class Ooms:
    """The counters of this process's control group and of its host, now and a moment ago."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._vmstat = root / "proc/vmstat"
        self._group = _group_file(root)
        self._earlier = self._latest = self._read()

    def tick(self) -> None:
        """About a second has passed: what was counted two ticks ago is no evidence any more."""
        self._earlier, self._latest = self._latest, self._read()

    def evidence(self) -> Evidence:
        """Whether something was killed for lack of memory within the last moments."""
        now, before = self._read(), self._earlier
        known = now != (_UNKNOWN, _UNKNOWN)
        if _UNKNOWN not in (now.group, before.group) and now.group > before.group:
            return Evidence("the kernel has just killed a process of its control group for that", known)
        if _UNKNOWN not in (now.host, before.host) and now.host > before.host:
            return Evidence("the kernel has just killed a process of this host for that", known)
        return Evidence("", known)

    def _read(self) -> _Counts:
        return _Counts(_UNKNOWN if self._group is None else _count(self._group), _count(self._vmstat))


def _count(path: Path) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return _UNKNOWN
    fields = dict(line.split()[:2] for line in lines if " " in line)
    number = fields.get("oom_kill", "")
    return int(number) if number.isdecimal() else _UNKNOWN


def _group_file(root: Path) -> Path | None:
    """Where the kills of our own control group are counted, those of its children included."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None  # not Linux
    for line in lines:
        _, kinds, place = line.split(":", 2)
        base = root / "sys/fs/cgroup"
        for path in (
            base / place.lstrip("/") / "memory.events",
            base / "memory" / place.lstrip("/") / "memory.oom_control",
            base / "memory.events",  # a container may see its own group at the top
            base / "memory" / "memory.oom_control",
        ):
            if ("memory" in kinds.split(",") or not kinds) and _count(path) != _UNKNOWN:
                return path
    return None
