"""What is pickled for a child, and what of the program's own module goes along; no socket, no process.

``__main__`` cannot be imported in a child: it is a *home*. A pickle for a child names things of a home by
reference, and beside it travels a table with the definition of every name that is needed, each pickled alone:

    table = ((home, name, definition), ...)

Recursion needs no care, since definitions do not contain one another. zfarm.edge.homes is the other end.
"""

from __future__ import annotations

import io
import pickle
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import cloudpickle
import cloudpickle.cloudpickle as cloud

from zfarm.edge import homes, watch
from zfarm.edge.origins import MAIN, Key, global_names, home_of_globals, is_home, place_in_home

__all__ = ["SHIPMENT", "Shipment", "ToChild", "Unfinished", "pack"]

SHIPMENT: Final = b"Z"
"""The first byte of a blob that is not a plain pickle but one of (table, pickle)."""
Table: TypeAlias = tuple[tuple[str, str, bytes], ...]

_NEVER: Final = frozenset({"__builtins__", "__spec__", "__loader__", "__cached__", "__name__"})
_ALWAYS: Final = ("__package__", "__file__")  # relative imports and Path(__file__) work in a child


def pack(thing: Any, callback: Any = None) -> bytes:
    """Pickle one thing for a child, with the definitions that it needs; ``callback`` is asked about its
    buffers, as in pickle."""
    shipment = Shipment()
    data = shipment.dump(thing, callback=callback)
    table = shipment.table()
    return SHIPMENT + pickle.dumps((table, data), homes.PROTOCOL) if table else data


class Shipment:
    """Pickles things for a child and collects the definitions that they need."""

    def __init__(self) -> None:
        self._wanted: dict[Key, None] = {}
        self._homes: set[str] = set()

    def want(self, home: str, name: str) -> None:
        """The child needs this global, if there is one."""
        if home not in self._homes:
            self._homes.add(home)
            for always in _ALWAYS:
                self.want(home, always)
        if name not in _NEVER and name in sys.modules[home].__dict__:
            self._wanted[home, name] = None

    def dump(self, thing: Any, defining: Key | None = None, callback: Any = None) -> bytes:
        """Pickle one thing; what it needs of a home is wanted from now on."""
        with io.BytesIO() as file:
            ToChild(file, self, defining, callback).dump(thing)
            return file.getvalue()

    def table(self) -> Table:
        """The definitions of all that is wanted, and of what those want in turn."""
        done: dict[Key, bytes] = {}
        while len(done) < len(self._wanted):
            for key in [key for key in self._wanted if key not in done]:
                done[key] = self.definition(key)
        return tuple((home, name, data) for (home, name), data in done.items())

    def definition(self, key: Key) -> bytes:
        """The pickled value of one global, from the memo where it is still true."""
        home, name = key
        value = sys.modules[home].__dict__[name]
        known = _definitions.get(key)
        if known is not None and known.value is value and known.watched.holds():
            for needed in known.needs:
                self.want(*needed)
            return known.data
        alone = Shipment()  # in a shipment of its own: what it needs belongs to its memo
        try:
            data = alone.dump(value, key)
        except (Unfinished, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise Unfinished(f"global {name!r}", value) from error
        needs = tuple(alone._wanted)
        for needed in needs:
            self.want(*needed)
        watched = watch.look_at(value) if len(data) <= _DEFINITION_BYTES_MAX else None
        if watched is None:
            _definitions.pop(key, None)
            return data
        if len(_definitions) >= _DEFINITIONS_MAX:
            _definitions.clear()
        _definitions[key] = _Definition(value, watched, data, needs)
        return data


class Unfinished(Exception):
    """A global that something needs cannot be pickled; the cause is the reason."""

    def __init__(self, where: str, value: Any) -> None:
        super().__init__(where)
        self.where = where
        self.value = value


class _Definition(typing.NamedTuple):
    value: Any
    watched: watch.Watched
    data: bytes
    needs: tuple[Key, ...]


_DEFINITIONS_MAX: Final = 4096
_DEFINITION_BYTES_MAX: Final = 64 * 1024
_definitions: dict[Key, _Definition] = {}


class ToChild(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles for a child: by reference what can be imported or stands in a home, by value the rest."""

    def __init__(
        self, file: Any, shipment: Shipment, defining: Key | None = None, callback: Any = None
    ) -> None:
        super().__init__(file, protocol=homes.PROTOCOL, buffer_callback=callback)
        self._shipment = shipment
        self._defining = defining

    def reducer_override(self, thing: Any) -> Any:
        """Called for everything but numbers, strings and plain containers."""
        kind = type(thing)
        if kind is types.FunctionType:
            return self._function(thing)
        try:
            if issubclass(kind, type):
                return self._class(thing)
        except TypeError:
            return NotImplemented  # a type that is none
        if kind is types.ModuleType and thing.__name__ not in MAIN and is_home(thing.__name__):
            return self._module(thing)
        special = _special.get(kind.__name__)
        if special is not None:
            return special(self, thing)
        managers = sys.modules.get("multiprocessing.managers")
        if managers is not None and isinstance(thing, managers.BaseProxy):
            return _reduce_proxy(thing)
        return NotImplemented

    def _module(self, module: types.ModuleType) -> Any:
        """A module that is registered by value: all of it may be needed."""
        for name in vars(module):
            self._shipment.want(module.__name__, name)
        return homes.home_module, (module.__name__,)

    def _reference(self, place: Key | None) -> Any:
        if place is None:
            return None
        home, qualname = place
        name = qualname.partition(".")[0]
        if (home, name) == self._defining:
            return None  # this is the definition: only here it travels by value
        self._shipment.want(home, name)
        return homes.look_up, place

    def _function(self, function: types.FunctionType) -> Any:
        place = place_in_home(function)
        reference = self._reference(place)
        if reference is not None:
            return reference
        if place is None and cloud._should_pickle_by_reference(function):
            return NotImplemented
        home = home_of_globals(function.__globals__)
        if home is None:
            return self._dynamic_function_reduce(function)
        for name in global_names(function.__code__):
            self._shipment.want(home, name)
        cells = len(function.__closure__ or ())
        args = (home, function.__code__, cells, place if place == self._defining else None)
        return homes.make_function, args, _function_state(function), None, None, homes.fill_function

    def _class(self, cls: type) -> Any:
        place = place_in_home(cls)
        reference = self._reference(place)
        if reference is not None:
            return reference
        reduced = cloud._class_reduce(cls)
        if reduced is NotImplemented or len(reduced) == 2:
            return reduced
        maker, args, state = homes.with_slots(cls, *reduced[:3])
        early = place if place == self._defining else None
        return homes.receive_class, (maker, args, place, early), state, None, None, cloud._class_setstate


def _function_state(function: types.FunctionType) -> dict[str, Any]:
    values = tuple(cloud._get_cell_contents(cell) for cell in function.__closure__ or ())
    namespace = function.__globals__
    near = [namespace[name] for name in global_names(function.__code__) if name in namespace]
    state: dict[str, Any] = {
        "__name__": function.__name__,
        "__qualname__": function.__qualname__,
        "__module__": function.__module__,
        "__doc__": function.__doc__,
        "__defaults__": function.__defaults__,
        "__kwdefaults__": function.__kwdefaults__,
        "__annotations__": _annotations(function),
    }
    state = {name: value for name, value in state.items() if value}
    # `import a.b` binds only `a`: the child must import a.b as well
    return {
        "slots": state,
        "dict": dict(function.__dict__),
        "cells": tuple(function.__closure__ or ()),
        "modules": cloud._find_imported_submodules(function.__code__, [*near, *values]),
    }


def _annotations(function: types.FunctionType) -> dict[str, Any]:
    try:
        return function.__annotations__
    except NameError:  # evaluated late since Python 3.14, and what they name need not exist
        return {}


def _reduce_cache(pickler: ToChild, thing: Any) -> Any:
    """A function under functools.lru_cache says of itself only its name, which a child cannot import."""
    place = place_in_home(thing)
    reference = pickler._reference(place)
    if reference is not None:
        return reference
    if place is None and not is_home(getattr(thing, "__module__", None) or ""):
        return NotImplemented
    parameters = thing.cache_parameters()
    return homes.make_cache, (thing.__wrapped__, parameters["maxsize"], parameters["typed"])


def _reduce_new_type(pickler: ToChild, thing: Any) -> Any:
    place = place_in_home(thing)
    if place is None or type(thing) is not typing.NewType:
        return NotImplemented
    made = homes.make_new_type, (thing.__name__, thing.__module__, thing.__supertype__)
    return pickler._reference(place) or made


def _reduce_proxy(proxy: Any) -> Any:
    """A proxy of multiprocessing.Manager needs the key of the process that made the manager."""
    function, args = proxy.__reduce__()
    *others, words = args
    return function, (*others, {**words, "authkey": bytes(proxy._authkey)})


_special: dict[str, Callable[[ToChild, Any], Any]] = {
    "_lru_cache_wrapper": _reduce_cache,
    "NewType": _reduce_new_type,
}
