"""What a store must not remove, since handles of clients name it: files without content, whose names say so.

    pins/born/BIRTH.BLOB     a result whose handle has not been heard of yet
    pins/named/CLIENT-WORKER/BLOB     what handles of a client name; ``last`` there is the number of the last
                                      Pin, written when the client is heard of
    pins/lock                held (shared) by who names what is born, and (exclusively) by who removes blobs

All processes of the host that work in the store see it at once, no death takes it away, and it counts for no
longer than ``pins_kept_s`` after the birth, or after the client was heard of. The times of these files are
monotonic ones, which all processes of a host share: no clock that is set, and no other boot, counts.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Final

from zfarm.edge.locks import open_lock
from zfarm.edge.names import file_name
from zfarm.edge.removal import remove_tree
from zfarm.messages import Pin, Pinned
from zfarm.settings import settings

__all__ = ["Pins"]

_LAST: Final = "last"


class Pins:
    """The pins of one store, made when there is something to pin."""

    def __init__(self, root: Path, kept_s: float | None = None) -> None:
        """``root`` is the store's. ``kept_s`` in place of the setting."""
        self._blobs = root / "blobs"
        self._top = root / "pins"
        self._born = self._top / "born"
        self._named = self._top / "named"
        self._kept_s = settings.pins_kept_s if kept_s is None else kept_s

    # ------------------------------------------------------------ to pin

    @contextmanager
    def birth(self, token: str, blob: str) -> Iterator[None]:
        """In this block that blob gets its name; it is pinned until a handle is heard of. Raises OSError."""
        with self._locked(fcntl.LOCK_SH):
            _touch(self._born / f"{token}.{blob}")
            yield

    def follow(self, pin: Pin) -> Pinned | None:
        """Do what a client says; the answer, if there is one to give. Raises OSError."""
        client = blake2b(pin.owner.encode(), digest_size=16).hexdigest()
        if pin.over:
            if self._top.is_dir():
                with self._locked(fcntl.LOCK_EX):
                    for folder in self._named.glob(f"{client}-*"):
                        remove_tree(folder)
            return None
        place = blake2b(pin.at.encode(), digest_size=16).hexdigest()
        if pin.fresh:
            self.sweep()
        with self._locked(fcntl.LOCK_EX):
            known = self._follow(self._named / f"{client}-{place}", pin)
        return Pinned(pin.at, pin.number, known, pin.owner)

    def _follow(self, folder: Path, pin: Pin) -> bool:
        if not self._counts(folder / _LAST):
            remove_tree(folder)
            if not pin.fresh:
                return False
            folder.mkdir()
            _touch(folder / _LAST)  # from now on what is in there counts
        last = folder / _LAST
        with suppress(FileNotFoundError, ValueError):
            if pin.number <= int(last.read_text()):
                _touch(last)
                return True
        if pin.fresh:
            for entry in list(folder.iterdir()):
                if entry.name != _LAST:
                    entry.unlink(missing_ok=True)
        for keep in pin.keeps:
            blob = file_name(keep.digest, keep.size)
            if (self._blobs / blob).exists():
                _touch(folder / blob)
            if keep.birth:
                (self._born / f"{keep.birth.hex()}.{blob}").unlink(missing_ok=True)
        for need in pin.drops:
            (folder / file_name(need.digest, need.size)).unlink(missing_ok=True)
        beside = folder / f".{_LAST}"  # it must not be there without its time
        beside.write_text(f"{pin.number}\n")
        _touch(beside)
        beside.rename(last)  # at the end: what is said again is done again
        return True

    # ------------------------------------------------------------ to remove what is not pinned

    @contextmanager
    def frozen(self) -> Iterator[set[str]]:
        """The names of all blobs that are pinned; nothing more is pinned in this block."""
        if not self._top.is_dir():
            yield set()
            return
        with self._locked(fcntl.LOCK_EX):
            pinned: set[str] = set()
            for birth in list(self._born.iterdir()):
                if self._counts(birth):
                    pinned.add(birth.name.partition(".")[2])
                else:
                    birth.unlink(missing_ok=True)
            for folder in list(self._named.iterdir()):
                if self._counts(folder / _LAST):
                    pinned.update(name for name in os.listdir(folder) if name != _LAST)
                else:
                    remove_tree(folder)
            yield pinned

    def sweep(self) -> None:
        """Forget what does not count any more."""
        with self.frozen():
            pass

    def _counts(self, path: Path) -> bool:
        try:
            return 0 <= time.monotonic() - path.stat().st_mtime <= self._kept_s
        except FileNotFoundError:
            return False

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        for folder in (self._top, self._born, self._named):
            folder.mkdir(mode=0o700, exist_ok=True)
        fd = open_lock(self._top / "lock")
        try:
            fcntl.flock(fd, how)
            yield
        finally:
            os.close(fd)


def _touch(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    now = time.monotonic_ns()
    os.utime(path, ns=(now, now))
