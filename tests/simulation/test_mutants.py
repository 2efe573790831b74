"""The simulator's teeth: each planted bug must be caught by one of the seeds of every run."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.run import simulate
from tests.simulation.test_seeds import seeds


def caught_by(number: int) -> int | str | None:
    """The first seed that fails with this bug planted, None if none does; text: why it cannot be planted."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            MUTANTS[number].plant(patch)
        except AssertionError as error:
            return str(error)
        return next((seed for seed in seeds() if simulate(seed).failure), None)


@pytest.fixture(scope="module")
def catch(request: pytest.FixtureRequest) -> Callable[[Mutant], int | str | None]:
    """All that were selected, tried on all cores at the first question."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    mine = [item for item in items if item.function is test_a_planted_bug_is_caught]
    mutants = [mutant for item in mine if isinstance(mutant := item.callspec.params["mutant"], Mutant)]
    numbers = [MUTANTS.index(mutant) for mutant in mutants]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        caught = dict(zip(numbers, pool.map(caught_by, numbers), strict=True))
    return lambda mutant: caught[MUTANTS.index(mutant)]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_caught(mutant: Mutant, catch: Callable[[Mutant], int | str | None]) -> None:
    seed = catch(mutant)

    assert seed is not None, f"nobody noticed: {mutant.name}"
    assert isinstance(seed, int), seed
