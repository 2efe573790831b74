"""What a checkup makes of differences between a client and its workers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from zfarm.checkup import NOTE, PROBLEM, WARNING, Checkup, Seen, judge
from zfarm.edge.modules import Module, Source
from zfarm.edge.probe import Sight, look_around
from zfarm.likeness import Code, Difference, differences

HERE = Sight(
    host="here", python="3.12.4", implementation="CPython", prefix="/usr", system="Linux x86_64", zfarm="1.0",
    packages={"numpy": "2.1.0", "pandas": "2.2.0", "left-pad": "1"}, time_s=1000.0, cores=8, quota_cores=0.0,
    files_max=100_000, shm_free_bytes=2**33, temp="/tmp", temp_free_bytes=2**36,
)  # fmt: skip
NONE = Code("/here", {})


def found(clock_s: float = 0.0, slots: int = 4, **differs: Any) -> list[tuple[str, str]]:
    """Level and code of what is found of a worker that differs so."""
    worker = Seen("w", "there", 7, slots, msgspec.structs.replace(HERE, host="there", **differs), clock_s)
    return [(finding.level, finding.code) for finding in judge(HERE, [worker])]


@pytest.mark.parametrize(
    ("differs", "expected"),
    [
        ({}, []),
        ({"python": "3.13.1"}, [(PROBLEM, "python")]),
        ({"python": "3.12.9"}, [(NOTE, "python")]),
        ({"implementation": "PyPy"}, [(PROBLEM, "python")]),
        ({"zfarm": "1.1"}, [(PROBLEM, "zfarm")]),
        ({"system": "Linux aarch64"}, [(NOTE, "system")]),
        ({"clock_s": 3.0}, [(WARNING, "clock")]),
        ({"clock_s": -3.0}, [(WARNING, "clock")]),
        ({"clock_s": 0.3}, []),
        ({"quota_cores": 1.5, "cores": 2}, [(WARNING, "quota")]),
        ({"cores": 2}, [(NOTE, "cores")]),
        ({"files_max": 512}, [(WARNING, "files")]),
        ({"files_max": 2000, "slots": 200, "cores": 200}, [(WARNING, "files")]),
        ({"files_max": -1, "shm_free_bytes": -1}, []),
        ({"shm_free_bytes": 64 * 2**20}, [(WARNING, "shm")]),
        ({"temp_free_bytes": 2**20}, [(WARNING, "disk")]),
        ({"packages": {**HERE.packages, "numpy": "1.26.4"}}, [(WARNING, "numpy")]),
        ({"packages": {**HERE.packages, "numpy": "2.1.3"}}, [(NOTE, "numpy")]),
        ({"packages": {"numpy": "2.1.0", "left-pad": "1"}}, [(WARNING, "pandas")]),
        ({"packages": {"numpy": "2.1.0", "pandas": "2.2.0"}}, [(NOTE, "missing")]),
        ({"packages": {**HERE.packages, "left-pad": "2", "more": "1"}}, [(NOTE, "versions")]),
    ],
)
def test_each_difference_is_told_as_what_it_is(
    differs: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    assert found(**differs) == expected


def test_the_worst_comes_first_and_a_package_is_told_once_for_all_workers() -> None:
    other = msgspec.structs.replace(HERE, packages={**HERE.packages, "numpy": "1.0"})
    workers = [
        Seen("a", "one", 1, 4, other),
        Seen("b", "two", 2, 4, other),
        Seen("c", "three", 3, 4, why="it is away"),
    ]
    findings = judge(HERE, workers)

    assert [(finding.level, finding.code, finding.where) for finding in findings] == [
        (PROBLEM, "no-answer", "three/3"),
        (WARNING, "numpy", "one/1, two/2"),
    ]
    assert "it is away" in findings[0].text
    assert [finding.code for finding in judge(HERE, [])] == ["no-workers"]
    assert not Checkup("", HERE, workers, findings, NONE).healthy
    assert Checkup("", HERE, [], judge(HERE, [Seen("a", "one", 1, 4, HERE)]), NONE).healthy


def test_a_process_sees_itself() -> None:
    sight = msgspec.convert(look_around(), Sight)

    assert sight.packages["cloudpickle"]
    assert sight.cores >= 1
    assert sight.temp_free_bytes > 0


# ---------------------------------------------------------------- code

SHOP = {"shop/__init__.py": Source("1", 10.0), "shop/tax.py": Source("2", 10.0)}
CODE = Code(
    "/here",
    {"shop": Module("/here/shop", SHOP), "tool": Module("/here/tool.py", {"tool.py": SHOP["shop/tax.py"]})},
)


def told_of(theirs: dict[str, Module], code: Code = CODE) -> list[tuple[str, str, str]]:
    """What is found of a worker with these modules."""
    worker = Seen("w", "there", 7, 4, HERE, code=differences(code, theirs))
    return [(one.level, one.code, one.text) for one in judge(HERE, [worker], code)]


def shop(**files: Source | None) -> dict[str, Module]:
    """The modules, with a package that differs in these files."""
    changes = {f"shop/{name}.py": source for name, source in files.items()}
    kept = {name: source for name, source in {**SHOP, **changes}.items() if source is not None}
    return {**CODE.modules, "shop": Module("/there/shop", kept)}


def test_code_that_is_the_same_is_not_told_wherever_it_lies_and_whenever_it_was_written() -> None:
    assert told_of({**CODE.modules, "more": Module("/there/more.py", {})}) == []
    assert told_of(shop(tax=Source("2", 5.0))) == []


def test_what_differs_is_told_by_its_files() -> None:
    ((level, word, text),) = told_of(
        shop(tax=Source("3", 5.0), __init__=Source("4", 20.0), old=Source("5", 1.0))
    )
    assert (level, word) == (WARNING, "code")
    assert "shop/__init__.py, shop/tax.py (older) differs; shop/old.py is there only" in text
    assert "farm.sync('/here')" in text
    assert [told[:2] for told in told_of(shop(tax=None))] == [(WARNING, "code")]
    assert [told[:2] for told in told_of(shop(more=Source("9", 1.0)))] == [(NOTE, "code")]


def test_what_is_not_there_bites_if_it_was_asked_for_or_should_have_been_shipped() -> None:
    assert [(level, word) for level, word, _ in told_of({})] == [(NOTE, "code-missing")]
    for code in (Code("/here", CODE.modules, asked=True), Code("/here", CODE.modules, shipped=True)):
        ((level, word, text),) = told_of({}, code)
        assert (level, word) == (WARNING, "code-missing")
        assert text.startswith("shop, tool: ")
        assert ("again" in text) == code.shipped
    elsewhere = Code("/home", CODE.modules)
    assert "farm.sync(module)" in told_of({}, elsewhere)[0][2]


def test_a_module_with_too_many_files_is_compared_in_part_and_that_is_told() -> None:
    cut = {**CODE.modules, "shop": Module("/there/shop", {}, partly=True)}
    assert [told[:2] for told in told_of(cut)] == [(NOTE, "code-partly")]


def test_what_two_workers_lack_is_told_once_and_who_has_not_looked_is_named() -> None:
    lacking = [Difference("shop")]
    workers = [
        Seen("a", "one", 1, 4, HERE, code=lacking),
        Seen("b", "two", 2, 4, HERE, code=lacking),
        Seen("c", "three", 3, 4, HERE, why="it was busy"),
    ]
    findings = judge(HERE, workers, CODE)
    assert [(one.where, one.code) for one in findings] == [
        ("one/1, two/2", "code-missing"), ("three/3", "code-unknown"),
    ]  # fmt: skip
    assert "it was busy" in findings[1].text
