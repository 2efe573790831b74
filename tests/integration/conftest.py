"""Farms over TCP on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.face.processes import TcpFarm, tcp_farm


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[TcpFarm]:
    """A farm of which nothing is started yet; all that is ends with the test."""
    with tcp_farm(tmp_path) as started:
        yield started
