"""Which seed has caught which planted bug: where to look first, so that a run need not look everywhere.

The list is a memory and no proof: a seed that does not catch its bug any more costs the time to find another.
Written anew by ``python -m tests.simulation.hints`` after changes of the simulator.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.simulation import run
from tests.simulation.mutants import MUTANTS
from tests.simulation.run import simulate
from tests.simulation.test_seeds import seeds

FILE = Path(__file__).with_name("hints.txt")
CHEAP_S = 0.5
"""Processor time of a seed for which no cheaper one is looked for."""
TRIES = 6
"""Of how many seeds that catch a bug the cheapest is taken."""


def read() -> dict[str, int]:
    """The seed that has caught each planted bug, by its name."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    return {name: int(seed) for seed, name in (line.split(" ", 1) for line in lines)}


def caught_by(number: int, first: Iterable[int] = ()) -> int | str | None:
    """A seed that fails with this bug planted, None if none does; text: why it cannot be planted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "REST_S", run.GIVEN_UP_S)
        try:
            MUTANTS[number].plant(patch)
        except AssertionError as error:
            return str(error)
        return next((seed for seed in _once(*first, *seeds()) if simulate(seed).failure), None)


def search(numbers: list[int]) -> dict[int, int | str | None]:
    """What ``caught_by`` says of each of these, tried on all cores."""
    known = read()
    first = [[known[name]] if (name := MUTANTS[number].name) in known else [] for number in numbers]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        return dict(zip(numbers, pool.map(caught_by, numbers, first), strict=True))


def cheapest(number: int) -> int | None:
    """Of the first seeds that fail with this bug planted, the one that takes least: some farms wait for long
    for what does not come."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "REST_S", run.GIVEN_UP_S)
        MUTANTS[number].plant(patch)
        costs: list[tuple[float, int]] = []
        for seed in seeds():
            began = time.process_time()
            if simulate(seed).failure:
                costs.append((time.process_time() - began, seed))
                if costs[-1][0] < CHEAP_S or len(costs) == TRIES:
                    break
    return min(costs)[1] if costs else None


def _once(*numbers: int) -> Iterator[int]:
    return iter(dict.fromkeys(numbers))


def main() -> None:
    """Look for all planted bugs, and write what was found."""
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(cheapest, range(len(MUTANTS))))
    lines = [
        f"{seed} {mutant.name}\n" for seed, mutant in zip(found, MUTANTS, strict=True) if seed is not None
    ]
    FILE.write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} of {len(MUTANTS)} planted bugs were caught")


if __name__ == "__main__":
    main()
