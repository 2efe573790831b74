"""The command zfarm as on another host than the broker: files have to be sent; as a program, with its
arguments. And what tasks do with files that have names."""

from __future__ import annotations

import os
import platform
import stat
import sys
from hashlib import sha256
from pathlib import Path


def look(top: os.PathLike[str]) -> list[tuple[str, str]]:
    """All that is in a directory: names, with digest, target or kind."""
    found = []
    for at, folders, files in os.walk(top):
        for base in (*folders, *files):
            path = Path(at, base)
            mode = path.lstat().st_mode
            said = "folder"
            if stat.S_ISLNK(mode):
                said = f"to {path.readlink()}"
            elif stat.S_ISREG(mode):
                said = sha256(path.read_bytes()).hexdigest()
            found.append((str(path.relative_to(top)), said))
    return sorted(found)


def modes(top: Path) -> list[tuple[str, int]]:
    paths = [path for path in (top, *top.rglob("*")) if not path.is_symlink()]
    return sorted((str(path.relative_to(top)), stat.S_IMODE(path.stat().st_mode)) for path in paths)


if __name__ == "__main__":
    from zfarm.face.cli import main

    platform.node = lambda: "far"
    sys.exit(main(sys.argv[1:]))
