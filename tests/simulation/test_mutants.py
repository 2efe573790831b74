"""The simulator's teeth: each planted bug must be caught by one of the first few hundred seeds."""

from __future__ import annotations

import pytest

from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.run import simulate

SEEDS_MAX = 500


def caught_by(seeds_max: int) -> int | None:
    """The first seed that fails."""
    return next((seed for seed in range(seeds_max) if simulate(seed).failure), None)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.plant(monkeypatch)

    assert caught_by(SEEDS_MAX) is not None, f"nobody noticed: {mutant.name}"
