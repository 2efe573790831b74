"""Vital stats: plausible, cheap, aware of cgroups, sampled off the loop, and gone after stop()."""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from zfarm.edge import vitals
from zfarm.edge.vitals import Sampler, VitalsSampler, sample
from zfarm.messages import Vitals


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_sample_is_plausible(child):
    got = sample([child.pid])

    assert 0.0 <= got.cpu_percent <= 100.0
    assert got.load_1m >= 0.0
    assert 1 <= got.cpus <= (os.cpu_count() or 1)
    assert 0 < got.memory_available_bytes <= got.memory_bytes <= psutil.virtual_memory().total
    assert got.disk_free_bytes > 0
    assert got.processes == 2
    assert psutil.Process().memory_info().rss < got.rss_bytes


def test_a_child_that_is_gone_counts_nothing(child):
    sampler = Sampler()
    assert sampler.sample([child.pid]).processes == 2
    child.kill()
    child.wait()

    assert sampler.sample([child.pid]).processes == 1


def test_a_sample_costs_less_than_a_millisecond_of_cpu(child):
    sampler = Sampler()
    costs = []
    for _ in range(50):
        before = time.thread_time()
        sampler.sample([child.pid])
        costs.append(time.thread_time() - before)

    assert min(costs) < 0.001


def test_cpu_percent_sees_a_busy_host():
    sampler = Sampler()
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass

    assert sampler.sample().cpu_percent > 0.0


def test_swap_agrees_with_psutil():
    assert sample().swap_percent == pytest.approx(psutil.swap_memory().percent, abs=1.0)


def test_importing_it_does_not_import_psutil():
    code = "import sys, zfarm.edge.vitals; sys.exit('psutil' in sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_sampler_delivers_from_its_own_thread_and_leaves_none_behind(child):
    got: queue.Queue[tuple[Vitals, str]] = queue.Queue()
    pids: list[int] = []
    sampler = VitalsSampler(
        0.05, lambda taken: got.put((taken, threading.current_thread().name)), lambda: list(pids)
    )
    sampler.start()
    first = got.get(timeout=20)
    pids.append(child.pid)
    while got.get(timeout=20)[0].processes != 2:
        pass
    sampler.stop()
    sampler.stop()

    assert first[0].processes == 1
    assert first[1] == "zfarm-vitals"
    assert "zfarm-vitals" not in {thread.name for thread in threading.enumerate()}


def test_stop_before_the_first_sample_is_prompt_and_delivers_nothing():
    got: list[Vitals] = []
    sampler = VitalsSampler(3600.0, got.append)
    sampler.start()
    before = time.monotonic()
    sampler.stop()

    assert time.monotonic() - before < 1.0
    assert not got


def test_stop_from_the_deliverer_and_without_start_do_not_hang():
    VitalsSampler(1.0, print).stop()
    stopped = threading.Event()

    def deliver(_: Vitals) -> None:
        sampler.stop()
        stopped.set()

    sampler = VitalsSampler(0.02, deliver)
    sampler.start()

    assert stopped.wait(20)


def test_figures_that_cannot_be_read_are_said_once_and_sampling_goes_on(monkeypatch, caplog):
    taken = threading.Semaphore(0)

    def broken(*_: object) -> Vitals:
        taken.release()
        raise PermissionError("hidden")

    monkeypatch.setattr(Sampler, "sample", broken)
    got: list[Vitals] = []
    sampler = VitalsSampler(0.02, got.append)
    with caplog.at_level(logging.WARNING):
        sampler.start()
        assert all(taken.acquire(timeout=20) for _ in range(3))
        sampler.stop()

    assert not got
    assert [record.getMessage() for record in caplog.records] == [
        "cannot read how this host is doing: PermissionError: hidden"
    ]


@pytest.fixture
def fresh_cgroups() -> Iterator[None]:
    vitals._memory_files.cache_clear()
    yield
    vitals._memory_files.cache_clear()


def cgroup(folder: Path, version: int, limit: str, used: int, inactive: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = (
        ["memory.max", "memory.current"]
        if version == 2
        else ["memory.limit_in_bytes", "memory.usage_in_bytes"]
    )
    field = "inactive_file" if version == 2 else "total_inactive_file"
    (folder / names[0]).write_text(limit + "\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{field} {inactive}\n")


@pytest.mark.usefixtures("fresh_cgroups")
@pytest.mark.parametrize("version", [1, 2])
def test_a_memory_cgroup_is_the_memory_there_is(monkeypatch, tmp_path, version):
    root = tmp_path if version == 2 else tmp_path / "memory"
    cgroup(root, version, "max" if version == 2 else str(2**63 - 4096), 900, 0)
    cgroup(root / "jobs", version, "64000000", 60_000_000, 6_000_000)
    cgroup(root / "jobs" / "mine", version, "32000000", 1_000_000, 0)
    own = tmp_path / "self"
    own.write_text("0::/jobs/mine\n" if version == 2 else "5:cpu,memory:/jobs/mine\n3:cpuset:/\n")
    monkeypatch.setattr(vitals, "_CGROUPS", tmp_path)
    monkeypatch.setattr(vitals, "_OWN_CGROUPS", own)

    got = sample()

    # the parent has the least left, so it is the one that will be met first
    assert (got.memory_bytes, got.memory_available_bytes) == (64_000_000, 10_000_000)


@pytest.mark.usefixtures("fresh_cgroups")
def test_without_cgroups_the_host_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(vitals, "_OWN_CGROUPS", tmp_path / "none")

    assert sample().memory_bytes == psutil.virtual_memory().total
