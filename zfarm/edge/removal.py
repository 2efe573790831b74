"""Trees of files that go, however deep they are and whatever their modes: our own directories, which others
may have filled.

What is very deep is moved up into the top before it goes, so that there are enough descriptors and frames of
the interpreter for it: no task can leave a tree that those who tidy up after it cannot remove.
"""

from __future__ import annotations

import os
import secrets
from collections import deque
from contextlib import suppress
from typing import Final

from zfarm.edge.names import OURS

__all__ = ["remove_tree"]

DEPTH_MAX: Final = 32
"""Directories in one another that are open at once. To move one is as dear as to remove many files."""
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: str | os.PathLike[str], dir_fd: int | None = None) -> None:
    """Remove a directory with all that is in it, or a file; links are not followed. What cannot be removed
    stays."""
    try:
        top = _open(path, dir_fd)
    except FileNotFoundError:
        return
    except OSError:
        with suppress(OSError):
            os.unlink(path, dir_fd=dir_fd)
        return
    try:
        _clear(top)
    finally:
        os.close(top)
    with suppress(OSError):
        os.rmdir(path, dir_fd=dir_fd)


def _clear(top: int) -> None:
    far = deque(_empty(top, top, 1))
    while far:
        name = far.popleft()
        far.extend(_remove(name, top, top, 1))


def _remove(name: str, folder: int, top: int, depth: int) -> list[str]:
    """Remove a directory, but for what is too deep: its names in the top, where that was moved."""
    try:
        fd = _open(name, folder)
    except OSError:
        return []
    try:
        far = _empty(fd, top, depth + 1)
    finally:
        os.close(fd)
    with suppress(OSError):
        os.rmdir(name, dir_fd=folder)
    return far


def _empty(fd: int, top: int, depth: int) -> list[str]:
    """The same for what is in a directory."""
    far = []
    for name in _without_files(fd):
        if depth < DEPTH_MAX:
            far += _remove(name, fd, top, depth)
        elif up := _move_up(name, fd, top):
            far.append(up)
    return far


def _without_files(fd: int) -> list[str]:
    """Remove the files in a directory; the directories in it."""
    directories = []
    with suppress(OSError), os.scandir(fd) as entries:
        for entry in list(entries):
            with suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.name)
                else:
                    os.unlink(entry.name, dir_fd=fd)
    return directories


def _move_up(name: str, below: int, top: int) -> str:
    """Move this directory to the top; its name there, or none: it stays."""
    up = OURS + secrets.token_hex(8)
    try:
        try:
            os.rename(name, up, src_dir_fd=below, dst_dir_fd=top)
        except PermissionError:  # its entry for the directory above it changes, too
            os.chmod(name, 0o700, dir_fd=below)
            os.rename(name, up, src_dir_fd=below, dst_dir_fd=top)
    except OSError:
        return ""
    return up


def _open(path: str | os.PathLike[str], dir_fd: int | None) -> int:
    """Open a directory of ours, and make it one that can be read and written."""
    try:
        fd = os.open(path, _DIRECTORY, dir_fd=dir_fd)
    except PermissionError:
        os.chmod(path, 0o700, dir_fd=dir_fd)
        fd = os.open(path, _DIRECTORY, dir_fd=dir_fd)
    if os.fstat(fd).st_mode & 0o700 != 0o700:
        with suppress(OSError):
            os.fchmod(fd, 0o700)
    return fd
