"""Memory that comes and goes by the megabyte: kept where it can be, and had without being cleared."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from zfarm.edge.pages import KEPT_BYTES, room

COMES_AND_GOES = """
import resource
from zfarm.edge.pages import KEPT_BYTES, keep_freed_memory
print(keep_freed_memory())
MIB = 1024 * 1024
def touch():
    held = [bytearray(MIB + 33 + n * 64) for n in range(KEPT_BYTES // MIB // 2)]
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    touch()
fresh = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(fresh * resource.getpagesize() / (5 * KEPT_BYTES))
"""


def come_and_go(**environment: str) -> tuple[bool, float]:
    """Whether the C library could be told, and which part of what was used again was fresh. In a process of
    its own: it changes all of it."""
    done = subprocess.run(
        [sys.executable, "-c", COMES_AND_GOES],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    can, fresh = done.stdout.split()
    return can == "True", float(fresh)


def test_what_comes_again_and_again_is_not_fresh_each_time() -> None:
    can, fresh = come_and_go()
    assert can is (platform.libc_ver()[0] == "glibc")
    if not can:
        pytest.skip("this C library cannot be told")
    assert fresh < 0.05, "of what was used"


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_who_has_told_the_library_what_to_keep_is_obeyed(name: str) -> None:
    value = "glibc.malloc.trim_threshold=131072" if name == "GLIBC_TUNABLES" else "131072"
    can, fresh = come_and_go(**{name: value})
    assert not can
    if platform.libc_ver()[0] == "glibc":
        assert fresh > 0.2, "of what was used"


def test_room_is_to_be_written_to() -> None:
    for size in (0, 1, KEPT_BYTES // 32 + 33):
        made = room(size)
        assert type(made) is bytearray
        assert len(made) == size
        made[:] = bytes(size)
        assert made == bytes(size)
