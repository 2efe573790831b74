"""Directories as blobs: they come back as they were, and no name in a manifest leads out of its directory."""

from __future__ import annotations

import dataclasses
import os
import socket
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zfarm.edge.holdings import FileHolding, TreeHolding, hold
from zfarm.edge.trees import Entry, Manifest, build_tree, check_link, check_list, pack_manifest, read_manifest
from zfarm.errors import TransferError, UnsafeName
from zfarm.settings import settings as limits

part = st.one_of(
    st.sampled_from(["..", ".", "", "a", "A", "b", "\0", "x" * 300, "ä", "a\u0308", ".zfarm-x", "\ud800"]),
    st.text(max_size=3),
)
names = st.lists(part, max_size=4).map("/".join)
entries = st.builds(
    Entry,
    name=names,
    kind=st.sampled_from(["f", "d", "l", "p"]),
    mode=st.integers(0, 0o777),
    digest=st.sampled_from([b"", bytes(32)]),
    size=st.integers(-1, 100),
    target=names,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(entries, max_size=6))
def test_whatever_a_manifest_says_nothing_is_made_outside(listed: list[Entry]) -> None:
    with tempfile.TemporaryDirectory() as outer:
        top = Path(outer, "in", "top")
        top.mkdir(parents=True)
        blob = Path(outer, "blob")
        blob.write_bytes(b"x")
        before = {path for path in Path(outer).rglob("*") if top not in path.parents}
        fd = os.open(top, os.O_RDONLY)
        try:
            manifest = read_manifest(pack_manifest(Manifest(0o755, listed)))
            build_tree(manifest, fd, lambda _need: (os.open(blob, os.O_RDONLY), ""), -1, writable=True)
        except (TransferError, UnicodeEncodeError):
            pass
        finally:
            os.close(fd)

        assert {path for path in Path(outer).rglob("*") if top not in path.parents} == before
        for path in top.rglob("*"):
            if path.is_symlink():
                assert os.path.normpath(path.parent / os.readlink(path)).startswith(str(top))


@pytest.mark.parametrize("target", ["/etc/passwd", "..", "a/../../x", "../../x", "", "x/..", "a\0b"])
def test_a_link_that_may_lead_out_is_refused(target: str) -> None:
    with pytest.raises(UnsafeName):
        check_link("folder/link" if target == "../../x" else "link", target)


@pytest.mark.parametrize(("name", "target"), [("link", "x"), ("a/link", "../x"), ("a/b/link", "../../c/d")])
def test_a_link_that_stays_within_is_taken(name: str, target: str) -> None:
    check_link(name, target)


def test_too_many_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zfarm.edge.trees.settings", dataclasses.replace(limits, files_max=3))
    listed = [Entry(str(n), "d") for n in range(4)]
    with pytest.raises(TransferError, match="ZFARM_FILES_MAX"):
        read_manifest(pack_manifest(Manifest(0o755, listed)))


@pytest.mark.parametrize("mode", [b"\x00", b"\xcd\x01\xed", b"\xd1\x01\xed", b"\xce\x00\x00\x01\xed"])
def test_a_list_of_too_many_files_costs_no_memory(mode: bytes) -> None:
    many = 1 << 21
    blob = b"\x92" + mode + b"\xdd" + many.to_bytes(4, "big") + b"\x92\xa0\xa0" * many
    other = b"\xdc\x00\x02" + blob[1:]
    tracemalloc.start()
    try:
        for one in (blob, other):
            with pytest.raises(TransferError):
                read_manifest(one)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("files", [0, 15, 16, 70_000])
@pytest.mark.parametrize("mode", [0, 0o177, 0o200, 0o755, 0o777])
def test_what_is_packed_is_read(files: int, mode: int) -> None:
    one = Manifest(mode, [Entry(str(n), "d") for n in range(files)])
    assert read_manifest(pack_manifest(one)) == one


def test_a_list_that_is_too_large_is_not_even_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zfarm.edge.trees.settings", dataclasses.replace(limits, files_max=3))
    with pytest.raises(TransferError, match="ZFARM_FILES_MAX"):
        check_list(3 * 256 + 1)
    check_list(3 * 256, 3)


def test_a_directory_that_is_listed_twice_is_refused() -> None:
    with pytest.raises(UnsafeName, match="twice"):
        read_manifest(pack_manifest(Manifest(0o755, [Entry("a", "d"), Entry("a", "d")])))


def test_bytes_that_are_no_manifest_are_refused() -> None:
    for blob in (b"", b"\xff", b"\x92\x01\xc0", os.urandom(50)):
        with pytest.raises(TransferError):
            read_manifest(blob)


def test_what_cannot_travel_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "fine").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TransferError, match=r"pipe.*no regular file"):
        hold(tmp_path)
    (tmp_path / "pipe").unlink()
    (tmp_path / "out").symlink_to("/etc")
    with pytest.raises(UnsafeName, match="out"):
        hold(tmp_path)
    (tmp_path / "out").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        with pytest.raises(TransferError, match="sock"):
            hold(tmp_path)
    with pytest.raises(TransferError, match="nothing"):
        hold(tmp_path / "nothing")


def test_the_same_content_has_the_same_digest_wherever_it_is(tmp_path: Path) -> None:
    for top in ("one", "two"):
        (tmp_path / top / "sub").mkdir(parents=True)
        (tmp_path / top / "sub" / "file").write_text("same")
        (tmp_path / top).chmod(0o755)
    one, two = hold(tmp_path / "one"), hold(tmp_path / "two")

    assert isinstance(one, TreeHolding)
    assert one.need == two.need
    held = hold(tmp_path / "one" / "sub" / "file")
    found = one.blob(held.need.digest)
    assert isinstance(found, FileHolding)
    assert found.need == held.need
    (tmp_path / "two" / "sub" / "file").chmod(0o755)
    assert hold(tmp_path / "two").need != one.need


def test_a_file_that_changes_after_it_was_put_is_not_given(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    held = hold(path)
    assert isinstance(held, FileHolding)
    os.close(held.open())
    path.write_text("after!")

    with pytest.raises(TransferError, match="has changed since it was put: put it again"):
        held.open()
    path.unlink()
    with pytest.raises(TransferError, match="has to stay until its calls have ended"):
        held.open()
