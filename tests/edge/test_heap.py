"""The heap of a child: what was freed is used again without faults, within a limit, and given back; each in a
process of its own, since it changes how that gets its memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from zfarm.edge import heap
from zfarm.edge.heap import Heap

pytestmark = pytest.mark.skipif(heap._measurable() is None, reason="not glibc's own heap")

HEAD = """
import resource
import numpy as np
from zfarm.edge.heap import Heap
from zfarm.edge.processes import anonymous_bytes
MB = 10**6
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def spent(megabytes):
    before = faults()
    np.frombuffer(bytearray(megabytes * MB), "u1")[::4096].sum()
    return faults() - before
def pages(megabytes):
    return megabytes * MB // 4096
heap = Heap(200 * MB)
"""


def run(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", HEAD + program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    return done.stdout


def test_what_was_freed_is_used_again_without_faults() -> None:
    run("""
heap.stir()
spent(80)
assert spent(80) < pages(80) / 32
""")


def test_it_is_given_back_when_asked_for() -> None:
    run("""
heap.stir()
before = anonymous_bytes()
spent(80)
assert anonymous_bytes() - before > 70 * MB
heap.cool()
assert anonymous_bytes() - before < 10 * MB
""")


@pytest.mark.parametrize("holes", [1, 3, 5])
def test_no_more_is_kept_than_the_limit_also_between_blocks_in_use(holes: int) -> None:
    run(f"""
heap.stir()
before = anonymous_bytes()
for _ in range(3):
    blocks = [(bytearray(90 * MB), bytearray(200_000)) for _ in range({holes})]
    small = [block[1] for block in blocks]
    del blocks
    heap.stir()
    assert anonymous_bytes() - before < 220 * MB
assert len(small) == {holes}
""")


def test_while_memory_is_limited_nothing_is_kept() -> None:
    run("""
heap.stir()
before = anonymous_bytes()
spent(80)
heap.limit(True)
assert anonymous_bytes() - before < 10 * MB
spent(80)
heap.stir()
assert anonymous_bytes() - before < 10 * MB
heap.limit(False)
spent(80)
assert spent(80) < pages(80) / 32
""")


def test_before_the_first_long_call_all_is_as_ever() -> None:
    run("""
before = anonymous_bytes()
spent(80)
heap.cool()
heap.limit(True)
heap.limit(False)
spent(80)
assert anonymous_bytes() - before < 10 * MB
""")


@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_who_has_tuned_it_is_obeyed(name: str) -> None:
    value = "glibc.malloc.mmap_threshold=131072" if name == "GLIBC_TUNABLES" else "131072"
    run(
        """
before = anonymous_bytes()
heap.stir()
spent(80)
assert anonymous_bytes() - before < 10 * MB
heap.cool()
""",
        **{name: value},
    )


def test_on_other_systems_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_measurable", lambda: None)
    plain = Heap()
    plain.stir()
    plain.limit(True)
    plain.cool()

    assert plain.strict


def test_what_one_may_keep_is_a_part_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "usable_cores", lambda: 4)
    share = heap.share_bytes.__wrapped__
    monkeypatch.setattr(heap, "_memory_bytes", lambda: 6400)
    assert share() == 100
    monkeypatch.setattr(heap, "_memory_bytes", lambda: 1 << 50)
    assert share() == 256 * 1024 * 1024
