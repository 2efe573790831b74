"""Counting cores: control groups of both versions, nested, broken and absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zfarm.edge.cores import cpu_quotas, usable_cores


def group(root: Path, path: str, **files: str) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def quotas(tmp_path: Path, membership: str) -> list[float]:
    (tmp_path / "cgroup").write_text(membership)
    return list(cpu_quotas(str(tmp_path / "cgroup"), str(tmp_path / "fs")))


def test_every_group_above_us_counts(tmp_path: Path) -> None:
    group(tmp_path / "fs", "a", cpu__max="400000 100000")
    group(tmp_path / "fs", "a/b", cpu__max="max 100000")
    group(tmp_path / "fs", "a/b/c", cpu__max="150000 100000")

    assert quotas(tmp_path, "0::/a/b/c\n") == [1.5, 4.0]


def test_the_old_version(tmp_path: Path) -> None:
    group(tmp_path / "fs", "cpu,cpuacct/job", **{"cpu.cfs_quota_us": "200000", "cpu.cfs_period_us": "100000"})
    group(tmp_path / "fs", "cpu,cpuacct", **{"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"})

    assert quotas(tmp_path, "5:memory:/job\n4:cpu,cpuacct:/job\n0::/\n") == [2.0]


@pytest.mark.parametrize("text", ["", "max", "nonsense here", "100 0", "max 100000"])
def test_what_says_nothing_is_no_limit(tmp_path: Path, text: str) -> None:
    group(tmp_path / "fs", "", cpu__max=text)

    assert quotas(tmp_path, "0::/\n") == []


def test_no_control_groups_at_all(tmp_path: Path) -> None:
    assert list(cpu_quotas(str(tmp_path / "nothing"), str(tmp_path))) == []


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_the_affinity_mask_counts() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert 1 <= usable_cores() <= len(before)
