"""``zfarm doctor`` on real farms: each worker is asked, and what it says is compared."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.face.processes import TcpFarm, tcp_farm

pytestmark = pytest.mark.timeout(120)


def test_it_examines_every_worker_and_says_who_does_not_answer(tmp_path: Path) -> None:
    with tcp_farm(tmp_path) as farm:
        farm.variables = {"ZFARM_WORKER_LOST_AFTER_S": "60"}
        farm.start_broker()
        farm.start_worker(1, "--name", "like-us")
        farm.start_worker(1, "--name", "another")
        silent = farm.start_worker(1, "--name", "silent")
        farm.wait_slots(3)
        os.kill(silent.pid, signal.SIGSTOP)
        done = farm.run("doctor", "--connection", str(farm.connection), "--json", "--wait", "4")
        os.kill(silent.pid, signal.SIGCONT)
        assert done.returncode == 1, done.stderr
        found = json.loads(done.stdout)

        assert found["link"].startswith("CURVE")
        assert not found["healthy"]
        told = {(one["level"], one["code"], one["where"].partition("/")[0]) for one in found["findings"]}
        assert {where for level, _, where in told if level == "problem"} == {"silent"}
        assert {worker["host"]: worker["sight"] is not None for worker in found["workers"]} == {
            "like-us": True, "another": True, "silent": False,
        }  # fmt: skip
        assert ("problem", "no-answer", "silent") in told
        assert {"tests", "zfarm"} <= set(found["code"]["modules"])
        assert {worker["host"]: worker["code"] for worker in found["workers"]} == {
            "like-us": [], "another": [], "silent": None,
        }  # fmt: skip


def test_without_a_farm_it_examines_this_host(tmp_path: Path) -> None:
    farm = TcpFarm(tmp_path)
    done = farm.run("doctor", "--module", "zfarm.api")

    assert done.returncode in (0, 1), done.stderr
    assert "a local socket of this user" in done.stdout
    assert done.stdout.count("worker ") == 1
    assert "compared: zfarm\n" in done.stdout
    assert ("nothing here will bite" in done.stdout) == (done.returncode == 0)


def test_a_module_that_is_not_even_here_is_a_mistake(tmp_path: Path) -> None:
    done = TcpFarm(tmp_path).run("doctor", "--module", "none_of_zf")

    assert done.returncode == 2
    assert "none_of_zf" in done.stderr
