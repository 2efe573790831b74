"""Calls that need files; as a program: a client that has one sent to a farm, until it is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import zfarm


def digest(path: os.PathLike[str]) -> str:
    return sha256(Path(path).read_bytes()).hexdigest()


def text(path: os.PathLike[str]) -> str:
    return Path(path).read_text()


def same(handle: zfarm.FileHandle) -> zfarm.FileHandle:
    return handle


def look(top: os.PathLike[str]) -> tuple[list[tuple[str, str]], str]:
    """What is there, with what may be run of it, and what that says."""
    found = []
    for at, folders, files in os.walk(top):
        for base in (*folders, *files):
            path = Path(at, base)
            kind = "link" if path.is_symlink() else "folder" if path.is_dir() else "file"
            found.append((str(path.relative_to(top)), kind + ("+" if os.access(path, os.X_OK) else "")))
    said = subprocess.run([Path(top, "latest")], capture_output=True, text=True, check=True).stdout
    return sorted(found), said


def use_scratch(fail: bool = False) -> tuple[str, str]:
    path = Path("in/data.csv")
    found = path.read_text()
    path.write_text("mine")
    assert Path.cwd() == zfarm.scratch()
    if fail:
        raise OSError("on purpose")
    return str(zfarm.scratch()), found


def die_once(runs: Path) -> str:
    path = zfarm.scratch() / "in/data.csv"
    found = path.read_text()
    path.write_text("spoiled")
    if not list(runs.iterdir()):
        (runs / "first").touch()
        os._exit(3)
    return found


if __name__ == "__main__":
    with zfarm.Executor(sys.argv[1]) as farm:
        farm.submit(digest, farm.put(sys.argv[2])).result()
