"""README.md tells the truth: its programs print what it says; its commands, options and targets exist."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

BLOCK = re.compile(r"^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def programs() -> list[tuple[str, str]]:
    """Each python block with the text block that follows it: a program and what it prints."""
    blocks = [(match["kind"], match["text"]) for match in BLOCK.finditer(README)]
    following = [*blocks[1:], ("", "")]
    return [
        (text, said if kind_after == "text" else "")
        for (kind, text), (kind_after, said) in zip(blocks, following, strict=True)
        if kind == "python"
    ]


def commands() -> list[str]:
    """Each line that a reader types, without its comment."""
    lines = [
        line
        for match in BLOCK.finditer(README)
        if match["kind"] == "console"
        for line in match["text"].splitlines()
    ]
    return [line.removeprefix("$ ").partition("  #")[0].strip() for line in lines if line.startswith("$ ")]


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "ZFARM_ADDRESS"}
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_readme_has_programs_and_commands() -> None:
    assert len(programs()) >= 2
    assert all(said for _program, said in programs()), "every program of the README says what it prints"
    assert {"make demo", "make test"} <= set(commands())


@pytest.mark.parametrize("number", range(len(programs())))
def test_a_program_prints_what_the_readme_says(number: int, tmp_path: Path) -> None:
    program, said = programs()[number]
    script = tmp_path / "prog.py"
    script.write_text(program, encoding="utf-8")

    done = run(sys.executable, str(script), cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == (said, "", 0)


def test_the_replacement_is_ten_lines_and_works_with_a_process_pool_too() -> None:
    program, _said = programs()[0]

    assert len([line for line in program.splitlines() if line.strip()]) <= 10
    assert "zfarm.Executor() as farm" in program


@pytest.mark.parametrize("command", sorted({line for line in commands() if line.startswith("zfarm ")}))
def test_a_command_and_its_options_exist(command: str) -> None:
    _zfarm, verb, *rest = command.split()

    done = run(sys.executable, "-m", "zfarm", verb, "--help")
    assert done.returncode == 0, done.stderr
    missing = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in done.stdout]
    assert not missing, f"`zfarm {verb}` knows no {missing}"


def test_the_three_commands_of_a_cluster_make_one(tmp_path: Path) -> None:
    """As a reader would type them, in one directory; only the address is this machine's and any free port."""
    broker, worker, client = (
        line.replace("head:5555", "127.0.0.1:0") for line in commands() if "farm.json" in line
    )
    program, said = programs()[0]
    (tmp_path / "prog.py").write_text(program, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ZFARM_")}
    with contextlib.ExitStack() as stack:
        for command in (broker, worker):
            words = [sys.executable, "-m", *command.split()]
            log = stack.enter_context((tmp_path / f"{words[3]}.log").open("w"))
            started = subprocess.Popen(
                words, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            stack.callback(stop, started)
            wait_for((tmp_path / "farm.json").exists, "the connection file")
        variable, _, rest = client.partition(" ")
        name, _, value = variable.partition("=")
        assert rest == "python prog.py"
        done = subprocess.run(
            [sys.executable, "prog.py"],
            cwd=tmp_path, env=environment | {name: value}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    logs = (tmp_path / "broker.log").read_text() + (tmp_path / "worker.log").read_text()
    assert (done.stdout, done.stderr, done.returncode) == (said, "", 0), logs


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def wait_for(condition: Callable[[], bool], what: str, limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {limit_s} s"
        time.sleep(0.02)


def test_every_command_named_in_the_text_exists() -> None:
    verbs = set(re.findall(r"`zfarm ([a-z]+)", README))

    done = run(sys.executable, "-m", "zfarm", "--help")
    assert done.returncode == 0, done.stderr
    assert {"broker", "worker", "status", "top"} <= verbs | {
        line.split()[1] for line in commands() if line.startswith("zfarm ")
    }
    assert not [verb for verb in verbs if not re.search(rf"\b{verb}\b", done.stdout)]


def test_every_make_target_in_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {line.split()[1] for line in commands() if line.startswith("make ")}

    assert named <= set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))


def test_the_readme_keeps_its_order() -> None:
    headings = re.findall(r"^## (.+)$", README, re.MULTILINE)

    assert headings == [
        "Two commands",
        "The ten lines that replace ProcessPoolExecutor",
        "The three commands of a cluster",
        "What is promised, and what is not",
        "How it compares",
        "Where to read on",
    ]
