"""Functions and arguments on their way to a child; what is seen of ``__main__`` is in test_homes."""

from __future__ import annotations

import functools
import gc
import importlib
import math
import os
import pickle
import platform
import signal
import sys
import weakref
from typing import Any

import numpy as np
import pytest

from tests.edge.rig import Rig
from tests.edge.unportable import Bomb, Unpicklable
from zfarm.edge.callables import Portable
from zfarm.errors import ModuleMissing, NotPortable, RemoteTraceback
from zfarm.messages import BROKEN, Setup


@pytest.fixture
def rig():
    with Rig() as made:
        yield made


def echo(x):
    return x


class Plain(Exception):
    pass


class Leaver:
    def __reduce__(self):
        sys.exit("leaving")


class Interrupter:
    def __reduce__(self):
        raise KeyboardInterrupt


# ---------------------------------------------------------------- functions and arguments


def test_importable_functions_travel_by_reference_and_are_remembered():
    portable = Portable()
    blob = portable.encode_function(math.sin)
    assert len(blob) < 50
    assert portable.encode_function(math.sin) is blob
    assert portable.encode_function(echo) is portable.encode_function(echo)
    assert pickle.loads(portable.encode_function(echo)) is echo


def test_a_function_that_was_replaced_in_its_module_is_pickled_anew(monkeypatch):
    portable = Portable()
    original, blob = echo, portable.encode_function(echo)
    monkeypatch.setattr(sys.modules[__name__], "echo", len)
    assert portable.encode_function(original) != blob


def test_functions_are_forgotten_with_their_owner():
    portable = Portable()

    def local():
        return 1

    portable.encode_function(local)
    weak = weakref.ref(local)
    del local
    gc.collect()
    assert weak() is None
    assert not portable._memo


@pytest.mark.parametrize("value", [5, "text", (1, "a"), None, len, math, echo])
def test_a_closure_over_unchanging_things_is_remembered(value):
    portable = Portable()

    def local():
        return value

    blob = portable.encode_function(local)
    assert portable.encode_function(local) is blob
    value = "another"
    assert portable.encode_function(local) is not blob


def test_a_closure_over_a_list_is_pickled_anew(rig):
    seen: list[int] = []

    def local():
        return len(seen)

    assert rig.call(local) == 0
    seen.append(1)
    assert rig.call(local) == 1


class Counts:
    def __init__(self):
        self.n = 0

    def up(self, by=1):
        self.n += by
        return self.n


def append(things, x):
    things.append(x)
    return things


def counter():
    n = 0

    def step():
        nonlocal n
        n += 1
        return n

    return step


def test_no_call_finds_what_another_left_in_its_function(rig):
    function, calls = counter(), Counts()
    partial = functools.partial(append, [])
    for _ in range(2):
        assert rig.call(function) == 1
        assert rig.call(calls.up) == 1
        assert rig.call(partial, 1) == [1]
    seqs = rig.send((calls.up,), (calls.up,), (function,), (function,))
    assert [rig.outcome(seq)[0] for seq in seqs] == [1, 1, 1, 1]


def test_ranges_stay_ranges():
    assert len(Portable().encode_batch(False, range(10, 1_000_000))) < 100


@pytest.mark.parametrize("culprit", [Unpicklable, Leaver])
def test_whatever_pickling_raises_is_the_cause(culprit):
    with pytest.raises(NotPortable, match="argument 1") as caught:
        Portable().encode_arguments(([culprit()],), {})
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value.__cause__, (RuntimeError, SystemExit))
    with pytest.raises(KeyboardInterrupt):
        Portable().encode_arguments((Interrupter(),), {})


def test_what_is_nested_too_deep_is_not_portable():
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(NotPortable, match=r"argument 1 .*[Rr]ecursion"):
        Portable().encode_arguments((deep,), {})


def test_arguments_that_go_off_in_the_child_are_the_outcome_of_their_call(rig):
    with pytest.raises(ValueError, match="went off") as caught:
        rig.call(echo, Bomb())
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    with pytest.raises(SystemExit):
        rig.call(echo, Bomb(SystemExit))
    assert rig.call(echo, 1) == 1


def test_a_module_that_is_missing_is_told_with_host_and_remedy(rig):
    blob = b"\x80\x05\x8c\x0bnot_a_thing\x94\x8c\x01f\x94\x93\x94."
    (seq,) = rig.send_blobs([(blob, pickle.dumps(()))])
    _, error = rig.outcome(seq)
    assert type(error) is ModuleMissing
    assert isinstance(error, ModuleNotFoundError)
    assert (error.name, error.host) == ("not_a_thing", platform.node())
    for part in ("not_a_thing", "on host", "install", "farm.sync('.')", "register_pickle_by_value"):
        assert part in str(error)


def import_what_is_missing(_: int = 0) -> None:
    importlib.import_module("not_a_thing.part")


def test_a_module_that_a_call_misses_itself_is_told_in_a_note(rig):
    """The error is what the import raised, as anywhere: only who reads it learns more. Where the client is,
    it has all that its calls have."""
    with pytest.raises(ModuleNotFoundError) as here:
        rig.call(import_what_is_missing)
    assert not hasattr(here.value, "__notes__")

    rig.change_setup(Setup("realm", os.getcwd(), tuple(sys.path), sys.prefix, "elsewhere"))
    with pytest.raises(ModuleNotFoundError) as caught:
        rig.call(import_what_is_missing)
    assert type(caught.value) is ModuleNotFoundError
    assert caught.value.name == "not_a_thing"
    (note,) = caught.value.__notes__
    for part in (f"on host {platform.node()}", "install 'not_a_thing' there", "farm.sync('.')"):
        assert part in note
    assert note in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("module", "name", "error", "says"),
    [
        ("json.no_such_part", "f", ModuleMissing, "package 'json' is there, at "),
        ("json", "no_such_function", AttributeError, "another one than the client's"),
    ],
)
def test_another_version_of_a_module_is_told_as_that(rig, module, name, error, says):
    blob = (
        pickle.PROTO
        + b"\x05"
        + b"".join(b"\x8c%c%s\x94" % (len(t), t.encode()) for t in (module, name))
        + b"\x93."
    )
    (seq,) = rig.send_blobs([(blob, pickle.dumps(()))])
    _, raised = rig.outcome(seq)
    assert type(raised) is error
    assert says in str(raised)
    assert "on host" in str(raised)


ARRAYS: dict[str, Any] = {
    "plain": np.arange(10),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "strided": np.arange(20)[::3],
    "structured": np.zeros(3, dtype=[("a", "i4"), ("b", "f8")]),
    "objects": np.array([1, "a", None], dtype=object),
    "masked": np.ma.masked_array([1, 2, 3], mask=[False, True, False]),
    "empty": np.zeros((0, 3)),
    "scalar": np.float32(2.5),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_through_as_they_were(rig, name):
    array = ARRAYS[name]
    back, writable, order = rig.call(look, array)
    assert type(back) is type(array)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    if isinstance(array, np.ndarray):
        assert writable
        assert back.flags.writeable
        assert order or name != "fortran"


def look(array):
    if not isinstance(array, np.ndarray):
        return array, None, None
    order = bool(array.flags.f_contiguous)
    return array, array.flags.writeable, order


def test_a_readonly_array_stays_one(rig):
    array = np.arange(3)
    array.flags.writeable = False
    assert rig.call(look, array)[1] is False


# ---------------------------------------------------------------- initializers, references, signals


def broken_initializer():
    raise Plain("at start")


def leaving_initializer():
    sys.exit(3)


@pytest.mark.parametrize(
    ("initializer", "kind"), [(broken_initializer, Plain), (leaving_initializer, SystemExit)]
)
def test_an_initializer_that_fails_breaks_every_call(initializer, kind):
    with Rig(initializer) as rig:
        seqs = rig.send((echo, 1), (echo, 2))
        seqs += rig.send((echo, 3))
        for seq in seqs:
            _, error = rig.outcome(seq)
            assert type(error) is kind
            assert rig.outcomes[1, seq][0].kind == BROKEN


_alive: list[weakref.ref[object]] = []


class Thing:
    def __init__(self):
        _alive.append(weakref.ref(self))

    def __reduce__(self):
        return Thing, ()


def take(thing, other=None):
    return Thing()


def take_and_fail(thing):
    kept = thing
    try:
        raise ValueError(kept)
    except ValueError as error:
        kept_error = error
        raise Plain("cycle") from kept_error


def alive():
    return sum(weak() is not None for weak in _alive)


def test_what_a_call_used_is_freed_right_after_it(rig):
    rig.call(disable_gc)
    rig.call(take, Thing(), other=Thing())
    assert rig.call(alive) == 0
    with pytest.raises(Plain) as caught:
        rig.call(take_and_fail, Thing())
    del caught
    assert rig.call(alive) == 0
    rig.batch(take, [Thing(), Thing()])
    assert rig.call(alive) == 0


def disable_gc():
    gc.disable()


def test_signals_may_be_used_in_a_task(rig):
    assert rig.call(use_signal) == "heard"


def use_signal():
    heard = []
    signal.signal(signal.SIGUSR1, lambda *_: heard.append("heard"))
    signal.raise_signal(signal.SIGUSR1)
    return heard[0]
