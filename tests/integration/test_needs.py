"""Files that calls are given, over TCP: they arrive once, through deaths of everybody; no other is harmed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import zfarm
from tests.face.processes import TcpFarm, tcp_farm, wait_until
from tests.integration import needing
from zfarm.settings import settings

MIB = 1024 * 1024
LARGE = 96 * MIB
FAR = ("--name", "far")
"""The host of a worker which is not that of the client: files have to be sent to it."""


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[TcpFarm]:
    with tcp_farm(tmp_path) as farm:
        farm.start_broker()
        yield farm


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file that takes a while."""
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.truncate(LARGE)
        for at in range(0, LARGE, MIB):
            os.pwrite(file.fileno(), b"%d" % at, at)
    return path


def sent(client: zfarm.Executor) -> int:
    """Bytes of files that this client has sent."""
    giver = client._link._giver
    return giver.given_bytes if giver is not None else 0


def in_the_middle(client: zfarm.Executor) -> None:
    wait_until(lambda: sent(client) > 20 * MIB, "a part was sent")
    assert sent(client) < LARGE, "all was sent before anybody could die"


def store(farm: TcpFarm) -> Path:
    return farm.directory / "cache" / "zfarm" / "store"


def test_a_second_use_and_a_second_worker_of_the_host_move_no_byte(farm: TcpFarm, large: Path) -> None:
    first = farm.start_worker(1, *FAR)
    with zfarm.Executor(farm.connection) as client:
        handle = client.put(large)
        digest = client.submit(needing.digest, handle).result(60)
        moved = sent(client)
        again = client.submit(needing.digest, handle).result(60)
        first.process.terminate()
        first.wait()
        farm.start_worker(1, *FAR)
        other = client.submit(needing.digest, handle).result(60)

        assert digest == again == other == needing.digest(large)
        assert moved == sent(client) == LARGE


def test_a_broker_killed_in_the_middle_costs_no_more_than_what_was_on_its_way(
    farm: TcpFarm, large: Path
) -> None:
    farm.start_worker(1, *FAR)
    farm.wait_slots(1)
    with zfarm.Executor(farm.connection) as client:
        future = client.submit(needing.digest, client.put(large))
        in_the_middle(client)
        broker, port = farm.commands[0], farm.port
        broker.process.kill()
        broker.wait()
        farm.start_broker(port=port)

        assert future.result(60) == needing.digest(large)
        assert sent(client) <= LARGE + 2 * settings.wants_window_bytes


def test_a_worker_killed_in_the_middle_leaves_a_part_that_the_next_one_goes_on_with(
    farm: TcpFarm, large: Path
) -> None:
    worker = farm.start_worker(1, *FAR)
    farm.wait_slots(1)
    with zfarm.Executor(farm.connection) as client:
        future = client.submit(needing.digest, client.put(large))
        in_the_middle(client)
        worker.process.kill()
        worker.wait()
        (part,) = (store(farm) / "parts").iterdir()
        kept = part.stat().st_size
        farm.start_worker(1, *FAR)

        assert kept > 0
        assert future.result(60) == needing.digest(large)
        assert sent(client) <= LARGE + 2 * settings.wants_window_bytes
        assert not list((store(farm) / "parts").iterdir())


def test_a_client_killed_in_the_middle_harms_nobody_and_its_part_is_used(farm: TcpFarm, large: Path) -> None:
    farm.start_worker(2, *FAR)
    farm.wait_slots(2)
    program = farm.start(str(farm.connection), str(large), program=[needing.__file__])
    parts = store(farm) / "parts"
    wait_until(lambda: parts.is_dir() and any(p.stat().st_size > 20 * MIB for p in parts.iterdir()), "a part")
    program.process.kill()
    program.wait()

    with zfarm.Executor(farm.connection) as client:
        assert client.submit(pow, 2, 10).result(60) == 1024
        assert client.submit(needing.digest, client.put(large)).result(60) == needing.digest(large)
        assert sent(client) < LARGE, "what the dead client had sent was of use"


def test_a_file_that_has_changed_fails_its_own_call_alone_and_says_why(farm: TcpFarm, tmp_path: Path) -> None:
    farm.start_worker(2, *FAR)
    path = tmp_path / "data.csv"
    path.write_text("1,2,3")
    with zfarm.Executor(farm.connection) as client:
        handle = client.put(path)
        path.write_text("4,5,6")
        failed = client.submit(needing.digest, handle)
        fine = client.submit(needing.text, client.put(path))

        with pytest.raises(
            zfarm.TransferError, match=r"data\.csv' has changed since it was put: put it again"
        ):
            failed.result(60)
        assert fine.result(60) == "4,5,6"


def test_what_is_more_than_a_store_may_have_is_refused(farm: TcpFarm, tmp_path: Path) -> None:
    farm.variables["ZFARM_STORE_BYTES_MAX"] = str(2 * MIB)
    farm.start_worker(1, *FAR)
    files = [tmp_path / name for name in ("a", "b", "c")]
    for n, path in enumerate(files):
        path.write_bytes(b"%d" % n * MIB)
    big = tmp_path / "big"
    big.write_bytes(bytes(3 * MIB))
    with zfarm.Executor(farm.connection) as client:
        with pytest.raises(zfarm.TransferError, match=r"set ZFARM_STORE_BYTES_MAX"):
            client.submit(needing.digest, client.put(big)).result(60)
        found = list(client.map(needing.digest, [client.put(path) for path in files]))

        assert found == [needing.digest(path) for path in files]
        kept = sum(path.stat().st_size for path in (store(farm) / "blobs").iterdir())
        assert kept <= 3 * MIB, "a map may need all of them at once"


def test_a_directory_comes_with_modes_links_and_empty_folders(farm: TcpFarm, tmp_path: Path) -> None:
    farm.start_worker(1, *FAR)
    top = tmp_path / "project"
    (top / "empty").mkdir(parents=True)
    (top / "bin").mkdir()
    (top / "bin" / "run").write_text("#!/bin/sh\necho it runs")
    (top / "bin" / "run").chmod(0o755)
    (top / "latest").symlink_to("bin/run")
    with zfarm.Executor(farm.connection) as client:
        handle = client.put(top)
        listed, said = client.submit(needing.look, handle).result(60)
        assert listed == needing.look(top)[0]
        moved = sent(client)
        (top / "bin" / "more").write_text("new")
        client.submit(needing.look, client.put(top)).result(60)

        assert said == "it runs\n"
        assert sent(client) - moved < 1000, "only the new file and the list travel"
        got = client.get(handle, tmp_path / "copy")
        assert needing.look(got)[0] == listed
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".zfarm")]


def test_a_handle_that_was_not_put_here_is_fetched_from_a_worker(farm: TcpFarm, tmp_path: Path) -> None:
    farm.start_worker(1, *FAR)
    path = tmp_path / "data.csv"
    path.write_text("1,2,3")
    with zfarm.Executor(farm.connection) as client:
        back = client.submit(needing.same, client.put(path)).result(60)

        assert client.get(back, tmp_path / "copy").read_text() == "1,2,3"
        with pytest.raises(zfarm.TransferError, match="is not here"):
            os.fspath(back)


def test_a_directory_that_was_not_put_here_is_fetched_from_a_worker_as_it_was(
    farm: TcpFarm, tmp_path: Path
) -> None:
    farm.start_worker(1, *FAR)
    top = tmp_path / "top"
    (top / "empty").mkdir(parents=True)
    (top / "run.sh").write_text("echo\n")
    (top / "run.sh").chmod(0o750)
    (top / "again").write_text("echo\n")
    (top / "latest").symlink_to("run.sh")
    (top / "nowhere").symlink_to("not/there")
    (top / "empty").chmod(0o500)
    top.chmod(0o711)

    def seen(path: Path) -> list[tuple[str, int, str]]:
        return sorted(
            (one.name, one.lstat().st_mode, os.readlink(one) if one.is_symlink() else "")
            for one in (*path.iterdir(), path / "empty" / "..")
        )

    with zfarm.Executor(farm.connection) as client:
        back = client.submit(needing.same, client.put(top)).result(60)
        copy = client.get(back, tmp_path / "copy")
        one = client.submit(needing.same, client.put(top / "run.sh")).result(60)

        assert seen(copy) == seen(top)
        assert (copy / "run.sh").read_text() == (copy / "again").read_text() == "echo\n"
        assert client.get(one, tmp_path / "one").stat().st_mode & 0o777 == 0o750
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".zfarm")]


def test_files_are_placed_in_a_directory_of_the_call_which_goes_with_it(
    farm: TcpFarm, tmp_path: Path
) -> None:
    worker = farm.start_worker(1, *FAR)
    path = tmp_path / "data.csv"
    path.write_text("1,2,3")
    with zfarm.Executor(farm.connection) as client:
        view = client.options(files={"in/data.csv": path}, scratch="cwd", retries=1)
        where, text = view.submit(needing.use_scratch).result(60)
        with pytest.raises(OSError, match="on purpose"):
            view.submit(needing.use_scratch, fail=True).result(60)
        elsewhere = client.submit(os.getcwd).result(60)
        runs = tmp_path / "runs"
        runs.mkdir()
        second = view.submit(needing.die_once, runs).result(60)

        assert text == "1,2,3"
        assert elsewhere != where
        assert second == "1,2,3", "the second run has fresh files"
        root = Path(where).parent.parent
        wait_until(lambda: not root.is_dir() or not list(root.iterdir()), "all is removed")
    assert path.read_text() == "1,2,3"
    assert worker.process.poll() is None


def test_jobs_cannot_be_given_files_of_a_program_that_they_outlive(farm: TcpFarm, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("1,2,3")
    with zfarm.Job("night", farm.connection) as job:
        handle = job.put(path)
        with pytest.raises(zfarm.TransferError, match="a job outlives its program"):
            job.submit(needing.digest, handle)
