"""The command ``zfarm``: reads the command line, calls a shell or a face, and turns errors into one sentence.

Nothing heavy is imported before a subcommand runs, so ``zfarm --help`` and completion stay quick.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import rich_click as click

import zfarm
from zfarm.errors import ConfigurationError, FarmError
from zfarm.face.codes import HELP, Failure, exit_code
from zfarm.face.files import add_file_commands
from zfarm.face.journal import journal
from zfarm.face.keys import add_commands

__all__ = ["main"]

INTERRUPTED: Final = 128 + signal.SIGINT

EPILOG: Final = (
    "ADDRESS is tcp://HOST:PORT or the path of a connection file. Without one: $ZFARM_ADDRESS, else the only "
    f"farm on this machine. {HELP}"
)

click.rich_click.STYLE_HELPTEXT = ""
click.rich_click.MAX_WIDTH = 100
click.rich_click.COMMAND_GROUPS = {
    "zfarm": [
        {"name": "Run a farm", "commands": ["broker", "worker"]},
        {"name": "Files that it keeps", "commands": ["put", "get", "ls", "rm"]},
        {"name": "Look at it", "commands": ["status", "why", "top", "doctor", "version"]},
        {"name": "Let others in", "commands": ["key", "token"]},
        {"name": "Look after it", "commands": ["journal"]},
    ]
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (default: those of the process) and return its exit code."""
    try:
        result = command.main(
            args=None if arguments is None else list(arguments), prog_name="zfarm", standalone_mode=False
        )
        sys.stdout.flush()  # a closed pipe shows here, and not while the interpreter ends
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (FarmError, Failure) as error:
        return _fail(str(error), exit_code(error))
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `zfarm status | head -1` is no error
        return 0


def _fail(text: str, code: int) -> int:
    from rich.console import Console
    from rich.text import Text

    line = Text.assemble(("zfarm: ", "bold red"), text.strip() or "failed without saying why")
    Console(stderr=True, soft_wrap=True, highlight=False).print(line)
    return code


def _checked_settings() -> None:
    """Read the settings now: a wrong one is a sentence, and no traceback out of some import."""
    try:
        import zfarm.settings  # noqa: F401
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def _log_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--log-format",
            type=click.Choice(["text", "json"]),
            default="text",
            show_default=True,
            help="How to write the log (to stderr): for people, or one JSON object per line.",
        ),
        click.option(
            "--log-level",
            type=click.Choice(["debug", "info", "warning", "error"]),
            default="info",
            show_default=True,
            envvar="ZFARM_LOG_LEVEL",
            help="Say what is at least this important.",
        ),
    ):
        function = option(function)
    return function


_connection_option = click.option(
    "--connection",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Connection file: where the broker is, and the keys to it.",
)
_address_argument = click.argument("address", required=False)


def _json_option(module: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option of a command whose JSON is described in the first lines of ``zfarm.face.{module}``."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        help=f"Print one JSON object, for programs; its names stay (see `pydoc zfarm.face.{module}`).",
    )


def _door_option(role: str, aside: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        f"--{role}-bind",
        multiple=True,
        metavar="tcp://HOST:PORT",
        help=f"Where to listen for {role}s; may be repeated.  [default: {aside} after each --bind]",
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)
@click.version_option(zfarm.__version__, message="zfarm %(version)s")
def command() -> None:
    """A task farm with the face of concurrent.futures.

    One broker, workers on as many hosts as you like, and your program with zfarm.Executor.
    """
    _checked_settings()


command.add_command(journal)


@command.command()
@click.option(
    "--bind",
    multiple=True,
    metavar="tcp://HOST:PORT",
    help="Where to listen for clients; may be repeated. Port 0: any free one.",
)
@_door_option("worker", "one port")
@_door_option("admin", "two ports")
@_door_option("monitor", "three ports")
@click.option(
    "--notes-bind",
    default="",
    metavar="tcp://HOST:PORT",
    help="Where dashboards listen.  [default: four ports after --bind]",
)
@_connection_option
@click.option("--name", help="Name of the farm; names the connection file when no FILE is given.")
@click.option(
    "--journal",
    default="",
    metavar="PATH|none",
    help="Where tasks and outcomes are kept, to survive the broker.  [default: beside the connection file]",
)
@click.option(
    "--files",
    default="",
    metavar="DIR|none",
    help="Where `zfarm put` keeps files by name.  [default: beside the connection file]",
)
@_log_options
def broker(
    bind: tuple[str, ...],
    worker_bind: tuple[str, ...],
    admin_bind: tuple[str, ...],
    monitor_bind: tuple[str, ...],
    notes_bind: str,
    connection: Path | None,
    name: str | None,
    journal: str,
    files: str,
    log_level: str,
    log_format: str,
) -> int:
    """Run the broker of a farm: it keeps the books and hands the tasks to workers.

    Each role has a door of its own, where no other is let in: with --bind tcp://HOST:5555 clients come to
    port 5555, workers to 5556, admins to 5557 and monitors to 5558. A broker that is started again with the
    same --bind and connection file has its doors where they were. Dashboards listen at 5559, workers send
    streams to 5560 and clients get them at 5561, or at any free port where one of these three is taken.

    Writes a connection file with the address and the keys, and prints the lines with which workers and
    clients join. SIGTERM or Ctrl-C ends it.
    """
    from zfarm.face.logs import set_up

    set_up(log_level, log_format)
    import zfarm.broker

    doors: Any = {"worker": worker_bind, "admin": admin_bind, "monitor": monitor_bind}
    return zfarm.broker.main(bind, connection, name, notes_bind, _announce, journal, files, doors)


def _announce(connection: Any) -> None:
    """Say where the broker is and how to join it."""
    path = connection.path
    for role, addresses in connection.addresses.items():
        click.echo(f"broker listens on {', '.join(addresses)} for {role}s")
    click.echo(f"connection file: {path}  (keep it secret: it holds the keys)")
    click.echo(f"a worker joins with:   zfarm worker --connection {path}")
    click.echo(f"a program connects by: ZFARM_ADDRESS={path} python prog.py")
    sys.stdout.flush()


@command.command()
@_address_argument
@click.option(
    "--slots", type=click.IntRange(min=1), help="Tasks to run at once.  [default: the usable cores]"
)
@_connection_option
@click.option("--name", help="How this worker is called in logs and dashboards.  [default: the host]")
@click.option(
    "--token-file",
    default="",
    metavar="FILE|-",
    help="Private file with the line of `zfarm token`, - for standard input; instead of ADDRESS and FILE.",
)
@click.option(
    "--resource",
    "resources",
    multiple=True,
    metavar="NAME=AMOUNT",
    help="What calls may ask for, such as gpu=2; may be repeated.  [default: $ZFARM_RESOURCES]",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="WORD|NAME=VALUE",
    help="A label that calls may ask for, such as zone=a; may be repeated.  [default: $ZFARM_LABELS]",
)
@click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where files that tasks need are kept.  [default: $ZFARM_STORE, else ~/.cache/zfarm/store]",
)
@click.option(
    "--duct",
    type=click.IntRange(min=0, max=65535),
    metavar="PORT",
    help="Let clients dial this worker there (0: at any port) for large files.  [default: they may not]",
)
@_log_options
def worker(
    address: str | None,
    slots: int | None,
    connection: Path | None,
    name: str | None,
    token_file: str,
    resources: tuple[str, ...],
    labels: tuple[str, ...],
    store: Path | None,
    duct: int | None,
    log_level: str,
    log_format: str,
) -> int:
    """Run the worker of this host: it owns slots and runs calls in child processes.

    The first SIGTERM or Ctrl-C drains it (running tasks and what they wait for finish, the rest moves), a
    second one stops it.
    """
    from zfarm.face.logs import set_up

    set_up(log_level, log_format)
    import zfarm.worker

    return zfarm.worker.main(address, slots, connection, name, token_file, resources, labels, store, duct)


@command.command()
@_address_argument
@_connection_option
@_json_option("status")
def status(address: str | None, connection: Path | None, as_json: bool) -> int:
    """Show a farm as it is now: broker, workers, slots, queue and running tasks."""
    import zfarm.face.status

    return zfarm.face.status.main(address, connection, as_json)


@command.command()
@click.argument("task", metavar="TASK")
@_address_argument
@_connection_option
@_json_option("why")
def why(task: str, address: str | None, connection: Path | None, as_json: bool) -> int:
    """Tell why a task is where it is: TASK is CLIENT/NUMBER as `zfarm status` shows them, or NUMBER alone.

    Ends with 1 if the farm does not know the task.
    """
    import zfarm.face.why

    return zfarm.face.why.main(task, address, connection, as_json)


@command.command()
@_address_argument
@_connection_option
@click.option("--once", is_flag=True, help="Print one picture and leave; so it is without a terminal.")
def top(address: str | None, connection: Path | None, once: bool) -> int:
    """Watch a farm live: workers, slots, queue, running tasks, rates and failures. Leave with q."""
    import zfarm.face.dashboard

    return zfarm.face.dashboard.main(address, connection, once)


@command.command()
@_address_argument
@_connection_option
@_json_option("doctor")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0.1, 3600),
    default=15.0,
    show_default=True,
    metavar="SECONDS",
    help="How long workers have to answer.",
)
@click.option(
    "--module",
    "modules",
    multiple=True,
    metavar="NAME",
    help="Compare the code of this module or package; may be repeated.  [default: all in this directory]",
)
def doctor(
    address: str | None, connection: Path | None, as_json: bool, wait_s: float, modules: tuple[str, ...]
) -> int:
    """Compare Python, zfarm, packages, hosts and code of this client and all workers; tell what will bite.

    Code is what a program in this directory would import from there, and what its calls would import instead
    unless it ships its own with farm.sync. Without any address it starts an embedded farm and examines this
    host. Ends with 1 if something will bite.
    """
    import zfarm.face.doctor

    try:
        return zfarm.face.doctor.main(address, connection, as_json, wait_s, modules)
    except ModuleNotFoundError as error:
        raise click.UsageError(str(error)) from None


add_commands(command)
add_file_commands(command)


@command.command()
def version() -> None:
    """Tell the versions that matter when two hosts do not get along."""
    import platform

    import zmq

    from zfarm.messages import PROTOCOL

    click.echo(f"zfarm {zfarm.__version__}, protocol {PROTOCOL}")
    click.echo(f"Python {platform.python_version()} on {platform.platform()}")
    click.echo(f"pyzmq {zmq.pyzmq_version()}, libzmq {zmq.zmq_version()}")
