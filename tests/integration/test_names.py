"""Files that a broker keeps by name: they outlive their program, are sent once, and belong to one key."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest
from msgspec.structs import replace

import zfarm
from tests.face.processes import TcpFarm, tcp_farm, wait_until
from tests.integration import naming
from tests.integration.needing import digest
from zfarm.courier import Courier
from zfarm.edge.holdings import TreeHolding, hold
from zfarm.edge.security import CLIENT, parse_address
from zfarm.edge.trees import FILE, Entry, Manifest
from zfarm.errors import FileUnknown, TransferError, UnsafeName
from zfarm.face.cli import main
from zfarm.handles import FileHandle

MIB = 1024 * 1024
LARGE = 64 * MIB
MOST = 200 * MIB
PROGRAM = [str(Path(naming.__file__))]


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TcpFarm]:
    with tcp_farm(tmp_path_factory.mktemp("farm")) as farm:
        farm.variables = {"ZFARM_ARCHIVE_BYTES_MAX": str(MOST)}
        farm.start_broker()
        yield farm


@pytest.fixture
def worker(farm: TcpFarm) -> Iterator[None]:
    worker = farm.start_worker(1, "--name", "far")
    yield
    worker.process.terminate()
    worker.wait()


@pytest.fixture
def courier(farm: TcpFarm) -> Iterator[Courier]:
    with Courier(lambda: parse_address(connection_file=farm.connection, role=CLIENT)) as courier:
        yield courier


class Said(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str) -> Said:
    """A command, without the cost of a process."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = main(arguments)
    return Said(code, out.getvalue(), err.getvalue())


def zfarm_command(farm: TcpFarm, *arguments: str) -> Said:
    return run(*arguments, "--connection", str(farm.connection))


def kept(farm: TcpFarm, *kinds: str) -> list[Path]:
    return [path for kind in kinds for path in farm.connection.with_suffix(".files").glob(f"*/{kind}/*")]


def make_directory(top: Path) -> Path:
    (top / "deep" / "empty").mkdir(parents=True)
    (top / "deep" / "run.sh").write_text("echo\n")
    (top / "deep" / "run.sh").chmod(0o750)
    (top / "data").write_bytes(b"content")
    (top / "again").write_bytes(b"content")
    (top / "nothing").touch()
    (top / "latest").symlink_to("deep/run.sh")
    (top / "deep").chmod(0o711)
    return top


def test_a_directory_outlives_its_program_and_is_a_path_in_tasks_of_another_one(
    farm: TcpFarm, worker: None, tmp_path: Path
) -> None:
    top = make_directory(tmp_path / "reference")
    before, rights = naming.look(top), naming.modes(top)

    put = farm.start("put", str(top), "--connection", str(farm.connection))
    assert put.wait() == 0, put.said
    again = zfarm_command(farm, "put", str(top))
    assert again.stdout.endswith(" 0 bytes sent\n")
    top.rename(tmp_path / "away")
    got = zfarm_command(farm, "get", "reference", str(tmp_path / "got"))
    assert got.returncode == 0, got.stderr
    with zfarm.Executor(farm.connection) as client:
        handle = client.handle("reference")
        seen = client.submit(naming.look, handle).result(60)
        assert client._link._giver is None  # this client gave nothing
        one = client.get(handle, tmp_path / "third")

    assert (naming.look(tmp_path / "got"), naming.modes(tmp_path / "got")) == (before, rights)
    assert (naming.look(one), naming.modes(one)) == (before, rights)
    assert seen == before
    assert not list(tmp_path.glob(".zfarm-*"))


def test_names_are_listed_replaced_and_removed_with_what_only_they_had(
    farm: TcpFarm, worker: None, tmp_path: Path
) -> None:
    path = tmp_path / "table"
    path.write_bytes(b"first")
    with zfarm.Executor(farm.connection) as client:
        earlier = client.put(path, name="table")
        path.write_bytes(b"second")
        handle = client.put(path, name="table")
        path.unlink()
        assert client.handle("table") == handle
        assert client.get(handle, tmp_path / "back").read_bytes() == b"second"
        (listed,) = (one for one in client.names() if one.name == "table")
        assert (listed.size, listed.files, listed.is_directory) == (6, 1, False)
        assert client.submit(digest, handle).result(60) == sha256(b"second").hexdigest()
        with pytest.raises(TransferError, match="does not keep it any more"):
            client.submit(digest, earlier).result(60)
        shown = zfarm_command(farm, "ls", "table", "--json")
        assert [one["digest"] for one in json.loads(shown.stdout)["files"]] == [handle.digest]

        removed = zfarm_command(farm, "rm", "nothere", "table")

        assert removed.returncode == 66
        assert "'nothere'" in removed.stderr
        assert "'table'" not in removed.stderr
        with pytest.raises(FileUnknown, match="nothing is kept"):
            client.handle("table")
        with pytest.raises(FileUnknown, match="nothing is kept"):
            client.discard("table")
    assert zfarm_command(farm, "ls", "table").returncode == 1
    assert not [path for path in kept(farm, "blobs") if handle.digest in path.name]


def test_what_others_keep_is_seen_by_admins_alone(farm: TcpFarm, tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.write_bytes(b"mine")
    assert zfarm_command(farm, "put", str(path)).returncode == 0
    for role in ("client", "admin"):
        out = str(tmp_path / f"{role}.json")
        made = zfarm_command(farm, "key", "new", role + "-x", "--role", role, "--out", out)
        assert made.returncode == 0, made.stderr
    other, admin = (["--connection", str(tmp_path / f"{role}.json")] for role in ("client", "admin"))
    wait_until(lambda: run("ls", *other).returncode == 0, "the new key is known")

    assert run("ls", *other).stdout == ""
    for arguments in (("get", "mine"), ("rm", "mine")):
        refused = run(*arguments, *other)
        assert refused.returncode == 66
        assert "nothing is kept under the name 'mine'" in refused.stderr
    with zfarm.Executor(tmp_path / "client.json") as client:
        stolen = FileHandle("mine", replace(hold(path).need, archived=True), 0o644)
        with pytest.raises(TransferError, match="does not keep it"):
            client.get(stolen, tmp_path / "stolen")
    listed = json.loads(run("ls", "--all", "--json", *admin).stdout)["files"]
    (owner,) = {one["owner"] for one in listed if one["name"] == "mine"}
    assert owner.startswith("client:client:")
    assert run("rm", "mine", "--owner", "nobody", *admin).returncode == 66
    assert run("rm", "mine", "--owner", owner, *admin).returncode == 0
    assert zfarm_command(farm, "ls", "mine").returncode == 1


def test_a_mistake_has_an_exit_code_of_its_own(farm: TcpFarm, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    top = tmp_path / "top"
    top.mkdir()
    os.mkfifo(top / "pipe")
    assert zfarm_command(farm, "put", str(path)).returncode == 0
    assert zfarm_command(farm, "put", str(make_directory(tmp_path / "tree"))).returncode == 0
    expected = {
        ("put", str(tmp_path / "none")): 66,
        ("put", str(path / "below")): 66,
        ("put", ""): 65,  # not the working directory
        ("put", str(top)): 65,
        ("put", str(path), "--name", "a/b"): 65,
        ("get", "none"): 66,
        ("get", "a/b"): 65,
        ("get", "tree", str(path)): 73,
        ("get", "file", str(path / "below")): 73,
        ("get", "file", str(top / "pipe")): 73,
        ("rm", "none", "nothing"): 66,
    }
    said = {arguments: zfarm_command(farm, *arguments) for arguments in expected}

    assert {arguments: one.returncode for arguments, one in said.items()} == expected
    assert all(one.stderr.startswith("zfarm: ") for one in said.values())
    assert zfarm_command(farm, "rm", "tree", "file").returncode == 0
    assert sorted(os.listdir(top)) == ["pipe"]


HOSTILE = "../evil", "/evil", "a/b", "", ".", "..", "e\0vil", "e\nvil", " evil", "e" * 300, ".zfarm-parts"


def test_a_name_that_is_none_is_refused_by_client_and_broker(
    farm: TcpFarm, courier: Courier, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with zfarm.Executor(farm.connection) as client:
        handle = client.put(path)
        for name in HOSTILE:
            with pytest.raises(UnsafeName):
                client.put(path, name=name)
    for name in HOSTILE:
        with pytest.raises(UnsafeName):
            courier.put(handle, name, lambda moved: None)


def test_a_directory_that_lists_a_way_out_is_refused(farm: TcpFarm, courier: Courier, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    held = hold(tmp_path / "x")
    manifest = Manifest(0o755, [Entry("../../evil", FILE, 0o644, held.need.digest, held.need.size)])
    tree = TreeHolding(tmp_path, manifest, {held.need.digest: held})  # type: ignore[dict-item]

    with pytest.raises(TransferError, match="evil"):
        courier.put(FileHandle("bad", tree.need, 0o755, tree), "bad", lambda moved: None)

    assert courier.names("bad") == []


def test_what_there_is_no_room_for_is_refused_and_leaves_nothing(farm: TcpFarm, tmp_path: Path) -> None:
    path = tmp_path / "huge"
    path.touch()
    os.truncate(path, MOST + 1)
    before = kept(farm, "blobs")

    refused = zfarm_command(farm, "put", str(path))

    assert refused.returncode == 74
    assert "ZFARM_ARCHIVE_BYTES_MAX" in refused.stderr
    assert zfarm_command(farm, "ls", "huge").returncode == 1
    assert kept(farm, "blobs") == before
    assert not kept(farm, "parts")


def parts(farm: TcpFarm) -> int:
    return sum(path.stat().st_size for path in kept(farm, "parts"))


def test_a_put_goes_on_from_where_it_was_when_the_broker_is_killed_and_when_it_is_killed_itself(
    tmp_path: Path,
) -> None:
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        for at in range(0, LARGE, MIB):
            file.write(at.to_bytes(8, "little") * (MIB // 8))
    with tcp_farm(tmp_path) as farm:
        broker = farm.start_broker()
        port = farm.port
        arguments = ("--connection", str(farm.connection))
        put = farm.start("put", str(path), "--name", "large", *arguments, program=PROGRAM)
        wait_until(lambda: parts(farm) > 10 * MIB, "a part came")
        broker.process.send_signal(signal.SIGKILL)
        broker.wait()
        had = parts(farm)
        assert had < LARGE

        broker = farm.start_broker(port=port)
        wait_until(lambda: parts(farm) > had + 5 * MIB, "it goes on")
        put.process.kill()
        put.wait()
        assert zfarm_command(farm, "ls", "large").returncode == 1  # half of it has no name
        had = parts(farm)
        assert 0 < had < LARGE

        put = farm.start("put", str(path), "--name", "large", *arguments, program=PROGRAM)
        assert put.wait() == 0, put.said
        sent = put.out.read_text().split()[-3:]
        assert float(sent[0]) * 1e6 < LARGE - had + 5e6, f"{sent} of {LARGE}, and {had} were there"
        path.rename(tmp_path / "original")
        broker.process.send_signal(signal.SIGTERM)
        assert broker.wait() == 0

        farm.start_broker(port=port)
        get = farm.start("get", "large", str(path), *arguments, program=PROGRAM)
        wait_until(lambda: gathered(tmp_path) > 10 * MIB, "a part was fetched")
        get.process.kill()
        get.wait()
        assert not path.exists()
        had = gathered(tmp_path)
        assert 0 < had < LARGE
        assert farm.start("get", "large", str(path), *arguments, program=PROGRAM).wait() == 0
        assert path.read_bytes() == (tmp_path / "original").read_bytes()
        assert not list(tmp_path.glob(".zfarm-*"))


def gathered(folder: Path) -> int:
    """Bytes of a download that is under way."""
    found = 0
    for path in folder.glob(".zfarm-parts-*/store/parts/*"):
        found += path.stat().st_size
    return found
