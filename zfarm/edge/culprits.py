"""Which part of a call or value cannot be pickled: walks over it once pickling has failed, and not before."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from zfarm.edge import shipments
from zfarm.edge.origins import global_names, home_of_globals
from zfarm.errors import NotPortable

__all__ = ["not_portable"]

_TRIALS_MAX: Final = 300
_DEPTH_MAX: Final = 12
_TEXT_MAX: Final = 300
_ASYNC: Final = "; calls are run as they are: have the function call asyncio.run() itself"
_REMEDIES: Final[Mapping[type, str]] = {
    types.GeneratorType: "; give a list, or, of a function that yields, submit() it or use stream_map(), "
    "where what it yields is a stream",
    types.CoroutineType: _ASYNC,
    types.AsyncGeneratorType: _ASYNC,
}


def not_portable(
    parts: Iterable[tuple[str, Any]], error: BaseException, dump: Callable[[Any], Any] = shipments.pack
) -> NotPortable:
    """The exception that names the culprit among ``parts``, which ``dump`` failed to pickle with ``error``.

    Its text is like ``argument 2 ('handle') -> .lock: cannot pickle '_thread.lock' object``.
    """
    walk = _Walk(dump)
    found = walk.first(parts)
    if found is None:
        path, value = [name for name, _ in parts][:1] if isinstance(parts, list) else [], None
    else:
        name, value = found
        path, value = walk.deepest([name], value)
    if found is not None and _is_future(value):
        reason = "a future may be an argument of submit, not within one or of map: pass its result()"
    else:
        reason = _reason(walk.reason or error) + _REMEDIES.get(type(value), "")
    where = " -> ".join(path) or "it"
    kind = "" if found is None else f" ({_type_name(value)})"
    return NotPortable(f"{where}{kind} cannot be sent: {reason}")


class _Walk:
    """Tries the parts of a thing, each on its own, and goes into the first that fails."""

    def __init__(self, dump: Callable[[Any], Any]) -> None:
        self._dump = dump
        self._left = _TRIALS_MAX
        self.reason: BaseException | None = None

    def first(self, parts: Iterable[tuple[str, Any]]) -> tuple[str, Any] | None:
        """The first of these parts that fails."""
        for name, value in parts:
            error = self._try(value)
            if error is not None:
                self.reason = error
                return name, value
            if self._left <= 0:
                break
        return None

    def deepest(self, path: list[str], value: Any) -> tuple[list[str], Any]:
        """The way down to the smallest part that fails."""
        seen = {id(value)}
        while len(path) < _DEPTH_MAX and not _is_future(value):
            found = self.first((name, part) for name, part in _parts(value) if id(part) not in seen)
            if found is None:
                break
            name, value = found
            seen.add(id(value))
            path.append(name)
        return path, value

    def _try(self, value: Any) -> BaseException | None:
        self._left -= 1
        try:
            self._dump(value)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return error
        return None


def _is_future(value: Any) -> bool:
    futures = sys.modules.get("concurrent.futures._base")
    return futures is not None and isinstance(value, futures.Future)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (list, tuple)):
        yield from ((f"[{n}]", part) for n, part in enumerate(value))
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield f"key {_short(key)}", key
            yield f"[{_short(key)}]", part
    elif isinstance(value, (set, frozenset)):
        yield from ((f"element {_short(part)}", part) for part in value)
    elif isinstance(value, types.FunctionType):
        yield from _function_parts(value)
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
        yield ".__func__", value.__func__
    elif isinstance(value, type):
        yield from ((f".{name}", part) for name, part in vars(value).items() if not name.startswith("__"))
    else:
        yield from _object_parts(value)


def _function_parts(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"closure variable {name!r}", cell.cell_contents
        except ValueError:
            continue  # an empty cell
    yield from ((f"default {n + 1}", part) for n, part in enumerate(function.__defaults__ or ()))
    yield from ((f"default of {name!r}", part) for name, part in (function.__kwdefaults__ or {}).items())
    if home_of_globals(function.__globals__) is not None:
        for name in global_names(function.__code__):
            if name in function.__globals__ and function.__globals__[name] is not function:
                yield f"global {name!r}", function.__globals__[name]


def _object_parts(value: Any) -> Iterator[tuple[str, Any]]:
    for name in ("func", "args", "keywords"):  # of a functools.partial
        if hasattr(type(value), name) and not hasattr(value, "__dict__" + name):
            part = getattr(value, name, None)
            if part is not None and not callable(type(value).__dict__.get(name)):
                yield f".{name}", part
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        yield from ((f".{name}", part) for name, part in attributes.items())
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                yield f".{name}", getattr(value, name)


def _reason(error: BaseException) -> str:
    if isinstance(error, shipments.Unfinished) and error.__cause__ is not None:
        return f"{error.where}: {_reason(error.__cause__)}"
    try:
        text = str(error)
    except Exception:
        text = ""
    if isinstance(error, TypeError) and text.startswith("cannot pickle"):
        return text
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= _TEXT_MAX else text[:_TEXT_MAX] + " …"


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        return f"a {type(value).__name__}"
    return text if len(text) <= 40 else text[:40] + "…"
