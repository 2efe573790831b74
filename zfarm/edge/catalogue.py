"""The names that an archive keeps files under: one small file for each, written beside, synced and renamed;
it knows no blob.

    ARCHIVE/lock            held by the broker that uses it
    ARCHIVE/OWNER/owner     whose it is
    ARCHIVE/OWNER/names/N   what one name stands for; N is a digest of the name
    ARCHIVE/OWNER/blobs/    see zfarm.edge.storeroom
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from zfarm.edge.disk import sync_directory
from zfarm.edge.locks import open_lock
from zfarm.edge.names import check_name
from zfarm.edge.parcels import digest_of
from zfarm.edge.places import private_directory, write_private
from zfarm.errors import ConfigurationError, TransferError, UnsafeName
from zfarm.messages import DIGEST_BYTES, ArchivedFile, Need

__all__ = ["Catalogue", "check_archived_name", "folder_of", "lock_archive", "owners_in"]

log = logging.getLogger("zfarm.archive")

FORMAT: Final = 1
NAME_CHARACTERS_MAX: Final = 200


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """What stands in the file of a name."""

    format: int
    name: str
    digest: str
    size: int
    directory: bool
    mode: int
    bytes: int
    files: int
    at: float


_pack: Final = msgspec.json.Encoder().encode
_unpack: Final = msgspec.json.Decoder(_Entry).decode


def check_archived_name(name: str) -> str:
    """The name, if something can be kept under it. Raises UnsafeName."""
    check_name(name)
    if "/" in name or len(name) > NAME_CHARACTERS_MAX or name != name.strip() or not name.isprintable():
        raise UnsafeName(
            f"nothing can be kept under the name {name[:NAME_CHARACTERS_MAX]!a}: use one without slashes, at "
            f"most {NAME_CHARACTERS_MAX} characters that can be printed, and no blanks around it"
        )
    return name


def lock_archive(root: Path) -> int:
    """Make the directory of an archive if need be, and hold it: the descriptor that does.

    Raises:
        ConfigurationError: it is not ours alone, cannot be made, or another broker uses it.
    """
    private_directory(root, create=True)
    fd = open_lock(root / "lock")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise ConfigurationError(
            f"another broker keeps files in {root}: name another directory with --files DIR"
        ) from None
    return fd


def folder_of(root: Path, owner: str) -> Path:
    """Where the files of an owner are."""
    return root / digest_of(owner.encode()).hex()[:DIGEST_BYTES]


def owners_in(root: Path) -> Iterator[tuple[str, Path]]:
    """Everybody whose files are kept, and where."""
    for path in sorted(root.iterdir()):
        with suppress(OSError, UnicodeDecodeError):
            yield (path / "owner").read_text(), path


class Catalogue:
    """The names of one owner."""

    def __init__(self, folder: Path, owner: str = "") -> None:
        """Read them. With an ``owner`` the folder is made for that if need be. Raises ConfigurationError."""
        self._folder = folder / "names"
        self._entries: dict[str, ArchivedFile] = {}
        if owner:
            private_directory(folder, create=True)
            private_directory(self._folder, create=True)
            if not (folder / "owner").exists():
                write_private(folder / "owner", owner.encode())
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if path.name.startswith("."):  # it is being written, or its writer has died
                if owner:
                    path.unlink(missing_ok=True)
                continue
            entry = self._read(path)
            if entry is not None:
                self._entries[entry.name] = entry

    @staticmethod
    def _read(path: Path) -> ArchivedFile | None:
        try:
            entry = _unpack(path.read_bytes())
            need = Need(bytes.fromhex(entry.digest), entry.size, entry.directory)
            if len(need.digest) != DIGEST_BYTES or path.name != _file_of(entry.name):
                raise ValueError("it is not what it is called")
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            log.warning("what a name stands for cannot be read and is left out: %s: %s", path, error)
            return None
        return ArchivedFile(entry.name, need, entry.mode & 0o777, entry.bytes, entry.files, entry.at)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[ArchivedFile]:
        return iter(sorted(self._entries.values(), key=lambda one: one.name))

    def get(self, name: str) -> ArchivedFile | None:
        """What a name stands for."""
        return self._entries.get(name)

    def put(self, entry: ArchivedFile) -> None:
        """Have a name stand for this, durably. Raises TransferError."""
        need = entry.need
        packed = _pack(
            _Entry(
                FORMAT, entry.name, need.digest.hex(), need.size, need.tree, entry.mode, entry.bytes,
                entry.files, entry.at,
            )
        )  # fmt: skip
        try:
            write_private(self._folder / _file_of(entry.name), packed)
            sync_directory(self._folder)
        except (OSError, ConfigurationError) as error:
            raise TransferError(f"the broker cannot write the name {entry.name!a}: {error}") from None
        self._entries[entry.name] = entry

    def remove(self, name: str) -> bool:
        """Forget a name, durably; False: it is none. Raises OSError."""
        if name not in self._entries:
            return False
        (self._folder / _file_of(name)).unlink(missing_ok=True)
        sync_directory(self._folder)
        del self._entries[name]
        return True


def _file_of(name: str) -> str:
    return digest_of(name.encode("utf-8", "surrogatepass")).hex()
