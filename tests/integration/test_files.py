"""Files of real tasks, over TCP and on one host, while links, brokers, workers and clients break."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import zfarm
from tests.face.processes import TcpFarm, wait_until
from tests.integration.test_streams import cut_links, items_port
from zfarm import outbox
from zfarm.edge import parcels

pytestmark = pytest.mark.timeout(120)

BIG = 64 * 1024 * 1024


def write_big(path: str, size: int) -> None:
    """A file in which every block differs."""
    with open(path, "wb") as file:
        for n in range(size // 4096):
            file.write(n.to_bytes(8, "big") * 512)


def same(path: Path, size: int) -> bool:
    """Whether it is that file."""
    with path.open("rb") as file:
        whole = all(file.read(4096) == n.to_bytes(8, "big") * 512 for n in range(size // 4096))
        return whole and not file.read(1)


def send_big(folder: str, size: int, near: bool, pause_s: float = 0.0) -> int:
    """Send a big file, as if to another host unless ``near``; with a pause between its chunks."""
    sender: Any = outbox
    sender.HANDED_FROM_BYTES = 1 << 20 if near else 1 << 60
    path = os.path.join(folder, f"source-{os.getpid()}")
    write_big(path, size)
    if pause_s:
        read = parcels.file_items

        def slowly(fd: int, name: str) -> Any:
            for item in read(fd, name):
                time.sleep(pause_s)
                yield item

        sender.file_items = slowly
    Path(folder, "pid").write_text(str(os.getpid()))
    zfarm.send_file(path, "big")
    return os.getpid()


def some(files: zfarm.Files, share: float = 0.2) -> None:
    """Wait until that share of the big file has come."""
    wait_until(lambda: files.progress.received_bytes >= share * BIG, "the middle of a transfer")


@pytest.mark.parametrize("near", [True, False])
def test_a_big_file_comes_whole_over_tcp(farm: TcpFarm, tmp_path: Path, near: bool) -> None:
    farm.start_broker()
    farm.start_worker(1)
    with zfarm.Executor(farm.connection) as client:
        files = client.submit(send_big, str(tmp_path), BIG, near).files.into(tmp_path / "home").wait(60)

    assert [file.size for file in files] == [BIG]
    assert same(files[0].path, BIG)
    assert os.listdir(tmp_path / "home") == ["big"]


def test_broken_links_cost_no_byte(farm: TcpFarm, tmp_path: Path) -> None:
    farm.start_broker()
    farm.start_worker(1)
    with zfarm.Executor(farm.connection) as client:
        files = client.submit(send_big, str(tmp_path), BIG, False, 0.01).files.into(tmp_path / "home")
        for share in (0.2, 0.5, 0.7):
            some(files, share)
            wait_until(lambda: cut_links({farm.port, items_port(client)}), "links to cut")

        assert same(files.wait(60)[0].path, BIG)
        assert files.progress.received_bytes == BIG, "what had come did not come again"


def test_a_killed_broker_lets_it_go_on_from_where_it_was(farm: TcpFarm, tmp_path: Path) -> None:
    broker = farm.start_broker()
    port = farm.port
    farm.start_worker(1)
    with zfarm.Executor(farm.connection) as client:
        files = client.submit(send_big, str(tmp_path), BIG, False, 0.01).files.into(tmp_path / "home")
        some(files)
        broker.process.kill()
        broker.process.wait()
        farm.variables["ZFARM_RESTART_HOLD_S"] = "90"  # the worker may be slow to come back
        farm.start_broker(port=port)

        assert same(files.wait(90)[0].path, BIG)
        assert files.progress.received_bytes == BIG


def test_the_call_of_a_killed_worker_sends_again(farm: TcpFarm, tmp_path: Path) -> None:
    farm.start_broker()
    worker = farm.start_worker(1)
    with zfarm.Executor(farm.connection) as client:
        future = client.submit(send_big, str(tmp_path), BIG, False, 0.03)
        files = future.files.into(tmp_path / "home")
        some(files)
        worker.process.kill()
        worker.process.wait()
        farm.start_worker(1)
        future.result(60)
        last = files.wait(60)

        assert [(file.name, file.attempt) for file in last] == [("big", 2)]
        assert same(last[0].path, BIG)
        assert os.listdir(tmp_path / "home") == ["big"]


@pytest.mark.parametrize("near", [True, False])
def test_a_killed_child_leaves_nothing_half_written(farm: TcpFarm, tmp_path: Path, near: bool) -> None:
    (tmp_path / "home").mkdir()  # nothing may have come yet
    farm.start_broker()
    farm.start_worker(1)
    with zfarm.Executor(farm.connection) as client:
        once = client.options(max_attempts=1)
        future = once.submit(send_big, str(tmp_path), BIG, near, 0.05)
        files = future.files.into(tmp_path / "home")
        if near:
            wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "the child")
        else:
            some(files)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        with pytest.raises(zfarm.TaskLost):
            future.result(60)
        wait_until(lambda: files._over, "the end of the files")
        if not near:
            with pytest.raises(zfarm.TransferError, match="'big' cannot be had: the call ended before all"):
                files.wait(1)

        assert all(file.size == BIG and same(file.path, BIG) for file in files._files.values())
        assert set(os.listdir(tmp_path / "home")) == set(files._files)


CLIENT = """
import sys, zfarm
from tests.integration.test_files import BIG, send_big
with zfarm.Executor(sys.argv[1]) as client:
    files = client.submit(send_big, sys.argv[2], BIG, False, 0.01).files.into(sys.argv[3])
    while files.progress.received_bytes < BIG // 5:
        pass
    print("middle", flush=True)
    files.wait()
"""


def test_files_that_are_here_are_waited_for_until_they_are_where_they_shall_be(tmp_path: Path) -> None:
    with zfarm.Executor(max_workers=1) as client:
        for number in range(20):
            home = tmp_path / f"home{number}"
            files = client.submit(send_big, str(tmp_path), 1000, True).files
            files.wait(60)
            assert [file.path for file in files.into(home).wait(60)] == [home / "big"]
            assert [file.path for file in files.into(tmp_path / f"other{number}")] == [
                tmp_path / f"other{number}" / "big"
            ]


def test_what_a_killed_client_had_half_written_is_swept_up_by_the_next(farm: TcpFarm, tmp_path: Path) -> None:
    farm.start_broker()
    farm.start_worker(2)
    home = tmp_path / "home"
    command = [sys.executable, "-c", CLIENT, str(farm.connection), str(tmp_path), str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"middle\n"
        program.kill()
    assert [name for name in os.listdir(home) if not name.startswith(".zfarm-")] == []
    with zfarm.Executor(farm.connection) as client:
        files = client.submit(send_big, str(tmp_path), BIG, True).files.into(home).wait(60)

    assert same(files[0].path, BIG)
    assert os.listdir(home) == ["big"]


@pytest.mark.slow
def test_a_gigabyte_survives_a_kill_of_everybody_but_its_client(farm: TcpFarm, tmp_path: Path) -> None:
    size = 1 << 30
    broker = farm.start_broker()
    port = farm.port
    worker = farm.start_worker(1)
    with zfarm.Executor(farm.connection) as client:
        future = client.submit(send_big, str(tmp_path), size, False)
        files = future.files.into(tmp_path / "home")
        some(files)
        broker.process.kill()
        broker.process.wait()
        farm.start_broker(port=port)
        some(files, 2.0)
        worker.process.kill()
        worker.process.wait()
        farm.start_worker(1)
        future.result(120)
        wait_until(lambda: files._over, "the end of the files")

        assert same(files._files["big"].path, size)
    for path in (files._files["big"].path, *tmp_path.glob("source-*")):
        path.unlink()  # too large to be kept with the directories of the last runs
