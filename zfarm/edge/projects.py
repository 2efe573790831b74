"""A project as it is now: its files copied aside by their digests, so that later edits change nothing.

A file that is as it was is neither read nor copied again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from zfarm.edge.handover import copy_content
from zfarm.edge.holdings import FileHolding, Mark, TreeHolding, mark_of
from zfarm.edge.ignoring import Rules
from zfarm.edge.names import Names
from zfarm.edge.parcels import digest_of_file, open_regular
from zfarm.edge.scratch import Scratch
from zfarm.edge.trees import FILE, FOLDER, LINK, Entry, Manifest, check_link
from zfarm.errors import TooLarge, TransferError
from zfarm.messages import Need
from zfarm.settings import settings

__all__ = ["Projects"]

SHOWN: Final = 5
"""Of the largest files, in the error that a project is too large."""
FILE_MODE: Final = 0o444
FOLDER_MODE: Final = 0o555


class Projects:
    """Snapshots of the projects of one client."""

    def __init__(self) -> None:
        self._scratch: Scratch | None = None
        self._known: dict[str, tuple[Mark, FileHolding]] = {}
        self._held: dict[bytes, FileHolding] = {}

    def close(self) -> None:
        """Remove the copies."""
        if self._scratch is not None:
            self._scratch.remove()
            self._scratch = None

    def take(self, top: Path, prefix: str = "", exclude: Sequence[str] = ()) -> TreeHolding:
        """The files at ``top`` that belong to it, under ``prefix`` (empty, or with a slash at its end).

        Raises:
            TransferError: something cannot be read, or is nothing that travels.
            UnsafeName: a name or link that cannot travel.
            TooLarge: it is more than ``sync_files_max`` files or ``sync_bytes_max`` bytes.
        """
        entries: list[Entry] = []
        names = Names()
        for n in range(prefix.count("/")):
            folder = "/".join(prefix.split("/")[: n + 1])
            entries.append(Entry(names.add(folder, True), FOLDER, FOLDER_MODE))
        found = list(_walk(top, exclude))
        _check_size([(name, status.st_size) for name, status in found if stat.S_ISREG(status.st_mode)])
        files: dict[bytes, FileHolding] = {}
        for name, status in found:
            if stat.S_ISDIR(status.st_mode):
                entries.append(Entry(names.add(prefix + name, True), FOLDER, FOLDER_MODE))
            elif stat.S_ISLNK(status.st_mode):
                target = os.readlink(top / name)
                check_link(name, target)
                entries.append(Entry(names.add(prefix + name), LINK, target=target))
            else:
                held = self._hold(top / name)
                files[held.need.digest] = held
                mode = FILE_MODE | (0o111 if status.st_mode & 0o100 else 0)
                entries.append(Entry(names.add(prefix + name), FILE, mode, held.need.digest, held.need.size))
        return TreeHolding(top, Manifest(FOLDER_MODE, entries), files)

    def _hold(self, path: Path) -> FileHolding:
        """The copy of a file as it is now."""
        source = open_regular(path, follow=False)
        try:
            mark = mark_of(source)
            known, held = self._known.get(str(path), (None, None))
            if held is not None and known == mark:
                return held
            held = self._copy(source, str(path))
            if mark_of(source) != mark:
                raise TransferError(
                    f"{str(path)!r} was changed while it was read: sync when nobody writes it, or name it in "
                    ".gitignore"
                )
        finally:
            os.close(source)
        self._known[str(path)] = mark, held
        return held

    def _copy(self, source: int, name: str) -> FileHolding:
        if self._scratch is None:
            self._scratch = Scratch()
        beside = self._scratch.path / "copy"
        target = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            copy_content(source, target)
            size = os.fstat(target).st_size
            digest = digest_of_file(target, size, name)
        finally:
            os.close(target)
        held = self._held.get(digest)
        if held is None:
            path = self._scratch.path / digest.hex()
            os.rename(beside, path)
            held = self._held[digest] = FileHolding(path, Need(digest, size), None)
        return held


def _walk(top: Path, exclude: Sequence[str]) -> Iterator[tuple[str, os.stat_result]]:
    """Names and facts of what belongs to a project; what is in a directory comes after it."""
    rules, called = Rules.of_project(top, exclude)
    todo = [("", rules)]
    while todo:
        folder, rules = todo.pop()
        try:
            found = sorted(os.scandir(top / folder), key=lambda entry: entry.name)
        except OSError as error:
            text = f"cannot read the directory {str(top / folder)!r}: {error.strerror}"
            raise TransferError(text, error.errno or 0) from None
        below: list[tuple[str, Rules]] = []
        for entry in found:
            name = folder + entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            if rules.ignore(called + name, entry.path if is_folder else ""):
                continue
            status = entry.stat(follow_symlinks=False)
            if not (is_folder or stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
                raise TransferError(f"{entry.path!r} is no file: remove it, or name it in .gitignore")
            yield name, status
            if is_folder:
                below.append((name + "/", rules.entered(called + name + "/", entry.path)))
        todo += reversed(below)


def _check_size(sizes: list[tuple[str, int]]) -> None:
    total = sum(size for _, size in sizes)
    if len(sizes) <= settings.sync_files_max and total <= settings.sync_bytes_max:
        return
    largest = sorted(sizes, key=lambda pair: -pair[1])[:SHOWN]
    shown = ", ".join(f"{name} ({size / 1e6:.1f} MB)" for name, size in largest)
    raise TooLarge(
        f"the project has {len(sizes):,} files with {total / 1e6:.1f} MB, and as code at most "
        f"{settings.sync_files_max:,} files with {settings.sync_bytes_max / 1e6:.1f} MB are shipped; the "
        f"largest are {shown}. Name what is no code in .gitignore, hand data on with farm.put(), or set "
        "ZFARM_SYNC_FILES_MAX and ZFARM_SYNC_BYTES_MAX"
    )
