"""Directories for a while: of a call, or of files that nobody has given a place; swept up after any death.

They stand below one directory of this user. Each is locked while its process lives; whoever makes one
removes those that are not locked any more.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from zfarm.edge.places import private_directory
from zfarm.edge.removal import remove_tree
from zfarm.errors import ConfigurationError

__all__ = [
    "Scratch",
    "scratch_root",
    "sweep_after_deaths",
    "sweep_scratch",
    "sweep_soon",
]


def scratch_root(create: bool = True) -> Path:
    """The directory of all of them. Raises ConfigurationError: it is not ours alone, or not there."""
    return private_directory(_root(), create)


def _root() -> Path:
    return Path(tempfile.gettempdir()) / f"zfarm-scratch-{os.geteuid()}"


def sweep_soon() -> None:
    """Do ``sweep_after_deaths`` in a thread, if there is anything."""
    if os.path.lexists(_root()):
        threading.Thread(target=sweep_after_deaths, name="zfarm-sweep", daemon=True).start()


def sweep_after_deaths() -> None:
    """Remove what the dead have left, if there is anything."""
    root = _root()
    with suppress(FileNotFoundError, ConfigurationError):
        sweep_scratch(private_directory(root))
        with suppress(OSError):  # the living have some
            os.rmdir(root)


class Scratch:
    """One directory."""

    def __init__(self) -> None:
        """Make it. Raises OSError, ConfigurationError."""
        self._pid = os.getpid()
        sweep_scratch(scratch_root())
        while True:
            self.path = scratch_root() / secrets.token_hex(8)
            self._fd = -1
            # it may be swept away before it is locked, and the directory of all goes with the last of them
            with suppress(FileNotFoundError, BlockingIOError):
                os.mkdir(self.path, 0o700)
                self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(self._fd).st_nlink > 0:
                    return
            if self._fd >= 0:
                os.close(self._fd)

    def remove(self) -> None:
        """Remove it with all that is in it. Harmless when done before."""
        if self._fd >= 0 and self._pid == os.getpid():
            remove_tree(self.path)
            os.close(self._fd)
            self._fd = -1
            with suppress(OSError):  # others have some
                os.rmdir(self.path.parent)


def sweep_scratch(root: Path) -> None:
    """Remove the directories of those that are gone."""
    for name in os.listdir(root):
        path = root / name
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # gone meanwhile, or none of ours
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_tree(path)
        except BlockingIOError:
            continue  # in use
        finally:
            os.close(fd)
