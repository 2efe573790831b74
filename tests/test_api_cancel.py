"""Cancelling: exact answers, from every thread, in numbers, and while nobody can answer."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, wait
from pathlib import Path

import pytest

import zfarm
from tests.test_api_farm import DEADLINE_S, farm_pid, touch_and_wait, wait_until


@pytest.fixture
def farm() -> Iterator[zfarm.Executor]:
    with zfarm.Executor(max_workers=2) as farm:
        yield farm


def touch(path: str) -> None:
    Path(path).touch()


def test_true_means_that_it_never_runs_and_false_that_it_does(farm: zfarm.Executor, tmp_path: Path) -> None:
    paths = [str(tmp_path / str(n)) for n in range(300)]
    answers: list[bool] = []
    for path in paths:
        future = farm.submit(touch, path)
        if len(answers) % 3:
            farm.submit(pow, 1, 1).result(DEADLINE_S)  # so that some have begun
        answers.append(future.cancel())
        if not answers[-1]:
            assert future.exception(DEADLINE_S) is None
    farm.shutdown()

    assert [os.path.exists(path) for path in paths] == [not cancelled for cancelled in answers]
    assert True in answers


def test_thousands_at_once(farm: zfarm.Executor, tmp_path: Path) -> None:
    release = str(tmp_path / "release")
    held = [farm.submit(touch_and_wait, str(tmp_path / str(n)), release) for n in range(2)]
    wait_until((tmp_path / "1").exists)
    futures = [farm.submit(pow, 1, 1) for _ in range(3000)]
    wait_until(lambda: not farm._link.inbox)
    assert all(future.cancel() for future in futures)
    assert wait(futures, 0).not_done == set()
    assert not held[0].cancel()
    Path(release).touch()

    assert [future.cancelled() for future in held] == [False, False]


def test_a_callback_asks_and_does_not_wait_for_the_answer(farm: zfarm.Executor, tmp_path: Path) -> None:
    release = str(tmp_path / "release")
    first = farm.submit(touch_and_wait, str(tmp_path / "first"), release)
    later = tmp_path / "later"
    others = [farm.submit(touch_and_wait, str(tmp_path / f"o{n}"), str(later)) for n in range(5)]
    wait_until((tmp_path / "o0").exists)
    wait_until(lambda: not farm._link.inbox)  # or the callback might withdraw it, and know at once
    last = others[-1]
    answers: list[bool] = []
    first.add_done_callback(lambda done: answers.append(last.cancel()))
    Path(release).touch()
    with pytest.raises(CancelledError):  # before anything makes room: once it may start, it may be too late
        last.result(DEADLINE_S)
    later.touch()

    assert answers == [False], "it was not known yet"
    assert all(future.result(DEADLINE_S) for future in others[:-1])


def test_a_callback_must_not_wait(farm: zfarm.Executor, tmp_path: Path) -> None:
    release = str(tmp_path / "release")
    first = farm.submit(touch_and_wait, str(tmp_path / "first"), release)
    second = farm.submit(touch_and_wait, str(tmp_path / "second"), str(tmp_path / "later"))
    errors: list[BaseException] = []

    def look(done: object) -> None:
        try:
            second.result()
        except RuntimeError as error:
            errors.append(error)

    first.add_done_callback(look)
    Path(release).touch()
    wait_until(lambda: errors)
    (tmp_path / "later").touch()

    assert "callback" in str(errors[0])
    assert second.result(DEADLINE_S)


def test_from_several_threads(farm: zfarm.Executor, tmp_path: Path) -> None:
    release = str(tmp_path / "release")
    held = [farm.submit(touch_and_wait, str(tmp_path / str(n)), release) for n in range(2)]
    wait_until((tmp_path / "1").exists)
    futures = [farm.submit(pow, 1, 1) for _ in range(200)]
    answers: list[bool] = []
    threads = [
        threading.Thread(target=lambda: answers.extend([future.cancel() for future in futures]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    Path(release).touch()
    wait(held)

    assert answers == [True] * 800


@pytest.mark.slow
def test_a_farm_that_does_not_answer_cannot_hold_up_a_cancel(farm: zfarm.Executor, tmp_path: Path) -> None:
    release = str(tmp_path / "release")
    held = [farm.submit(touch_and_wait, str(tmp_path / str(n)), release) for n in range(2)]
    future = farm.submit(pow, 1, 1)
    wait_until((tmp_path / "1").exists)
    os.kill(farm_pid(farm), signal.SIGSTOP)
    try:
        assert not future.cancel()
        assert not future.done(), "nobody knows whether it runs"
    finally:
        os.kill(farm_pid(farm), signal.SIGCONT)
    with pytest.raises(CancelledError):
        future.result(DEADLINE_S)
    Path(release).touch()

    assert all(one.result(DEADLINE_S) for one in held)


def test_force_is_a_bool_and_a_grace_without_it_means_nothing(farm: zfarm.Executor, tmp_path: Path) -> None:
    release = tmp_path / "release"
    running = farm.submit(touch_and_wait, str(tmp_path / "began"), str(release))
    wait_until((tmp_path / "began").exists)
    for wrong in ("yes", 1, None):
        with pytest.raises(TypeError, match="force must be True or False"):
            running.cancel(force=wrong)  # type: ignore[arg-type]

    assert not running.cancel(grace=0.01)
    release.touch()
    assert running.exception(DEADLINE_S) is None, "it was neither interrupted nor killed"
