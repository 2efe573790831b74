"""Calls on their way to a child: what a client pickles, and how a child gets it back; no socket, no process.

A call travels as two blobs: the function, which is the same bytes for each of its calls, and the body with
the arguments. The fast path is one call of the C pickler. zfarm.edge.shipments takes over where that fails or
where the program's own module is concerned. zfarm.edge.outcomes is the way back.
"""

from __future__ import annotations

import dis
import pickle
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import cloudpickle.cloudpickle as cloud

from zfarm.edge import homes, shipments, watch
from zfarm.edge.cargo import Apart, Cargo, Large, large, small, start_again
from zfarm.edge.culprits import not_portable
from zfarm.edge.origins import by_reference, place_in_home
from zfarm.errors import NotPortable
from zfarm.messages import Blob, Named
from zfarm.settings import settings

if TYPE_CHECKING:
    from zfarm.edge.stowage import Stowage

__all__ = ["Function", "Portable", "Special", "open_blob", "open_table"]

_PROTOCOL: Final = homes.PROTOCOL
_MEMO_MAX: Final = 1024
_MISSING: Final = object()
_modules: Final = sys.modules
_by_value: Final = cloud._PICKLE_BY_VALUE_MODULES


class Portable:
    """Pickles the calls of one client. Any thread may use it."""

    def __init__(self) -> None:
        self.stowage: Stowage | None = None
        """Where large arguments go, if they need not travel."""
        self._memo: dict[object, _Memo] = {}

    def encode_function(
        self,
        function: Callable[..., Any],
        retry_on: tuple[type[Exception], ...] = (),
        output: str = "",
        placing: Any = None,
    ) -> bytes:
        """The blob of a function: the same object again while nothing that it needs has changed. With the
        exceptions after which a call of it is to be run again, where its output goes, and the files that it
        wants around it (zfarm.edge.workplace).

        Raises:
            NotPortable: it cannot be pickled; the text says where in it.
        """
        special = retry_on or output or placing
        key = (id(function), retry_on, output, placing) if special else id(function)
        memo = self._memo.get(key)
        if memo is not None and memo.holds(function):
            return memo.blob
        try:
            blob = _encode(Special(function, retry_on, output, placing) if special else function)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise not_portable([("function", function), ("retry_on", retry_on)], error) from error
        if len(blob) >= settings.named_from_bytes:
            blob = _named(blob)
        self._remember(key, function, blob)
        return blob

    def encode_again(self, thing: Any) -> None:
        """Pickle this for those who watch (zfarm.handles), whatever is remembered of it; arrays are not
        copied."""
        _encode(thing, Apart())

    def encode_arguments(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], function: Any = None
    ) -> bytes:
        """The body of one call. ``function`` is asked for the names of its parameters if something is wrong.

        Raises:
            NotPortable: an argument cannot be pickled; the text says which and where in it. Or it is a
                future, which cannot be sent, but its result can: then it ``has_futures``.
        """
        try:
            return self._load([args, kwargs] if kwargs else args)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            futures = _modules.get("concurrent.futures._base")
            if futures is not None and any(
                isinstance(arg, futures.Future) for arg in (*args, *kwargs.values())
            ):
                refusal = NotPortable(str(error))
                refusal.has_futures = True
                raise refusal from error
            raise not_portable(_arguments(function, args, kwargs), error) from error

    def encode_batch(self, star: bool, items: Sequence[Any], first: int = 0) -> bytes:
        """The body of a batch. A slice of a range stays one. ``first`` is the number of its first item.

        Raises:
            NotPortable: an item cannot be pickled; the text says which and where in it.
        """
        try:
            return self._load((star, items))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            named = [(f"item {first + n}", item) for n, item in enumerate(items)]
            raise not_portable(named, error) from error

    def encode_initializer(self, function: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
        """The blob of an initializer with its arguments, for ``Setup.initializer``.

        Raises:
            NotPortable: something in it cannot be pickled; the text says what.
        """
        try:
            return _encode((function, args))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            named = [("initializer", function), *((f"initargs[{n}]", arg) for n, arg in enumerate(args))]
            raise not_portable(named, error) from error

    def encode_object(self, thing: Any) -> bytes:
        """The blob of an object that is to be shared.

        Raises:
            NotPortable: it cannot be pickled; the text says where in it.
        """
        try:
            return self._load(thing)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise not_portable([("the object", thing)], error) from error

    def drop(self, body: bytes) -> None:
        """This body will not be sent."""
        if self.stowage is not None and isinstance(body, Cargo) and body.hold is not None:
            self.stowage.ended(body.hold, ())

    def _load(self, thing: Any) -> bytes:
        """Pickle what is for one call; its large parts are stowed."""
        stowage = self.stowage
        if stowage is None or not stowage.on:
            return _encode(thing)
        try:
            data = _encode(thing, large)
        except Large:
            collector = Apart()
            return stowage.stow(_encode(thing, collector), collector.buffers)
        return data if small(len(data)) else stowage.stow(data, ())

    def _remember(self, key: object, function: Any, blob: bytes) -> None:
        memo = _Memo.of(key, function, blob, self._memo)
        if memo is not None:
            if len(self._memo) >= _MEMO_MAX:
                self._memo.clear()
            self._memo[key] = memo


class Special:
    """A function with the exceptions after which a call of it is to be run again, with where its output goes,
    and with the files that it wants around it; a child takes it apart."""

    __slots__ = ("function", "kinds", "output", "placing")

    def __init__(
        self,
        function: Callable[..., Any],
        kinds: tuple[type[Exception], ...],
        output: str = "",
        placing: Any = None,
    ) -> None:
        self.function = function
        self.kinds = kinds
        self.output = output
        self.placing = placing

    def __reduce__(self) -> Any:
        return Special, (self.function, self.kinds, self.output, self.placing)


class _Memo:
    """The blob of one function, and how to tell that it is still true."""

    __slots__ = ("_find", "_module", "_module_name", "_name", "_watched", "_weak", "blob")

    def __init__(self, weak: Any, blob: bytes) -> None:
        self._weak = weak  # its callback ends the memo with the function, so that an id is never mistaken
        self.blob = blob
        self._watched: watch.Watched | None = None
        self._module: Any = None
        self._module_name = self._name = ""
        self._find: Any = {}.get

    @classmethod
    def of(cls, key: object, function: Any, blob: bytes, among: dict[object, _Memo]) -> _Memo | None:
        """A memo if the function's blob can be known to be true later."""
        if type(function) not in (types.FunctionType, types.BuiltinFunctionType):
            return None
        memo = cls(weakref.ref(function, lambda _: among.pop(key, None)), blob)
        if by_reference(function):
            memo._module_name, memo._name = function.__module__, function.__qualname__
            if "." in memo._name:
                return None
            memo._module = _modules[memo._module_name]
            memo._find = memo._module.__dict__.get
        elif type(function) is types.FunctionType:
            memo._watched = watch.look_through(function)
            if memo._watched is None:
                return None
        else:
            return None
        return memo

    def holds(self, function: Any) -> bool:
        """Whether the blob is what pickling would give now."""
        watched = self._watched
        if watched is not None:
            return watched.holds(function)
        return (
            self._find(self._name) is function
            and not _by_value
            and _modules.get(self._module_name) is self._module
        )


def _named(blob: bytes) -> Named:
    """The same, to be sent once."""
    from zfarm.edge.parcels import digest_of

    named = Named(blob)
    named.digest = digest_of(blob)
    return named


def _encode(thing: Any, callback: Any = None) -> bytes:
    """Pickle in C where that is right, with the definitions of a home where it is not. ``callback`` is asked
    about buffers, as in pickle."""
    try:
        data = pickle.dumps(thing, _PROTOCOL, buffer_callback=callback)
    except (KeyboardInterrupt, Large):
        raise
    except BaseException:  # whatever it was, shipments.pack can do it or says why not
        return _packed(thing, callback)
    if b"__main__" in data or _by_value:
        return _packed(thing, callback)
    if "__mp_main__" in _modules and b"__mp_main__" in data:
        return _packed(thing, callback)
    if "multiprocessing.managers" in _modules and b"RebuildProxy" in data:
        return _packed(thing, callback)
    return data


def _packed(thing: Any, callback: Any) -> bytes:
    start_again(callback)
    return shipments.pack(thing, callback)


def _arguments(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    names = _parameters(function)
    named = [
        (f"argument {n + 1}" + (f" ({names[n]!r})" if n < len(names) else ""), arg)
        for n, arg in enumerate(args)
    ]
    return [*named, *((f"argument {name!r}", value) for name, value in kwargs.items())]


def _parameters(function: Any) -> list[str]:
    import inspect

    if function is None:
        return []
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []  # some builtins have no signature
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter.name for parameter in parameters if parameter.kind in positional]


# ---------------------------------------------------------------- in the child


def open_table(blob: Blob) -> tuple[homes.Table, Blob]:
    """The definitions that travel with a blob, and its pickle."""
    if bytes(blob[:1]) != shipments.SHIPMENT:
        return (), blob
    table, data = pickle.loads(memoryview(blob)[1:])
    return table, data


def open_blob(blob: Blob, buffers: Iterable[Any] = ()) -> Any:
    """What is in a blob, after its definitions were applied; ``buffers`` are those of its pickle."""
    if blob[0] == _PICKLE_FIRST:
        return pickle.loads(blob, buffers=buffers)
    table, data = open_table(blob)
    homes.ours.apply(table)
    return pickle.loads(data, buffers=buffers)


_PICKLE_FIRST: Final = 0x80


class Function:
    """A function in a child, with the definitions that it came with."""

    __slots__ = ("_data", "_generation", "_steady", "_table", "output", "placing", "retry_on", "short")

    def __init__(self, blob: bytes) -> None:
        self._table: homes.Table | None = None  # not opened yet: that is for the call that it is needed by
        self._data: Blob = blob
        self._generation = -1
        self._steady: Any = None  # the callable, if one call cannot leave anything in it for the next
        self.short = False  # it has run, and took less than a millisecond
        self.retry_on: tuple[type[BaseException], ...] = ()
        self.output = ""
        self.placing: Any = None

    def ready(self) -> Callable[..., Any]:
        """The callable as it was when it was pickled. Raises whatever unpickling raises."""
        ours = homes.ours
        if self._generation != ours.generation:
            if self._table is None:
                self._table, self._data = open_table(self._data)
            ours.apply(self._table)
            made = self._made()
            self._steady = made if _is_steady(made) else None
            self._generation = ours.generation
            return made
        if self._steady is not None:
            return self._steady  # type: ignore[no-any-return]
        return self._made()

    def _made(self) -> Callable[..., Any]:
        made = pickle.loads(self._data)
        if type(made) is Special:
            self.retry_on = made.kinds
            self.output = made.output
            self.placing = made.placing
            return made.function
        return made  # type: ignore[no-any-return]

    def retries(self, error: BaseException) -> bool:
        """Whether the call shall be run again for this, as an ``except`` clause would decide. What cannot be
        pickled is not."""
        kinds = type(error).__mro__
        return NotPortable not in kinds and not set(self.retry_on).isdisjoint(kinds)


def _is_steady(made: Any) -> bool:
    """True for what belongs to a module, and for functions that hold nothing that can change.

    Objects of bound methods, arguments of partials and variables of closures are not shared by calls.
    """
    if isinstance(made, type):
        return True
    if isinstance(made, types.BuiltinFunctionType):
        return made.__self__ is None or isinstance(made.__self__, types.ModuleType)
    if type(made) is not types.FunctionType:
        return False
    if by_reference(made) or place_in_home(made) is not None:
        return True
    return watch.look_at(made) is not None and not _rebinds(made.__code__)


def _rebinds(code: types.CodeType) -> bool:
    """Whether a function assigns to variables of the function around it (``nonlocal``)."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return any(
        step.opname in ("STORE_DEREF", "DELETE_DEREF") and step.argval in code.co_freevars
        for step in dis.get_instructions(code)
    ) or any(map(_rebinds, inner))
