"""Farms over TCP on loopback, and a small disk for what they write."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.face.processes import TcpFarm, tcp_farm


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[TcpFarm]:
    """A farm of which nothing is started yet; all that is ends with the test."""
    with tcp_farm(tmp_path) as started:
        yield started


@pytest.fixture
def disk(tmp_path: Path, farm: TcpFarm) -> Iterator[Path]:
    """A disk of our own with room for 8 MiB; the farm ends before it goes."""
    place = tmp_path / "disk"
    place.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", str(place)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("a small disk of our own cannot be mounted here")
    try:
        yield place
    finally:
        farm.close()
        subprocess.run(["umount", str(place)], check=True)
