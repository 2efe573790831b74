"""Functions, arguments and outcomes on their way to a child and back; what is seen of ``__main__`` is in
test_homes."""

from __future__ import annotations

import os
import pickle
import sys
from dataclasses import dataclass

import pytest

from tests.edge.rig import Rig
from tests.edge.unportable import Bomb, Unpicklable
from zfarm.edge.outcomes import cut, decode_batch, decode_outcome, encode_error, encode_value
from zfarm.errors import NotPortable, RemoteError, RemoteTraceback
from zfarm.messages import BROKEN, ERROR, MIXED, VALUE
from zfarm.settings import settings


@pytest.fixture
def rig():
    with Rig() as made:
        yield made


def echo(x):
    return x


def annotated(make):
    error = make()
    error.__dict__["extra"] = [1]
    if not isinstance(error, Frozen):
        error.add_note("a note")
    return error


def fail(make):
    raise annotated(make)


def give_bomb():
    return Bomb()


# ---------------------------------------------------------------- errors


class Plain(Exception):
    pass


class Wants(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")
        self.a, self.b = a, b


class Mangles(Exception):
    def __init__(self, code):
        super().__init__(f"code {code}")


class BadReduce(Exception):
    def __reduce__(self):
        raise RuntimeError("no")


class BadStr(Exception):
    def __str__(self):
        raise RuntimeError("no")


class Another(Exception):
    def __reduce__(self):
        return ValueError, ("another",)


class Falsy(Exception):
    def __bool__(self):
        return False

    def __len__(self):
        return 0


@dataclass(frozen=True)
class Frozen(Exception):
    x: int


class Holds(Exception):
    def __init__(self):
        super().__init__("holds")
        self.lock = __import__("threading").Lock()


def raised(rig, function, *args):
    with pytest.raises(BaseException) as caught:
        rig.call(function, *args)
    return caught.value


@pytest.mark.parametrize(
    "make",
    [lambda: Plain("a", 2), lambda: Wants(1, "b"), lambda: Mangles(3), lambda: Falsy("x"), lambda: Frozen(4),
     lambda: KeyError("k"), lambda: OSError(2, "no file", "name"), lambda: StopIteration(5),
     lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), lambda: SystemExit(3),
     lambda: MemoryError("none"), lambda: KeyboardInterrupt("stop"), lambda: AssertionError(),
     lambda: GeneratorExit()],
    ids=lambda make: type(make()).__name__,
)  # fmt: skip
def test_exceptions_come_home_as_themselves(rig, make):
    error = annotated(make)
    home = raised(rig, fail, make)
    assert type(home) is type(error)
    assert home.args == error.args
    assert str(home) == str(error)
    assert home.__dict__ == error.__dict__
    text = str(home.__cause__)
    assert "in fail" in text
    assert "raise annotated(make)" in text
    if not isinstance(error, Frozen):
        assert home.__notes__ == ["a note"]
        assert "a note" in text
    assert "zfarm/edge" not in text, "our frames are left out"
    assert rig.call(echo, 1) == 1


@pytest.mark.parametrize("kind", [BadReduce, BadStr, Another, Holds])
def test_exceptions_that_cannot_come_home_are_replaced(rig, kind):
    home = raised(rig, make_and_raise, kind)
    if kind is BadStr:  # this one can: only nobody can print it
        assert type(home) is BadStr
        return
    assert type(home) is RemoteError
    assert home.type_name.endswith(kind.__name__)
    assert kind.__name__ in str(home)
    assert "in make_and_raise" in home.traceback
    assert isinstance(home.__cause__, RemoteTraceback)


def make_and_raise(kind):
    raise kind()


def test_groups_and_causes_are_told(rig):
    home = raised(rig, fail_in_many_ways)
    assert type(home) is ExceptionGroup
    assert [type(part) for part in home.exceptions] == [ValueError, Plain]
    assert "ZeroDivisionError" in str(home.__cause__)
    assert "direct cause" in str(home.__cause__)


def fail_in_many_ways():
    try:
        print(1 / 0)
    except ZeroDivisionError as error:
        raise ExceptionGroup("several", [ValueError(1), Plain(2)]) from error


def test_long_texts_are_cut(rig):
    home = raised(rig, fail_at_length)
    assert len(str(home.__cause__)) < settings.text_bytes_max + 200
    assert "characters left out" in str(home.__cause__)
    assert len(str(home)) == 1_000_000, "the exception itself is not cut"
    assert cut("abc", 10) == "abc"


def fail_at_length():
    raise ValueError("x" * 1_000_000)


def test_an_exception_that_goes_off_at_the_client_is_replaced(rig):
    home = raised(rig, make_client_bomb, os.getpid())
    assert type(home) is RemoteError
    assert "could not be unpickled here" in home.traceback


class ClientBomb(Exception):
    def __init__(self, pid):
        super().__init__(pid)
        if os.getpid() == pid:
            raise RuntimeError("went off")


def make_client_bomb(pid):
    raise ClientBomb(pid)


# ---------------------------------------------------------------- values


def test_an_exception_may_be_a_value(rig):
    assert type(rig.call(echo, ValueError(1))) is ValueError


def test_a_value_that_cannot_be_pickled_is_named(rig):
    with pytest.raises(NotPortable, match=r"the value -> \['a'\] .*Unpicklable.*not me"):
        rig.call(make_unpicklable)
    assert rig.call(echo, 1) == 1


def make_unpicklable():
    return {"a": Unpicklable()}


def test_a_value_that_goes_off_at_the_client_is_an_error(rig):
    value, error = decode_outcome(VALUE, encode_value(rig.call(echo, 1)))
    assert (value, error) == (1, None)
    with pytest.raises(
        NotPortable, match=r"cannot be unpickled at the client: ValueError: went off"
    ) as caught:
        rig.call(give_bomb)
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("kind", [VALUE, ERROR, MIXED, BROKEN])
@pytest.mark.parametrize("blob", [b"", b"garbage", pickle.dumps(5), encode_error(ValueError(1))[:-5]])
def test_decoding_never_raises(kind, blob):
    value, error = decode_outcome(kind, blob)
    assert error is not None or value is not None
    values, errors = decode_batch(kind, blob, 3)
    assert len(values) == 3
    assert len(errors) == 3


# ---------------------------------------------------------------- batches


def test_a_batch_gives_all_its_values(rig):
    assert rig.batch(abs, range(-5, 5)) == ([5, 4, 3, 2, 1, 0, 1, 2, 3, 4], {})
    assert rig.batch(pow, [(2, 3), (3, 2)], star=True) == ([8, 9], {})


def moody(n):
    if n == 2:
        raise Wants(n, "b")
    if n == 4:
        sys.exit("four")
    if n == 5:
        raise StopIteration
    if n == 6:
        return Unpicklable()
    return n


def test_an_item_that_fails_harms_no_other(rig):
    values, errors = rig.batch(moody, range(9))
    assert [value for n, value in enumerate(values) if n not in errors] == [0, 1, 3, 7, 8]
    assert {n: type(error) for n, error in errors.items()} == {
        2: Wants,
        4: SystemExit,
        5: StopIteration,
        6: NotPortable,
    }
    assert "in moody" in str(errors[2].__cause__)


def test_a_batch_that_cannot_be_opened_fails_as_a_whole(rig):
    values, errors = rig.batch(echo, [1, Bomb(), 3])
    assert len(values) == 3
    assert [type(errors[n]) for n in range(3)] == [ValueError] * 3
