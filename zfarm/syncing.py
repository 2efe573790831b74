"""``farm.sync``: the code of a project on its way to every worker that runs a call of this client."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final, NamedTuple

from zfarm.edge.projects import Projects
from zfarm.edge.trees import FOLDER, Entry
from zfarm.edge.wire import decode_setup
from zfarm.errors import TransferError
from zfarm.handles import FileHandle
from zfarm.messages import Need, Setup, Tree

if TYPE_CHECKING:
    from zfarm.api import Executor

__all__ = ["Shipped", "Synced", "sync"]

VERSIONS_MAX: Final = 32
"""Snapshots that are kept for calls which were submitted before later ones."""
SETUPS_MAX: Final = 256


class Synced(NamedTuple):
    """What ``farm.sync`` has taken."""

    digest: str
    """The name of the content: the same for the same files."""
    files: int
    bytes: int
    changed: tuple[str, ...]
    """Files that are new, gone or other ones than at the last sync of this directory; at the first: all."""


class Shipped:
    """The trees of one client."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.projects = Projects()
        self._handles: OrderedDict[Need, FileHandle] = OrderedDict()
        self._listed: dict[str, dict[str, Entry]] = {}
        self._of_setups: dict[bytes, tuple[FileHandle, ...]] = {}

    @classmethod
    def inherited(cls, setup: Setup) -> Shipped:
        """In a child: what calls of a task need is what its own client has shipped."""
        shipped = cls()
        for tree in setup.trees:
            shipped._handles[tree.need] = FileHandle(Path(tree.top).name, tree.need, 0o555)
        return shipped

    def add(self, top: str, handle: FileHandle, listed: dict[str, Entry]) -> tuple[str, ...]:
        """A directory was taken; the names that have changed."""
        self._handles[handle._need] = handle
        self._handles.move_to_end(handle._need)
        while len(self._handles) > VERSIONS_MAX:
            self._handles.popitem(last=False)
        before = self._listed.get(top, {})
        self._listed[top] = listed
        return tuple(
            sorted(name for name in before.keys() | listed.keys() if before.get(name) != listed.get(name))
        )

    def needed(self, setup: bytes) -> tuple[FileHandle, ...]:
        """What calls with this setup need."""
        found = self._of_setups.get(setup)
        if found is None:
            if len(self._of_setups) >= SETUPS_MAX:
                self._of_setups.clear()
            trees = decode_setup(setup).trees
            found = tuple(self._handles[tree.need] for tree in trees if tree.need in self._handles)
            self._of_setups[setup] = found
        return found

    def close(self) -> None:
        """Remove the copies."""
        self.projects.close()


def sync(farm: Executor, what: str | os.PathLike[str] | ModuleType, exclude: Sequence[str]) -> Synced:
    """See Beyond.sync."""
    link = farm._link
    link.check_open()
    source = _path_of(what)
    if not source.is_dir():
        raise TransferError(f"{str(source)!r} is no directory: name a project's or a package's")
    top, prefix = source, ""
    while (top / "__init__.py").is_file() and top.parent != top:
        top, prefix = top.parent, f"{top.name}/{prefix}"
    shipped = link.ship()
    with shipped.lock:
        held = shipped.projects.take(source, prefix, exclude)
        handle = FileHandle(source.name or "root", held.need, held.mode, held)
        link.check_files((handle,))
        listed = {entry.name: entry for entry in held.manifest.entries if entry.kind != FOLDER}
        changed = shipped.add(str(source), handle, listed)
        farm._setups.ship(Tree(held.need, str(top), not prefix))
    sizes = [entry.size for entry in held.manifest.entries if entry.digest]
    return Synced(handle.digest, len(sizes), sum(sizes), changed)


def _path_of(what: str | os.PathLike[str] | ModuleType) -> Path:
    if isinstance(what, ModuleType):
        places = list(getattr(what, "__path__", ()))
        if len(places) != 1:
            raise TransferError(f"module {what.__name__!r} is no package with a directory of its own")
        return Path(os.path.realpath(places[0]))
    return Path(os.path.realpath(what))
