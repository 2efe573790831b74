"""Classes of ``__main__`` are the same there and back, and what is redefined counts at once (16)."""

from __future__ import annotations

import pytest

from tests.conformance.support import Scripts, only_zfarm, separate

HOWS = ["file", "-c", "stdin"]

CLASSES = """
    import abc, collections, dataclasses, enum, typing

    class Plain:
        made = 0
        def __init__(self, value): self.value = value
        def method(self): return self.value, self.made
        @classmethod
        def make(cls, value): return cls(value)
        @staticmethod
        def double(n): return 2 * n

    class Derived(Plain):
        def method(self): return ("derived", *super().method())

    @dataclasses.dataclass(frozen=True)
    class Data:
        a: int
        b: list = dataclasses.field(default_factory=list)

    class Color(enum.Enum):
        RED = 1
        BLUE = 2

    class Flags(enum.IntFlag):
        A = 1
        B = 2

    Tuple = collections.namedtuple("Tuple", "x y")

    class Typed(typing.NamedTuple):
        x: int

    class Slotted:
        __slots__ = ("value",)
        def __init__(self, value): self.value = value

    class Base(abc.ABC):
        @abc.abstractmethod
        def value(self): ...

    class Concrete(Base):
        def value(self): return 5

    class Meta(type):
        kind = "meta"

    class Made(metaclass=Meta):
        pass

    class Outer:
        class Inner:
            pass

    class Trouble(Exception):
        def __init__(self, code):
            super().__init__(code)
            self.code = code
"""


@separate
@pytest.mark.parametrize("how", HOWS)
def test_types_and_members_come_home_as_themselves(scripts: Scripts, how: str) -> None:
    """(16)"""
    out = scripts.prints(
        CLASSES
        + """
    def same(value):
        return value

    def make(cls, *args):
        return cls(*args)

    values = [Plain(1), Derived(2), Data(1, [2]), Tuple(1, 2), Typed(3), Slotted(4)]
    values += [Concrete(), Made(), Outer.Inner()]
    with Executor(max_workers=2) as executor:
        print(all(type(back) is type(value) for back, value in zip(executor.map(same, values), values)))
        print(type(executor.submit(make, Plain, 3).result()) is Plain)
        print(executor.submit(same, Color.BLUE).result() is Color.BLUE)
        print(executor.submit(same, Flags.A | Flags.B).result() == Flags.A | Flags.B)
        print(executor.submit(same, Data(1, [2])).result() == Data(1, [2]))
        print(executor.submit(same, Plain).result() is Plain, executor.submit(same, same).result() is same)
    """,
        how,
    )

    assert out == "True\nTrue\nTrue\nTrue\nTrue\nTrue True\n"


@separate
@pytest.mark.parametrize("how", HOWS)
def test_types_and_members_are_themselves_in_the_child(scripts: Scripts, how: str) -> None:
    """(16)"""
    out = scripts.prints(
        CLASSES
        + """
    def check(plain, derived, data, color, concrete):
        return (
            type(plain) is Plain and isinstance(derived, Plain) and isinstance(derived, Derived),
            isinstance(data, Data) and data == Data(1),
            color is Color.RED and {Color.RED: 5}[color] == 5,
            isinstance(concrete, Base),
            derived.method() == ("derived", 2, 0),
        )

    with Executor(max_workers=1) as executor:
        for _ in range(2):
            print(*executor.submit(check, Plain(1), Derived(2), Data(1), Color.RED, Concrete()).result())
        print(executor.submit(Plain(3).method).result(), executor.submit(Plain.double, 4).result())
        print(executor.submit(Plain.make, 5).result().value, executor.submit(Derived(6).method).result())
    """,
        how,
    )

    assert out == "True True True True True\n" * 2 + "(3, 0) 8\n5 ('derived', 6, 0)\n"


@separate
@pytest.mark.parametrize("how", HOWS)
def test_exceptions_of_the_program_can_be_caught(scripts: Scripts, how: str) -> None:
    """(6, 16)"""
    out = scripts.prints(
        CLASSES
        + """
    def fail():
        raise Trouble(7)

    with Executor(max_workers=1) as executor:
        try:
            executor.submit(fail).result()
        except Trouble as error:
            print(type(error) is Trouble, error.code)
    """,
        how,
    )

    assert out == "True 7\n"


@separate
def test_values_kept_in_a_child_have_the_type_of_those_that_come_later(scripts: Scripts) -> None:
    """(16)"""
    out = scripts.prints(
        CLASSES
        + """
    import builtins

    def keep(value):
        builtins.kept = value

    def compare(value):
        return type(builtins.kept) is type(value), builtins.kept == value, isinstance(builtins.kept, Data)

    with Executor(max_workers=1) as executor:
        executor.submit(keep, Data(1)).result()
        print(*executor.submit(compare, Data(1)).result())
    """
    )

    assert out == "True True True\n"


@only_zfarm
@pytest.mark.parametrize("how", HOWS)
def test_what_is_redefined_counts_at_once(scripts: Scripts, how: str) -> None:
    """(16)"""
    out = scripts.prints(
        """
    executor = Executor(max_workers=1)

    def work(): return "first"
    print(executor.submit(work).result())
    def work(): return "second"
    print(executor.submit(work).result())

    number = 1
    def read(): return number
    print(executor.submit(read).result())
    number = 2
    print(executor.submit(read).result())

    class Thing:
        def text(self): return "old"
    old = Thing()
    print(executor.submit(lambda: Thing().text()).result(), executor.submit(old.text).result())
    class Thing:
        def text(self): return "new"
    print(executor.submit(lambda: Thing().text()).result(), type(executor.submit(Thing).result()) is Thing)

    def helper(): return 1
    def outer(): return helper()
    print(executor.submit(outer).result())
    def helper(): return 2
    print(executor.submit(outer).result())
    executor.shutdown()
    """,
        how,
    )

    assert out == "first\nsecond\n1\n2\nold old\nnew True\n1\n2\n"


@only_zfarm
def test_a_class_that_gets_a_new_method_or_attribute(scripts: Scripts) -> None:
    """(16) The same class, changed: what was pickled of it before must not be used again."""
    out = scripts.prints("""
    class Thing:
        value = 1
        def text(self): return f"old {self.value}"

    def use(): return Thing().text()

    with Executor(max_workers=1) as executor:
        print(executor.submit(use).result())
        Thing.value = 2
        print(executor.submit(use).result())
        Thing.text = lambda self: "new"
        print(executor.submit(use).result())
    """)

    assert out == "old 1\nold 2\nnew\n"
