"""The commands as real processes over TCP and CURVE: joining, draining, dying, refusing, saying."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import zfarm
from tests.face.processes import TcpFarm, environment, tcp_farm, wait_until
from tests.face.terminal import Terminal
from zfarm.edge.security import ServerKeys, load_connection, write_connection

SOON_S = 10.0


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[TcpFarm]:
    tmp_path.chmod(0o700)
    with tcp_farm(tmp_path) as farm:
        yield farm


def hold(started: Path, release: Path) -> str:
    """A task that says where it runs and waits to be released."""
    with started.open("a") as file:
        file.write(f"{os.getpid()}\n")
    while not release.exists():
        time.sleep(0.02)
    return "held"


def runs(started: Path) -> list[int]:
    return [int(line) for line in started.read_text().split()] if started.exists() else []


def test_a_broker_and_two_workers_run_a_map_and_show_in_the_status(farm: TcpFarm):
    broker = farm.start_broker()
    farm.start_worker(1)
    farm.start_worker(2, "--name", "second")
    status = farm.wait_slots(3)

    with zfarm.Executor(farm.connection) as executor:
        assert list(executor.map(pow, range(200), [2] * 200)) == [n * n for n in range(200)]
        with pytest.raises(ZeroDivisionError):
            executor.submit(divmod, 1, 0).result()
        after = farm.status()

    assert {worker["slots"] for worker in status["workers"]} == {1, 2}
    assert status["brokers"][0]["address"] == f"tcp://127.0.0.1:{farm.port}"
    assert after["tasks"]["values"] > 0
    assert after["tasks"]["errors"] == 1
    assert [client["pid"] for client in after["clients"]] == [os.getpid()]
    said = broker.out.read_text()
    assert f"zfarm worker --connection {farm.connection}" in said
    assert f"tcp://127.0.0.1:{farm.port}" in said
    assert "Traceback" not in broker.said


def test_the_connection_file_is_for_its_owner_only(farm: TcpFarm):
    farm.start_broker()

    assert stat.S_IMODE(farm.connection.stat().st_mode) == 0o600


def test_broker_and_workers_end_with_0_at_sigterm(farm: TcpFarm):
    broker, worker = farm.start_broker(), farm.start_worker()
    farm.wait_slots(2)

    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait(SOON_S) == 0
    farm.wait_slots(0)
    broker.process.send_signal(signal.SIGTERM)
    assert broker.wait(SOON_S) == 0


def test_a_worker_ends_that_is_stopped_in_one_moment_with_its_broker(farm: TcpFarm):
    broker, worker = farm.start_broker(), farm.start_worker()
    farm.wait_slots(2)
    with zfarm.Executor(farm.connection) as executor:
        assert executor.submit(pow, 2, 10).result(SOON_S) == 1024
        broker.process.send_signal(signal.SIGTERM)
        worker.process.send_signal(signal.SIGTERM)
        executor.shutdown(wait=False)
        assert worker.wait(SOON_S) == 0, "it owes nothing that the broker has not taken"
    assert broker.wait(SOON_S) == 0


def test_a_worker_may_be_there_before_the_broker(farm: TcpFarm):
    first = farm.start_broker()
    port = farm.port
    first.process.send_signal(signal.SIGTERM)
    assert first.wait(SOON_S) == 0

    worker = farm.start_worker(2)
    wait_until(lambda: "broker at" in worker.said, "a worker that dials")
    farm.start_broker(port=port)

    farm.wait_slots(2)
    with zfarm.Executor(farm.connection) as executor:
        assert executor.submit(pow, 2, 10).result(SOON_S) == 1024


def test_sigterm_drains_what_runs_finishes_and_the_rest_moves(farm: TcpFarm, tmp_path: Path):
    farm.start_broker()
    worker = farm.start_worker(1)
    farm.wait_slots(1)
    started, release = tmp_path / "started", tmp_path / "release"
    with zfarm.Executor(farm.connection) as executor:
        held = executor.submit(hold, started, release)
        waiting = executor.submit(os.getpid)
        wait_until(lambda: runs(started), "the task to start")
        worker.process.send_signal(signal.SIGTERM)
        wait_until(lambda: farm.status()["workers"][0]["state"] == "draining", "a worker that drains")
        assert worker.process.poll() is None
        release.touch()

        assert held.result(SOON_S) == "held"
        assert worker.wait(SOON_S) == 0
        assert not waiting.done()
        farm.start_worker(1)
        assert waiting.result(SOON_S)

    assert len(runs(started)) == 1


def test_a_second_sigterm_stops_at_once_and_the_task_moves(farm: TcpFarm, tmp_path: Path):
    farm.start_broker()
    worker = farm.start_worker(2)
    farm.wait_slots(2)
    started, release, at_most_once = tmp_path / "started", tmp_path / "release", tmp_path / "once"
    with zfarm.Executor(farm.connection) as executor:
        held = executor.submit(hold, started, release)
        once = executor.options(retries=0).submit(hold, at_most_once, release)
        wait_until(lambda: runs(started) and runs(at_most_once), "the tasks to start")
        worker.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in worker.said, "a worker that drains")
        worker.process.send_signal(signal.SIGTERM)
        worker.wait(SOON_S)
        assert not psutil.pid_exists(runs(started)[0])

        release.touch()
        farm.start_worker(1)
        assert held.result(SOON_S + 10) == "held"
        with pytest.raises(zfarm.TaskLost, match="was stopped") as caught:
            once.result(SOON_S)
        assert caught.value.maybe_ran

    assert len(runs(started)) == 2
    assert len(runs(at_most_once)) == 1


def test_kill_9_of_a_worker_moves_its_task(farm: TcpFarm, tmp_path: Path):
    farm.start_broker()
    workers = [farm.start_worker(1), farm.start_worker(1)]
    farm.wait_slots(2)
    started, release = tmp_path / "started", tmp_path / "release"
    with zfarm.Executor(farm.connection) as executor:
        held = executor.submit(hold, started, release)
        (child,) = wait_until(lambda: runs(started), "the task to start")
        family = {one.pid for one in psutil.Process(child).parents()}
        (victim,) = [worker for worker in workers if worker.pid in family]
        victim.process.kill()
        wait_until(lambda: len(runs(started)) == 2, "the task to start elsewhere")
        release.touch()

        assert held.result(SOON_S) == "held"
        assert farm.status()["tasks"]["retried"] == 1
        wait_until(lambda: not psutil.pid_exists(child), "the child of the killed worker to go")


# ---------------------------------------------------------------- what is refused, and with which words


def test_a_strange_key_is_access_denied(farm: TcpFarm, tmp_path: Path):
    farm.start_broker()
    known, strange = load_connection(farm.connection), tmp_path / "strange.json"
    write_connection(strange, replace(known, keys=ServerKeys.fresh().roles))

    worker = farm.start("worker", "--connection", str(strange))
    for command in ("status", "top"):
        done = farm.run(command, "--connection", str(strange))
        assert done.returncode == 77
        assert re.match(r"zfarm: the broker at tcp://\S+ does not know our key", done.stderr)
        assert "Traceback" not in done.stderr
    assert worker.wait(SOON_S) == 77
    assert "does not know our key" in worker.said
    assert "Traceback" not in worker.said


def test_another_brokers_key_is_access_denied(farm: TcpFarm, tmp_path: Path):
    farm.start_broker()
    known, strange = load_connection(farm.connection), tmp_path / "strange.json"
    write_connection(strange, replace(known, server=ServerKeys.fresh().server.public))

    done = farm.run("status", "--connection", str(strange))

    assert done.returncode == 77
    assert "another server key than our connection file says" in done.stderr


def test_another_version_is_refused_with_both_named(farm: TcpFarm):
    broker = farm.start_broker()
    newer = [
        "-c",
        "import sys, zfarm; zfarm.__version__ = '99.1'; from zfarm.face.cli import main; sys.exit(main())",
    ]
    worker = farm.start("worker", "--connection", str(farm.connection), program=newer)

    assert worker.wait(SOON_S) == 76
    assert f"the broker runs zfarm {zfarm.__version__}, you run zfarm 99.1" in worker.said
    assert "Traceback" not in worker.said
    wait_until(lambda: "99.1" in broker.said, "the broker to tell")


def test_a_broker_that_is_gone_is_unreachable_in_time(farm: TcpFarm):
    broker = farm.start_broker()
    broker.process.kill()
    broker.wait()
    began = time.monotonic()
    done = farm.run("status", "--connection", str(farm.connection), ZFARM_REACH_TIMEOUT_S="0.5")

    assert time.monotonic() - began < SOON_S
    assert done.returncode == 69
    assert done.stderr.startswith("zfarm: no broker answered at tcp://127.0.0.1")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["status"], "no farm runs on this host"),
        (["status", "tcp://127.0.0.1:1"], "no keys for tcp://127.0.0.1:1"),
        (["worker", "tcp://127.0.0.1:1"], "no keys for tcp://127.0.0.1:1"),
        (["top", "nonsense://x"], "must look like tcp://HOST:PORT"),
        (["status", "/none/such.json"], "cannot read /none/such.json"),
        (["worker"], "no broker is named"),
        (["broker", "--bind", "tcp://127.0.0.1"], "must look like tcp://HOST:PORT"),
        (["broker", "--name", "../evil"], "is no name for a broker"),
    ],
)
def test_what_cannot_work_is_one_sentence(farm: TcpFarm, arguments: list[str], text: str):
    done = farm.run(*arguments)

    assert done.returncode == 78
    assert text in done.stderr
    assert done.stderr.startswith("zfarm: ")
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_said(farm: TcpFarm, tmp_path: Path):
    farm.start_broker()
    other = str(tmp_path / "other.json")

    done = farm.run("broker", "--bind", f"tcp://127.0.0.1:{farm.port}", "--connection", other)

    assert done.returncode == 78
    assert "another program listens there" in done.stderr


# ---------------------------------------------------------------- looking


def test_the_only_broker_of_this_host_needs_no_name(farm: TcpFarm):
    farm.start_broker("--name", "here")
    here = farm.directory / "state" / "zfarm" / "connections"
    here.mkdir(parents=True, mode=0o700)
    os.link(farm.connection, here / "here.json")

    done = farm.run("status")

    assert done.returncode == 0, done.stderr
    assert f"tcp://127.0.0.1:{farm.port}" in done.stdout


def test_the_status_command_says_in_json_what_there_is(farm: TcpFarm):
    farm.start_broker()
    farm.start_worker(2)
    farm.wait_slots(2)

    done = farm.run("status", "--json", "--connection", str(farm.connection))

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["slots"] == {"total": 2, "busy": 0}
    assert done.stderr == ""


def test_top_without_a_terminal_prints_one_picture(farm: TcpFarm):
    farm.start_broker()
    farm.start_worker(2)
    farm.wait_slots(2)

    done = farm.run("top", "--connection", str(farm.connection))

    assert done.returncode == 0
    assert "workers 1  slots 2" in done.stdout
    assert "\x1b" not in done.stdout


def test_workers_tell_how_their_host_is(farm: TcpFarm):
    farm.start_broker()
    farm.start_worker(2)
    farm.wait_slots(2)

    vitals = wait_until(
        lambda: (taken := farm.status()["workers"][0]["vitals"])["memory_bytes"] and taken, "vital stats"
    )

    assert vitals["rss_bytes"] > 10_000_000
    assert vitals["processes"] >= 3  # the worker and a child for each slot
    assert vitals["cpus"] >= 1


def test_logs_as_json_lines(farm: TcpFarm):
    broker = farm.start_broker("--log-format", "json")
    farm.start_worker(1)
    farm.wait_slots(1)

    lines = [json.loads(line) for line in broker.said.splitlines()]
    assert any(line["logger"] == "zfarm.broker" and "joined with 1 slots" in line["text"] for line in lines)


def test_an_embedded_farm_is_found_without_a_name(farm: TcpFarm):
    with zfarm.Executor(max_workers=2) as executor:
        executor.submit(pow, 2, 2).result(SOON_S)

        def found() -> str:
            done = farm.run("status", "--json")
            return "" if done.returncode else done.stdout

        said = wait_until(found, "the farm is described, soon after it began")

    status = json.loads(said)
    assert status["slots"]["total"] == 2
    assert status["tasks"]["values"] == 1
    assert status["clients"][0]["pid"] == os.getpid()


def test_top_follows_a_farm_through_the_death_of_its_broker(farm: TcpFarm, tmp_path: Path):
    broker = farm.start_broker()
    farm.start_worker(2)
    farm.wait_slots(2)
    started, release = tmp_path / "started", tmp_path / "release"
    top = Terminal("-m", "zfarm", "top", "--connection", str(farm.connection), **environment(farm.directory))
    try:
        with zfarm.Executor(farm.connection) as executor:
            held = executor.submit(hold, started, release)
            assert "hold" in top.wait_screen(" 1/2")
            broker.process.kill()
            broker.wait()
            assert "hold" in top.wait_screen("no answer since")
            farm.start_broker(port=farm.port)
            top.wait_screen("no answer since", present=False)
            top.wait_screen("was started anew")
            top.wait_screen(" 1/2")  # the worker came back with the lease that it held
            release.touch()
            assert held.result(SOON_S + 10) == "held"
        top.send("q")
        top.assert_left_cleanly()
    finally:
        top.close()

    assert len(runs(started)) == 1
