"""The embedded farm seen from its client: found, repaired when it dies, given up when it cannot live."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import zfarm
import zfarm.settings
from zfarm.farmhouse import Farmhouse

DEADLINE_S = 30.0


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.002)


def farm_pid(farm: zfarm.Executor) -> int:
    pid = farm._link.road._house.pid  # type: ignore[attr-defined]
    assert isinstance(pid, int)
    return pid


def touch_and_wait(path: str, release: str) -> int:
    Path(path).touch()
    while not os.path.exists(release):
        time.sleep(0.002)
    return os.getpid()


@pytest.fixture
def farm() -> Iterator[zfarm.Executor]:
    with zfarm.Executor(max_workers=2) as farm:
        yield farm


def test_it_says_what_it_is(farm: zfarm.Executor) -> None:
    assert farm.submit(pow, 2, 3).result(DEADLINE_S) == 8
    assert farm._max_workers == 2
    assert farm.address.startswith("ipc://")
    assert repr(farm) == f"<zfarm.Executor at {farm.address}: 2 slots, 0 open>"
    assert "zfarm-client" in {thread.name for thread in threading.enumerate()}
    farm.shutdown()

    assert repr(farm).endswith("0 open, shut down>")
    assert "zfarm-client" not in {thread.name for thread in threading.enumerate()}


def test_a_farm_that_is_killed_is_started_again(
    farm: zfarm.Executor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "zfarm")
    release = str(tmp_path / "release")
    futures = [farm.submit(touch_and_wait, str(tmp_path / str(n)), release) for n in range(6)]
    wait_until((tmp_path / "1").exists)
    before = psutil.Process(farm_pid(farm))
    before.kill()
    wait_until(lambda: farm_pid(farm) != before.pid)
    Path(release).touch()
    children = {future.result(DEADLINE_S) for future in futures}
    wait_until(lambda: not before.is_running())

    assert farm_pid(farm) not in children
    assert "was killed by signal 9; it is started again" in caplog.text


DIES = """
import os
import zfarm
from zfarm.farmhouse import Farmhouse

configure = Farmhouse.configure

def die(self, *words):
    configure(self, *words)
    os._exit(0)

Farmhouse.configure = die
zfarm.Executor(max_workers=1).submit(abs, -1).result()
"""


def test_a_program_that_dies_while_its_farm_starts_leaves_nothing(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    there = {**os.environ, "TMPDIR": str(private), "XDG_RUNTIME_DIR": str(private)}
    done = subprocess.run(
        [sys.executable, "-c", DIES],
        env=there,
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_S,
    )  # it has ended when its farm has, which has the same standard error
    assert done.stderr == ""
    assert not [path for path in private.rglob("*") if path.parent.parent == private]


def test_a_farm_that_dies_again_and_again_is_given_up(tmp_path: Path) -> None:
    farm = zfarm.Executor(max_workers=1)
    future = farm.submit(touch_and_wait, str(tmp_path / "started"), str(tmp_path / "never"))
    killed: set[int] = set()

    def kill_it() -> bool:
        pid = farm_pid(farm)
        if pid and pid not in killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        return future.done()

    wait_until(kill_it)
    with pytest.raises(zfarm.FarmBroken, match="killed by signal 9, 4 times"):
        future.result()
    with pytest.raises(zfarm.FarmBroken):
        farm.submit(pow, 1, 1)
    with pytest.raises(zfarm.FarmBroken):
        farm.map(abs, [1])
    farm.shutdown()

    assert len(killed) == 4
    assert "broken" in repr(farm)


def test_a_farm_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    configure = Farmhouse.configure
    monkeypatch.setattr(Farmhouse, "configure", lambda house, *_: configure(house, "/nowhere"))
    with zfarm.Executor(max_workers=1) as farm:
        error = farm.submit(pow, 1, 1).exception(DEADLINE_S)

    assert isinstance(error, zfarm.FarmBroken)
    assert "/nowhere" in str(error)


def test_without_an_interpreter_there_is_no_farm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "")
    with pytest.raises(zfarm.FarmBroken, match=r"sys\.executable"):
        zfarm.Executor(max_workers=1)
    monkeypatch.setattr("sys.executable", "/no/such/python")
    with pytest.raises(zfarm.FarmBroken, match="cannot be started"):
        zfarm.Executor(max_workers=1)


@pytest.mark.slow
def test_a_farm_that_is_stopped_does_not_hold_up_the_end_for_ever(farm: zfarm.Executor) -> None:
    farm.submit(pow, 1, 1).result(DEADLINE_S)
    os.kill(farm_pid(farm), signal.SIGSTOP)
    farm.shutdown()  # leaks.py sees that nothing of it is left

    assert not psutil.pid_exists(farm_pid(farm))


@pytest.mark.parametrize("cancel", [False, True])
def test_a_shutdown_while_the_farm_boots(cancel: bool) -> None:
    farm = zfarm.Executor(max_workers=1)
    future = farm.submit(pow, 2, 5)
    farm.shutdown(cancel_futures=cancel)

    assert future.done()
    assert future.cancelled() or future.result() == 32


def test_many_farms_that_are_never_used() -> None:
    for _ in range(3):
        zfarm.Executor(max_workers=1)
    gc.collect()


def test_slots_and_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZFARM_MAX_WORKERS", "3")
    with zfarm.Executor() as farm:
        assert farm._max_workers == 3
    for text in ("0", "-1", "many"):
        monkeypatch.setenv("ZFARM_MAX_WORKERS", text)
        with pytest.raises(zfarm.ConfigurationError, match="ZFARM_MAX_WORKERS"):
            zfarm.Executor()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"address": 4, "max_workers": 2}, TypeError, "address"),
        ({"address": 0}, ValueError, "max_workers must be greater than 0"),
        ({"address": 4.5}, TypeError, "address"),
        ({"max_workers": 0}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": "2"}, TypeError, "max_workers must be an integer"),
        ({"initializer": 3}, TypeError, "initializer must be a callable"),
        ({"max_tasks_per_child": 0}, ValueError, ">= 1"),
        ({"max_tasks_per_child": 1.5}, TypeError, "integer"),
        ({"address": "tcp://nowhere"}, zfarm.ConfigurationError, "tcp://HOST:PORT"),
        ({"address": "/no/such/file.json"}, zfarm.ConfigurationError, "/no/such/file.json"),
        ({"initializer": print, "initargs": (threading.Lock(),)}, zfarm.NotPortable, "initargs"),
    ],
)
def test_arguments_that_cannot_work(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        zfarm.Executor(**options)


def test_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zfarm.api.settings", zfarm.settings.Settings(reach_timeout_s=0.2))
    with pytest.raises(zfarm.BrokerUnreachable, match=r"0\.2 s"):
        zfarm.Executor(f"ipc://{tmp_path}/broker")
