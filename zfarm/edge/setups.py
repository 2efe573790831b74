"""The world that a client's calls expect, as the blob that travels with them; it knows no socket."""

from __future__ import annotations

import hashlib
import os
import platform
import sys

import msgspec

from zfarm.edge.wire import encode_setup
from zfarm.messages import Setup

__all__ = ["Setups"]


class Setups:
    """Makes the setup of each call: the same bytes while the world is the same. Any thread may use it."""

    def __init__(self, template: Setup) -> None:
        """Make setups like ``template`` in all but directory and path: realm and initializer are its own."""
        self._template = msgspec.structs.replace(template, prefix=sys.prefix, host=platform.node())
        self._known: tuple[str, list[str], bytes] = ("", [], b"")

    @classmethod
    def fresh(cls, session: str, initializer: bytes = b"", max_tasks_per_child: int = 0) -> Setups:
        """Setups of a realm of its own. ``initializer`` as zfarm.edge.callables encodes it."""
        digest = hashlib.blake2b(initializer, digest_size=8).hexdigest() if initializer else "-"
        realm = f"{session}/{digest}"
        return cls(Setup(realm, "", (), initializer=initializer, max_tasks_per_child=max_tasks_per_child))

    def current(self) -> bytes:
        """The setup for a call that is submitted now: it follows ``os.chdir`` and changes of ``sys.path``."""
        try:
            cwd = os.getcwd()
        except OSError:  # it was deleted: the children stay where they are
            cwd = ""
        known_cwd, known_path, blob = self._known
        if cwd == known_cwd and sys.path == known_path and blob:
            return blob
        path = list(sys.path)
        blob = self._encode(cwd, path)
        self._known = (cwd, path, blob)
        return blob

    def _encode(self, cwd: str, path: list[str]) -> bytes:
        cwd = cwd if _portable(cwd) else ""
        entries = tuple(entry for entry in path if _portable(entry))
        return encode_setup(msgspec.structs.replace(self._template, cwd=cwd, path=entries))


def _portable(entry: object) -> bool:
    """False for what the import system would not use, and for names of files that are no text."""
    if not isinstance(entry, str):
        return False
    try:
        entry.encode()
    except UnicodeEncodeError:
        return False
    return True
