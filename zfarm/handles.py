"""Handles of files and directories: what ``farm.put`` gives, and what they are in a task: a local path.

Whatever pickles a handle notes that for its thread, so that a submit sees which files its call needs.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zfarm.arguments import picklers
from zfarm.errors import TransferError
from zfarm.messages import Need

if TYPE_CHECKING:
    from zfarm.edge.bales import Bale
    from zfarm.edge.holdings import Holding

__all__ = ["FileHandle", "collected", "holding_of", "note", "stored_path"]


class _Collector(threading.local):
    handles: dict[Any, None] | None = None


_collector = _Collector()


@contextmanager
def collected() -> Iterator[dict[Any, None]]:
    """The handles that this thread pickles while the context is open."""
    before = _collector.handles
    found: dict[Any, None] = {}
    _collector.handles = found
    try:
        yield found
    finally:
        _collector.handles = before
        picklers.discard(threading.get_ident())


def note(handle: FileHandle | Bale) -> None:
    """Whatever this thread pickles now needs this."""
    if _collector.handles is not None:
        _collector.handles[handle] = None
    else:
        picklers.add(threading.get_ident())


class FileHandle(os.PathLike[str]):
    """A file or directory that was put, by its content: hand it to tasks, in which it is a local path.

    ``open(handle)``, ``os.fspath(handle)`` and ``Path(handle)`` work in tasks and where it was put. What a
    task gets is not to be written to: it may be shared by others. The same content is the same handle.
    """

    __slots__ = ("_holding", "_need", "mode", "name")

    def __init__(self, name: str, need: Need, mode: int, holding: Holding | None = None) -> None:
        """Only farms make these: ``farm.put``."""
        self.name = name
        """The last part of the path that was put."""
        self.mode = mode
        """Its permissions."""
        self._need = need
        self._holding = holding

    @property
    def digest(self) -> str:
        """BLAKE3 of the digests of its chunks, in hexadecimal: the name of the content."""
        return self._need.digest.hex()

    @property
    def size(self) -> int:
        """Bytes: of a directory those of the list of its files."""
        return self._need.size

    @property
    def is_directory(self) -> bool:
        """Whether it is one."""
        return self._need.tree

    def __fspath__(self) -> str:
        """A local path: in a task that it was handed to, and where it was put.

        Raises TransferError: it is not here.
        """
        if self._holding is not None:
            return str(self._holding.path)
        stored = stored_path(self._need)
        if stored is None or not os.path.lexists(stored):
            raise TransferError(
                f"{self.name!r} is not here: hand its handle to the task as an argument, "
                "or fetch it with farm.get(handle, path)"
            )
        return str(stored)

    def __reduce__(self) -> tuple[Any, ...]:
        note(self)
        return FileHandle, (self.name, self._need, self.mode)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FileHandle) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    @property
    def _content(self) -> tuple[bytes, int, bool]:
        return self._need.digest, self._need.size, self._need.tree

    def __repr__(self) -> str:
        what = "directory" if self.is_directory else f"{self.size:,} bytes"
        return f"<zfarm.FileHandle {self.name!r}: {what}, {self.digest[:12]}>"


def stored_path(need: Need) -> Path | None:
    """Where this is in the store of the worker whose child this process is; None: it is no child."""
    module = sys.modules.get("zfarm.edge.inside")
    inside = None if module is None else module.current()
    if inside is None or not inside.store:
        return None
    from zfarm.edge.store import name_of

    return Path(inside.store, "trees" if need.tree else "blobs", name_of(need))


def holding_of(handle: FileHandle | Bale) -> Holding | Bale:
    """What a client gives for this handle. Raises TransferError: it does not have it."""
    if not isinstance(handle, FileHandle):
        return handle
    if handle._holding is None:
        from zfarm.edge.holdings import hold_stored

        stored = stored_path(handle._need)
        handle._holding = hold_stored(stored, handle._need) if stored is not None else None
    if handle._holding is None:
        raise TransferError(f"{handle.name!r} was not put here")
    return handle._holding
