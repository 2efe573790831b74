"""What a checkup makes of differences between a client and its workers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from zfarm.checkup import NOTE, PROBLEM, WARNING, Checkup, Seen, judge
from zfarm.edge.probe import Sight, look_around

HERE = Sight(
    host="here", python="3.12.4", implementation="CPython", prefix="/usr", system="Linux x86_64", zfarm="1.0",
    packages={"numpy": "2.1.0", "pandas": "2.2.0", "left-pad": "1"}, time_s=1000.0, cores=8, quota_cores=0.0,
    files_max=100_000, shm_free_bytes=2**33, temp="/tmp", temp_free_bytes=2**36,
)  # fmt: skip


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
    assert not Checkup("", HERE, workers, findings).healthy
    assert Checkup("", HERE, [], judge(HERE, [Seen("a", "one", 1, 4, HERE)])).healthy


def test_a_process_sees_itself() -> None:
    sight = msgspec.convert(look_around(), Sight)

    assert sight.packages["cloudpickle"]
    assert sight.cores >= 1
    assert sight.temp_free_bytes > 0
