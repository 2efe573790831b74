"""The threads of an archive when things go wrong in them; names on an embedded farm; bars of transfers."""

from __future__ import annotations

import os
import queue
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import zfarm
from zfarm.archive import Keeper
from zfarm.courier import Courier
from zfarm.edge.catalogue import Catalogue, folder_of, lock_archive
from zfarm.edge.holdings import hold
from zfarm.edge.parcels import digest_of
from zfarm.edge.security import Access
from zfarm.edge.shelf import Quota, Shelf
from zfarm.edge.store import name_of
from zfarm.errors import ConfigurationError, TransferError
from zfarm.loading import bar
from zfarm.messages import (
    CHUNK_BYTES,
    Archive,
    Archived,
    ArchivedFile,
    Chunk,
    Chunks,
    Lookup,
    Need,
    StoreChunk,
    Want,
)

WAIT_S = 30.0


class Loop:
    """A keeper, and what it says."""

    def __init__(self, root: Path) -> None:
        self.soon: queue.Queue[Any] = queue.Queue()
        self.said: list[Any] = []
        self.keeper = Keeper(
            root, self.soon.put, lambda peer, message, payload: self.said.append(message), lambda *given: None
        )

    def ask(self, message: Any, kind: type = Archived, payload: Any = ()) -> Any:
        """What one client is told then, of this kind; that an upload is under way counts for nothing."""
        self.said.clear()
        self.keeper.receive(b"peer", message, payload, "client:x:1")
        end = time.monotonic() + WAIT_S
        while not (
            found := [one for one in self.said if type(one) is kind and not getattr(one, "open", False)]
        ):
            self.soon.get(timeout=end - time.monotonic())()
        return found[0]


def test_an_archive_that_fails_says_so_and_is_there_again(tmp_path: Path, caplog: Any) -> None:
    root = tmp_path / "files"
    loop = Loop(root)
    spoilt = folder_of(root, "client:x:1")
    spoilt.touch()  # in place of a directory
    try:
        answer = loop.ask(Lookup(1))
        assert (answer.code, "its log says more" in answer.text) == ("FarmError", True)
        assert "has failed" in caplog.text
        spoilt.unlink()
        assert loop.ask(Lookup(2)) == Archived(2)
    finally:
        loop.keeper.close()


@pytest.mark.parametrize("size", [9, CHUNK_BYTES + 9])
def test_a_client_that_knows_the_digest_of_a_file_of_the_broker_cannot_have_it_kept_by_its_path(
    tmp_path: Path, size: int
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * size)
    need = hold(secret).need
    loop = Loop(tmp_path / "files")
    try:
        want = loop.ask(Archive(1, "stolen", need, 0o644), Want)
        assert want.host == "", "no honest client says where its file lies"
        forged = Chunks(want.lease, 0, [Chunk(need.digest, need.size, path=str(secret))])
        answer = loop.ask(forged, Archived, payload=[b""])
        assert (answer.code, "opens no file" in answer.text) == ("TransferError", True)
        assert loop.ask(Lookup(2, "stolen")) == Archived(2)
        assert not list(tmp_path.glob("files/*/blobs/*"))
    finally:
        loop.keeper.close()


def test_two_brokers_do_not_share_an_archive(tmp_path: Path) -> None:
    fd = lock_archive(tmp_path / "files")
    with pytest.raises(ConfigurationError, match="another broker"):
        lock_archive(tmp_path / "files")
    os.close(fd)


def test_a_name_whose_file_is_damaged_is_left_out_and_a_half_written_one_is_gone(
    tmp_path: Path, caplog: Any
) -> None:
    catalogue = Catalogue(tmp_path / "owner", "x")
    for name in ("one", "two"):
        catalogue.put(ArchivedFile(name, Need(bytes(32), 5), 0o644, 5, 1, 1.5))
    first, second = sorted((tmp_path / "owner" / "names").iterdir())
    first.write_bytes(second.read_bytes())  # under the wrong name
    (tmp_path / "owner" / "names" / ".half").write_bytes(b"{")

    again = Catalogue(tmp_path / "owner", "x")

    assert len(again) == 1
    assert "is left out" in caplog.text
    assert [path for path in (tmp_path / "owner" / "names").iterdir() if path.name == ".half"] == []


def test_a_shelf_opens_no_path(tmp_path: Path) -> None:
    answers: list[Any] = []
    (tmp_path / "files").mkdir(mode=0o700)
    (tmp_path / "secret").write_bytes(b"secret")
    one = shelf(tmp_path, CHUNK_BYTES, answers, set())
    try:
        one.store_chunk(StoreChunk(1, hold(tmp_path / "secret").need, 0, b"", b"", str(tmp_path / "secret")))
    finally:
        one.close()
    assert [answer[:2] for answer in answers] == [("blob_failed", 1)]
    assert not list(one.root.glob("*/*"))


def shelf(tmp_path: Path, bytes_max: int, answers: list[Any], kept: set[str]) -> Shelf:
    return Shelf(
        tmp_path / "files" / "owner",
        Quota(tmp_path / "files", bytes_max, 1),
        lambda *answer: answers.append(answer),
        lambda: kept,
    )


def test_what_has_no_name_goes_when_there_is_no_room_and_what_has_one_stays(tmp_path: Path) -> None:
    answers: list[Any] = []
    needs = []
    for number in range(3):
        path = tmp_path / f"{number}"
        path.write_bytes(bytes([number]) * CHUNK_BYTES)
        needs.append(hold(path).need)
    (tmp_path / "files").mkdir(mode=0o700)
    kept = {name_of(needs[0])}
    one = shelf(tmp_path, 2 * CHUNK_BYTES + 10, answers, kept)
    try:
        for errand, need in enumerate(needs):
            data = bytes([errand]) * CHUNK_BYTES
            one.store_chunk(StoreChunk(errand, need, 0, b"", data))
            one.settle()
            one.drop(errand, need)
        assert [answer[0] for answer in answers] == ["blob_stored"] * 3
        there = sorted(path.name for path in one.root.glob("blobs/*"))
        assert there == sorted(map(name_of, (needs[0], needs[2])))

        kept.add(name_of(needs[2]))
        answers.clear()
        one.store_chunk(StoreChunk(3, needs[1], 0, b"", bytes([1]) * CHUNK_BYTES))
        ((said, _, text, _),) = answers
        assert said == "blob_failed"
        assert "ZFARM_ARCHIVE_BYTES_MAX" in text
        assert not list(one.root.glob("parts/*"))
    finally:
        one.close()


def test_a_part_that_lies_there_is_counted_once(tmp_path: Path) -> None:
    answers: list[Any] = []
    path = tmp_path / "large"
    path.write_bytes(b"x" * 3 * CHUNK_BYTES)
    need = hold(path).need
    (tmp_path / "files").mkdir(mode=0o700)
    one = shelf(tmp_path, 3 * CHUNK_BYTES, answers, {name_of(need)})
    try:
        for errand in range(3):
            one.seek(errand, need)
            at = answers[-1][2]
            data = b"x" * CHUNK_BYTES
            one.store_chunk(StoreChunk(errand, need, at, digest_of(data), data))
            one.drop(errand, need)
        assert [answer[:1] + answer[2:3] for answer in answers] == [
            ("blob_found", 0),
            ("blob_stored", CHUNK_BYTES),
            ("blob_found", CHUNK_BYTES),
            ("blob_stored", 2 * CHUNK_BYTES),
            ("blob_found", 2 * CHUNK_BYTES),
            ("blob_stored", 3 * CHUNK_BYTES),
        ]
    finally:
        one.close()


@pytest.mark.parametrize("again", [False, True])
def test_a_part_is_gone_on_with_in_the_room_that_it_has(tmp_path: Path, again: bool) -> None:
    answers: list[Any] = []
    path = tmp_path / "large"
    path.write_bytes(b"x" * 6 * CHUNK_BYTES)
    need = hold(path).need
    data = b"x" * CHUNK_BYTES
    (tmp_path / "files").mkdir(mode=0o700)
    one = shelf(tmp_path, 8 * CHUNK_BYTES, answers, {name_of(need)})
    one.seek(1, need)
    for at in range(4):
        one.store_chunk(StoreChunk(1, need, at * CHUNK_BYTES, digest_of(data), data))
    assert one._quota.take(3 * CHUNK_BYTES), "all of its room is reserved"
    assert not one._quota.take(2 * CHUNK_BYTES), "and no more"
    if again:  # the broker was started again
        one.close()
        one = shelf(tmp_path, 8 * CHUNK_BYTES, answers, {name_of(need)})
    else:
        one.drop(1, need)
    try:
        answers.clear()
        one.seek(2, need)
        assert answers == [("blob_found", 2, 4 * CHUNK_BYTES, ())]
        bad = b"y" * CHUNK_BYTES
        one.store_chunk(StoreChunk(2, need, 4 * CHUNK_BYTES, digest_of(data), bad))  # it begins anew
        for at in range(6):
            one.store_chunk(StoreChunk(2, need, at * CHUNK_BYTES, digest_of(data), data))
        assert answers[-1] == ("blob_stored", 2, need.size)
        one.drop(2, need)
        assert one._quota._reserved == 0
        assert one._quota._bytes == need.size
    finally:
        one.close()


def test_names_of_an_embedded_farm_live_as_long_as_the_executor(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("1 2 3")
    with zfarm.Executor(max_workers=1) as farm:
        put = farm.put(path, name="numbers", progress=True)
        handle = farm.options(priority=1).handle("numbers")
        assert handle == put
        assert farm.submit(lambda found: Path(found).read_text(), handle).result(60) == "1 2 3"
        assert farm.get(handle, tmp_path / "copy").read_text() == "1 2 3"
        assert [(one.name, one.size, one.files) for one in farm.names()] == [("numbers", 5, 1)]
        farm.discard("numbers")
        for use in (farm.handle, farm.discard):
            with pytest.raises(TransferError, match="nothing is kept"):
                use("numbers")
        with (
            Courier(lambda: Access(farm._link.road.address)) as courier,  # as to a broker of --files none
            pytest.raises(ConfigurationError, match="keeps no files"),
        ):
            courier.names()


def test_a_bar_tells_bytes_and_rate_and_is_full_at_the_end() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=100, color_system=None)
    with bar("reference", 4 * CHUNK_BYTES, console=console) as moved:
        moved(CHUNK_BYTES)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "reference" in said
    assert "4.2/4.2 MB" in said


@pytest.mark.parametrize("shown", [True, False])
def test_no_bar_is_shown_where_nobody_sees_it(shown: bool, capfd: Any) -> None:
    with bar("reference", 10, shown) as moved:
        moved(5)
    assert capfd.readouterr() == ("", "")


def test_the_question_of_an_upload_is_answered_at_once(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "files")
    try:
        loop.keeper.receive(b"peer", Archive(3, "name", Need(bytes(32), 5), 0o644), (), "client:x:1")
        assert loop.said == [Archived(3, open=True)]
    finally:
        loop.keeper.close()
