"""What users may say about where a call runs: resources and labels, of calls and of workers."""

from __future__ import annotations

from typing import Any

import pytest

import zfarm
from zfarm.errors import ConfigurationError
from zfarm.placement import demand_labels, demand_resources, stock


def test_a_worker_does_not_say_that_it_has_a_label_of_ours() -> None:
    with pytest.raises(ConfigurationError, match="given by zfarm itself"):
        stock(labels=["zfarm.worker=ab12"])


def test_amounts_are_counted_exactly_in_thousandths() -> None:
    assert demand_resources({"gpu": 1, "disk": 0.1, "net": 2.675}) == (
        ("disk", 100),
        ("gpu", 1000),
        ("net", 2675),
    )
    assert demand_resources(None) == demand_resources({}) == ()


@pytest.mark.parametrize(
    ("resources", "error", "says"),
    [
        (["gpu"], TypeError, "mapping of names to amounts"),
        ({1: 1}, TypeError, "must be a string"),
        ({"a b": 1}, ValueError, "no name of a resource"),
        ({"gpu": "1"}, TypeError, "must be a number"),
        ({"gpu": True}, TypeError, "must be a number"),
        ({"gpu": 0}, ValueError, "greater than 0"),
        ({"gpu": -1}, ValueError, "greater than 0"),
        ({"gpu": float("inf")}, ValueError, "greater than 0"),
        ({"gpu": float("nan")}, ValueError, "greater than 0"),
        ({"gpu": 1e12}, ValueError, "at most"),
        ({"gpu": 0.0005}, ValueError, "thousandths"),
        ({f"r{n}": 1 for n in range(65)}, ValueError, "at most 64"),
    ],
)
def test_resources_that_cannot_be_are_refused_at_once(resources: Any, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        demand_resources(resources)


@pytest.mark.parametrize(
    ("labels", "read"),
    [
        (None, ()),
        ("ssd", ("ssd",)),
        (["zone=a", "ssd", "ssd"], ("ssd", "zone=a")),
        ({"zone": "a", "rack": 7}, ("rack=7", "zone=a")),
    ],
)
def test_labels_are_words_or_names_with_values(labels: Any, read: tuple[str, ...]) -> None:
    assert demand_labels(labels) == read


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        (7, TypeError),
        ([7], TypeError),
        ({"zone": None}, TypeError),
        ({"zone": True}, TypeError),
        ("a b", ValueError),
        ("=x", ValueError),
    ],
)
def test_labels_that_cannot_be_are_refused_at_once(labels: Any, error: type) -> None:
    with pytest.raises(error, match="label"):
        demand_labels(labels)


def test_a_worker_says_what_it_has_in_words_or_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZFARM_RESOURCES", "gpu=2, disk=0.5")
    monkeypatch.setenv("ZFARM_LABELS", "zone=a,ssd")

    assert stock() == ({"gpu": 2000, "disk": 500}, ("zone=a", "ssd"))
    assert stock(["gpu=1"], ["zone=b"]) == ({"gpu": 1000}, ("zone=b",))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["gpu"], "write gpu=1"),
        (["gpu=x"], "no amount"),
        (["gpu=-1"], "greater than 0"),
        (["gpu=1", "gpu=2"], "given twice"),
        (["g u=1"], "no name"),
    ],
)
def test_what_a_worker_cannot_have_is_refused_with_the_option_named(words: list[str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"--resource: .*{says}"):
        stock(words)


def test_an_embedded_farm_has_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZFARM_RESOURCES", "gpu=0.5")
    monkeypatch.setenv("ZFARM_LABELS", "ssd")
    with zfarm.Executor(max_workers=2) as farm:
        choosy = farm.options(resources={"gpu": 0.5}, labels="ssd")

        assert [future.result(30) for future in [choosy.submit(pow, 2, n) for n in range(3)]] == [1, 2, 4]
        assert list(choosy.map(abs, range(-3, 0))) == [3, 2, 1]
