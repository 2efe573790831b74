"""What a client wants to hear of its tasks, from its loggers and filters to those of a child and back."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import pytest

from zfarm.edge.attention import Obedience, Watcher, category_named, name_of_category
from zfarm.edge.setups import Setups
from zfarm.edge.told import Logged, Warned, as_text, decode, encode
from zfarm.edge.wire import decode_setup
from zfarm.messages import Attention


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """Whatever a test does to loggers and filters is undone."""
    before = {name: logging.getLogger(name).level for name in ("", "at", "at.tention")}
    with warnings.catch_warnings():
        yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def test_a_watcher_sees_every_change_and_else_gives_the_same() -> None:
    watcher = Watcher()
    first = watcher.current()
    assert watcher.current() is first
    logging.getLogger("at.tention").setLevel(logging.DEBUG)
    second = watcher.current()
    assert second.levels["at.tention"] == logging.DEBUG
    warnings.simplefilter("always", ImportWarning)
    third = watcher.current()
    assert third.filters[0] == ("always", "", "builtins:ImportWarning", "", 0)
    logging.getLogger("at.tention").setLevel(logging.DEBUG)
    assert watcher.current() is third  # nothing has changed, though logging believes so


def test_setups_say_what_is_wanted_only_where_output_travels() -> None:
    setups = Setups.fresh("session")
    assert decode_setup(setups.current()).attention is None
    attentive = setups.attentive()
    assert setups.attentive() is attentive
    said = decode_setup(attentive)
    assert said.attention == Watcher().current()
    nested = Setups(said)
    assert decode_setup(nested.current()).attention is None
    logging.getLogger("at").setLevel(17)
    again = decode_setup(setups.attentive()).attention
    assert again is not None
    assert again.levels["at"] == 17


def test_a_child_obeys_and_becomes_what_it_was() -> None:
    obedience = Obedience()
    root, part = logging.getLogger(), logging.getLogger("at.tention")
    was = root.level, part.level, list(warnings.filters)
    obedience.obey(Attention(0, {"": 10, "at": 40}, [("error", "x", "builtins:UserWarning", "", 0)]))
    assert (root.level, part.getEffectiveLevel()) == (10, 40)
    assert obedience.wants("other", 10)
    assert not obedience.wants("at.tention", 30)
    assert obedience.wants("at.tention", 40)
    assert [entry[0] for entry in warnings.filters] == ["default"]  # and no error
    obedience.obey(Attention(30, {"": 20}))
    assert not obedience.wants("other", 30)
    assert obedience.wants("at.tention", 31)
    obedience.obey(None)
    assert (root.level, part.level, list(warnings.filters)) == was


def test_what_a_task_has_set_itself_is_left_alone() -> None:
    obedience = Obedience()
    obedience.obey(Attention(0, {"": 30, "at": 40}))
    logging.getLogger("at").setLevel(5)
    obedience.obey(Attention(0, {"": 30}))
    assert logging.getLogger("at").level == 5


def test_filters_of_another_world_harm_nobody() -> None:
    Obedience().obey(
        Attention(
            0,
            {"": 30},
            [("no such action", "", "builtins:UserWarning", "", 0), ("ignore", "(", "x:y", "", 0)],
        )
    )
    Obedience().obey(Attention(0, {"": 30}, [("ignore", "(", "builtins:UserWarning", "", -1)]))


@pytest.mark.parametrize(
    "name", ["os:system", "no.such:Thing", "builtins:int", "os:path.join", ":", "builtins:", "x"]
)
def test_a_category_is_a_warning_that_is_there_already(name: str) -> None:
    assert category_named(name) is None
    assert category_named(name_of_category(DeprecationWarning)) is DeprecationWarning


def test_lines_are_read_back_or_are_nothing() -> None:
    logged = Logged("a.b", 30, "WARNING", "text\nand more", 1.5, traceback="Traceback", extra={"n": 1})
    warned = Warned("careful", "builtins:UserWarning", "file.py", 7)
    assert decode(encode(logged)) == logged
    assert decode(encode(warned)) == warned
    assert decode(encode(logged)[:-3]) is None
    assert decode(b'{"type": "log", "name": 7}') is None
    lines = b"\n".join((encode(logged), encode(warned), b"cut \xff", b""))
    assert as_text(lines) == (
        b"WARNING:a.b:text\nand more\nTraceback\nfile.py:7: UserWarning: careful\ncut \xff\n"
    )
