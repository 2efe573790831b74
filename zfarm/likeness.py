"""Whether a client and its workers would import the same code, and what it means where they would not.

Nothing is imported for that, and a module of which only a part is seen is compared in that part.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from zfarm.edge.modules import Module, importing_from, look_at_modules, modules_of

__all__ = ["Code", "Difference", "differences", "look_here", "told"]

NAMED_MAX: Final = 6
"""Files, or modules, that one sentence names."""


class Difference(msgspec.Struct):
    """A module is not the same at a worker."""

    module: str
    place: str = ""
    """Where it is there; empty: nowhere."""
    changed: list[str] = []
    """Files that have another content there."""
    older: list[str] = []
    """Those of them that were written there before ours were."""
    missing: list[str] = []
    extra: list[str] = []
    partly: bool = False
    """It has more files than are compared."""


class Code(msgspec.Struct):
    """What a client would import."""

    directory: str
    modules: dict[str, Module]
    asked: bool = False
    """Somebody has named the modules: calls do need them."""
    shipped: bool = False
    """The client has shipped code before."""


def look_here(names: Sequence[str] = ()) -> Code:
    """What a program in this directory would import: the modules of these names, without any those that lie
    in the directory. Names of what it could not import are left out."""
    top = os.getcwd()
    with importing_from(top):
        found = look_at_modules({name.partition(".")[0] for name in names} or modules_of(top))
    return Code(top, msgspec.convert(found, dict[str, Module]), bool(names))


def differences(code: Code, theirs: dict[str, Module]) -> list[Difference]:
    """What a worker that would import ``theirs`` has not as the client has it."""
    found = []
    for name, ours in sorted(code.modules.items()):
        there = theirs.get(name)
        if there is None:
            found.append(Difference(name))
            continue
        both = sorted(ours.files.keys() & there.files.keys())
        changed = [file for file in both if ours.files[file].digest != there.files[file].digest]
        older = [file for file in changed if there.files[file].modified_s < ours.files[file].modified_s]
        missing = sorted(ours.files.keys() - there.files.keys())
        extra = sorted(there.files.keys() - ours.files.keys())
        if ours.partly or there.partly:
            missing, extra = [], []
        difference = Difference(
            name, there.place, changed, older, missing, extra, ours.partly or there.partly
        )
        if changed or missing or extra or difference.partly:
            found.append(difference)
    return found


def told(code: Code, found: Sequence[Difference]) -> Iterator[tuple[bool, str, str]]:
    """What the differences of one worker mean: whether it will bite, a code word, and a sentence."""
    gone = [one.module for one in found if not one.place]
    if gone:
        text = f"{_listed(gone)}: here and not there; calls that need it raise ModuleMissing"
        yield code.asked or code.shipped, "code-missing", f"{text}: {_remedy(code, gone)}"
    for one in found:
        parts = []
        if one.changed:
            files = [f"{file} (older)" if file in one.older else file for file in one.changed]
            parts.append(f"{_listed(files)} differs")
        if one.missing:
            parts.append(f"{_listed(one.missing)} is missing")
        if one.extra:
            parts.append(f"{_listed(one.extra)} is there only")
        text = f"{one.module} is another in {os.path.dirname(one.place)!r} there: {'; '.join(parts)}"
        if one.changed or one.missing:
            yield True, "code", f"{text}: calls run what is there; {_remedy(code, [one.module])}"
        elif one.extra:
            yield False, "code", text
        if one.partly:
            yield False, "code-partly", f"{one.module} has too many files: they are compared in part"


def _remedy(code: Code, names: Sequence[str]) -> str:
    """How to mend it."""
    tops = {os.path.dirname(code.modules[name].place) for name in names}
    within = os.path.join(code.directory, "")
    if not all(os.path.join(top, "").startswith(within) for top in tops):
        return "ship a package with farm.sync(module), or install the same"
    again = " again (what .gitignore names stays behind)" if code.shipped else ""
    return f"ship it with farm.sync({code.directory!r}){again}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return ", ".join(names[:NAMED_MAX]) + more
