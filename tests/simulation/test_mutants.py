"""The simulator's teeth: each planted bug must be caught by one of the seeds of every run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.simulation.hints import search
from tests.simulation.mutants import MUTANTS, Mutant


@pytest.fixture(scope="module")
def catch(request: pytest.FixtureRequest) -> Callable[[Mutant], int | str | None]:
    """All that were selected, tried on all cores at the first question."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    mine = [item for item in items if item.function is test_a_planted_bug_is_caught]
    mutants = [mutant for item in mine if isinstance(mutant := item.callspec.params["mutant"], Mutant)]
    caught = search([MUTANTS.index(mutant) for mutant in mutants])
    return lambda mutant: caught[MUTANTS.index(mutant)]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_caught(mutant: Mutant, catch: Callable[[Mutant], int | str | None]) -> None:
    seed = catch(mutant)

    assert seed is not None, f"nobody noticed: {mutant.name}"
    assert isinstance(seed, int), seed
