"""What a child says when code is missing that a function, its arguments or a call needs: what, where, why."""

from __future__ import annotations

import platform
import sys

from zfarm.errors import ModuleMissing

__all__ = ["noted", "opened"]


def opened(error: BaseException, host: str, shipped: bool = False) -> BaseException:
    """The error to report when opening a blob has raised this one on ``host``, where only what the client has
    ``shipped`` of its code is, if it has."""
    if type(error) is ModuleNotFoundError:
        name = error.name or ""
        missing = ModuleMissing(f"{_what(error, name)} {_where(host)}: {_remedy(name, shipped)}", name, host)
        return missing.with_traceback(error.__traceback__)
    if type(error) is ImportError:
        error.msg = f"{error.msg or error}, {_where(host)}: {_remedy(error.name or '', shipped)}"
        error.args = (error.msg,)
    elif type(error) is AttributeError and str(error).startswith("Can't get attribute"):
        again = "farm.sync() again if it was edited" if shipped else "farm.sync('.')"
        older = f"its copy of that module is another one than the client's: install the same, or {again}"
        error.args = (f"{error}, {_where(host)}: {older}",)
    return error


def noted(error: BaseException, host: str, shipped: bool = False) -> None:
    """Note the same on an error that a call has raised itself on ``host``, by an import within it: the error
    is its own, and stays what it is."""
    if type(error) is ModuleNotFoundError and not hasattr(error, "__notes__"):
        error.add_note(f"{_where(host)}: {_remedy(error.name or '', shipped)}")


def _what(error: ModuleNotFoundError, name: str) -> str:
    top = name.partition(".")[0]
    package = sys.modules.get(top) if top != name else None
    if package is None:
        return error.msg or f"No module named {name!r}"
    origin = getattr(package, "__file__", None) or "somewhere"
    return f"{error.msg} (package {top!r} is there, at {origin}, and has no such part: another version?)"


def _where(host: str) -> str:
    return f"on host {host} (Python {platform.python_version()} at {sys.prefix})"


def _remedy(name: str, shipped: bool) -> str:
    top = name.partition(".")[0] or "the module"
    if shipped:
        return (
            f"it is not in what farm.sync() has shipped: if {top!r} is your own, "
            "see whether a .gitignore leaves it out, or farm.sync() again; else install it there"
        )
    return (
        f"install {top!r} there, or send it along if it is your own: farm.sync('.'), "
        f"or cloudpickle.register_pickle_by_value({top})"
    )
