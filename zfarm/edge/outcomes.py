"""How a call ended, on its way from a child to its client: values, errors and batches; no socket, no process.

A value is a pickle. An error is a pickle of plain strings and one pickled exception, so that a client that
cannot read the exception still has its name, text and traceback. A batch is one pickled list of values, or,
if items of it failed, the values together with the errors by index.
"""

from __future__ import annotations

import pickle
import threading
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final

from zfarm.edge import homes
from zfarm.edge.cargo import Cargo, Large, start_again
from zfarm.edge.culprits import not_portable
from zfarm.errors import NotPortable, RemoteError, RemoteTraceback
from zfarm.messages import MIXED, VALUE, Blob
from zfarm.settings import settings

__all__ = [
    "ATOMS",
    "add_note",
    "decode_batch",
    "decode_outcome",
    "encode_error",
    "encode_value",
    "encode_values",
]

_PROTOCOL: Final = homes.PROTOCOL
_SUMMARY_MAX: Final = 2000
NOTHING: Final = pickle.dumps(None, _PROTOCOL)
"""The pickle of None, the most frequent value."""
ATOMS: Final = frozenset((type(None), bool, int, float, complex))
"""Types of values that have no parts: nothing to say where, and no buffers."""


# ---------------------------------------------------------------- in the child


def encode_value(value: Any, callback: Callable[[pickle.PickleBuffer], bool] | None = None) -> bytes:
    """The blob of a value; ``callback`` is asked about its buffers, as in pickle.

    Raises:
        NotPortable: it cannot be pickled; the text says where in it.
    """
    if type(value) in ATOMS:
        return pickle.dumps(value, _PROTOCOL)
    try:
        data = pickle.dumps(value, _PROTOCOL, buffer_callback=callback)
        if b"__main__" not in data:
            return data
    except (KeyboardInterrupt, Large):
        raise
    except BaseException:  # whatever it was, ToClient can do it or says why not
        data = b""
    start_again(callback)
    try:
        return homes.dump_to_client(value, callback)
    except (KeyboardInterrupt, Large):
        raise
    except BaseException as error:
        raise not_portable([("the value", value)], error, homes.dump_to_client) from error


def encode_error(error: BaseException, skip: int = 0) -> bytes:
    """The blob of an exception: itself if it survives pickling, its name and text, and its remote traceback.

    ``skip`` frames at the top of its traceback are ours and left out.
    """
    text = _format(error, skip)
    name, summary = _type_name(error), _summary(error)
    return pickle.dumps((name, summary, text, _encode_exception(error)), _PROTOCOL)


def encode_values(
    values: list[Any],
    errors: dict[int, bytes],
    callback: Callable[[pickle.PickleBuffer], bool] | None = None,
) -> tuple[int, bytes]:
    """Kind and blob of a batch; ``errors`` has the blobs of the items that failed, by index.

    An item that cannot be pickled becomes an error, and harms no other.
    """
    try:
        if not errors:
            return VALUE, encode_value(values, callback)
        return MIXED, encode_value((values, errors), callback)
    except NotPortable:
        pass  # one of them: the others go home
    kept = list(values)
    errors = dict(errors)
    for n, value in enumerate(values):
        try:
            encode_value(value)
        except NotPortable as error:
            kept[n] = None
            errors[n] = encode_error(error)
    start_again(callback)
    return MIXED, encode_value((kept, errors), callback)


def _encode_exception(error: BaseException) -> bytes:
    """The pickle of an exception that comes out as the same type, or nothing."""
    attempts: list[Any] = [error]
    if type(error).__reduce__ in _PLAIN and type(error).__reduce_ex__ is object.__reduce_ex__:
        attempts.append(_Rebuilt(error))
    for attempt in attempts:
        try:
            data = homes.dump_to_client(attempt)
            back = pickle.loads(data)
            if type(back) is type(error) and _same_args(back, error):
                return data
        except KeyboardInterrupt:
            raise
        except BaseException:  # it does not survive: the next way, or RemoteError at the client
            data = b""
    return b""


_PLAIN: Final = (BaseException.__reduce__,)


class _Rebuilt:
    """Pickles an exception so that it is made again without a call of its ``__init__``, which may want others
    arguments than it gave to its base class."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __reduce__(self) -> Any:
        error = self._error
        return _rebuild, (type(error), error.args, error.__dict__)


def _rebuild(kind: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> BaseException:
    error = kind.__new__(kind, *args)
    BaseException.args.__set__(error, args)  # type: ignore[attr-defined]
    error.__dict__.update(attributes)
    return error


def _same_args(back: BaseException, error: BaseException) -> bool:
    """False if plain arguments changed on the way: an ``__init__`` that does not give on what it gets."""
    plain = (str, int, float, bytes, type(None))
    ours = [arg for arg in error.args if type(arg) in plain]
    theirs = [arg for arg in back.args if type(arg) in plain]
    return len(back.args) == len(error.args) and ours == theirs


def _format(error: BaseException, skip: int) -> str:
    trace: TracebackType | None = _trace.__get__(error)
    for _ in range(skip):
        if trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, trace))
    except KeyboardInterrupt:
        raise
    except (
        BaseException
    ) as problem:  # its __str__, __notes__ or whatever else is asked for may raise anything
        text = f"{_type_name(error)}: (its traceback cannot be shown: {_type_name(problem)})\n"
    return cut(text, settings.text_bytes_max)


def cut(text: str, size: int) -> str:
    """The text if it is short enough, else its start and end with a note between."""
    if len(text) <= size:
        return text
    half = max(size // 2 - 40, 1)
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _summary(error: BaseException) -> str:
    try:
        return cut(str(error), _SUMMARY_MAX)
    except KeyboardInterrupt:
        raise
    except BaseException as problem:
        return f"(its text cannot be shown: {_type_name(problem)})"


def forget_frames(error: BaseException) -> None:
    """Drop what the frames of an exception hold, so that arguments do not live on in a cycle."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(_trace.__get__(one))
        _trace.__set__(one, None)
        todo += (_cause.__get__(one), _context.__get__(one))


# straight to the slots: the class of an exception may forbid, or do something else
_trace: Final[Any] = BaseException.__dict__["__traceback__"]
_cause: Final[Any] = BaseException.__dict__["__cause__"]
_context: Final[Any] = BaseException.__dict__["__context__"]


# ---------------------------------------------------------------- at the client


def decode_outcome(kind: int, blob: Blob) -> tuple[Any, BaseException | None]:
    """(value, None), or (None, the exception). Never raises.

    A value that cannot be unpickled is NotPortable, an exception that cannot is RemoteError. An exception
    that came home has RemoteTraceback as its ``__cause__``. A task may also *return* an exception: that is a
    value.
    """
    if kind != VALUE:
        return None, _decode_error(blob)
    try:
        return blob.load() if isinstance(blob, Cargo) else pickle.loads(blob), None
    except BaseException as error:
        _let_through(error)
        return None, _unreadable(error)


def decode_batch(kind: int, blob: Blob, items: int) -> tuple[Sequence[Any], dict[int, BaseException]]:
    """The values of a batch, and the exceptions of the items that failed, by index. Never raises.

    Any other kind than VALUE and MIXED: the batch failed as a whole, before any item ran: split it to find
    the culprit.
    """
    if kind not in (VALUE, MIXED):
        return [None] * items, dict.fromkeys(range(items), _decode_error(blob))
    value, error = decode_outcome(VALUE, blob)
    values: Any = value
    errors: dict[int, BaseException] = {}
    if error is None and kind == MIXED:
        try:
            values, blobs = value
            errors = {n: _decode_error(data) for n, data in blobs.items()}
        except (TypeError, ValueError, AttributeError):
            values = None  # said below
    if error is None and isinstance(values, list) and len(values) == items:
        return values, errors
    error = error or NotPortable(
        f"a batch of {items} items came home as something else ({type(value).__name__})"
    )
    return [None] * items, dict.fromkeys(range(items), error)


def add_note(error: BaseException, text: str) -> None:
    """Add a line to what is printed of an exception, unless its class does not let anybody do so."""
    try:
        BaseException.add_note(error, text)
    except Exception:  # a class may have notes of its own, which are no list, or forbid attributes
        return


def _decode_error(blob: Blob) -> BaseException:
    try:
        name, summary, text, data = pickle.loads(blob)
        error = pickle.loads(data) if data else None
    except BaseException as problem:
        _let_through(problem)
        error = None
        try:
            name, summary, text, data = pickle.loads(blob)
        except Exception:
            return _unreadable(problem)
        text += f"\n(it could not be unpickled here: {_type_name(problem)}: {_summary(problem)})"
    if not isinstance(error, BaseException):
        error = RemoteError(f"{name}: {summary}" if summary else name, name, text)
    _cause.__set__(error, RemoteTraceback(text))
    return error


def _let_through(error: BaseException) -> None:
    """Ctrl-C comes to the main thread only; in any other one, what was unpickled has raised it."""
    if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
        raise error


def _unreadable(problem: BaseException) -> NotPortable:
    error = NotPortable(
        f"the value cannot be unpickled at the client: {_type_name(problem)}: {_summary(problem)}"
    )
    error.__cause__ = problem
    return error
