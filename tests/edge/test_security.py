"""Security: keys stay private, files that others could touch are refused, and the doorkeeper fails closed."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zfarm.edge import security
from zfarm.edge.doors import plan
from zfarm.edge.places import hold
from zfarm.edge.security import (
    ROLES,
    Access,
    Connection,
    KeyPair,
    Role,
    ServerKeys,
    connection_path,
    load_connection,
    new_connection,
    parse_address,
    parse_tcp,
    write_connection,
)
from zfarm.errors import ConfigurationError

ADDRESS = "tcp://head:5555"


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's state directory of this test's own."""
    path = Path(tempfile.mkdtemp(prefix="s"))
    monkeypatch.setattr(security, "connections_directory", lambda: path / "zfarm" / "connections")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def connection(keys: ServerKeys) -> Connection:
    return new_connection("main", plan([ADDRESS, "tcp://127.0.0.1:5555"], {}, None), 5560, keys)


def secrets_of(keys: ServerKeys) -> list[str]:
    return [keys.server.secret, *(pair.secret for pair in keys.roles.values())]


# ---------------------------------------------------------------- keys and files


def test_no_secret_is_ever_shown(keys: ServerKeys, connection: Connection) -> None:
    shown = repr([keys, connection, connection.access("client"), keys.roles]) + str(keys) + f"{connection}"
    assert keys.server.public in shown
    assert not any(secret in shown for secret in secrets_of(keys))


def test_what_is_no_key_is_refused() -> None:
    with pytest.raises(ValueError, match="40 characters"):
        KeyPair("short", "x" * 40)
    with pytest.raises(ValueError, match="40 characters"):
        KeyPair("x" * 40, "~" * 40)


def test_a_connection_file_round_trips_without_the_secrets_that_are_not_its_own(
    home: Path, keys: ServerKeys, connection: Connection
) -> None:
    path = connection_path("main")
    write_connection(path, connection)
    text = path.read_text()
    assert load_connection(path) == replace(connection, path=str(path))
    assert set(json.loads(text)["keys"]) == {"client", "worker", "monitor"}
    assert keys.server.secret not in text
    assert keys.roles["admin"].secret not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["main.json"]


def test_a_file_is_private_whatever_the_umask_and_replaces_the_old_one(
    home: Path, connection: Connection
) -> None:
    before = os.umask(0)
    try:
        write_connection(connection_path("main"), connection)
        write_connection(connection_path("main"), replace(connection, pid=1))
    finally:
        os.umask(before)
    assert stat.S_IMODE(connection_path("main").stat().st_mode) == 0o600
    assert load_connection(connection_path("main")).pid == 1


def test_the_brokers_keys_are_used_again(home: Path) -> None:
    path = home / "main.keys"
    first = ServerKeys.load_or_create(path)
    assert ServerKeys.load_or_create(path) == first
    assert set(first.roles) == set(ROLES)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_open_to_others_is_refused(home: Path, connection: Connection, mode: int) -> None:
    path = home / "c.json"
    write_connection(path, connection)
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"chmod 600 {path}"):
        load_connection(path)


def test_links_foreign_files_and_what_is_no_file_are_refused(
    home: Path, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home / "c.json"
    write_connection(path, connection)
    (home / "link.json").symlink_to(path)
    with pytest.raises(ConfigurationError, match="symbolic link"):
        load_connection(home / "link.json")
    os.mkfifo(home / "fifo.json", 0o600)
    with pytest.raises(ConfigurationError, match="no regular file"):
        load_connection(home / "fifo.json")
    with pytest.raises(ConfigurationError, match="No such file"):
        load_connection(home / "none.json")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigurationError, match="belongs to user"):
        load_connection(path)


def test_a_file_that_others_could_replace_is_refused(home: Path, connection: Connection) -> None:
    path = home / "c.json"
    write_connection(path, connection)
    for mode in (0o777, 0o720):
        home.chmod(mode)
        with pytest.raises(ConfigurationError, match=f"others may replace.*chmod go-w {home}"):
            load_connection(path)
    home.chmod(0o1777)  # as /tmp: the system keeps them from it
    assert load_connection(path).addresses == connection.addresses
    home.chmod(0o755)
    assert load_connection(path).addresses == connection.addresses


def test_a_connection_file_has_one_living_broker(home: Path) -> None:
    path = home / "c.json"
    code = "import sys; from pathlib import Path; from zfarm.edge.places import hold; hold(Path(sys.argv[1]))"
    code += "; print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigurationError, match=f"process {other.pid}, which is alive.*--connection"):
            hold(path)
        other.kill()
    os.close(hold(path))  # the kernel has let go of it
    os.close(hold(path))


def test_nothing_is_written_where_others_could_replace_it(home: Path, connection: Connection) -> None:
    home.chmod(0o777)
    with pytest.raises(ConfigurationError, match="chmod go-w"):
        write_connection(home / "c.json", connection)
    home.chmod(0o755)
    write_connection(home / "c.json", connection)  # others may look at names


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (b"not json", "no Connection file"),
        (b"{}", "no Connection file"),
        ({"format": 1, "addresses": ["tcp://head:5555"]}, "older zfarm .*start the broker.*zfarm key new"),
        ({"format": 3, "addresses": 7}, "newer zfarm"),
        (b"\xff", "no Connection file"),
        ({"addresses": {}}, "no address for clients"),
        ({"addresses": {"client": [ADDRESS], "worker": []}}, "no address for workers"),
        ({"addresses": {"client": ["http://x"]}}, "tcp://HOST:PORT"),
        ({"keys": {"client": {"public": "x", "secret": "y"}}}, "40 characters"),
        ({"pid": "me"}, "no Connection file"),
    ],
)
def test_files_with_something_else_in_them_are_refused(
    home: Path, connection: Connection, change: Any, reason: str
) -> None:
    path = home / "c.json"
    write_connection(path, connection)
    data = change if isinstance(change, bytes) else json.dumps(json.loads(path.read_text()) | change).encode()
    path.write_bytes(data)
    with pytest.raises(ConfigurationError, match=reason):
        load_connection(path)


def test_a_subset_has_the_keys_asked_for_and_no_more(home: Path, connection: Connection) -> None:
    path = home / "c.json"
    write_connection(path, connection.subset(["client"]))
    loaded = load_connection(path)
    assert set(loaded.keys) == {"client"}
    with pytest.raises(ConfigurationError, match="has no worker key"):
        loaded.access("worker")
    with pytest.raises(ConfigurationError, match="has no worker key"):
        loaded.subset(["worker"])


def test_names_of_brokers_cannot_leave_the_directory() -> None:
    for name in ("../x", "a/b", "", ".hidden", "x" * 65, "a\0b"):
        with pytest.raises(ConfigurationError, match="no name for a broker"):
            connection_path(name)


# ---------------------------------------------------------------- addresses


def test_local_addresses_need_no_keys() -> None:
    assert parse_address("ipc:///run/zfarm/1/broker", environ={}) == Access(
        "ipc:///run/zfarm/1/broker", "ipc:///run/zfarm/1/notes"
    )


def test_keys_are_found_by_file_by_environment_and_by_address(home: Path, connection: Connection) -> None:
    file = home / "elsewhere.json"
    write_connection(file, connection)
    wanted = connection.access("client", ADDRESS)
    assert wanted.notes_address == "tcp://head:5560"
    assert parse_address(ADDRESS, connection_file=file, environ={}) == wanted
    assert parse_address(ADDRESS, environ={"ZFARM_CONNECTION_FILE": str(file)}) == wanted
    assert parse_address(str(file), environ={}).keys == connection.keys["client"]
    assert parse_address("", environ={"ZFARM_CONNECTION_FILE": str(file)}).server == connection.server
    with pytest.raises(ConfigurationError, match="copy the connection file"):
        parse_address(ADDRESS, environ={})
    write_connection(connection_path("main"), connection)
    assert parse_address(ADDRESS, "worker", environ={}).keys == connection.keys["worker"]
    assert parse_address("main", environ={}).keys == connection.keys["client"]
    with pytest.raises(ConfigurationError, match="copy the connection file"):
        parse_address("tcp://head:5559", environ={})


def test_an_address_given_with_a_file_wins_say_for_a_tunnel(home: Path, connection: Connection) -> None:
    write_connection(home / "c.json", connection)
    access = parse_address("tcp://localhost:7777", connection_file=home / "c.json", environ={})
    assert (access.address, access.server) == ("tcp://localhost:7777", connection.server)


@pytest.mark.parametrize(
    ("role", "address"),
    [("client", "tcp://head:5555"), ("worker", "tcp://head:5556"), ("monitor", "tcp://head:5558")],
)
def test_each_role_comes_to_its_own_door_by_whatever_name_the_broker_is_known(
    home: Path, connection: Connection, role: Role, address: str
) -> None:
    write_connection(home / "c.json", replace(connection, host="another"))
    for named, where in (("", address), (ADDRESS, address), (address, address)):
        access = parse_address(named, role, home / "c.json", environ={})
        assert (access.address, access.farm_address) == (where, named or ADDRESS)
    away = parse_address("tcp://10.0.0.7:5555", role, home / "c.json", environ={}).address
    assert away == address.replace("head", "10.0.0.7")


def test_who_has_only_an_admins_key_comes_to_the_admins_door_for_whatever(
    home: Path, connection: Connection, keys: ServerKeys
) -> None:
    mine = replace(connection, keys={"admin": keys.roles["admin"]}, host="another")
    assert {mine.access(role).address for role in ("client", "monitor")} == {"tcp://head:5557"}


def test_doors_that_were_named_one_by_one_are_found(connection: Connection) -> None:
    odd = replace(
        connection, host="another", addresses={**connection.addresses, "worker": ("tcp://inner:9000",)}
    )
    assert odd.access("worker").address == "tcp://inner:9000"
    assert odd.access("worker", ADDRESS).address == "tcp://head:9000"
    assert odd.access("worker", "tcp://inner:9000").address == "tcp://inner:9000"


def test_the_newest_of_several_brokers_that_had_an_address_is_taken(
    home: Path, connection: Connection
) -> None:
    write_connection(connection_path("old"), replace(connection, name="old", started_at=1.0))
    write_connection(connection_path("new"), replace(connection, name="new", started_at=2.0))
    assert parse_address(ADDRESS, environ={}).name == "new"


def test_on_the_brokers_own_host_loopback_is_taken(connection: Connection) -> None:
    assert connection.access("client").address == "tcp://127.0.0.1:5555"
    assert replace(connection, host="another").access("client").address == ADDRESS


@pytest.mark.parametrize(
    "address",
    ["tcp://head", "tcp://head:", "tcp://:5555", "tcp://head:99999", "http://head:1", "tcp://a b:1"],
)
def test_addresses_of_another_form_are_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="tcp://HOST:PORT"):
        parse_address(address, environ={})


def test_addresses_are_taken_apart() -> None:
    assert parse_tcp("tcp://head.example.org:5555") == ("head.example.org", 5555)
    assert parse_tcp("tcp://[::1]:0") == ("[::1]", 0)
    assert parse_tcp("tcp://127.0.0.1:*") == ("127.0.0.1", 0)
    with pytest.raises(ConfigurationError, match="no port"):
        parse_address("tcp://head:0", environ={})
    with pytest.raises(ConfigurationError, match="no broker is named"):
        parse_address("", environ={})
