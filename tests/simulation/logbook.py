"""What soaks have done with one state of the code, in a file: the next one goes on from there.

It knows seeds and what they came to, and nothing of how they are run.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[2]
DRIVERS = frozenset({"__main__.py", "conftest.py", "hints.py", "logbook.py", "mutants.py", "soak.py"})
"""Modules of the simulator that only run seeds, and change none of them. So do its tests."""
TOLD_MAX = 3
"""Failures whose end is told in full; the seeds of the others are named, and tell it again."""
STORY_BYTES = 2000
"""What is kept of those others."""


@dataclass
class Tally:
    """What some seeds came to."""

    seeds: int = 0
    events: int = 0
    virtual_s: float = 0.0
    longest_s: float = 0.0
    took_s: float = 0.0
    """Processor seconds."""
    probes: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        """Count those of ``other``, too."""
        self.seeds += other.seeds
        self.events += other.events
        self.virtual_s += other.virtual_s
        self.longest_s = max(self.longest_s, other.longest_s)
        self.took_s += other.took_s
        self.probes += other.probes
        for seed, story in other.failures.items():
            self.failures[seed] = story if len(self.failures) < TOLD_MAX else story[-STORY_BYTES:]


def sources(root: Path = ROOT) -> list[Path]:
    """Every file that a seed's story depends on."""
    zfarm, simulation = root / "zfarm", root / "tests" / "simulation"
    leaves = (zfarm / f"{name}.py" for name in ("messages", "packed", "settings"))
    players = (
        path
        for path in simulation.glob("*.py")
        if path.name not in DRIVERS and not path.name.startswith("test_")
    )
    return sorted(chain(leaves, (zfarm / "core").rglob("*.py"), players))


def state_of(root: Path = ROOT) -> str:
    """A name for what is simulated: another one as soon as a story may be another one."""
    state = hashlib.blake2b(digest_size=8)
    for path in sources(root):
        text = path.read_bytes()
        state.update(f"{path.relative_to(root).as_posix()} {len(text)}\n".encode() + text)
    return state.hexdigest()


class Logbook:
    """The parts of a soak that are done, a line each; a line that was cut short counts for nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.total = Tally()
        self.done: set[int] = set()
        text = path.read_text() if path.exists() else ""
        whole, _, cut = text.rpartition("\n")
        if cut:
            path.write_text(whole + "\n" * bool(whole))
        for line in whole.splitlines():
            self._count(*_read(line))

    def enter(self, first: int, part: Tally) -> None:
        """These seeds from ``first`` on are done."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({"first": first, **vars(part)}) + "\n")
        self._count(first, part)

    def left(self, first: int, count: int, size: int) -> Iterator[range]:
        """Of the ``count`` seeds from ``first`` on, in parts of ``size``, those parts that are to be run."""
        end = first + count
        for start in range(first, end, size):
            part = [seed for seed in range(start, min(start + size, end)) if seed not in self.done]
            if part:  # what is done of it are its first ones
                yield range(part[0], part[-1] + 1)

    def _count(self, first: int, part: Tally) -> None:
        self.done.update(range(first, first + part.seeds))
        self.total.add(part)


def _read(line: str) -> tuple[int, Tally]:
    entry = json.loads(line)
    first = entry.pop("first")
    probes, failures = Counter(entry.pop("probes")), entry.pop("failures")
    stories = {int(seed): story for seed, story in failures.items()}
    return first, Tally(**entry, probes=probes, failures=stories)
