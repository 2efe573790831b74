"""Segments of shared memory: made, opened by others, mapped, compared, recycled and bounded."""

from __future__ import annotations

import dataclasses
import gc
import mmap
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zfarm.edge import segments
from zfarm.edge.segments import Pool, Ref, Segment, area_of, bytes_of, open_ref, same, write_ref
from zfarm.settings import settings as tuned

pytestmark = pytest.mark.skipif(not segments.POSSIBLE, reason="no memfd and /proc here")

KIB = 1024
LIMITS = dataclasses.replace(
    tuned,
    shared_bytes_max=1024 * KIB,
    shared_warm_bytes=512 * KIB,
    shared_spill_max=256 * KIB,
    shared_segments_max=6,
)


def filled(data: bytes, folder: str = "") -> Segment:
    segment = Segment(64 * KIB, folder)
    segment.write(memoryview(data))
    return segment


@given(data=st.binary(min_size=1, max_size=70_000), spilled=st.booleans())
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_what_others_map(data: bytes, spilled: bool) -> None:
    segment = Segment(128 * KIB, "/tmp" if spilled else "")
    segment.write(memoryview(data))

    assert bytes_of(area_of(segment.ref())).tobytes() == data
    write_ref(segment.ref(), memoryview(data[::-1]))
    assert bytes_of(area_of(segment.ref())).tobytes() == data[::-1]
    segment.close()


def test_what_one_writes_into_its_area_nobody_else_sees() -> None:
    segment = filled(b"before")
    first, second = (bytes_of(area_of(segment.ref())) for _ in range(2))
    first[:6] = b"after!"

    assert second.tobytes() == b"before"
    assert bytes_of(segment.area)[:6].tobytes() == b"before"


@pytest.mark.parametrize("folder", ["", "/tmp"])
def test_another_process_opens_it_by_its_reference_and_keeps_it(folder: str) -> None:
    segment = filled(b"something" * 1000, folder)
    program = (
        "import sys; from zfarm.edge.segments import Ref, area_of, bytes_of;"
        f"area = bytes_of(area_of(Ref(*{tuple(segment.ref())!r})));"
        "print('mapped', flush=True); sys.stdin.readline(); print(area.tobytes().decode(), end='')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mapped\n"
        segment.close()
        out, _ = other.communicate("\n")

    assert out == "something" * 1000


def test_a_number_that_is_another_file_now_is_not_opened(tmp_path: Path) -> None:
    segment = filled(b"data")
    spilled = filled(b"data", str(tmp_path))
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(64 * KIB + 16))
    with secret.open("rb") as file:
        for ref in (
            segment.ref()._replace(fd=file.fileno()),
            segment.ref()._replace(token=os.urandom(16)),
            segment.ref()._replace(fd=spilled.fd),
            segment.ref()._replace(size=64 * KIB + 1),
            spilled.ref()._replace(fd=file.fileno()),
            spilled.ref()._replace(token=os.urandom(16)),
            spilled.ref()._replace(fd=segment.fd),
            Ref(segment.token, 2**22 + 1, segment.fd, 4),
        ):
            with pytest.raises(OSError):
                open_ref(ref)


def test_an_area_lives_as_long_as_a_byte_of_it_can_be_reached() -> None:
    segment = filled(b"x" * 5000)
    area = area_of(segment.ref())
    gone = weakref.ref(area)
    part = bytes_of(area)[100:200]
    del area
    before = part.tobytes()
    segment.close()

    assert gone() is not None
    assert part.tobytes() == before == b"x" * 100
    del part
    gc.collect()
    assert gone() is None


def test_a_mapping_holds_no_descriptor() -> None:
    segment = filled(b"data")
    before = len(os.listdir("/proc/self/fd"))
    areas = [area_of(segment.ref()) for _ in range(20)]

    assert len(os.listdir("/proc/self/fd")) == before
    assert len(areas) == 20


@given(data=st.binary(min_size=1, max_size=2000), at=st.integers(0, 1999))
@settings(deadline=None)
def test_every_byte_is_compared(data: bytes, at: int) -> None:
    segment = filled(data)
    other = bytearray(data)
    assert same(segment.area, memoryview(data))
    assert same(segment.area, memoryview(bytearray(data)))
    other[at % len(data)] ^= 1

    assert not same(segment.area, memoryview(other))
    segment.close()


def test_memory_that_cannot_be_mapped_is_an_error() -> None:
    with pytest.raises(OSError):
        segments.map_area(-1, 4096, mmap.MAP_SHARED, mmap.PROT_READ)


# ---------------------------------------------------------------- the pool


def test_a_free_segment_of_the_class_is_used_again() -> None:
    pool = Pool(LIMITS)
    first = pool.take(70 * KIB)
    assert first is not None
    pool.give(first)
    again = pool.take(100 * KIB)

    assert again is first
    assert (pool.bytes, pool.warm, pool.count) == (100 * KIB, 0, 1)
    other = pool.take(100 * KIB)
    assert other is not first
    pool.trim()


def test_a_tainted_segment_is_not_written_to_again() -> None:
    pool = Pool(LIMITS)
    first = pool.take(70 * KIB)
    assert first is not None
    first.tainted = True
    pool.give(first)
    again = pool.take(70 * KIB)

    assert again is not first
    assert pool.is_free(first)
    pool.trim()


def test_what_is_above_the_limit_is_spilled_and_then_refused() -> None:
    pool = Pool(LIMITS)
    inside = [pool.take(512 * KIB) for _ in range(2)]
    spilled = pool.take(200 * KIB)
    refused = pool.take(200 * KIB)

    assert all(segment is not None and not segment.spilled for segment in inside)
    assert spilled is not None
    assert spilled.spilled
    assert refused is None
    spilled.write(memoryview(bytes(200 * KIB)))
    pool.give(spilled)
    assert (pool.spilled, pool.count, spilled.fd) == (0, 2, -1)


def test_there_are_never_more_segments_than_may_be() -> None:
    pool = Pool(LIMITS)
    held = [pool.take(1) for _ in range(8)]

    assert [segment is None for segment in held] == [False] * 6 + [True] * 2


def test_what_is_free_is_bounded_and_the_oldest_goes_first() -> None:
    forgotten: list[Segment] = []
    pool = Pool(LIMITS, forgotten.append)
    held = [pool.take(200 * KIB) for _ in range(4)]
    for segment in held:
        assert segment is not None
        pool.give(segment)

    assert forgotten == held[:2]
    assert pool.warm == pool.bytes == 400 * KIB
    pool.cool()
    assert pool.count == 2
    pool.cool()
    assert (pool.warm, pool.bytes, pool.count) == (0, 0, 0)


@given(st.lists(st.tuples(st.integers(1, 300 * KIB), st.booleans(), st.booleans()), max_size=40))
@settings(max_examples=40, deadline=None)
def test_the_books_of_a_pool_are_right_whatever_is_taken_and_given(
    steps: list[tuple[int, bool, bool]],
) -> None:
    pool = Pool(LIMITS)
    held: list[Segment] = []
    for size, give, taint in steps:
        segment = pool.take(size)
        if segment is not None:
            assert segment not in held
            assert not segment.tainted
            assert segment.capacity >= size
            held.append(segment)
        if give and held:
            segment = held.pop(0)
            segment.tainted = taint
            pool.give(segment)
        assert pool.bytes <= LIMITS.shared_bytes_max
        assert pool.spilled <= LIMITS.shared_spill_max
        assert pool.warm <= LIMITS.shared_warm_bytes
        assert len(held) <= pool.count <= LIMITS.shared_segments_max
    for segment in held:
        pool.give(segment)
    pool.trim()
    assert (pool.bytes, pool.warm, pool.spilled, pool.count) == (0, 0, 0, 0)
