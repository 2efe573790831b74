"""Trees that go: as deep as they may be, with whatever modes, and nothing that links lead to."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from zfarm.edge.removal import remove_tree
from zfarm.edge.scratch import Scratch

DEEP = 1100
"""More than frames of the interpreter and than the descriptors that are usual."""


def dig(top: Path, depth: int = DEEP) -> None:
    """Make a tree of one directory in the other, with a file in each."""
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, 0o400, dir_fd=fd))
        os.mkdir("deeper", dir_fd=fd)
        below = os.open("deeper", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_no_tree_is_too_deep(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    dig(top)
    remove_tree(top)
    assert not top.exists()


def test_what_links_lead_to_stays(tmp_path: Path) -> None:
    kept, top = tmp_path / "kept", tmp_path / "top"
    (kept / "below").mkdir(parents=True)
    (kept / "file").write_text("kept")
    (top / "below").mkdir(parents=True)
    for place in (top, top / "below"):
        (place / "directory").symlink_to(kept)
        (place / "file").symlink_to(kept / "file")
        (place / "nowhere").symlink_to(tmp_path / "nowhere")
        os.mkfifo(place / "pipe")
    (tmp_path / "link").symlink_to(kept)

    remove_tree(top)
    remove_tree(tmp_path / "link")

    assert os.listdir(tmp_path) == ["kept"]
    assert sorted(os.listdir(kept)) == ["below", "file"]


@pytest.mark.parametrize("mode", [0o000, 0o400, 0o500])
def test_modes_hold_up_nothing(tmp_path: Path, mode: int) -> None:
    top = tmp_path / "top"
    (top / "closed" / "deeper").mkdir(parents=True)
    (top / "closed" / "deeper" / "file").write_text("x")
    for path in (top / "closed" / "deeper", top / "closed", top):
        path.chmod(mode)

    if os.geteuid() == 0:  # whom no mode holds up
        pid = os.fork()
        if pid == 0:
            for path in (tmp_path, top):
                os.chown(path, 65534, 65534)
            top.chmod(0o700)
            os.chown(top / "closed", 65534, 65534)
            os.chown(top / "closed" / "deeper", 65534, 65534)
            os.chown(top / "closed" / "deeper" / "file", 65534, 65534)
            top.chmod(mode)
            fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            remove_tree("top", fd)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    else:
        remove_tree(top)

    assert not top.exists()


def test_a_file_goes_and_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    remove_tree(tmp_path / "file")
    remove_tree(tmp_path / "file")
    remove_tree(tmp_path / "nowhere" / "file")
    assert os.listdir(tmp_path) == []


def test_a_tree_that_somebody_still_fills_does_not_hold_up_who_removes_it(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    ended = threading.Event()

    def fill() -> None:
        n = 0
        while not ended.is_set():
            n += 1
            (tmp_path / "top" / f"d{n}").mkdir(parents=True, exist_ok=True)

    filler = threading.Thread(target=fill)
    filler.start()
    try:
        remove_tree(top)
    finally:
        ended.set()
        filler.join()
    remove_tree(top)
    assert not top.exists()


def test_a_deep_tree_in_a_scratch_directory_harms_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = Scratch()
    dig(left.path)
    os.close(left._fd)  # as by a death
    left._fd = -1

    other = Scratch()  # which sweeps

    assert not left.path.exists()
    other.remove()
    assert not other.path.exists()
