"""The status command: the JSON that programs rely on, and the picture for people."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from tests.face import sample
from zfarm.face.status import show, snapshot
from zfarm.messages import FarmPicture, Picture, Vitals


def keys(value: object, path: str = "") -> set[str]:
    """Every path in a JSON value: a.b, a[].c."""
    if isinstance(value, dict):
        return {path} | {found for name, one in value.items() for found in keys(one, f"{path}.{name}")}
    if isinstance(value, list):
        return {path} | {found for one in value for found in keys(one, f"{path}[]")}
    return {path}


FORMAT_1 = """
format zfarm address brokers[].address brokers[].epoch brokers[].uptime_s slots.total slots.busy
tasks.queued tasks.running tasks.values tasks.errors tasks.cancelled tasks.lost tasks.retried queue[].call
queue[].tasks queue[].first workers[].worker workers[].host workers[].pid workers[].state workers[].slots
workers[].room workers[].running workers[].leased workers[].done workers[].failed workers[].deaths
workers[].last_seen_s
workers[].uptime_s workers[].vitals.cpu_percent workers[].vitals.load_1m workers[].vitals.cpus
workers[].duct workers[].vitals.duct_refused
workers[].vitals.memory_bytes workers[].vitals.memory_available_bytes workers[].vitals.swap_percent
workers[].vitals.disk_free_bytes workers[].vitals.rss_bytes workers[].vitals.processes
workers[].vitals.shared_bytes clients[].client clients[].host clients[].pid clients[].name clients[].queued
clients[].leased clients[].ended clients[].away running[].task running[].call running[].client
running[].worker running[].age_s running[].items running[].attempt
""".split()


def test_the_json_keeps_every_name_of_its_format():
    found = keys(json.loads(json.dumps(snapshot(sample.picture(), "tcp://h:1"))))

    assert {f".{name}" for name in FORMAT_1} <= found


def test_the_json_counts_what_waits_beside_a_busy_slot_as_queued():
    got = snapshot(sample.picture(), "tcp://h:1")

    assert got["format"] == 1
    assert got["slots"] == {"total": 64, "busy": 41}
    assert (got["tasks"]["queued"], got["tasks"]["running"]) == (12_045 + 9, 41)
    assert [worker["state"] for worker in got["workers"]] == ["idle", "draining", "silent", "full"]
    assert [worker["running"] for worker in got["workers"]] == [0, 9, 16, 16]
    assert got["queue"][0] == {"call": "simulate", "tasks": 9012, "first": ""}
    assert got["running"][5]["attempt"] == 2


def test_the_vital_stats_are_those_of_the_protocol():
    vitals = snapshot(sample.picture(), "x")["workers"][0]["vitals"]

    assert set(vitals) == set(Vitals.__struct_fields__)


@pytest.mark.parametrize("width", [80, 200])
def test_people_see_all_of_it(width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    show(sample.picture(), "tcp://h:1", console)
    text = console.file.getvalue()  # type: ignore[attr-defined]

    for expected in (
        "tcp://h:1",
        "41/64",
        "alpha03",
        "silent",
        "fit_model.<locals>.<lambda>",
        "laptop/881",
        "9,012",
    ):
        assert expected in text


def test_a_farm_without_anybody_is_shown_too():
    farm = FarmPicture(0, 1.0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    console = Console(file=io.StringIO(), width=80, color_system=None)
    show(Picture(farm, [], [], [], {}), "ipc:///x", console)

    assert "none has joined" in console.file.getvalue()  # type: ignore[attr-defined]
