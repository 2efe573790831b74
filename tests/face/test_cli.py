"""The command line: what it imports, what it calls, its exit codes and its sentences."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import rich_click

import zfarm
from zfarm import errors
from zfarm.face import cli, codes, logs

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_logging():
    log = logging.getLogger("zfarm")
    before = (log.level, log.propagate, list(log.handlers))
    yield
    log.setLevel(before[0])
    log.propagate, log.handlers = before[1], before[2]


class Shells:
    """Stand-ins for what the commands call: they note how, and do what they are told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.result = 0
        self.error: BaseException | None = None
        faces = "zfarm.face.status", "zfarm.face.dashboard", "zfarm.face.why"
        for name in ("zfarm.broker", "zfarm.worker", *faces):
            module = types.ModuleType(name)
            module.main = lambda *args, _name=name, **named: self.called(_name, *args, *named.values())  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, name, module)
            parent, _, leaf = name.rpartition(".")
            monkeypatch.setattr(sys.modules[parent], leaf, module, raising=False)

    def called(self, *what: object) -> int:
        self.calls.append(what)
        if self.error is not None:
            raise self.error
        return self.result


@pytest.fixture
def shells(monkeypatch) -> Shells:
    return Shells(monkeypatch)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zfarm", *arguments],
        capture_output=True, text=True, timeout=60, cwd=ROOT, env={**os.environ, **environment}, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["broker", "-h"], ["worker", "--help"], ["journal", "check", "-h"], ["--version"]],
)
def test_help_imports_nothing_heavy(arguments):
    code = f"""
import sys
from zfarm.face.cli import main
code = main({arguments!r})
heavy = {{"zmq", "psutil", "msgspec", "cloudpickle", "asyncio"}} & set(sys.modules)
sys.exit(str(heavy) if heavy else code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)

    assert done.returncode == 0, done.stderr
    assert "sage" in done.stdout or zfarm.__version__ in done.stdout


@pytest.mark.parametrize(
    ("error", "read", "written"),
    [
        (errors.TransferError("x", errno.ENOENT), 66, 73),
        (errors.TransferError("x", errno.EACCES), 66, 73),
        (errors.TransferError("x", errno.EIO), 74, 74),
        (errors.TransferError("x", errno.ENOSPC), 74, 74),
        (errors.TransferError("x", errno.EEXIST), 74, 73),
        (errors.TransferError("x"), 65, 74),
        (errors.UnsafeName("x"), 65, 74),
        (OSError(errno.EROFS, "x"), None, 73),
        (errors.BrokerUnreachable("x"), None, None),
    ],
)
def test_what_is_read_and_what_is_written_fail_each_in_a_way_of_its_own(error, read, written):
    for within, code in ((codes.reading(), read), (codes.writing(Path("t")), written)):
        with pytest.raises(type(error) if code is None else codes.Failure) as raised, within:
            raise error
        assert code is None or codes.exit_code(raised.value) == code


def test_help_of_the_group_names_every_command_and_the_exit_codes():
    text = run("--help").stdout

    for word in ("broker", "worker", "status", "top", "version", "66", "69", "73", "76", "77", "78"):
        assert word in text


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        (
            "worker tcp://h:1 --slots 3 --name n --connection c.json --store d --duct 5570",
            ("zfarm.worker", "tcp://h:1", 3, Path("c.json"), "n", "", (), (), Path("d"), 5570),
        ),
        ("worker", ("zfarm.worker", None, None, None, None, "", (), (), None, None)),
        (
            "worker --resource gpu=2 --resource disk=0.5 --label ssd",
            ("zfarm.worker", None, None, None, None, "", ("gpu=2", "disk=0.5"), ("ssd",), None, None),
        ),
        ("why ab12/7", ("zfarm.face.why", "ab12/7", None, None, False)),
        ("why 7 x --json --connection f", ("zfarm.face.why", "7", "x", Path("f"), True)),
        ("status", ("zfarm.face.status", None, None, False)),
        ("status x --json --connection f", ("zfarm.face.status", "x", Path("f"), True)),
        ("top", ("zfarm.face.dashboard", None, None, False)),
        ("top tcp://h:1 --once", ("zfarm.face.dashboard", "tcp://h:1", None, True)),
    ],
)
def test_commands_pass_on_what_they_were_given(shells, arguments, call):
    assert cli.main(arguments.split()) == 0
    assert shells.calls == [call]


@pytest.mark.parametrize("code", [0, 69, 3])
def test_the_exit_code_of_a_shell_is_that_of_the_command(shells, code):
    shells.result = code

    assert cli.main(["worker"]) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.BrokerUnreachable("no answer from tcp://h:1 within 5 s"), 69),
        (errors.VersionMismatch("they run 1, we run 2"), 76),
        (errors.ProtocolError("garbage"), 76),
        (errors.AccessDenied("this key may not do that"), 77),
        (errors.ConfigurationError("no such file [bold]x[/bold]"), 78),
        (errors.FarmBroken("the nursery died"), 70),
        (errors.FileUnknown("nothing is kept under this name"), 66),
        (errors.UnsafeName("a way out"), 65),
        (errors.TransferError("it has not come"), 74),
        (codes.Failure("it cannot be", 73), 73),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_is_one_sentence_and_an_exit_code(shells, capsys, error, code):
    shells.error = error

    assert cli.main(["status"]) == code
    text = capsys.readouterr().err
    assert text.strip() == (f"zfarm: {error}" if str(error) else "")


def test_a_bug_keeps_its_traceback(shells):
    shells.error = ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        cli.main(["status"])


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["worker", "--slots", "0"], ["broker", "--log-level", "loud"]]
)
def test_wrong_usage_is_2(shells, arguments, capsys):
    assert cli.main(arguments) == 2
    assert "Error" in capsys.readouterr().err
    assert not shells.calls


def test_a_wrong_setting_is_a_sentence():
    done = run("status", ZFARM_BEAT_INTERVAL_S="soon")

    assert done.returncode == 78
    assert done.stderr.startswith("zfarm: ZFARM_BEAT_INTERVAL_S is 'soon'; it must be a number")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["--help", "version"])
def test_a_reader_that_leaves_early_sees_no_traceback(command):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "zfarm", command], stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, check=False
    )
    os.close(writer)

    assert (done.returncode, done.stderr) in [(0, b""), (1, b"")]


def test_version_names_what_matters():
    done = run("version")

    assert done.returncode == 0
    for expected in (zfarm.__version__, "protocol", "Python 3", "libzmq 4."):
        assert expected in done.stdout


def test_json_logs_are_json_lines(capsys):
    logs.set_up("info", "json")
    log = logging.getLogger("zfarm.broker")
    log.debug("not this")
    log.info("worker %s joined", "ä/1")
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("that failed")

    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["level"], first["logger"], first["text"]) == ("info", "zfarm.broker", "worker ä/1 joined")
    assert first["time"].endswith("Z")
    assert len(first["time"]) == len("2026-01-01T00:00:00.000Z")
    assert "traceback" not in first
    assert "ValueError: why" in second["traceback"]


def test_text_logs_in_a_file_are_plain_lines(capsys):
    logs.set_up("warning", "text")
    logs.set_up("warning", "text")
    logging.getLogger("zfarm.worker").warning("[red]child died[/red]")

    line, *more = capsys.readouterr().err.splitlines()
    assert line.endswith("WARNING zfarm.worker: [red]child died[/red]")
    assert not more


def test_text_logs_on_a_terminal_are_rich(monkeypatch):
    from rich.logging import RichHandler

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    logs.set_up("info", "text")

    assert [type(handler) for handler in logging.getLogger("zfarm").handlers] == [RichHandler]


def test_every_command_is_named_in_a_group_of_the_help():
    groups = rich_click.rich_click.COMMAND_GROUPS["zfarm"]
    named = [name for group in groups for name in group["commands"]]

    assert sorted(named) == sorted(cli.command.commands)
