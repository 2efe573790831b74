"""Every wait has a reason, as real processes tell it: to the future, and on the command line."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import zfarm
from tests.face.processes import TcpFarm, wait_until

pytestmark = pytest.mark.timeout(120)


def hold_until(path: str) -> str:
    """Run until that file is there."""
    while not os.path.exists(path):
        time.sleep(0.01)
    return path


def nest(path: str) -> str:
    """Wait for a call of its own."""
    with zfarm.current_farm() as farm:
        return farm.submit(hold_until, path).result()


def fail() -> None:
    raise OSError("again")


def wait_why(future: Any, code: str) -> str:
    """The sentence, once the reason has that code."""
    found = wait_until(lambda: (reason := future.why()).code == code and reason, f"it waits for {code}")
    return str(found)


def test_a_future_tells_why_it_waits_runs_and_is_done(tmp_path: Path) -> None:
    go = str(tmp_path / "go")
    with zfarm.Executor(max_workers=1) as farm:
        first = farm.submit(hold_until, go)
        assert "it runs on " in wait_why(first, "running")
        second, third = farm.submit(pow, 2, 3), farm.submit(pow, 2, 4)
        text = wait_why(third, "slots")
        assert "all 1 slots of 1 workers are taken; 1 call of this client goes before it" in text
        choosy = farm.options(resources={"gpu": 1}).submit(pow, 2, 5)
        assert "it takes gpu=1, and no worker has any" in wait_why(choosy, "unmet")
        assert choosy.cancel()
        assert choosy.why().code == "cancelled"
        (tmp_path / "go").touch()
        assert [future.result(30) for future in (second, third)] == [8, 16]
        assert third.why().code == "ended"
        again = farm.options(retries=1, retry_on=OSError).submit(fail)
        assert "run 2 of at most 2 begins in" in wait_why(again, "backoff") or again.done()
        assert isinstance(again.exception(30), OSError)


def test_a_call_that_was_submitted_a_moment_ago_has_its_reason_at_once(tmp_path: Path) -> None:
    go = str(tmp_path / "go")
    with zfarm.Executor(max_workers=1) as farm:
        first = farm.submit(hold_until, go)
        of_the_first = first.why().code  # the farm boots meanwhile
        wait_why(first, "running")
        codes = {farm.submit(pow, 2, n).why().code for n in range(20)}
        (tmp_path / "go").touch()
    assert of_the_first != "unsent"
    assert codes == {"slots"}


def test_a_call_that_waits_for_calls_of_its_own_says_so(tmp_path: Path) -> None:
    go = tmp_path / "go"
    with zfarm.Executor(max_workers=1) as farm:
        future = farm.submit(nest, str(go))
        assert "waits for calls of its own" in wait_why(future, "nested")
        go.touch()
        assert future.result(30) == str(go)


def test_no_worker_no_broker_and_a_broker_that_is_silent(farm: TcpFarm, tmp_path: Path) -> None:
    broker = farm.start_broker("--journal", "none")
    with zfarm.Executor(farm.connection) as client:
        future = client.submit(pow, 2, 3)
        assert "start one with `zfarm worker`" in wait_why(future, "no-workers")

        os.kill(broker.pid, signal.SIGSTOP)
        began = time.monotonic()
        assert future.why().code == "silent"
        assert time.monotonic() - began < 30
        os.kill(broker.pid, signal.SIGCONT)
        wait_why(future, "no-workers")

        port = farm.port
        broker.close()
        assert wait_until(
            lambda: future.why().code in ("unreached", "silent"), "it says that nobody is there"
        )
        farm.start_broker("--journal", "none", port=port)
        farm.start_worker(1)
        assert future.result(60) == 8


def test_a_callback_may_ask_and_is_not_held_up(tmp_path: Path) -> None:
    go = tmp_path / "go"
    told: Future[str] = Future()
    with zfarm.Executor(max_workers=1) as farm:
        held = farm.submit(hold_until, str(go))
        done = farm.submit(pow, 2, 3)
        last = farm.submit(hold_until, str(go))
        done.add_done_callback(lambda _: told.set_result(last.why().code))
        wait_why(held, "running")
        go.touch()
        assert told.result(30) in ("unsent", "ended")


def test_the_command_tells_the_reason_of_any_task(
    farm: TcpFarm, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker = farm.start_broker()
    farm.start_worker(1, "--resource", "gpu=1", "--label", "zone=a")
    farm.wait_slots(1)
    connection = ("--connection", str(farm.connection))
    with caplog.at_level(logging.WARNING, "zfarm"), zfarm.Executor(farm.connection) as client:
        future = client.options(resources={"gpu": 2}, labels="zone=a").submit(pow, 2, 3)
        wait_why(future, "unmet")
        (mine,) = farm.status()["clients"]

        people = farm.run("why", f"{mine['client']}/1", *connection)
        assert people.returncode == 0
        assert people.stdout == (
            f"task {mine['client']}/1 (pow): it takes gpu=2, and no worker has more than 1; it waits for a "
            "worker that has\n"
        )
        asked = farm.run("why", "1", "--json", *connection)
        assert json.loads(asked.stdout) == {
            "format": 1, "client": mine["client"], "task": 1, "call": "pow", "code": "unmet",
            "reason": "it takes gpu=2, and no worker has more than 1; it waits for a worker that has",
        }  # fmt: skip
        assert farm.run("why", "99", *connection).returncode == 1
        wrong = farm.run("why", "nonsense", *connection)
        assert wrong.returncode == 2
        assert "CLIENT/NUMBER" in wrong.stderr

        wait_until(lambda: "pow waits: it takes gpu=2" in caplog.text, "the client is warned")
        assert "pow waits: it takes gpu=2" in broker.said
        assert farm.status()["unmet"] == {"it takes gpu=2, and no worker has more than 1": 1}
        assert "no worker has more than 1" in farm.run("status", *connection).stdout
        assert future.cancel()


def test_of_what_waits_the_status_names_a_task_to_ask_for(farm: TcpFarm) -> None:
    farm.start_broker()
    with zfarm.Executor(farm.connection) as client:
        waiting = [client.options(name="simmer").submit(abs, -n) for n in range(3)]
        (queue,) = wait_until(lambda: farm.status()["queue"], "what waits")
        assert (queue["call"], queue["tasks"]) == ("simmer", 3)
        assert queue["first"] in farm.run("status", "--connection", str(farm.connection)).stdout
        said = farm.run("why", queue["first"], "--connection", str(farm.connection))
        assert said.returncode == 0
        assert "(simmer): no worker is there" in said.stdout
        for future in waiting:
            future.cancel()
