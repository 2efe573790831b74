"""The world that a client's calls expect, as the blob that travels with them; it knows no socket."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import sys
from collections.abc import Callable
from typing import Any, Final

import msgspec

from zfarm.edge.attention import Watcher
from zfarm.edge.ways import BOUNDED, IN_PIECES
from zfarm.edge.wire import decode_setup, encode_setup
from zfarm.messages import Attention, Setup, Tree

__all__ = ["Setups"]

TREES_MAX: Final = 16
"""Directories that one client ships."""
PATH_MAX: Final = 4096
"""Bytes of a directory's name, as far as the kernel tells it."""


class Setups:
    """Makes the setup of each call: the same bytes while the world is the same. Any thread may use it."""

    def __init__(self, template: Setup) -> None:
        """Make setups like ``template`` in all but directory and path: realm and initializer are its own."""
        self._template = msgspec.structs.replace(
            template, prefix=sys.prefix, host=platform.node(), attention=None
        )
        self._watcher = Watcher()
        self._attentive: tuple[bytes, Attention, bytes] = (b"", Attention(), b"")
        self._changed: set[Any] = set()
        self._began = dict(_environment)
        self._known: tuple[bytes, list[str], dict[Any, Any], bytes] = (b"", [], {}, b"")

    @classmethod
    def fresh(
        cls,
        session: str,
        initializer: bytes = b"",
        max_tasks_per_child: int = 0,
        segments: bool = False,
        results: int = 0,
    ) -> Setups:
        """Setups of a realm of its own. ``initializer`` as zfarm.edge.callables encodes it; with ``segments``
        results may be in shared memory; ``results``: see zfarm.edge.ways."""
        digest = hashlib.blake2b(initializer, digest_size=8).hexdigest() if initializer else "-"
        realm = f"{session}/{digest}"
        template = Setup(
            realm, "", (), "", "", initializer, max_tasks_per_child, segments=segments, results=results
        )
        return cls(template)

    @classmethod
    def inherited(cls, template: Setup) -> Setups:
        """Those of calls within a call with this setup: whoever submits them is there to take results."""
        if template.results == BOUNDED:
            template = msgspec.structs.replace(template, results=IN_PIECES)
        return cls(template)

    def ship(self, tree: Tree) -> None:
        """Calls from now on find this code, in children that have seen no other version of it."""
        template = self._template
        trees = (tree, *(one for one in template.trees if (one.top, one.whole) != (tree.top, tree.whole)))
        digest = hashlib.blake2b(b"".join(one.need.digest for one in trees), digest_size=8).hexdigest()
        realm = f"{template.realm.partition('+')[0]}+{digest}"
        self._template = msgspec.structs.replace(template, realm=realm, trees=trees[:TREES_MAX])
        self._known = (b"", [], {}, b"")

    @property
    def max_tasks_per_child(self) -> int:
        """After how many tasks a child is replaced; 0: never."""
        return self._template.max_tasks_per_child

    def current(self) -> bytes:
        """The setup for a call that is submitted now: it follows os.chdir, sys.path and os.environ."""
        cwd, path, environment, blob = self._known
        here = _here()
        if here == cwd and sys.path == path and _environment == environment:
            return blob
        path, environment = list(sys.path), dict(_environment)
        blob = self._encode(os.fsdecode(here), path, environment)
        self._known = (here, path, environment, blob)
        return blob

    def _plain(self, entry: str) -> str:
        """An entry of the path; one within what was shipped without detours, so that children can tell."""
        if entry and self._template.trees:
            real = os.path.realpath(entry)
            if any(_within(real, tree) for tree in self._template.trees):
                return real
        return entry

    def attentive(self) -> bytes:
        """The same for a call whose output travels: it says which records and warnings are wanted here."""
        plain, attention = self.current(), self._watcher.current()
        before, wanted, blob = self._attentive
        if before is plain and wanted is attention:
            return blob
        blob = encode_setup(msgspec.structs.replace(decode_setup(plain), attention=attention))
        self._attentive = (plain, attention, blob)
        return blob

    def _encode(self, cwd: str, path: list[str], environment: dict[Any, Any]) -> bytes:
        cwd = cwd if _portable(cwd) else ""
        entries = tuple(self._plain(entry) for entry in path if _portable(entry))
        began, changed = self._began, self._changed
        names = began.keys() | environment.keys()
        changed.update(name for name in names if began.get(name) != environment.get(name))
        world = dict(self._template.environment)
        for name in changed:  # also what has been changed back: a child may have the other value
            text, value = os.fsdecode(name), environment.get(name)
            value = None if value is None else os.fsdecode(value)
            if _portable(text) and (value is None or _portable(value)):
                world[text] = value
        setup = msgspec.structs.replace(self._template, cwd=cwd, path=entries, environment=world)
        return encode_setup(setup)


def _within(path: str, tree: Tree) -> bool:
    return path == tree.top or path.startswith(tree.top.rstrip("/") + "/")


_environment: Any = getattr(os.environ, "_data", os.environ)
"""What os.environ keeps: comparing that costs a tenth of comparing os.environ itself."""


def _getcwd() -> bytes:
    try:
        return os.getcwdb()
    except OSError:  # it was deleted: the children stay where they are
        return b""


def _getcwd_holding_the_lock() -> Callable[[], bytes]:
    """As ``_getcwd``, but it does not release the interpreter's lock.

    ``os.getcwd`` does, so that with every submit the link's thread would be woken, only to find the lock
    taken again: that costs more than all the rest of a submit.
    """
    buffer = ctypes.create_string_buffer(b"", PATH_MAX)
    getcwd = ctypes.PyDLL(None)["getcwd"]
    getcwd.restype = None
    where, size = ctypes.c_void_p(ctypes.addressof(buffer)), ctypes.c_size_t(PATH_MAX)

    def here() -> bytes:
        getcwd(where, size)  # leaves the last answer there when it fails, which is as good as any
        return buffer.value

    return here


_here = _getcwd_holding_the_lock() if getattr(sys, "_is_gil_enabled", lambda: True)() else _getcwd


def _portable(entry: object) -> bool:
    """False for what the import system would not use, and for names of files that are no text."""
    if not isinstance(entry, str):
        return False
    try:
        entry.encode()
    except UnicodeEncodeError:
        return False
    return True
