"""Files of tasks on an embedded farm: what they send is what their client gets."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import zfarm
from tests.face.processes import wait_until
from zfarm import outbox
from zfarm.edge.handover import snapshot
from zfarm.edge.parcels import Handed, Head, Tail, read_item


@pytest.fixture
def farm() -> Iterator[zfarm.Executor]:
    with zfarm.Executor(max_workers=2) as farm:
        yield farm


NEAR_AND_FAR = pytest.mark.parametrize("near", [True, False])


def far(near: bool) -> None:
    """In a task: send to the client as if it were on another host."""
    sender: Any = outbox
    sender.HANDED_FROM_BYTES = 1 << 20 if near else 1 << 60


def content(size: int) -> bytes:
    return ((b"%8d" % size) * (size // 8 + 1))[:size]


def send(sizes: list[int], folder: str, near: bool = True) -> list[int]:
    far(near)
    for size in sizes:
        path = Path(folder, f"{size}.bin")
        path.write_bytes(content(size))
        path.chmod(0o640)
        zfarm.send_file(path, f"parts/{size}")
        path.write_bytes(b"something else")
    return sizes


SIZES = [0, 1, 65_536, 65_537, 1 << 20, (1 << 20) + 1, 5_000_000]


@NEAR_AND_FAR
def test_files_arrive_as_they_were(farm: zfarm.Executor, tmp_path: Path, near: bool) -> None:
    future = farm.submit(send, SIZES, str(tmp_path), near)
    files = future.files.into(tmp_path / "home").wait(60)

    assert future.result(30) == SIZES
    assert sorted((file.size, file.name) for file in files) == [(size, f"parts/{size}") for size in SIZES]
    for file in files:
        assert file.path == tmp_path / "home" / file.name
        assert file.path.read_bytes() == content(file.size)
        assert stat.S_IMODE(file.path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path / "home") == ["parts"]


def test_equal_content_has_equal_digests_either_way(farm: zfarm.Executor, tmp_path: Path) -> None:
    one = farm.submit(send, [3_000_000], str(tmp_path), True).files.wait(30)
    other = farm.submit(send, [3_000_000], str(tmp_path), False).files.wait(30)

    assert one[0].digest == other[0].digest


def test_without_a_place_files_live_as_long_as_their_future(farm: zfarm.Executor, tmp_path: Path) -> None:
    future = farm.submit(send, [10, 2_000_000], str(tmp_path))
    files = future.files.wait(30)
    assert [file.path.stat().st_size for file in files] == [10, 2_000_000]

    moved = future.files.into(tmp_path / "home")
    farm.shutdown()

    assert sorted(file.path for file in moved) == [tmp_path / "home" / "parts" / n for n in ("10", "2000000")]
    assert all(file.path.read_bytes() == content(file.size) for file in moved.wait(1))
    path = files[0].path
    del future, moved, files
    assert not path.exists()


def test_they_go_with_their_future_while_the_farm_goes_on(farm: zfarm.Executor, tmp_path: Path) -> None:
    future = farm.submit(send, [10], str(tmp_path))
    path = future.files.wait(30)[0].path
    assert path.exists()
    del future
    assert wait_until(lambda: not path.exists(), "it was removed", 10)


def send_slowly(folder: str) -> None:
    for name in ("early", "late"):
        while name == "late" and not Path(folder, name).exists():
            time.sleep(0.01)
        zfarm.send_file(__file__, name)


def test_after_a_directory_that_cannot_be_another_one_may_be_named(
    farm: zfarm.Executor, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    future = farm.submit(send_slowly, str(tmp_path))
    files = iter(future.files.into(tmp_path / "file" / "below"))
    with pytest.raises(zfarm.TransferError, match="Not a directory"):
        next(files)

    future.files.into(tmp_path / "home")
    (tmp_path / "late").touch()

    assert future.result(30) is None
    assert [file.name for file in future.files] == ["late"]
    assert os.listdir(tmp_path / "home") == ["late"]


def tree(entries: dict[str, int]) -> str:
    top = zfarm.outdir()
    assert zfarm.outdir() == top
    for name in entries:
        path = top / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name * 1000)
    for name, mode in entries.items():
        os.chmod(top / name, mode)
    return str(top)


def test_a_whole_directory_comes_home(farm: zfarm.Executor, tmp_path: Path) -> None:
    entries = {"a.txt": 0o600, "deep/er/b.txt": 0o755, "empty/": 0o700, "closed/": 0o555, "ünï/ß": 0o644}
    future = farm.submit(tree, entries)
    files = future.files.into(tmp_path).wait(30)

    assert {file.name for file in files} == {name for name in entries if not name.endswith("/")}
    for name, mode in entries.items():
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode, name
    assert (tmp_path / "deep/er/b.txt").read_text() == "deep/er/b.txt" * 1000
    assert not os.listdir(tmp_path / "empty")
    wait_until(lambda: not os.path.exists(future.result(10)), "the output directory to be removed")


def tree_in_use(count: int, size: int) -> tuple[int, int]:
    """A large file that nobody has open any more, one that is still written to, one with another name, and
    many small ones."""
    top = zfarm.outdir()
    for name in ("rest", "open", "linked"):
        (top / name).write_bytes(content(size))
        (top / name).chmod(0o440)
    for n in range(count):
        (top / f"{n}").write_text(f"{n}")
        (top / f"{n}").chmod(0o400 + n % 0o200)
    kept: Any = outbox
    (top / "open").chmod(0o640)
    kept.writer = (top / "open").open("r+b")
    kept.other = Path(tempfile.mkdtemp()) / "other"
    os.link(top / "linked", kept.other)
    return (top / "rest").stat().st_ino, (top / "linked").stat().st_ino


def write_again() -> None:
    kept: Any = outbox
    kept.writer.write(b"something else")
    kept.writer.close()
    kept.other.chmod(0o600)
    kept.other.write_bytes(b"something else")
    shutil.rmtree(kept.other.parent)


@pytest.mark.skipif(not hasattr(fcntl, "F_SETLEASE"), reason="the system does not say who has a file open")
def test_what_nobody_writes_to_any_more_is_moved_and_the_rest_is_copied(tmp_path: Path) -> None:
    home = Path(tempfile.mkdtemp())  # where the output directory is, too
    try:
        with zfarm.Executor(max_workers=1) as farm:
            future = farm.submit(tree_in_use, 200, 3_000_000)
            future.files.into(home).wait(30)
            rest, linked = future.result(10)
            farm.submit(write_again).result(10)

        assert (home / "rest").stat().st_ino == rest
        assert (home / "linked").stat().st_ino != linked
        for name, mode in (("rest", 0o440), ("open", 0o640), ("linked", 0o440)):
            assert (home / name).read_bytes() == content(3_000_000), name
            assert stat.S_IMODE((home / name).stat().st_mode) == mode, name
        for n in range(200):
            assert (home / f"{n}").read_text() == f"{n}"
            assert stat.S_IMODE((home / f"{n}").stat().st_mode) == 0o400 + n % 0o200
        assert len(os.listdir(home)) == 203
    finally:
        shutil.rmtree(home)


def test_what_nobody_takes_is_sent_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "HANDED_WAIT_S", 0.0)
    monkeypatch.setattr(outbox, "_far", set())
    sent: list[bytes] = []
    inside: Any = SimpleNamespace(
        endings=[],
        setup=SimpleNamespace(host=platform.node(), realm="some"),
        filer=SimpleNamespace(emit=lambda seq, item: sent.append(bytes(item))),
    )
    box = outbox.Outbox(inside, 1)
    path = tmp_path / "file"
    path.write_bytes(content(2_000_000))
    path.chmod(0o751)
    box.send(path, "file")
    box.finish()
    heads = [piece for piece in map(read_item, sent) if isinstance(piece, Head)]

    assert heads == [Head("file", 2_000_000, 0o751)]
    assert isinstance(read_item(sent[0]), Handed)
    assert isinstance(read_item(sent[-1]), Tail)


def test_a_file_that_grows_is_handed_over_as_it_was(tmp_path: Path) -> None:
    """As a log that somebody still writes: it must be as long as was said, or nobody takes it."""
    path, laid = tmp_path / "log", tmp_path / "laid"
    path.write_bytes(content(2_000_000))
    size = path.stat().st_size
    with path.open("ab") as more:
        more.write(b"more")
    fd = os.open(path, os.O_RDONLY)
    try:
        snapshot(fd, str(laid), size)
        with pytest.raises(OSError, match="shorter"):
            snapshot(fd, str(tmp_path / "short"), size + 5)
    finally:
        os.close(fd)

    assert laid.read_bytes() == content(2_000_000)
    assert not (tmp_path / "short").exists()


def send_shrinking(folder: str) -> str:
    path = Path(folder, "file")
    path.write_bytes(content(3_000_000))
    sender: Any = outbox
    whole = sender.digest_of_file

    def cut(fd: int, size: int, name: str) -> bytes:
        os.truncate(path, 10)
        return whole(fd, size, name)

    sender.digest_of_file = cut
    try:
        zfarm.send_file(path)
    except zfarm.TransferError as error:
        return str(error)
    finally:
        sender.digest_of_file = whole
    return ""


def test_a_file_that_got_shorter_is_told_once_and_costs_no_result(
    farm: zfarm.Executor, tmp_path: Path
) -> None:
    future = farm.submit(send_shrinking, str(tmp_path))
    told = "'file' got shorter while it was sent"

    assert future.result(30) == told
    with pytest.raises(zfarm.TransferError, match=told):
        future.files.wait(30)
    assert len(future.files._errors) == 1


def dig_outdir(depth: int) -> str:
    (zfarm.outdir() / "good").write_text("x")
    os.chdir(zfarm.outdir())
    for _ in range(depth):
        os.mkdir("d")
        os.chdir("d")
        Path("f").touch()
    os.chdir("/")
    return "done"


def test_of_a_tree_that_is_too_deep_the_rest_comes_and_the_call_has_its_result(
    farm: zfarm.Executor, tmp_path: Path
) -> None:
    future = farm.submit(dig_outdir, 80)
    files = future.files.into(tmp_path)

    assert future.result(60) == "done"
    with pytest.raises(zfarm.TransferError, match="at most 64 are allowed"):
        files.wait(60)
    assert sorted(os.listdir(tmp_path)) == ["d", "good"]
    assert len(files._errors) == 2  # the file and the directory that are one too deep


def discard_outdir(instead: str) -> str:
    shutil.rmtree(zfarm.outdir())
    if instead:
        zfarm.outdir().symlink_to(instead)
    return "done"


def test_a_call_may_remove_its_output_directory(farm: zfarm.Executor, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    gone, replaced = (farm.submit(discard_outdir, instead) for instead in ("", str(tmp_path)))

    assert (gone.result(30), gone.files.wait(30)) == ("done", [])
    assert replaced.result(30) == "done"
    with pytest.raises(zfarm.TransferError, match="symbolic link"):
        replaced.files.wait(30)
    assert os.listdir(tmp_path) == ["secret"]


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="there is no /proc")
def test_a_file_that_hides_its_size_is_refused_and_not_sent_empty(farm: zfarm.Executor) -> None:
    future = farm.submit(zfarm.send_file, "/proc/self/status")
    with pytest.raises(zfarm.TransferError, match="does not say how large it is"):
        future.result(30)


def strange_tree() -> None:
    top = zfarm.outdir()
    (top / "good").write_text("good")
    (top / "link").symlink_to("/etc/passwd")
    (top / "dirlink").symlink_to("/etc")
    os.mkfifo(top / "pipe")
    Path(os.fsdecode(os.fsencode(top) + b"/bad\xff")).write_text("bad")
    (top / "line\nfeed").write_text("bad")


def test_what_is_no_file_is_refused_and_the_rest_comes(farm: zfarm.Executor, tmp_path: Path) -> None:
    told: list[Any] = []
    files = farm.submit(strange_tree).files.into(tmp_path, on_file=told.append)
    with pytest.raises(zfarm.TransferError):
        files.wait(30)
    errors = sorted(str(one) for one in told if isinstance(one, zfarm.TransferError))

    assert len(errors) == 5
    assert sum("symbolic link" in error for error in errors) == 2  # to a directory, and to a file
    for word in ("symbolic link", "pipe", "Unicode", "control character"):
        assert any(word in error for error in errors), errors
    assert os.listdir(tmp_path) == ["good"]
    assert [one.name for one in told if isinstance(one, zfarm.File)] == ["good"]


def fail_with_files() -> None:
    (zfarm.outdir() / "log").write_text("what I did")
    raise ValueError("no")


def test_what_a_failing_call_wrote_comes_too(farm: zfarm.Executor, tmp_path: Path) -> None:
    future = farm.submit(fail_with_files)
    files = iter(future.files.into(tmp_path))

    assert next(files).path.read_text() == "what I did"
    with pytest.raises(ValueError, match="no"):
        next(files)


def send_badly(names: list[Any], folder: str) -> list[str]:
    path = Path(folder, "x")
    path.write_text("x")
    said = []
    for name in names:
        try:
            zfarm.send_file(path, name)
            said.append("")
        except zfarm.UnsafeName as error:
            said.append(str(error))
    for wrong in (folder, "/dev/null", folder + "/missing"):
        try:
            zfarm.send_file(wrong, "wrong")
        except zfarm.TransferError as error:
            said.append(str(error))
    return said


def test_bad_names_and_things_are_refused_where_they_are_sent(farm: zfarm.Executor, tmp_path: Path) -> None:
    names = ["/etc/x", "../x", "a/../x", "a\0b", "x" * 256, "", "Straße", "STRASSE", "Straße", "fine"]
    future = farm.submit(send_badly, names, str(tmp_path))
    said = future.result(30)

    assert [not text for text in said[:10]] == [False] * 6 + [True, False, False, True]
    for word, text in zip(("directory", "regular", "No such file"), said[10:], strict=True):
        assert word in text
    assert [file.name for file in future.files.wait(30)] == ["Straße", "fine"]


def test_a_map_has_no_future_for_files(farm: zfarm.Executor, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="submit"):
        list(farm.map(send, [[1]], [str(tmp_path)]))


def die_after_sending(folder: str, near: bool) -> None:
    far(near)
    mark = Path(folder, "mark")
    first = not mark.exists()
    path = Path(folder, "it")
    path.write_bytes(content(2_500_000 + first))
    zfarm.send_file(path)
    if first:
        mark.touch()
        os._exit(3)
    zfarm.send_file(path, "other")


@NEAR_AND_FAR
def test_a_second_attempt_replaces_what_came_of_the_first(
    farm: zfarm.Executor, tmp_path: Path, near: bool
) -> None:
    future = farm.submit(die_after_sending, str(tmp_path), near)
    files = future.files.into(tmp_path / "home")

    assert future.result(30) is None
    latest = {file.name: file for file in files.wait(30)}
    assert {name: file.attempt for name, file in latest.items()} == {"it": 2, "other": 2}
    assert latest["it"].path.read_bytes() == content(2_500_000)
    assert sorted(os.listdir(tmp_path / "home")) == ["it", "other"]


def test_calls_without_files_have_none(farm: zfarm.Executor, tmp_path: Path) -> None:
    future = farm.submit(len, "abc")
    assert future.files.wait(30) == []
    assert future.result() == 3
    assert list(farm.submit(len, "").files.into(tmp_path / "made")) == []
    assert farm.submit(abs, 1).files.progress == (0, 0, 0)


def test_progress_is_told(farm: zfarm.Executor, tmp_path: Path) -> None:
    told: list[Any] = []
    future = farm.submit(send, [3_000_000, 5], str(tmp_path), False)
    future.files.into(tmp_path / "home", on_progress=told.append)
    farm.shutdown()

    assert told[-1] == (2, 3_000_005, 3_000_005)
    assert [one.received_bytes for one in told] == sorted(one.received_bytes for one in told)
