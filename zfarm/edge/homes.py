"""The client's own module as a child has it: globals shipped by name and kept in step; no socket, no process.

A child keeps one module per home. It applies the definition of a name only when its bytes differ from the
last ones that it applied under that name. So a global that an initializer or a task changed in the child
stays changed, and one that was changed at the client is new in the child with the next call.

The way back is the mirror: a class that came from the client is pickled by its tracker id and name, so that
the client gets its own class again, and never one that was made of the child's copy.
"""

from __future__ import annotations

import enum
import functools
import io
import pickle
import sys
import types
import typing
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Final

import cloudpickle
import cloudpickle.cloudpickle as cloud

from zfarm.edge.origins import Key, place_in_home

__all__ = ["PROTOCOL", "Homes", "ToClient", "dump_to_client", "ours"]

PROTOCOL: Final = 5
Table = tuple[tuple[str, str, bytes], ...]


class Homes:
    """The homes of the client in this child: one module each, and the bytes last applied under each name."""

    def __init__(self) -> None:
        self.generation = 0
        self._modules: dict[str, types.ModuleType] = {}
        self._applied: dict[Key, bytes] = {}
        self._pending: dict[Key, bytes] = {}
        self._early: dict[Key, Any] = {}

    def settle(self) -> None:
        """Give this process an empty ``__main__`` of its own: the client's, to be filled by its calls."""
        self._modules, self._applied = {}, {}
        self.generation += 1
        module = types.ModuleType("__main__")
        module.__dict__["__builtins__"] = __builtins__
        sys.modules["__main__"] = self._modules["__main__"] = module

    def apply(self, table: Table) -> bool:
        """Bring the names of this table up to date; True if anything was new."""
        applied = self._applied
        fresh = {(home, name): data for home, name, data in table if applied.get((home, name)) != data}
        if not fresh:
            return False
        self._pending = dict(fresh)
        try:
            for key in fresh:
                if key in self._pending:
                    self._define(key)
        finally:
            self._pending = {}
            self._early = {}
            self.generation += 1
        return True

    def _define(self, key: Key) -> Any:
        data = self._pending.pop(key)
        value = pickle.loads(data)
        self.module(key[0]).__dict__[key[1]] = value
        self._applied[key] = data
        return value

    def module(self, home: str) -> types.ModuleType:
        """The module that stands for this home: in a child ours, at the client the real one."""
        module = self._modules.get(home)
        if module is None:
            if not self._modules:  # not in a child: things have come home
                return sys.modules[home]
            module = self._modules[home] = types.ModuleType(home)
            module.__dict__["__builtins__"] = __builtins__
        return module

    def look_up(self, home: str, qualname: str) -> Any:
        """The thing of that name; its definition is applied first if it is still to come."""
        name, _, rest = qualname.partition(".")
        key = (home, name)
        if key in self._pending:
            found = self._define(key)
        elif key in self._early:
            found = self._early[key]
        else:
            found = getattr(self.module(home), name)
        for part in rest.split(".") if rest else ():
            found = getattr(found, part)
        return found

    def begin(self, key: Key | None, thing: Any) -> None:
        """This thing is being defined: whoever asks for it gets it as it is."""
        if key is not None:
            self._early[key] = thing

    def owns(self, home: str, name: str) -> bool:
        """Whether that name was shipped by the client."""
        return (home, name) in self._applied


ours: Final = Homes()
"""The homes of this process."""

_received: weakref.WeakKeyDictionary[type, tuple[str, str, str]] = weakref.WeakKeyDictionary()


def look_up(home: str, qualname: str) -> Any:
    return ours.look_up(home, qualname)


def home_module(home: str) -> types.ModuleType:
    """The module that stands for this home."""
    return ours.module(home)


def make_function(home: str, code: types.CodeType, cells: int, place: Key | None) -> types.FunctionType:
    closure = tuple(types.CellType() for _ in range(cells))
    function = types.FunctionType(code, ours.module(home).__dict__, None, None, closure)
    ours.begin(place, function)
    return function


def fill_function(function: types.FunctionType, state: dict[str, Any]) -> None:
    for name, value in state["slots"].items():
        setattr(function, name, value)
    function.__dict__.update(state["dict"])
    for cell, theirs in zip(function.__closure__ or (), state["cells"], strict=True):
        try:
            cell.cell_contents = theirs.cell_contents
        except ValueError:
            continue  # empty at the client too


def make_cache(function: Any, maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(function)


def make_new_type(name: str, module: str, supertype: Any) -> Any:
    made: Any = typing.NewType(name, supertype)  # type: ignore[misc]
    made.__module__ = module
    return made


def receive_class(
    maker: Callable[..., type], args: tuple[Any, ...], place: Key | None, early: Key | None
) -> type:
    cls = maker(*args)
    if place is not None:
        _received[cls] = (cloud._DYNAMIC_CLASS_TRACKER_BY_CLASS[cls], *place)
    ours.begin(early, cls)
    return cls


def with_slots(cls: type, maker: Any, args: tuple[Any, ...], state: Any) -> tuple[Any, Any, Any]:
    """What makes a class, so that it is made with its ``__slots__``.

    cloudpickle sets them when it is too late, and then instances have a ``__dict__`` that those of the
    original have not.
    """
    slots = cls.__dict__.get("__slots__")
    if slots is None or issubclass(cls, enum.Enum | tuple):  # a NamedTuple sets its own
        return maker, args, state
    words = {**args[3], "__slots__": slots if isinstance(slots, str) else tuple(slots)}
    attributes = {
        name: value
        for name, value in state[0].items()
        if name != "__slots__" and type(value) is not types.MemberDescriptorType
    }
    return maker, (*args[:3], words, *args[4:]), (attributes, *state[1:])


# ---------------------------------------------------------------- the way back


class ToClient(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles for the client: what came from there goes back as its own, what was made here goes by value."""

    def __init__(self, file: Any, callback: Any = None) -> None:
        super().__init__(file, protocol=PROTOCOL, buffer_callback=callback)

    def reducer_override(self, thing: Any) -> Any:
        """Called for everything but numbers, strings and plain containers."""
        kind = type(thing)
        try:
            if issubclass(kind, type):
                return self._class(thing)
        except TypeError:
            return NotImplemented
        if kind is types.FunctionType:
            place = place_in_home(thing)
            if place is not None and ours.owns(place[0], place[1].partition(".")[0]):
                return look_up, place
        return super().reducer_override(thing)

    def _class(self, cls: type) -> Any:
        origin = _received.get(cls)
        if origin is not None:
            return _own_class, origin
        reduced = cloud._class_reduce(cls)
        if reduced is NotImplemented or len(reduced) == 2:
            return reduced
        maker, args, state = with_slots(cls, *reduced[:3])
        return _return_class, (maker, args, _tracker_id(cls)), state, None, None, _fill_returned


def _tracker_id(cls: type) -> str:
    tracker: str = cloud._get_or_create_tracker_id(cls)
    return tracker


def dump_to_client(thing: Any, callback: Any = None) -> bytes:
    """Pickle one thing for the client; ``callback`` is asked about its buffers, as in pickle."""
    with io.BytesIO() as file:
        ToClient(file, callback).dump(thing)
        return file.getvalue()


def _own_class(tracker: str, home: str, qualname: str) -> Any:
    cls = cloud._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker)
    return ours.look_up(home, qualname) if cls is None else cls


_unfilled: dict[int, type] = {}


def _return_class(maker: Callable[..., type], args: Iterable[Any], tracker: str) -> type:
    known: type | None = cloud._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker)
    if known is not None:
        return known
    cls = maker(*args)
    _unfilled[id(cls)] = cls
    return cls


def _fill_returned(cls: type, state: Any) -> None:
    if _unfilled.pop(id(cls), None) is not None:  # a class that this process knows is never overwritten
        cloud._class_setstate(cls, state)
