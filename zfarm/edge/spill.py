"""Large blobs of a journal in files of their own: written, synced and named before a turn is committed,
removed after the row that names them is gone; it knows no table.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Collection, Iterable
from pathlib import Path

from zfarm.edge.disk import sync_directory
from zfarm.edge.places import private_directory
from zfarm.messages import Blob

__all__ = ["Spill"]


class Spill:
    """The blob files of one journal, each under a random number that is never used again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._made = False

    def path(self, file: int) -> Path:
        """Where blob ``file`` is."""
        return self.directory / f"{file:016x}"

    def write(self, blob: Blob) -> int:
        """Write a blob to a new file and sync it; ``sync`` makes its name safe, too. Returns its number.

        Raises:
            OSError: nothing was written. ConfigurationError: others could get at the directory.
        """
        if not self._made:
            made = not self.directory.exists()
            private_directory(self.directory, create=True)
            if made:
                sync_directory(self.directory.parent)
            self._made = True
        file = secrets.randbits(62) or 1
        path = self.path(file)
        beside = path.with_suffix(".part")
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb", buffering=0) as stream:
                rest = memoryview(blob).cast("B")
                while rest:
                    rest = rest[stream.write(rest) :]
                os.fsync(fd)
            os.rename(beside, path)
        except OSError:
            with contextlib.suppress(OSError):  # the first error counts, and orphans are swept
                os.unlink(beside)
            raise
        return file

    def sync(self) -> None:
        """Make the names of all files written so far safe."""
        sync_directory(self.directory)

    def read(self, file: int) -> bytes:
        """The blob ``file``; OSError if it cannot be read."""
        fd = os.open(self.path(file), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(fd, "rb", buffering=0) as stream:
            return stream.read()

    def remove(self, files: Iterable[int]) -> None:
        """Remove these; what cannot be removed now is an orphan, and swept at the next start."""
        for file in files:
            with contextlib.suppress(OSError):
                os.unlink(self.path(file))

    def sizes(self) -> dict[int, int]:
        """Number to size in bytes of every blob; files that are no blobs are not told."""
        found = {}
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self.directory):
                number = _number(entry.name)
                if number and entry.is_file(follow_symlinks=False):
                    found[number] = entry.stat(follow_symlinks=False).st_size
        return found

    def sweep(self, live: Collection[int]) -> int:
        """Remove what no row names: blobs of turns that were never committed, or whose rows are gone."""
        orphans = [file for file in self.sizes() if file not in live]
        self.remove(orphans)
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self.directory):
                if entry.name.endswith(".part") and _number(entry.name[:-5]):
                    os.unlink(entry.path)
                    orphans.append(0)
        return len(orphans)


def _number(name: str) -> int:
    """The number that a blob's file name stands for; 0: it is no blob."""
    if len(name) != 16 or set(name) - set("0123456789abcdef"):
        return 0
    return int(name, 16)
