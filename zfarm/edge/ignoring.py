"""Which files of a project belong to it: what its .gitignore files say, and what nobody wants to ship.

As in git: the nearest .gitignore that says something decides, a later line over an earlier one, and nothing
below a directory that is ignored can be had back. Those above the project count, up to its repository's top.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from pathspec import GitIgnoreSpec

from zfarm.errors import TransferError

__all__ = ["NEVER", "Rules"]

GITIGNORE: Final = ".gitignore"
GITIGNORE_MAX: Final = 1024 * 1024
LINE_MAX: Final = 4096
"""Characters of one pattern, as many as a path has at most: some take a time that grows with their square."""
NEVER: Final = (
    "__pycache__/", "*.pyc", "*.pyo", ".hg/", ".svn/", ".venv/", "venv/", ".tox/", ".nox/", ".eggs/",
    "*.egg-info/", ".mypy_cache/", ".pytest_cache/", ".ruff_cache/", ".hypothesis/", ".ipynb_checkpoints/",
    "node_modules/", ".DS_Store", ".zfarm-*",
)  # fmt: skip
"""Unless a .gitignore says otherwise."""
_MARK: Final = "ps_d"
"""The group with which pathspec's expressions tell that a directory was matched."""
_BRACKETS: Final = re.compile(r"\[(?:\[:[a-z]+:\]|[^\]])+\]")
_CLASSES: Final = {
    "[:alnum:]": "a-zA-Z0-9", "[:alpha:]": "a-zA-Z", "[:blank:]": " \t", "[:digit:]": "0-9",
    "[:lower:]": "a-z", "[:space:]": " \t\n\r\f\v", "[:upper:]": "A-Z", "[:xdigit:]": "0-9a-fA-F",
}  # fmt: skip
"""What stands in brackets for several characters, to git; pathspec does not know them."""
_CLASS: Final = re.compile(r"\[:[a-z]+:\]")
_REPOSITORY: Final = ".git"
_ENVIRONMENT: Final = "pyvenv.cfg"


class Rules:
    """The rules that hold in one directory of a project, and those above it."""

    def __init__(self, base: str, patterns: Sequence[Any], above: Rules | None) -> None:
        """``base`` is the directory, relative to the outermost one, and empty or with a slash at its end."""
        self._base = base
        self._patterns = patterns
        self._above = above

    @classmethod
    def of_project(cls, top: Path, more: Sequence[str] = ()) -> tuple[Rules, str]:
        """The rules for the files at ``top``, and what to call it in them. ``more`` are patterns that hold
        for all, as the first lines of the outermost .gitignore would.

        Raises:
            TransferError: a .gitignore cannot be read.
            TypeError, ValueError: ``more`` are no patterns.
        """
        outer = top
        for folder in (top, *top.parents):
            if os.path.lexists(folder / ".git"):
                outer = folder
                break
        if isinstance(more, (str, bytes)) or not all(isinstance(line, str) for line in more):
            raise TypeError(f"exclude must be a list of patterns, such as ['*.csv'], not {more!r}")
        rules = cls("", [*_patterns(NEVER, False, "exclude"), *_patterns(more, False, "exclude")], None)
        here = ""
        rules = rules.entered(here, outer)
        for part in top.relative_to(outer).parts:
            here += part + "/"
            rules = rules.entered(here, outer / here)
        return rules, here

    def entered(self, base: str, folder: Path | str) -> Rules:
        """The rules within ``folder``, which is called ``base``. Raises TransferError."""
        path = os.path.join(folder, GITIGNORE)
        try:
            # without the mark at its beginning that some editors write
            with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
                lines = file.read(GITIGNORE_MAX).split("\n")
        except FileNotFoundError:
            return self
        except OSError as error:
            raise TransferError(f"cannot read {path!r}: {error.strerror}", error.errno or 0) from None
        try:
            return Rules(base, _patterns(lines, True, repr(path)), self)
        except ValueError as error:
            raise TransferError(f"{error}; change that line") from None

    def ignore(self, name: str, folder: str = "") -> bool:
        """Whether ``name``, relative to the outermost directory, stays behind; ``folder`` is where it lies,
        if it is a directory."""
        if name.rpartition("/")[2] == _REPOSITORY:
            return True  # whatever a .gitignore says, as in git
        if folder and os.path.lexists(os.path.join(folder, _ENVIRONMENT)):
            return True  # a virtual environment, whatever it is called
        rules: Rules | None = self
        while rules is not None:
            said = rules._says(name[len(rules._base) :], bool(folder))
            if said is not None:
                return said
            rules = rules._above
        return False

    def _says(self, name: str, is_folder: bool) -> bool | None:
        """What the last line says that is about this very name; None: there is none.

        Patterns of pathspec also match all that is in a directory which they match. We ask for each directory
        before we look into it, and a line about it says nothing of what is in it.
        """
        path = name + "/" if is_folder else name
        for pattern in reversed(self._patterns):
            if pattern.include is None or pattern.regex is None:
                continue
            marked = _MARK in pattern.regex.groupindex
            found = pattern.regex.finditer(path if marked else name)
            if any(not marked or not one[_MARK] or one.end(_MARK) == len(path) for one in found):
                return bool(pattern.include)
        return None


def _patterns(lines: Iterable[str], lenient: bool, where: str) -> list[Any]:
    """What these lines say. If ``lenient`` a line that is nothing to git says nothing. Raises ValueError."""
    found: list[Any] = []
    for line in lines:
        if len(line) > LINE_MAX:
            raise ValueError(
                f"{where} has a line of {len(line):,} characters, {line[:40]!r} and so on: a pattern may "
                f"have {LINE_MAX:,}"
            )
        try:
            found += GitIgnoreSpec.from_lines([_BRACKETS.sub(_plain, line)]).patterns
        except (ValueError, re.error) as error:
            if not lenient or isinstance(error, re.error):
                raise ValueError(f"{where} has {line!r}, which is no pattern: {error}") from None
    return found


def _plain(brackets: re.Match[str]) -> str:
    return "[" + _CLASS.sub(lambda one: _CLASSES.get(one[0], one[0]), brackets[0][1:-1]) + "]"
