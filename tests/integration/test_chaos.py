"""One minute of random faults on a real farm; ``make chaos`` runs an hour."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tests.integration.chaos import chaos


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_minute_of_chaos_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    said = chaos(tmp_path, seconds=60, seed=secrets.randbelow(10**6))

    assert "kill" in said, "nothing happened"
