"""The digest of a file is the same however many threads read it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zfarm.edge import parcels
from zfarm.edge.parcels import CHUNK_BYTES, digest_of, digest_of_file, whole_digest
from zfarm.errors import TransferError


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files are shared by threads, too."""
    monkeypatch.setattr(parcels, "DIGEST_SHARE_BYTES", 1)
    monkeypatch.setattr(parcels, "usable_cores", lambda: 3)


@pytest.mark.parametrize("size", [1, CHUNK_BYTES, CHUNK_BYTES + 1, 7 * CHUNK_BYTES - 1, 9 * CHUNK_BYTES])
def test_threads_share_a_file(tmp_path: Path, shared: None, size: int) -> None:
    data = os.urandom(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    chunks = [data[at : at + CHUNK_BYTES] for at in range(0, size, CHUNK_BYTES)]
    with path.open("rb") as file:
        assert digest_of_file(file.fileno(), size, "it") == whole_digest(b"".join(map(digest_of, chunks)))


def test_what_one_of_them_cannot_read_is_told(tmp_path: Path, shared: None) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * CHUNK_BYTES))
    with path.open("rb") as file, pytest.raises(TransferError, match="shorter"):
        digest_of_file(file.fileno(), 3 * CHUNK_BYTES, "it")
