"""Functions, classes and globals of ``__main__`` in a child: each test is a script run as a program."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAD = """
    import sys
    sys.path.insert(0, {root!r})
    from tests.edge.rig import Rig
"""


def run_main(script, *args):
    """Run a script as the program that it is; it must end well and say nothing on stderr."""
    text = textwrap.dedent(HEAD.format(root=str(ROOT))) + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, *(args or ("-c",)), text],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_a_function_sees_the_globals_of_its_last_submit():
    run_main("""
        x = 1
        def f():
            return x
        def g():
            return f() + x
        with Rig() as rig:
            assert rig.call(f) == 1
            x = 2
            assert rig.call(f) == 2
            assert rig.call(g) == 4
            def f():
                return 10
            assert rig.call(g) == 12, "a function that is called was redefined"
            blob = rig.portable.encode_function(g)
            assert rig.portable.encode_function(g) is blob, "unchanged: the same blob"
            x = 3
            assert rig.portable.encode_function(g) is not blob
            assert rig.call(g) == 13
    """)


def test_what_an_initializer_or_a_task_sets_stays():
    run_main("""
        X = None
        CACHE = {}
        LIMIT = 5
        def start(value):
            global X, Y
            X = Y = value
        def use(key):
            CACHE[key] = len(CACHE)
            return X, Y, dict(CACHE), LIMIT
        def other():
            CACHE["other"] = 0
            return sorted(CACHE)
        with Rig(start, (7,)) as rig:
            assert rig.call(use, "a") == (7, 7, {"a": 0}, 5)
            assert rig.call(use, "b") == (7, 7, {"a": 0, "b": 1}, 5)
            assert rig.call(other) == ["a", "b", "other"], "one dict of globals for all functions"
            LIMIT = 6
            assert rig.call(use, "c")[3] == 6
            assert len(rig.call(use, "c")[2]) == 4, "another global that changed leaves it alone"
            CACHE["client"] = 1
            assert rig.call(use, "d")[2] == {"client": 1, "d": 1}, "changed at the client: new in the child"
    """)


def test_recursion_and_nested_functions():
    run_main("""
        def fact(n):
            return 1 if n < 2 else n * fact(n - 1)
        def even(n):
            return True if n == 0 else odd(n - 1)
        def odd(n):
            return False if n == 0 else even(n - 1)
        TABLE = {"fact": fact}
        def by_table(n):
            return TABLE["fact"](n) + len(TABLE)
        TABLE["self"] = by_table
        def adder(a):
            def inner(b, *, c=1):
                def innermost():
                    return a + b + c + fact(3)
                return innermost()
            return inner
        def fib():
            def f(n):
                return n if n < 2 else f(n - 1) + f(n - 2)
            return f
        with Rig() as rig:
            assert rig.call(fact, 20) == fact(20)
            assert rig.call(even, 10) is True
            assert rig.call(by_table, 5) == 122
            assert rig.call(adder(1), 2, c=3) == 12
            assert rig.call(fib(), 10) == 55
            assert rig.call(lambda n: fact(n) + 1, 5) == 121
            made = rig.call(adder, 5)
            assert made(1) == 5 + 1 + 1 + 6, "a closure comes home as a function"
            assert rig.call(lambda f: f(3), fact) == 6
            assert rig.call(lambda: fact) is fact, "a function of the client comes home as itself"
    """)


def test_functions_in_all_kinds_of_wrappers():
    run_main("""
        import functools
        def fact(n):
            return 1 if n < 2 else n * fact(n - 1)
        @functools.lru_cache(maxsize=10)
        def cached(n):
            return n if n < 2 else cached(n - 1) + cached(n - 2)
        def decorate(f):
            @functools.wraps(f)
            def wrapper(*args):
                return f(*args) + 1000
            return wrapper
        @decorate
        def decorated(n):
            return fact(n)
        alias = decorated
        def by_alias(n):
            return alias(n) + 1
        def body_reads_a_global():
            class Local:
                value = SIZE
            return Local.value
        SIZE = 3
        with Rig() as rig:
            assert rig.call(cached, 50) == cached(50)
            assert rig.call(decorated, 5) == 1120
            assert rig.call(by_alias, 5) == 1121
            assert rig.call(functools.partial(fact, 5)) == 120
            assert rig.call(body_reads_a_global) == 3
    """)


def test_classes_come_home_as_themselves():
    run_main("""
        import dataclasses
        LIMIT = 10
        class Base:
            made = 0
            def __init__(self, x):
                type(self).made += 1
                self.x = min(x, LIMIT)
            def double(self):
                return type(self)(self.x * 2)
        class Derived(Base):
            def double(self):
                return super().double()
            @classmethod
            def make(cls):
                return cls(1)
            @staticmethod
            def helper():
                return LIMIT
            @property
            def half(self):
                return self.x / 2
        @dataclasses.dataclass(frozen=True)
        class Point:
            x: int
            y: "int" = 2
            more: list = dataclasses.field(default_factory=list)
        class Node:
            class Inner:
                pass
            def clone(self):
                return Node()
        def echo(x):
            return x
        def is_derived(x):
            return isinstance(x, Base), type(x) is Derived, type(x) is type(x.double())
        def local_class():
            class Here:
                value = 4
            return Here()
        with Rig() as rig:
            d = rig.call(Derived.double, Derived(3))
            assert type(d) is Derived and d.x == 6 and Base.made == 0 and Derived.made == 1
            assert rig.call(Derived(2).double).x == 4
            assert rig.call(Derived.make).x == 1
            assert rig.call(Derived.helper) == 10
            assert rig.call(is_derived, Derived(1)) == (True, True, True)
            assert rig.call(echo, Derived) is Derived
            assert rig.call(lambda: Derived(9).half) == 4.5
            assert rig.call(echo, Point(1)) == Point(1) and type(rig.call(Point, 3)) is Point
            assert type(rig.call(Node.Inner)) is Node.Inner
            assert type(rig.call(Node().clone)) is Node
            assert rig.call(local_class).value == 4
            assert type(rig.call(local_class)).__name__ == "Here"
            batch, errors = rig.batch(Point, range(5))
            assert not errors and all(type(p) is Point for p in batch)
    """)


def test_special_classes_come_home_as_themselves():
    run_main("""
        import abc, dataclasses, enum, typing
        class Color(enum.Enum):
            RED = 1
            BLUE = "b"
            def other(self):
                return Color.BLUE if self is Color.RED else Color.RED
        class Flag(enum.IntFlag):
            A = 1
            B = 2
        @dataclasses.dataclass
        class Point:
            x: int
            y: int = 2
        class Pair(typing.NamedTuple):
            a: int
            b: Point
        class Shape(abc.ABC):
            @abc.abstractmethod
            def area(self): ...
        class Square(Shape):
            __slots__ = ("side",)
            def __init__(self, side):
                self.side = side
            def area(self):
                return self.side ** 2
        UserId = typing.NewType("UserId", int)
        T = typing.TypeVar("T")
        class Box(typing.Generic[T]):
            def __init__(self, value: T):
                self.value = value
        def typed(x: UserId, box: Box[int]) -> Point:
            return Point(x, box.value)
        def echo(x):
            return x
        with Rig() as rig:
            assert rig.call(echo, Color.RED) is Color.RED
            assert rig.call(Color.other, Color.RED) is Color.BLUE
            assert rig.call(echo, {Color.RED: [Color.BLUE]})[Color.RED][0] is Color.BLUE
            assert rig.call(lambda: Flag.A | Flag.B) is Flag.A | Flag.B
            assert rig.call(Pair, 1, Point(2)) == Pair(1, Point(2))
            assert rig.call(Square.area, Square(3)) == 9
            assert type(rig.call(Square, 3)) is Square and isinstance(rig.call(echo, Square(2)), Shape)
            assert rig.call(typed, 1, Box(2)) == Point(1, 2)
            assert type(rig.call(Box, 2)) is Box
            for thing in (Color, Flag, Pair, Square, Box, typed):
                assert type(rig.call(echo, thing)) is type(thing)
    """)


def test_classes_are_not_overwritten_by_copies_of_the_child():
    run_main("""
        class Tool:
            uses = 0
            registry = {}
        def use(tool):
            Tool.uses += 1
            Tool.registry["child"] = 1
            return tool, Tool.uses
        def make():
            class Local:
                def __init__(self): self.n = 1
            return Local
        Local = make()
        def change(x):
            type(x).n_of_class = 5
            return x
        with Rig() as rig:
            tool, uses = rig.call(use, Tool())
            assert type(tool) is Tool and uses == 1
            tool, uses = rig.call(use, Tool())
            assert (uses, Tool.uses, Tool.registry) == (2, 0, {})
            home = rig.call(change, Local())
            assert type(home) is Local and not hasattr(Local, "n_of_class")
    """)


def test_redefined_classes_take_effect_at_once():
    run_main("""
        class A:
            def value(self): return 1
        def make(): return A()
        def value(a): return a.value(), type(a) is A
        with Rig() as rig:
            Old = A
            old = A()
            assert rig.call(value, A()) == (1, True)
            assert type(rig.call(make)) is Old
            class A:
                def value(self): return 2
            assert rig.call(value, A()) == (2, True)
            assert type(rig.call(make)) is A
            assert rig.call(value, old) == (1, False), "an object of the old class stays one"
            assert type(rig.call(lambda x: x, old)) is Old
            A.value = lambda self: 3
            assert rig.call(value, A()) == (3, True), "a class that was changed in place"
            A.limit = 4
            assert rig.call(lambda: A.limit) == 4
    """)


def test_exceptions_of_main_are_caught_by_their_class():
    run_main("""
        class MyError(Exception):
            def __init__(self, code, text):
                super().__init__(f"{code}: {text}")
                self.code = code
        class Other(MyError): ...
        def fail(kind, *args):
            raise kind(*args)
        with Rig() as rig:
            for kind in (MyError, Other):
                try:
                    rig.call(fail, kind, 5, "text")
                except MyError as error:
                    assert type(error) is kind and error.code == 5 and error.args == ("5: text",)
                    assert "in fail" in str(error.__cause__)
                else:
                    raise AssertionError
    """)


def test_globals_that_only_some_paths_need_may_be_modules_of_any_depth():
    run_main("""
        import xml.dom.minidom
        import os.path as p
        from collections import OrderedDict as OD
        def f():
            return xml.dom.minidom.Document().nodeType, p.join("a", "b"), OD(a=1)
        def where():
            return __file__ if "__file__" in globals() else None, __name__, __package__
        with Rig() as rig:
            assert rig.call(f) == (9, "a/b", {"a": 1})
            assert rig.call(where)[1] == "__main__"
    """)


def test_main_of_a_child_is_the_clients():
    """So a task may pickle, fork and look itself up as it would at home."""
    run_main("""
        import pickle, sys
        class Thing:
            pass
        def in_task():
            import multiprocessing
            main = sys.modules["__main__"]
            again = pickle.loads(pickle.dumps(Thing()))
            with multiprocessing.get_context("fork").Pool(1) as pool:
                there = pool.apply(make)
            return main.Thing is Thing, type(again) is Thing, type(there) is Thing
        def make():
            return Thing()
        with Rig() as rig:
            assert rig.call(in_task) == (True, True, True)
    """)


def test_a_proxy_of_a_manager_works_in_a_task():
    run_main("""
        import multiprocessing
        def add(shared, lock):
            with lock:
                shared["n"] = shared.get("n", 0) + 1
        if __name__ == "__main__":
            manager = multiprocessing.get_context("fork").Manager()
            here = multiprocessing.current_process()
            key, here.authkey = here.authkey, b"the key of another process"
            with Rig() as rig:
                here.authkey = key
                shared, lock = manager.dict(), manager.Lock()
                rig.call(add, shared, lock)
                rig.call(add, shared, lock)
                assert shared["n"] == 2
            manager.shutdown()
    """)


def test_what_cannot_be_sent_is_named():
    run_main("""
        import threading
        from zfarm.errors import NotPortable
        LOCK = threading.Lock()
        class Config:
            def __init__(self):
                self.parts = {"a": [1, threading.Lock()]}
        def locked():
            with LOCK: ...
        def handle(x, handle): ...
        def indirect(): return locked()
        def closing(lock):
            def inner(): return lock
            return inner
        def expect(parts, act):
            try:
                act()
            except NotPortable as error:
                assert all(part in str(error) for part in parts), (str(error), parts)
                assert error.__cause__ is not None
            else:
                raise AssertionError("no error")
        with Rig() as rig:
            p = rig.portable
            expect(["global 'LOCK'", "cannot pickle '_thread.lock'"], lambda: p.encode_function(locked))
            expect(["global 'LOCK'"], lambda: p.encode_function(indirect))
            expect(["closure variable 'lock'"], lambda: p.encode_function(closing(LOCK)))
            expect(["argument 2 ('handle') -> .parts -> ['a'] -> [1]", "_thread.lock"],
                   lambda: p.encode_arguments((1, Config()), {}, handle))
            expect(["argument 'handle' -> .parts"],
                   lambda: p.encode_arguments((1,), {"handle": Config()}, handle))
            expect(["item 12"], lambda: p.encode_batch(False, [1, 2, LOCK], first=10))
            try:
                rig.call(Config)
            except NotPortable as error:
                assert "the value -> .parts -> ['a'] -> [1]" in str(error), str(error)
    """)


@pytest.mark.parametrize("how", ["file", "module", "stdin"])
def test_every_way_to_run_a_program(tmp_path, how):
    script = textwrap.dedent(HEAD.format(root=str(ROOT))) + textwrap.dedent("""
        class Point:
            def __init__(self, x): self.x = x
        def f(x):
            return Point(x + N)
        def relative():
            from .sibling import value
            return value
        N = 2
        with Rig() as rig:
            point = rig.call(f, 1)
            assert type(point) is Point and point.x == 3
            if __package__:
                assert rig.call(relative) == 42
    """)
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "sibling.py").write_text("value = 42\n")
    (package / "program.py").write_text(script)
    args, given = {
        "file": (["package/program.py"], ""),
        "module": (["-m", "package.program"], ""),
        "stdin": (["-"], script),
    }[how]
    done = subprocess.run(
        [sys.executable, *args],
        cwd=tmp_path,
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_modules_registered_by_value_travel(tmp_path):
    (tmp_path / "private.py").write_text(
        textwrap.dedent("""
            STATE = []
            class P:
                def __init__(self):
                    self.n = helper()
            def helper():
                STATE.append(1)
                return len(STATE)
            def f():
                return P()
        """)
    )
    run_main(f"""
        import cloudpickle
        with Rig() as rig:
            sys.path.append({str(tmp_path)!r})
            import private
            sys.path.pop()
            try:
                rig.call(private.f)
            except ModuleNotFoundError as error:
                assert "private" in str(error) and "register_pickle_by_value" in str(error), str(error)
            else:
                raise AssertionError
            cloudpickle.register_pickle_by_value(private)
            one, two = rig.call(private.f), rig.call(private.f)
            assert type(one) is private.P and (one.n, two.n) == (1, 2)
            assert rig.call(lambda: private.STATE) == [1, 1], "the module is the same for whoever uses it"
            assert rig.call(lambda: private.helper()) == 3
    """)
