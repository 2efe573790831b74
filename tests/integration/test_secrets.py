"""Where the secret keys of a farm are, and where they are not: real processes, looked at from outside."""

from __future__ import annotations

import contextlib
import os
import stat
import sys

import psutil
import pytest

import zfarm
from tests.face.processes import Command, TcpFarm
from zfarm.edge.principals import keys_path
from zfarm.edge.security import ServerKeys, load_connection
from zfarm.edge.tokens import read_token

pytestmark = pytest.mark.timeout(120)


def joined_by_token(farm: TcpFarm) -> tuple[str, Command]:
    """A join token of this farm, and a worker of two slots that was started with it."""
    made = farm.run("token", "--connection", str(farm.connection)).stdout
    token = farm.directory / "token"
    token.touch(0o600)
    token.write_text(made)
    return made, farm.start("worker", "--slots", "2", "--token-file", str(token))


def test_no_process_of_a_farm_shows_a_secret_and_no_child_has_a_file_with_one_open(farm: TcpFarm) -> None:
    before = os.umask(0)
    try:
        broker = farm.start_broker()
    finally:
        os.umask(before)
    made, worker = joined_by_token(farm)
    farm.wait_slots(2)
    with zfarm.Executor(farm.connection) as client:
        assert list(client.map(abs, range(50))) == list(range(50))
        keys = ServerKeys.load(keys_path(farm.connection))
        joined = read_token(made).keys
        assert joined is not None
        secrets = [
            keys.server.secret,
            joined.secret,
            *(pair.secret for pair in keys.roles.values()),
            made.strip(),
        ]
        family = [psutil.Process(pid) for pid in (broker.pid, worker.pid)]
        children = family[1].children(recursive=True)
        assert len(children) >= 3  # the nursery and two children
        for process in (*family, *children):
            shown = "\0".join([*process.cmdline(), *map(str, process.environ().items())])
            assert not any(secret in shown for secret in secrets)
        private = {str(path) for path in farm.directory.iterdir()}
        for child in children:
            assert not {file.path for file in child.open_files()} & private - {
                str(worker.err),
                str(worker.out),
            }
    said = broker.said + worker.said + broker.out.read_text()
    assert not any(secret in said for secret in secrets)
    for path in (farm.connection, keys_path(farm.connection), farm.connection.with_suffix(".journal")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@pytest.mark.skipif(sys.platform != "linux", reason="looks into the memory of processes")
@pytest.mark.parametrize("how", ["connection", "token"])
def test_no_child_has_a_key_in_its_memory(farm: TcpFarm, how: str) -> None:
    farm.start_broker()
    if how == "connection":
        keys = load_connection(farm.connection).keys["worker"]
        worker = farm.start("worker", "--slots", "2", "--connection", str(farm.connection))
    else:
        made, worker = joined_by_token(farm)
        joined = read_token(made).keys
        assert joined is not None
        keys = joined
    farm.wait_slots(2)
    with zfarm.Executor(farm.connection) as client:
        assert list(client.map(abs, range(50))) == list(range(50))
        children = psutil.Process(worker.pid).children(recursive=True)

        assert len(children) >= 3  # the nursery and two children
        assert keys.secret.encode() in memory_of(worker.pid), "there it would be found"
        assert [child.pid for child in children if keys.secret.encode() in memory_of(child.pid)] == []


def memory_of(pid: int) -> bytes:
    """What a process can write to, as it is now."""
    parts = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            span, mode = line.split()[:2]
            first, end = (int(place, 16) for place in span.split("-"))
            if mode.startswith("rw"):
                with contextlib.suppress(OSError, ValueError, OverflowError):  # not to be read, or gone since
                    memory.seek(first)
                    parts.append(memory.read(end - first))
    return b"\0".join(parts)
