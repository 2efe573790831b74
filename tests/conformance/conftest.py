"""Fixtures of the contract: the kind of executor, a factory of them, gates and scripts."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import support


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """Which executor this run of the test is about."""
    name: str = request.param
    return name


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[support.Gates]:
    """Makes gates; all are open when the executors are shut down."""
    gates = support.Gates(tmp_path)
    yield gates
    gates.close()


@pytest.fixture
def gate(gates: support.Gates) -> support.Gate:
    """One gate that holds tasks."""
    return gates.new()


@pytest.fixture
def make(kind: str, gates: support.Gates) -> Iterator[support.Make]:
    """Makes executors; each is shut down after the test, whatever the test did with it."""
    made: list[concurrent.futures.Executor] = []

    def make(max_workers: int | None = 2, **options: Any) -> concurrent.futures.Executor:
        made.append(support.make_executor(kind, max_workers, options))
        return made[-1]

    yield make
    gates.open()
    for executor in made:
        executor.shutdown(wait=True, cancel_futures=True)


@pytest.fixture
def scripts(kind: str, tmp_path: Path) -> support.Scripts:
    """Runs scripts that use the kind of executor under test."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    return support.Scripts(kind, folder)
