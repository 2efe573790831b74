"""Names of files that travel: which are safe, and which would be one on some disk; it opens no file.

A name is relative, of parts between slashes. It is judged where it is sent, for the sender to hear of it, and
again where it arrives, since the sender may be anybody.
"""

from __future__ import annotations

import os
import re
import unicodedata
from typing import Final

from zfarm.errors import UnsafeName

__all__ = ["OURS", "Names", "check_name", "check_path", "file_name", "fold"]

NAME_BYTES_MAX: Final = 2048
"""Of a whole name: with the directory that it comes to it must stay below what a system takes (4096)."""
PART_BYTES_MAX: Final = 255
PARTS_MAX: Final = 64
OURS: Final = ".zfarm-"
"""What our own files in a user's directory begin with."""
_CONTROL: Final = re.compile("[\\0-\\x1f\\x7f]")


def check_name(name: object) -> str:
    """The name, if a file may be called so.

    Raises:
        UnsafeName: it may not; the text says why.
    """
    if not isinstance(name, str):
        raise UnsafeName(f"the name of a file must be a string, not {type(name).__name__}")
    shown = name if len(name) <= 200 else name[:200] + "..."
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise _unsafe(shown, "is not valid Unicode") from None
    if not name:
        raise UnsafeName("the name of a file must not be empty")
    if _CONTROL.search(name):
        raise _unsafe(shown, "has a NUL or another control character")
    if name.startswith("/"):
        raise _unsafe(shown, "is absolute; it must be relative")
    if len(encoded) > NAME_BYTES_MAX:
        raise _unsafe(shown, f"has {len(encoded)} bytes, at most {NAME_BYTES_MAX} are allowed")
    parts = name.split("/")
    if len(parts) > PARTS_MAX:
        raise _unsafe(shown, f"has {len(parts)} parts, at most {PARTS_MAX} are allowed")
    for part in parts:
        if part in ("", ".", ".."):
            raise _unsafe(shown, f"has the part {part!r}, which does not name a file")
        if len(part.encode()) > PART_BYTES_MAX:
            raise _unsafe(shown, f"has a part of more than {PART_BYTES_MAX} bytes")
        if fold(part).startswith(OURS):
            raise _unsafe(shown, f"has a part that begins with {OURS}, as zfarm's own files do")
    return name


def check_path(path: str | os.PathLike[str]) -> str:
    """The path, if there can be such a one.

    Raises:
        UnsafeName: it is empty, which elsewhere means the working directory, or no system takes it.
        TypeError: it is no path.
    """
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"a path must be a string, not {type(text).__name__}: os.fsdecode() makes one of it")
    if not text:
        raise UnsafeName("the path is empty: '.' is the working directory")
    shown = text if len(text) <= 200 else text[:200] + "..."
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise UnsafeName(f"the path {shown!a} is not valid Unicode") from None
    if "\0" in text:
        raise UnsafeName(f"the path {shown!a} has a NUL")
    return text


def _unsafe(name: str, why: str) -> UnsafeName:
    return UnsafeName(f"the name {name!a} {why}")


def fold(name: str) -> str:
    """What names have in common that are one and the same on some file system."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class Names:
    """The names of one transfer: each file once, and no two that some file system takes for one."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, bool]] = {}  # folded: as it came, and whether it is a directory
        self._folder = ""  # that of the last name, which is known

    def __len__(self) -> int:
        return len(self._known)

    def discard(self, name: str) -> None:
        """Forget a file: it will come another way."""
        self._known.pop(fold(name), None)

    def add(self, name: object, directory: bool = False) -> str:
        """Note this name and the directories that it is in, and return it.

        Raises:
            UnsafeName: it is no safe name, or clashes with an earlier one. It is not noted then.
        """
        name = check_name(name)
        parts = name.split("/")
        folder = name.rpartition("/")[0]
        found = {}
        for n in range(len(parts) if folder and folder == self._folder else 1, len(parts) + 1):
            path = "/".join(parts[:n])
            is_directory = directory or n < len(parts)
            folded = fold(path)
            known = self._known.get(folded)
            if known is None:
                found[folded] = (path, is_directory)
            elif known[0] != path:
                raise _unsafe(name, f"clashes with {known[0]!a}: some disks take them for one")
            elif not (known[1] and is_directory):
                raise _unsafe(name, f"clashes: {path!a} was sent already")
        self._known.update(found)
        self._folder = folder
        return name


def file_name(digest: bytes, size: int) -> str:
    """What a blob is called in a store."""
    return f"{digest.hex()}-{size}"
