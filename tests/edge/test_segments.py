"""Segments of shared memory: made, opened by others, mapped, compared, recycled and bounded."""

from __future__ import annotations

import dataclasses
import gc
import mmap
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zfarm.edge import leases, segments
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


# ---------------------------------------------------------------- renewal

needs_leases = pytest.mark.skipif(not segments.leases_tell(), reason="this system does not tell")


@needs_leases
@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
def test_one_that_others_have_open_or_mapped_is_not_renewed(write: bool, mapped: bool) -> None:
    segment = filled(b"before")
    segment.tainted = True
    ref = segment.ref()
    fd = open_ref(ref, write=write)
    flags = mmap.MAP_SHARED if write else segments.PRIVATE
    area = segments.map_area(fd, 4096, flags, mmap.PROT_READ) if mapped else None
    if mapped:
        os.close(fd)
    assert not segment.renew()
    assert segment.tainted
    assert segment.ref() == ref, "those that may open it still can"
    del area
    if not mapped:
        os.close(fd)

    assert segment.renew()
    assert not segment.tainted
    assert bytes_of(area_of(segment.ref())).tobytes() == b"before"
    with pytest.raises(FileNotFoundError):
        open_ref(ref)


@needs_leases
def test_one_that_is_opened_in_the_middle_is_not_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    segment = filled(b"before")
    segment.tainted = True
    late: list[int] = []

    def look(fd: int) -> bool:
        told = leases.is_at_rest(fd)
        if not late:
            late.append(open_ref(segment.ref()))
        return told

    monkeypatch.setattr(segments, "is_at_rest", look)
    assert not segment.renew()
    assert segment.tainted
    assert os.pread(late[0], 6, 0) == b"before"
    os.close(late[0])

    assert segment.renew()


READER = """
import ast, sys
from zfarm.edge.segments import Ref, area_of, bytes_of
print("ready", flush=True)
for line in sys.stdin:
    *ref, byte = ast.literal_eval(line)
    try:
        data = bytes_of(area_of(Ref(*ref)))
    except FileNotFoundError:
        print("gone", flush=True)
        continue
    seen = {data[at] for _ in range(3) for at in range(0, len(data), 512)}
    del data
    print("right" if seen == {byte} else f"wrong: {seen} for {byte}", flush=True)
"""


@contextmanager
def readers(count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that look at what they are told of."""
    command = [sys.executable, "-c", READER]
    with ExitStack() as stack:
        others = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(count)
        ]
        assert [said(other) for other in others] == ["ready"] * count
        yield others


def said(reader: subprocess.Popen[str]) -> str:
    assert reader.stdout is not None
    return reader.stdout.readline().strip()


@needs_leases
def test_readers_that_come_late_see_what_they_look_for_or_nothing() -> None:
    pool = Pool(tuned)
    size, turns = 256 * KIB, 600
    found: list[str] = []
    tokens = set()
    with readers(2) as others:
        for turn in range(turns):
            segment = pool.take(size)
            assert segment is not None
            segment.write(memoryview(bytes([turn % 251]) * size))
            tokens.add(segment.token)
            for reader in others:
                assert reader.stdin is not None
                reader.stdin.write(f"{(*segment.ref(), turn % 251)!r}\n")
                reader.stdin.flush()
            segment.tainted = True
            pool.give(segment)
            if turn > 1:  # so that they are always a bit behind
                found += map(said, others)
        found += [said(reader) for reader in others for _ in range(2)]

    assert len(tokens) == turns
    assert len(found) == 2 * turns
    assert "right" in found
    assert set(found) <= {"right", "gone"}
    assert pool.count < turns / 10, "most were used again"
    pool.trim()


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


def tainted(pool: Pool) -> Segment:
    """A free one."""
    segment = pool.take(70 * KIB)
    assert segment is not None
    segment.tainted = True
    pool.give(segment)
    return segment


@needs_leases
def test_a_tainted_segment_is_written_to_again_when_nobody_has_it_open() -> None:
    pool = Pool(LIMITS)
    first = tainted(pool)
    other = open_ref(first.ref())
    second = pool.take(70 * KIB)
    assert second is not first
    assert pool.is_free(first)
    os.close(other)
    again = pool.take(100 * KIB)

    assert again is first
    assert not again.tainted
    assert (pool.bytes, pool.warm, pool.count) == (170 * KIB, 0, 2)
    pool.trim()


def test_where_the_system_does_not_tell_a_tainted_segment_is_not_written_to_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(segments, "leases_tell", lambda: False)
    pool = Pool(LIMITS)
    first = tainted(pool)
    again = pool.take(70 * KIB)

    assert again is not first
    assert pool.is_free(first)
    pool.trim()


@needs_leases
def test_one_that_needs_no_renewal_is_taken_first() -> None:
    pool = Pool(LIMITS)
    held = [pool.take(70 * KIB) for _ in range(3)]
    for segment in held:
        assert segment is not None
        segment.tainted = segment is not held[1]
        pool.give(segment)
    token = held[1].token if held[1] is not None else b""

    assert [pool.take(70 * KIB) for _ in range(3)] == [held[1], held[0], held[2]]
    assert held[1] is not None
    assert held[1].token == token
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
