"""What a child keeps in the store of its worker, and what it says where there is no room."""

from __future__ import annotations

from pathlib import Path

import pytest

from zfarm.edge import keeping
from zfarm.edge.keeping import Shelf
from zfarm.errors import TransferError

MIB = 1024 * 1024


def left(root: Path) -> list[str]:
    return [file.name for folder in ("blobs", "parts") for file in (root / folder).iterdir()]


def test_a_result_beyond_the_store_is_refused_with_the_remedy_and_leaves_nothing(tmp_path: Path) -> None:
    with Shelf(str(tmp_path / "store")) as shelf:
        shelf._bytes_max = MIB

        with pytest.raises(TransferError, match=r"ZFARM_STORE_BYTES_MAX.*without keep=True"):
            shelf.put(memoryview(bytes(MIB + 1)), "here/1", b"birth")
    assert left(tmp_path / "store") == []


def test_a_disk_that_is_full_in_the_middle_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: memoryview, at: int) -> None:
        raise OSError(28, "No space left on device")

    with Shelf(str(tmp_path / "store")) as shelf:
        assert shelf.put(memoryview(bytes(MIB)), "here/1", b"birth").size == MIB
        monkeypatch.setattr(keeping, "_write", full)

        with pytest.raises(TransferError, match="No space left on device; make room there"):
            shelf.put(memoryview(bytes(2 * MIB)), "here/1", b"birth")
    assert len(left(tmp_path / "store")) == 1
