"""Shared objects in a child: each is unpickled once, and kept while its handle lives; it knows no socket."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from typing import Any, Final

from zfarm.edge.callables import open_blob
from zfarm.edge.cargo import is_cargo, opened_cargo, stored_of
from zfarm.edge.stored import path_of
from zfarm.errors import NotPortable

__all__ = ["KEPT_MAX", "forget", "open_kept", "receive"]

KEPT_MAX: Final = 32
"""Shared objects that a child keeps; of others the one that was not used for longest is unpickled again."""

_kept: OrderedDict[bytes, Any] = OrderedDict()
_files: dict[bytes, list[str]] = {}
"""The blobs of a store that kept ones have mapped."""


def receive(key: bytes, blob: bytes) -> Any:
    """The object that was shared under this key."""
    if key in _kept:
        _kept.move_to_end(key)
        return _kept[key]
    for old in [old for old, files in _files.items() if not all(map(os.path.exists, files))]:
        forget(old)  # its store needs the room
    thing = _kept[key] = _opened(blob)
    files = [path_of(stored) for stored in stored_of(blob)]
    if files:
        _files[key] = files
    if len(_kept) > KEPT_MAX:
        forget(next(iter(_kept)))
    return thing


def _opened(blob: bytes) -> Any:
    if not is_cargo(blob):
        return open_blob(blob)
    try:
        cargo = opened_cargo(blob, lambda ref, area: None)
    except OSError as error:
        raise NotPortable(
            f"a shared object cannot be mapped here: {error}; its handle must live as long as calls of other "
            "farms use it"
        ) from error
    cargo.buffers = [memoryview(buffer).toreadonly() for buffer in cargo.buffers]
    return cargo.load(open_blob)


def open_kept(blob: bytes) -> Any:
    """A result that was kept; a private copy each time. Raises OSError: it is not there any more."""
    if not is_cargo(blob):
        return pickle.loads(blob)
    return opened_cargo(blob, lambda ref, area: None).load()


def forget(key: bytes) -> None:
    """Nobody refers to this object any more."""
    _kept.pop(key, None)
    _files.pop(key, None)
