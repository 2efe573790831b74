"""References of pickles to blobs, and how a child maps those from its worker's store; it fetches none.

A file of a store is never written to once it has its name, and who maps it keeps it, whoever removes that
name.
"""

from __future__ import annotations

import mmap
import os
import sys
from typing import Any, NamedTuple

from zfarm.edge.names import file_name
from zfarm.edge.segments import PRIVATE, map_area

__all__ = ["Stored", "area_of_stored", "here", "path_of"]


class Stored(NamedTuple):
    """A blob by its name. With ``at`` it is in the store of that worker (HOST/PID), or was; else whatever
    call refers to it needs it. ``birth`` is what its child calls the result until its handle is heard of."""

    digest: bytes
    size: int
    at: str = ""
    birth: bytes = b""


def here() -> str:
    """The store of the worker whose child this process is; empty: it is no child, or knows of none."""
    module = sys.modules.get("zfarm.edge.inside")
    inside = None if module is None else module.current()
    return "" if inside is None else inside.store


def path_of(stored: Stored) -> str:
    """Where this blob is, if it is here. Raises FileNotFoundError: there is no store here."""
    store = here()
    if not store:
        raise FileNotFoundError("this process has no store of blobs: only children of workers have")
    return os.path.join(store, "blobs", file_name(stored.digest, stored.size))


def area_of_stored(stored: Stored) -> Any:
    """What the blob holds, as a private copy: pages are shared with everybody until they are written to.

    Raises:
        OSError: it is not in the store here, or cannot be mapped.
    """
    fd = os.open(path_of(stored), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_size != stored.size:
            raise FileNotFoundError(f"blob {stored.digest.hex()[:12]} is not what it is called")
        return map_area(fd, stored.size, PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(fd)
