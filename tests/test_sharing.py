"""A process that dies under a test: the test has failed, the others have run, and the run has an end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DYING = "import os, signal\ndef test_dies(): os.kill(os.getpid(), signal.SIGKILL)\n"
FINE = "def test_{0}(): pass\n"


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Have the tests in ``directory`` run by a pytest of their own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "tests.sharing", "--basetemp=of-tests", *arguments]
    environment = inherited | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False, timeout=90
    )


@pytest.mark.slow
def test_a_process_that_dies_fails_its_test_alone(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(FINE.format("a1") + FINE.format("a2"))
    (tmp_path / "test_b.py").write_text(FINE.format("b1") + DYING + FINE.format("b3"))
    (tmp_path / "test_c.py").write_text(FINE.format("c1"))
    (tmp_path / "test_d.py").write_text(FINE.format("d1"))
    done = run(tmp_path, "-n", "1", "--dist", "loadfile", "--no-loadscope-reorder")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 6 passed" in done.stdout
    assert "crashed while running 'test_b.py::test_dies'" in done.stdout
    (tmp_path / "test_b.py").write_text(FINE.format("dies"))
    again = run(tmp_path, "--last-failed", "--last-failed-no-failures", "none")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "1 passed" in again.stdout, "the others have not failed"
