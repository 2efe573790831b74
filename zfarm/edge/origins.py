"""Where a function or class comes from: a home, or a module that a child can import; it pickles nothing.

Homes are ``__main__`` and every module registered with ``cloudpickle.register_pickle_by_value``: a child
cannot import them, so their things travel by value.
"""

from __future__ import annotations

import dis
import sys
import types
import weakref
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import cloudpickle.cloudpickle as cloud

__all__ = ["MAIN", "Key", "by_reference", "global_names", "home_of_globals", "is_home", "place_in_home"]

Key: TypeAlias = tuple[str, str]
"""A home and a (qualified) name in it."""

MAIN: Final = ("__main__", "__mp_main__")
_GLOBAL_OPS: Final = {"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"}
_names_of_code: weakref.WeakKeyDictionary[types.CodeType, tuple[str, ...]] = weakref.WeakKeyDictionary()


def is_home(module: str) -> bool:
    """Whether things of this module travel by value."""
    if module in MAIN:
        return True
    registered = cloud._PICKLE_BY_VALUE_MODULES
    if not registered:
        return False
    parts = module.split(".")
    return any(".".join(parts[:n]) in registered for n in range(1, len(parts) + 1))


def home_of_globals(namespace: dict[str, Any]) -> str | None:
    """The name of the home whose globals these are, if any."""
    name = namespace.get("__name__")
    if not isinstance(name, str) or not is_home(name):
        return None
    for label in ("__main__", name):
        module = sys.modules.get(label)
        if module is not None and getattr(module, "__dict__", None) is namespace:
            return label
    return None


def place_in_home(thing: Any) -> Key | None:
    """(home, qualified name) under which exactly this function or class is found, if it is."""
    module = getattr(thing, "__module__", None)
    qualname = getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str) or not is_home(module):
        return None
    home = sys.modules.get(module)
    if home is None or "<" in qualname:
        return None
    found: Any = home
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if found is not thing:
        return None
    return ("__main__" if sys.modules.get("__main__") is home else module), qualname


def global_names(code: types.CodeType) -> tuple[str, ...]:
    """The globals that this code and the code inside it may read or write, in order of appearance."""
    names = _names_of_code.get(code)
    if names is None:
        names = _names_of_code[code] = tuple(dict.fromkeys(_walk_names(code, inside=False)))
    return names


def _walk_names(code: types.CodeType, inside: bool) -> Iterator[str]:
    for step in dis.get_instructions(code):
        # a class body in a function reads globals with LOAD_NAME, as a module does
        if step.opname in _GLOBAL_OPS or (inside and step.opname == "LOAD_NAME"):
            yield step.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _walk_names(constant, inside=True)


def by_reference(thing: Any) -> bool:
    """Whether a function, class or module is found under its name in a module that can be imported."""
    if isinstance(thing, types.ModuleType):
        return sys.modules.get(thing.__name__) is thing and not is_home(thing.__name__)
    module, qualname = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str) or is_home(module):
        return False
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found is thing
