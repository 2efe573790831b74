"""The private directory of the running call, its files, and the way back; it knows no worker.

It is locked while this child lives, and swept up by others if the child dies.
"""

from __future__ import annotations

import os
import shutil
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from zfarm.edge.handover import copy_content
from zfarm.edge.names import Names
from zfarm.edge.parcels import open_regular
from zfarm.edge.scratch import Scratch
from zfarm.errors import TransferError

if TYPE_CHECKING:
    from zfarm.edge.inside import Inside

__all__ = ["CWD", "Placing", "enter", "workplace_of"]

CWD: Final = "cwd"


class Placing(NamedTuple):
    """What a call wants around it: files by name, whether its directory is where it works, and whether it
    has one at all."""

    files: tuple[tuple[str, Any], ...] = ()
    cwd: bool = False
    room: bool = True  # it has a directory
    keep: bool = False  # its result stays on this host


class Workplace:
    """The directory of one call."""

    def __init__(self, inside: Inside, seq: int) -> None:
        """Make it. Raises TransferError."""
        self.seq = seq
        self._back = -1
        try:
            self._scratch = Scratch()
        except OSError as error:
            raise TransferError(
                f"no scratch directory can be made for the call: {error.strerror}", error.errno or 0
            ) from None
        self.path = self._scratch.path / "work"
        os.mkdir(self.path, 0o700)
        inside.endings.append(self.leave)

    def place(self, placing: Placing) -> None:
        """Put copies of files there, which are the call's own, and go there if that is wanted."""
        names = Names()
        for name, handle in placing.files:
            names.add(name, handle.is_directory)
            target = self.path / name
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                if handle.is_directory:
                    _copy_tree(os.fspath(handle), target)
                else:
                    _copy(os.fspath(handle), target, handle.mode | stat.S_IWUSR)
            except OSError as error:
                if isinstance(error, TransferError):
                    raise
                raise TransferError(
                    f"cannot place {name!r} for the call: {error.strerror}", error.errno or 0
                ) from None
        if placing.cwd:
            self._back = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            os.chdir(self.path)

    def leave(self) -> None:
        """At the end of the call: go back, and remove all in its own time."""
        global _workplace
        _workplace = None
        if self._back >= 0:
            os.fchdir(self._back)
            os.close(self._back)
            self._back = -1
        threading.Thread(target=self._scratch.remove, name="zfarm-remove", daemon=True).start()


def _copy(source: str, target: Path, mode: int) -> None:
    fd = open_regular(source)
    try:
        out = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            copy_content(fd, out)
            os.fchmod(out, mode)
        finally:
            os.close(out)
    finally:
        os.close(fd)


def _copy_tree(source: str, target: Path) -> None:
    def copy(one: str, other: str) -> None:
        _copy(one, Path(other), stat.S_IMODE(os.stat(one).st_mode) | stat.S_IWUSR)

    shutil.copytree(source, target, symlinks=True, copy_function=copy)


_workplace: Workplace | None = None


def workplace_of(inside: Inside) -> Workplace:
    """That of the running call, which is made if need be."""
    global _workplace
    seq = inside.seq
    if _workplace is None or _workplace.seq != seq:
        _workplace = Workplace(inside, seq)
    return _workplace


def enter(inside: Inside, placing: Placing) -> None:
    """A call begins that wants this around it. Raises TransferError."""
    if placing.room:
        workplace_of(inside).place(placing)
