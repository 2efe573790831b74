"""Whether a function or class is still what it was when it was pickled; it reads objects and pickles nothing.

Only what is unchanged *and* cannot have changed inside counts as unchanged: atoms, modules, things that are
pickled by reference, and functions and classes that hold nothing else. What holds a list or a dict is pickled
anew each time.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Set
from typing import Any, Final

from zfarm.edge.origins import by_reference, global_names

__all__ = ["Watched", "look_at", "look_through"]

_MISSING: Final = object()
_SELF: Final = object()  # stands for the watched thing itself, so that a memo does not keep it alive
_WATCHES_MAX: Final = 400
_ATOMS: Final = frozenset(
    (
        type(None),
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        type(Ellipsis),
        type(NotImplemented),
        range,
        types.CodeType,
    )
)
_DESCRIPTORS: Final = (
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
)
_MACHINERY: Final = frozenset(
    """__dict__ __weakref__ __annotations__ __dataclass_fields__ __dataclass_params__ __match_args__ __slots__
    __parameters__ __abstractmethods__ _abc_impl __orig_bases__ __annotate_func__ __annotations_cache__
    __static_attributes__ __firstlineno__ _member_names_ _member_map_ _value2member_map_ _member_type_
    _unhashable_values_ _hashable_values_ _fields _field_defaults __slotnames__""".split()
)
"""Attributes of classes that are made with the class and not changed by anybody who should."""


_TUPLE_MACHINERY: Final = frozenset(
    "_make _replace _asdict __new__ __repr__ __getnewargs__ __replace__".split()
)


class Watched:
    """What must still be there, by identity."""

    __slots__ = ("_cells", "_functions", "_names", "_sizes")

    def __init__(self) -> None:
        self._names: list[tuple[Callable[[str, Any], Any], str, Any]] = []
        self._cells: list[tuple[types.CellType, Any]] = []
        self._functions: list[tuple[Any, Any, Any, Any, int]] = []
        self._sizes: list[tuple[Any, int]] = []

    def holds(self, thing: Any = None) -> bool:
        """True while nothing has changed; ``thing`` is the watched thing itself."""
        for get, name, expected in self._names:
            found = get(name, _MISSING)
            if found is not expected and (expected is not _SELF or found is not thing):
                return False
        for sized, size in self._sizes:
            if len(sized) != size:
                return False
        for function, code, defaults, words, size in self._functions:
            if function is _SELF:
                function = thing
            if (
                function.__code__ is not code
                or function.__defaults__ is not defaults
                or function.__kwdefaults__ is not words
                or len(function.__dict__) != size
            ):
                return False
        for cell, expected in self._cells:
            try:
                if cell.cell_contents is not expected:
                    return False
            except ValueError:
                return False
        return True

    @property
    def large(self) -> bool:
        """Whether looking costs more than it is worth."""
        return len(self._names) + len(self._cells) + len(self._functions) > _WATCHES_MAX


def look_at(thing: Any) -> Watched | None:
    """Watch one thing without the globals that its code names; None if it may change unseen."""
    return _Look(thing, deep=False).result()


def look_through(function: types.FunctionType) -> Watched | None:
    """Watch a function and all that it needs through globals; None if any of it may change unseen."""
    return _Look(function, deep=True).result(hide=function)


def _is_made_by_dataclass(value: Any) -> bool:
    """A method that was generated with its class: its closure holds only what the decorator put there."""
    return type(value) is types.FunctionType and (
        value.__code__.co_qualname.startswith("__create_fn__.<locals>.")
        or value.__globals__.get("__name__") == "dataclasses"
    )


class _Look:
    def __init__(self, thing: Any, deep: bool) -> None:
        self._deep = deep
        self._seen: set[int] = set()
        self._todo: list[Any] = [thing]
        self._watched = Watched()

    def result(self, hide: Any = None) -> Watched | None:
        while self._todo:
            if self._watched.large or not self._take(self._todo.pop()):
                return None
        watched = self._watched
        if hide is not None:
            watched._names = [
                (get, name, _SELF if value is hide else value) for get, name, value in watched._names
            ]
            watched._functions = [
                (_SELF if item[0] is hide else item[0], *item[1:]) for item in watched._functions
            ]
        return watched

    def _take(self, thing: Any) -> bool:
        kind = type(thing)
        if kind in _ATOMS or isinstance(thing, _DESCRIPTORS) or id(thing) in self._seen:
            return True
        self._seen.add(id(thing))
        if kind is tuple or kind is frozenset:
            self._todo.extend(thing)
            return True
        if isinstance(thing, (types.ModuleType, types.BuiltinFunctionType)):
            return isinstance(thing, types.BuiltinFunctionType) or by_reference(thing)
        if kind is types.FunctionType:
            return by_reference(thing) or self._take_function(thing)
        if isinstance(thing, type):
            return by_reference(thing) or self._take_class(thing)
        if kind is property:
            self._todo.extend((thing.fget, thing.fset, thing.fdel))
            return True
        if isinstance(thing, (classmethod, staticmethod)):
            self._todo.append(thing.__func__)
            return True
        return False

    def _take_function(self, function: types.FunctionType) -> bool:
        words = function.__kwdefaults__
        self._watched._functions.append(
            (function, function.__code__, function.__defaults__, words, len(function.__dict__))
        )
        self._todo.extend(function.__defaults__ or ())
        self._names(words or {}, words or {})
        self._names(function.__dict__, function.__dict__)
        for cell in function.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:
                return False  # not filled yet: it may still be
            self._watched._cells.append((cell, value))
            self._todo.append(value)
        if self._deep:
            self._names(function.__globals__, global_names(function.__code__))
        return True

    def _take_class(self, cls: type) -> bool:
        space = cls.__dict__
        self._watched._sizes.append((space, len(space)))
        self._todo.extend((*cls.__bases__, type(cls)))
        machinery: Set[str] = _MACHINERY
        members = space.get("_member_map_")
        if isinstance(members, dict):  # an Enum: its members are atoms behind a name
            self._todo.extend(member._value_ for member in members.values())
            machinery = machinery | members.keys()
        if issubclass(cls, tuple) and "_fields" in space:
            machinery = machinery | _TUPLE_MACHINERY | set(space["_fields"])
        made = "__dataclass_fields__" in space
        for name, value in space.items():
            if name in machinery or (made and _is_made_by_dataclass(value)):
                self._watched._names.append((space.get, name, value))
            else:
                self._names(space, (name,))
        return True

    def _names(self, space: Mapping[str, Any], names: Any) -> None:
        for name in names:
            value = space.get(name, _MISSING)
            self._watched._names.append((space.get, name, value))
            if value is not _MISSING:
                self._todo.append(value)
