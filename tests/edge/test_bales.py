"""Blobs in the memory of a client: made once of what is equal, given while they are needed, and only then."""

from __future__ import annotations

import pytest

from zfarm.edge import segments
from zfarm.edge.bales import Bale, Bales
from zfarm.edge.cargo import Cargo, unpacked
from zfarm.edge.parcels import digest_of, whole_digest
from zfarm.edge.stored import Stored
from zfarm.settings import Settings

pytestmark = pytest.mark.skipif(not segments.POSSIBLE, reason="no memfd and /proc here")

MIB = 1024 * 1024
LIMITS = Settings(blobs_from_bytes=2 * MIB)


def stowed(bales: Bales, *parts: bytes | bytearray) -> Cargo:
    cargo = bales.stow(b"pickle", [memoryview(part) for part in parts])
    assert isinstance(cargo, Cargo)
    return cargo


def content(bale: Bale) -> bytes:
    found = [bale.chunk(at) for at in range(0, bale.need.size, MIB)]
    assert all(digest_of(data) == check for data, check in found)
    return b"".join(data for data, _ in found)


def test_equal_parts_are_one_blob_and_small_ones_travel() -> None:
    bales = Bales(LIMITS)
    large = bytearray(b"a" * (2 * MIB + 5))
    one, two = stowed(bales, large, b"b" * MIB), stowed(bales, bytes(large), large)

    (bale,) = bales.bales(one)
    assert bales.bales(two) == (bale,)
    _, parts, data = unpacked(one)
    assert parts == [Stored(bale.need.digest, len(large)), b"b" * MIB]
    assert data == b"pickle"
    chunks = [digest_of(large[at : at + MIB]) for at in range(0, len(large), MIB)]
    assert bale.need.digest == whole_digest(b"".join(chunks))
    large[:] = b"c" * len(large)
    assert content(bale) == b"a" * len(large)
    assert bale.blob(bale.need.digest) is bale
    assert bale.blob(b"other") is None
    bales.close()


def test_what_was_given_back_is_given_to_nobody() -> None:
    bales = Bales(LIMITS)
    first = stowed(bales, b"a" * 3 * MIB)
    (bale,) = bales.bales(first)
    bales.ended(first.hold, None)
    assert content(bale) == b"a" * 3 * MIB, "it is kept warm, as it is"
    second = stowed(bales, b"b" * 3 * MIB)

    assert bale.chunk(0)[0] == b""
    assert content(bales.bales(second)[0]) == b"b" * 3 * MIB
    bales.discard(second.hold)
    assert bales.bytes in (0, 3 * MIB), "it is kept warm, or was given back at once"
    third = stowed(bales, b"c" * 3 * MIB)
    assert content(bales.bales(third)[0]) == b"c" * 3 * MIB
    bales.ended(third.hold, None)
    assert bales.bytes == 3 * MIB, "its memory was used again"
    bales.cool()
    bales.cool()
    assert bales.bytes == 0
    assert bale.chunk(MIB)[0] == b""
    bales.close()
