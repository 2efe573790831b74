"""The option of the simulator's tests: ``pytest tests/simulation --seed N`` runs that seed alone."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="simulate this seed alone, and tell its story")
