"""The store of a worker: what is in it is true and whole, whoever dies; what is used stays, old things go."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zfarm.edge.parcels import digest_of, whole_digest
from zfarm.edge.store import DAMAGED, FAR, FINAL, Store, name_of
from zfarm.edge.trees import Entry, Manifest, pack_manifest
from zfarm.errors import ConfigurationError
from zfarm.messages import CHUNK_BYTES, Need, StoreChunk

PLENTY = 1 << 40


def digest(data: bytes) -> bytes:
    return whole_digest(
        b"".join(digest_of(data[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES))
    )


def need_of(data: bytes) -> Need:
    return Need(digest(data), len(data))


class Hands:
    """One worker at a store, and what the store has answered."""

    def __init__(self, root: Path, bytes_max: int = PLENTY, lasting: bool = False) -> None:
        self.answers: list[tuple[Any, ...]] = []
        self.store = Store(root, bytes_max, lasting, lambda *answer: self.answers.append(answer))
        self.errands = 0

    def seek(self, need: Need) -> tuple[int, Any]:
        """The errand, and the answer."""
        self.errands += 1
        self.store.seek(self.errands, need)
        return self.errands, self.answers[-1]

    def chunk(self, errand: int, need: Need, at: int, data: bytes, check: bytes = b"", path: str = "") -> Any:
        self.answers.clear()
        self.store.store_chunk(StoreChunk(errand, need, at, check or digest_of(data), data, path))
        self.store.settle()
        return self.answers[-1] if self.answers else None

    def put(self, data: bytes) -> tuple[int, Need]:
        need = need_of(data)
        errand, answer = self.seek(need)
        for at in range(max(0, answer[2]), len(data), CHUNK_BYTES):
            answer = self.chunk(errand, need, at, data[at : at + CHUNK_BYTES])
        assert answer[:3] == ("blob_stored" if data else "blob_found", errand, len(data))
        return errand, need

    def path(self, need: Need) -> Path:
        return self.store.root / ("trees" if need.tree else "blobs") / name_of(need)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def hands(root: Path) -> Iterator[Hands]:
    hands = Hands(root)
    yield hands
    hands.store.close()


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 5])
@pytest.mark.parametrize("lasting", [False, True])
def test_what_was_stored_is_found_again_read_only(root: Path, size: int, lasting: bool) -> None:
    hands = Hands(root, lasting=lasting)
    data = os.urandom(size)
    _, need = hands.put(data)

    assert hands.seek(need)[1] == ("blob_found", hands.errands, size, ())
    assert hands.path(need).read_bytes() == data
    assert stat.S_IMODE(hands.path(need).stat().st_mode) == 0o444
    assert not list((root / "parts").iterdir())
    hands.store.close()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 4), st.lists(st.integers(1, 4), max_size=4), st.integers(0, 100))
def test_a_part_is_gone_on_with_by_whoever_comes_next(
    tmp_path: Path, chunks: int, stops: list[int], more: int
) -> None:
    data = os.urandom(chunks * CHUNK_BYTES + 1 + more)
    need, root = need_of(data), tmp_path / os.urandom(8).hex()
    for stop in [*stops, 99]:
        hands = Hands(root)
        errand, answer = hands.seek(need)
        have = answer[2]
        for at in list(range(have, len(data), CHUNK_BYTES))[:stop]:
            have = hands.chunk(errand, need, at, data[at : at + CHUNK_BYTES])[2]
        hands.store.close()
        assert have == len(data) or (root / "parts" / name_of(need)).stat().st_size == have

    assert have == len(data)
    assert hands.path(need).read_bytes() == data


def test_bytes_that_were_changed_on_the_way_are_refused_and_may_come_again(hands: Hands) -> None:
    data = os.urandom(2 * CHUNK_BYTES)
    need = need_of(data)
    errand, _ = hands.seek(need)
    hands.chunk(errand, need, 0, data[:CHUNK_BYTES])

    wrong = hands.chunk(errand, need, CHUNK_BYTES, bytes(CHUNK_BYTES), digest_of(b"other"))
    assert wrong[0::3] == ("blob_failed", DAMAGED)
    assert (hands.store.root / "parts" / name_of(need)).stat().st_size == 0
    hands.chunk(errand, need, 0, data[:CHUNK_BYTES])
    other = hands.chunk(errand, need, CHUNK_BYTES, bytes(CHUNK_BYTES))
    assert other[0::3] == ("blob_failed", DAMAGED), "each chunk is true, and the whole is not"
    hands.chunk(errand, need, 0, data[:CHUNK_BYTES])
    assert hands.chunk(errand, need, CHUNK_BYTES, data[CHUNK_BYTES:])[0] == "blob_stored"


def test_a_small_file_that_is_another_one_is_refused(hands: Hands) -> None:
    need = need_of(b"right")
    errand, _ = hands.seek(need)

    assert hands.chunk(errand, need, 0, b"wrong")[0::3] == ("blob_failed", DAMAGED)
    assert hands.seek(need)[1][2] == 0


def test_two_workers_do_not_write_the_same_file_at_once(root: Path, hands: Hands) -> None:
    data = os.urandom(2 * CHUNK_BYTES)
    need = need_of(data)
    errand, _ = hands.seek(need)
    other = Hands(root)

    assert other.seek(need)[1][2] == -1
    hands.store.drop(errand, need)
    assert other.seek(need)[1][2] == 0
    other.store.close()


def test_a_file_that_was_spoiled_on_the_disk_is_not_used(root: Path) -> None:
    hands = Hands(root)
    _, need = hands.put(b"true")
    hands.store.close()
    path = hands.path(need)
    path.chmod(0o644)
    path.write_bytes(b"lies")

    again = Hands(root)
    assert again.seek(need)[1][2] == 0
    assert not path.exists()
    again.store.close()


def test_what_is_used_stays_and_what_was_not_used_for_longest_goes_first(root: Path) -> None:
    hands = Hands(root, bytes_max=1000)
    _used, first = hands.put(b"1" * 300)
    second_errand, second = hands.put(b"2" * 300)
    third_errand, third = hands.put(b"3" * 300)
    for errand, need, when in ((second_errand, second, 100), (third_errand, third, 50)):
        hands.store.drop(errand, need)
        os.utime(hands.path(need), ns=(when, hands.path(need).stat().st_mtime_ns))
    os.utime(hands.path(first), ns=(1, hands.path(first).stat().st_mtime_ns))

    hands.put(b"4" * 300)
    assert hands.path(first).exists(), "it is in use"
    assert hands.path(second).exists()
    assert not hands.path(third).exists()
    assert hands.seek(need_of(bytes(1001)))[1][3] == FINAL
    hands.store.close()


def test_a_file_that_lies_on_this_host_is_copied_if_it_is_the_right_one(hands: Hands, tmp_path: Path) -> None:
    right, wrong, pipe = tmp_path / "right", tmp_path / "wrong", tmp_path / "pipe"
    data = os.urandom(3 * CHUNK_BYTES)
    right.write_bytes(data)
    wrong.write_bytes(bytes(len(data)))
    os.mkfifo(pipe)
    need = need_of(data)
    errand, _ = hands.seek(need)

    for path in (wrong, pipe, tmp_path / "none", tmp_path):
        assert hands.chunk(errand, need, 0, b"", path=str(path))[0::3] == ("blob_failed", FAR)
    assert hands.chunk(errand, need, 0, b"", path=str(right)) == ("blob_stored", errand, len(data))
    right.write_bytes(bytes(len(data)))
    assert hands.path(need).read_bytes() == data, "it is a copy"
    assert not list((hands.store.root / "parts").iterdir())


def test_a_directory_is_made_once_and_made_anew_when_it_was_spoiled(root: Path) -> None:
    hands = Hands(root)
    _, plain = hands.put(b"text")
    _, script = hands.put(b"#!/bin/sh")
    manifest = Manifest(
        0o755,
        [
            Entry("empty", "d", 0o750),
            Entry("plain", "f", 0o644, plain.digest, plain.size),
            Entry("run", "f", 0o755, script.digest, script.size),
            Entry("link", "l", target="empty/../plain".replace("empty/../", "")),
        ],
    )
    packed = pack_manifest(manifest)
    need = Need(digest(packed), len(packed), True)
    errand, answer = hands.seek(need)
    assert answer[2:] == (0, (Need(need.digest, need.size),))
    hands.put(packed)
    hands.store.seek(errand, need)
    assert hands.answers[-1][2:] == (0, ())
    hands.store.build(errand, need)
    assert hands.answers[-1] == ("blob_stored", errand, need.size)

    path = hands.path(need)
    assert sorted(os.listdir(path)) == ["empty", "link", "plain", "run"]
    assert stat.S_IMODE((path / "empty").stat().st_mode) == 0o750
    assert stat.S_IMODE((path / "run").stat().st_mode) == 0o555
    assert (path / "plain").stat().st_ino == hands.path(plain).stat().st_ino
    assert (path / "link").read_text() == "text"
    hands.store.close()
    again = Hands(root)
    assert again.seek(need)[1][2] == need.size
    again.store.close()
    (path / "more").write_text("smuggled in")
    other = Hands(root)
    assert other.seek(need)[1][2:] == (0, ())
    assert not path.exists()
    other.store.close()


def test_a_directory_with_a_name_that_leads_out_is_refused(hands: Hands, tmp_path: Path) -> None:
    _, file = hands.put(b"evil")
    for name in ("../out", "/tmp/out", "a/../../out", "nul\0", "x" * 300, ".zfarm-parts-1"):
        packed = pack_manifest(Manifest(0o755, [Entry(name, "f", 0o644, file.digest, file.size)]))
        hands.put(packed)
        need = Need(digest(packed), len(packed), True)
        _, answer = hands.seek(need)

        assert answer[0::3] == ("blob_failed", FINAL), name
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_told_with_the_remedy_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        hands = Hands(place / "store")
        data = os.urandom(3 * CHUNK_BYTES)
        need = need_of(data)
        errand, _ = hands.seek(need)
        hands.chunk(errand, need, 0, data[:CHUNK_BYTES])
        (place / "filler").write_bytes(bytes(os.statvfs(place).f_bavail * 4096 - 8192))

        failed = hands.chunk(errand, need, CHUNK_BYTES, data[CHUNK_BYTES : 2 * CHUNK_BYTES])
        assert failed[0::3] == ("blob_failed", FINAL)
        assert "No space left on device; free some space there, or start it with --store DIR" in failed[2]
        assert not list((place / "store" / "parts").iterdir())
        assert "No space" in hands.seek(need_of(os.urandom(2 * CHUNK_BYTES)))[1][2]
        hands.store.close()
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_store_that_others_may_enter_is_refused(root: Path) -> None:
    root.mkdir()
    root.chmod(0o755)

    with pytest.raises(ConfigurationError, match="chmod 700"):
        Store(root, PLENTY, False, print)
