"""Farms in which there is little room: for workers of one key, and for functions that travel once."""

from __future__ import annotations

import dataclasses
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.faults import Mix


def let_crowd(mix: Mix) -> None:
    """In some farms a key may have no more workers than there are: one that was killed and comes back finds
    its own dead session there."""
    rng = Random(f"crews {mix.seed}")
    if not mix.calm and "rogue" not in mix.rates and rng.random() < 0.2:
        mix.settings = dataclasses.replace(mix.settings, worker_sessions_max=len(mix.slots))
        mix.rates["kill worker"] = max(mix.rates.get("kill worker", 0.0), 0.1)


def let_name(mix: Mix) -> None:
    """In some farms every function travels once, and few are kept. The dice are of their own here, too."""
    rng = Random(f"names {mix.seed}")
    if rng.random() < 0.4:
        kept = rng.choice((1, 20, 40, 1000))
        mix.settings = dataclasses.replace(mix.settings, named_from_bytes=1, named_kept_bytes=kept)
