"""The functions that tests submit, importable by every child; they know nothing of any executor."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NoReturn


def nothing() -> None:
    pass


def echo(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def same(value: Any) -> Any:
    return value


def square(x: int) -> int:
    return x * x


def add(*numbers: int) -> int:
    return sum(numbers)


def divide(a: float, b: float) -> float:
    return a / b


def pid(*_: Any) -> int:
    return os.getpid()


def call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def get_attribute(value: Any, name: str) -> Any:
    return getattr(value, name)


# ---------------------------------------------------------------- gates and traces


def hold(gate: str, name: str = "call", value: Any = None) -> Any:
    """Leave ``name`` at the gate, wait until it is opened, and return ``value``."""
    with open(os.path.join(os.path.dirname(gate), name), "a") as file:
        file.write(f"{os.getpid()}\n")
    with open(gate, "rb"):
        return value


def hold_some(gate: str, value: int, held: Iterable[int] = (1,)) -> int:
    """Wait at the gate if the value is one of those."""
    return int(hold(gate, str(value), value)) if value in held else value


def trace(path: str, line: object) -> None:
    """Add a line to a file, whole, from whatever process."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def traced(path: str, value: Any) -> Any:
    trace(path, value)
    return value


def count(path: str) -> int:
    """How many lines were traced."""
    try:
        with open(path) as file:
            return len(file.readlines())
    except FileNotFoundError:
        return 0


# ---------------------------------------------------------------- errors


class Attributed(Exception):
    """An exception with arguments of its own and an attribute set later."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.extra: list[int] = []


class FalseByBool(Exception):
    def __bool__(self) -> bool:
        return False


class FalseByLen(Exception):
    def __len__(self) -> int:
        return 0


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


def fail(error: BaseException) -> NoReturn:
    raise error  # the line that the traceback shows


def fail_attributed() -> NoReturn:
    error = Attributed(7, "seven")
    error.extra = [1, 2]
    error.add_note("a note")
    raise error


def fail_chained() -> NoReturn:
    try:
        divide(1, 0)
    except ZeroDivisionError as error:
        raise LookupError("outer") from error
    raise AssertionError("division by zero gave a number")


def fail_odd(x: int) -> int:
    if x % 2:
        raise ValueError(x)
    return x


def exit_with(code: Any) -> NoReturn:
    sys.exit(code)


# ---------------------------------------------------------------- deaths


def die(how: str) -> NoReturn:
    """End the child that runs this, without the long report that pytest asks of faulthandler."""
    faulthandler.disable()
    if how.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, how))
        signal.pause()
    if how == "segfault":
        import ctypes

        ctypes.string_at(0)
    if how == "abort":
        os.abort()
    os._exit(int(how))


def die_once(path: str, how: str, value: Any) -> Any:
    """Die at the first call with this path, return ``value`` at later ones."""
    trace(path, value)
    if count(path) == 1:
        die(how)
    return value


def die_at(x: int, deadly: int, path: str, how: str = "SIGKILL") -> int:
    """Trace ``x``; die if it is the deadly one."""
    trace(path, x)
    if x == deadly:
        die(how)
    return x


# ---------------------------------------------------------------- what a child remembers

_count = 0
_remembered: list[weakref.ref[Any]] = []
setting: Any = None


class Thing:
    """Something that a weak reference can point to."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def method(self) -> None:
        pass


def count_up(*_: Any) -> tuple[int, int]:
    """How often this child has done this, and its pid."""
    global _count
    _count += 1
    return os.getpid(), _count


def remember(thing: Thing) -> None:
    _remembered.append(weakref.ref(thing))


def make_thing(_: Any = None) -> Thing:
    thing = Thing()
    _remembered.append(weakref.ref(thing))
    return thing


def still_alive() -> int:
    """How many of the remembered things have not been freed in this child."""
    return sum(reference() is not None for reference in _remembered)


def set_setting(value: Any) -> None:
    global setting
    setting = value


def get_setting(*_: Any) -> Any:
    return setting


def get_setting_held(gate: str, name: str) -> tuple[int, Any]:
    hold(gate, name)
    return os.getpid(), setting


def fail_traced(path: str) -> NoReturn:
    trace(path, os.getpid())
    raise RuntimeError("the initializer failed")


def exit_traced(path: str, how: str) -> NoReturn:
    trace(path, os.getpid())
    if how == "sys.exit":
        sys.exit(3)
    die(how)


# ---------------------------------------------------------------- the child's own thread


def is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def catch_signal() -> bool:
    """Set a handler, as only a main thread may, send the signal, and put the old handler back."""
    caught: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: caught.append(number))
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)
    return caught == [signal.SIGUSR1]


def print_and_die(text: str) -> NoReturn:
    print(text, flush=True)
    die("SIGKILL")


def hold_count(gate: str, name: str) -> tuple[int, int]:
    hold(gate, name)
    return count_up()


# ---------------------------------------------------------------- calls that submit calls


def fib(n: int) -> int:
    import zfarm

    if n < 2:
        return n
    farm = zfarm.current_farm()
    return farm.submit(fib, n - 1).result() + farm.submit(fib, n - 2).result()


def fib_at_once(n: int) -> int:
    import zfarm

    if n < 2:
        return n
    farm = zfarm.current_farm()
    one, two = farm.submit(fib_at_once, n - 1), farm.submit(fib_at_once, n - 2)
    return one.result() + two.result()


def dive(depth: int) -> int:
    import zfarm

    return 0 if depth == 0 else 1 + zfarm.current_farm().submit(dive, depth - 1).result()
