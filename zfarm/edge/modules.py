"""What a process would import under a name: the files of a module and their digests; it imports no module.

Only source code is looked at, since compiled code differs between hosts that are alike in all else.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Final

import msgspec

from zfarm.edge.parcels import open_regular
from zfarm.errors import TransferError
from zfarm.settings import settings

__all__ = ["Module", "Source", "importing_from", "look_at_modules", "modules_of"]

SUFFIX: Final = ".py"
SOURCES: Final = "src"
"""Where some projects have their packages, which are then installed so that they lie there."""
NEVER: Final = frozenset({"setup", "conftest", "noxfile"})
"""Scripts for tools, which no call needs."""


class Source(msgspec.Struct):
    """A file of a module."""

    digest: str
    """Empty: it cannot be read."""
    modified_s: float
    """When it was written, in seconds since 1970 by the clock of its host."""


class Module(msgspec.Struct):
    """What would be imported."""

    place: str
    """Its file, or the directory of a package."""
    files: dict[str, Source]
    """By their names as of the directory in which the module is: ``shop/prices.py``."""
    partly: bool = False
    """It has more files than are looked at."""


@contextmanager
def importing_from(top: str) -> Iterator[None]:
    """Import as a program in the directory ``top`` does; calls that are submitted meanwhile do, too."""
    before = list(sys.path)
    sys.path.insert(0, top)
    try:
        yield
    finally:
        sys.path[:] = before


def modules_of(top: str) -> list[str]:
    """The names of the modules and packages that lie in ``top``, or in ``src`` there, and that a program in
    that directory would import from there."""
    real = os.path.realpath(top)
    with importing_from(top):
        found = look_at_modules({*_names(real), *_names(os.path.join(real, SOURCES))}, 0)
    return sorted(
        name
        for name, module in found.items()
        if os.path.realpath(os.path.dirname(module["place"])) in (real, os.path.join(real, SOURCES))
    )


def look_at_modules(names: Iterable[str], files_max: int | None = None) -> dict[str, Any]:
    """What this process would import under these names, each of one part, as plain data of Modules: another
    version of zfarm may have to read it. What it could not import is left out."""
    importlib.invalidate_caches()
    found = {}
    for name in names:
        module = _look_at(name, settings.sync_files_max if files_max is None else files_max)
        if module is not None:
            found[name] = msgspec.to_builtins(module)
    return found


def _names(folder: str) -> Iterator[str]:
    try:
        entries = os.listdir(folder)
    except OSError:
        return
    for entry in entries:
        name, suffix = os.path.splitext(entry)
        if not name.isidentifier() or name.startswith("__") or name in NEVER:
            continue
        path = os.path.join(folder, entry)
        if suffix == SUFFIX or (not suffix and os.path.isfile(os.path.join(path, f"__init__{SUFFIX}"))):
            yield name


def _look_at(name: str, files_max: int) -> Module | None:
    spec = _spec_of(name)
    if spec is None:
        return None
    origin = spec.origin or ""
    folders = list(spec.submodule_search_locations or ())
    if not folders:
        files = {os.path.basename(origin): _read(Path(origin))} if origin.endswith(SUFFIX) else {}
        return Module(origin, files)
    module = Module(folders[0], {})
    for folder in folders:
        for path in _sources(folder):
            if len(module.files) >= files_max:
                module.partly = True
                return module
            module.files.setdefault(f"{name}/{os.path.relpath(path, folder)}", _read(path))
    return module


def _spec_of(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):  # such as of a module that was made by hand
        return None


def _sources(folder: str) -> Iterator[Path]:
    for at, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name.isidentifier() and name != "__pycache__")
        for name in sorted(files):
            if name.endswith(SUFFIX):
                yield Path(at, name)


def _read(path: Path) -> Source:
    try:
        fd = open_regular(path)
    except TransferError:
        return Source("", 0.0)
    with open(fd, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        return Source(digest.hexdigest(), os.fstat(fd).st_mtime)
