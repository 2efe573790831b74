"""Handles of objects that many calls of a farm use: see ``Executor.share``; they know no message."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from zfarm.edge import shared
from zfarm.edge.cargo import Cargo, weigh
from zfarm.errors import TooLarge
from zfarm.handles import note
from zfarm.mapping import too_large
from zfarm.settings import settings

if TYPE_CHECKING:
    from zfarm.api import Executor
    from zfarm.edge.stowage import Hold
    from zfarm.link import Link

__all__ = ["Shared"]

T = TypeVar("T")


class Shared(Generic[T]):
    """Stands for an object that was shared: in the arguments of a call it becomes the object itself."""

    def __init__(self, farm: Executor, obj: T) -> None:
        """Only executors make these: ``farm.share``."""
        link = farm._link
        link.check_open()
        link.reached.wait(settings.reach_timeout_s)
        link.check_open()
        blob = farm._portable.encode_object(obj)
        self.nbytes = weigh(blob)
        """Bytes of its pickle."""
        if len(blob) > link.bytes_max:
            raise _too_large(obj, len(blob), link.bytes_max)
        self._kind = type(obj).__name__
        self._key = os.urandom(16)
        self._blob = bytes(blob)
        harbour = link.harbour
        self._bales = harbour.needs(blob) if harbour is not None and isinstance(blob, Cargo) else ()
        hold = blob.hold if isinstance(blob, Cargo) else None
        weakref.finalize(self, _retire, link, hold, self._key).atexit = False

    def __reduce__(self) -> Any:
        for bale in self._bales:
            note(bale.of(self))
        return shared.receive, (self._key, self._blob)

    def __repr__(self) -> str:
        return f"<zfarm.Shared {self._kind} of {self.nbytes:,} bytes>"


def _retire(link: Link, hold: Hold | None, key: bytes) -> None:
    harbour = link.harbour
    if harbour is not None:
        harbour.retire(lambda: harbour.unshare(hold, key))


def _too_large(obj: object, size: int, most: float) -> TooLarge:
    return too_large(f"an object of {type(obj).__name__}", size, most)
