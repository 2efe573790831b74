"""The code that a client has shipped, in a child: first on the path, and where the client's directory was.

The trees are shared by all children of a host and not to be written to. A working directory that was within
one is therefore a scratch directory of this child, with links to what the tree has there.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from zfarm.edge.scratch import Scratch
from zfarm.edge.store import name_of
from zfarm.messages import Setup, Tree

__all__ = ["Shipment"]


class Shipment:
    """What was shipped to one child."""

    def __init__(self, setup: Setup, store: str) -> None:
        """``store`` is where the trees are."""
        self._trees = [(tree, Path(store, "trees", name_of(tree.need))) for tree in setup.trees]
        self._places: dict[Path, Scratch] = {}
        sys.dont_write_bytecode = True  # into the trees, which are all as their digests say

    def path(self, path: tuple[str, ...]) -> list[str]:
        """The client's path: first what was shipped, and nowhere the live directories that it was made of."""
        found = [str(root) for _, root in self._trees]
        for entry in path:
            tree, root, rest = self._find(entry)
            if tree is None or root is None:
                found.append(entry)
                continue
            there = root / rest
            if rest and there.is_dir():
                found.append(str(there))
            elif rest or not tree.whole:
                found.append(entry)  # within the project, and no part of it: such as its virtual environment
        return list(dict.fromkeys(found))

    def directory(self, cwd: str) -> str:
        """Where to be when the client is at ``cwd``."""
        tree, root, rest = self._find(cwd)
        if tree is None or root is None or not (root / rest).is_dir():
            return cwd
        place = self._places.get(root / rest)
        if place is None:
            place = self._places[root / rest] = Scratch()
            for name in os.listdir(root / rest):
                with suppress(OSError):  # it is a convenience: the tree itself is on the path
                    os.symlink(root / rest / name, place.path / name)
        return str(place.path)

    def _find(self, path: str) -> tuple[Tree | None, Path | None, str]:
        for tree, root in self._trees:
            if path == tree.top:
                return tree, root, ""
            if path.startswith(tree.top.rstrip("/") + "/"):
                return tree, root, path[len(tree.top.rstrip("/")) + 1 :]
        return None, None, ""
