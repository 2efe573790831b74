"""Large files and results over ducts, with real processes: while they break, and when others knock there."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

import zfarm
from tests.face.processes import Command, TcpFarm, wait_until
from tests.integration.proxy import Proxy
from tests.integration.test_files import BIG, CLIENT, same, send_big, some
from tests.integration.test_large_results import text
from tests.integration.test_security import admit
from tests.integration.test_streams import cut_links
from zfarm.edge import dialled, sockets
from zfarm.edge.dialled import Dialled, DuctReader
from zfarm.edge.principals import keys_path, revoke
from zfarm.edge.security import KeyPair
from zfarm.edge.sockets import new_context

pytestmark = pytest.mark.timeout(120)

MOST = BIG // 2
"""More than a window and what it waits with: what it begins with takes the relay."""


def start(farm: TcpFarm) -> Command:
    """A farm whose one worker has a duct."""
    farm.start_broker()
    worker = farm.start_worker(1, "--duct", "0")
    farm.wait_slots(1)
    return worker


def ducts_of(client: zfarm.Executor) -> Dialled:
    found: Dialled = client._link.road._dialled  # type: ignore[attr-defined]
    return found


def port_of(farm: TcpFarm) -> int:
    """Where the worker may be dialled."""
    return int(farm.status()["workers"][0]["duct"].rpartition(":")[2])


def lines(worker: Command, port: int) -> int:
    """How many have dialled the worker there and are connected."""
    links = psutil.Process(worker.pid).net_connections("tcp")
    return sum(link.status == psutil.CONN_ESTABLISHED and link.laddr.port == port for link in links)


def test_a_large_file_takes_the_duct(farm: TcpFarm, tmp_path: Path) -> None:
    start(farm)
    with zfarm.Executor(farm.connection) as client:
        files = client.submit(send_big, str(tmp_path), BIG, False).files.into(tmp_path / "home").wait(60)

        assert same(files[0].path, BIG)
        assert ducts_of(client).received > MOST
        wait_until(lambda: not ducts_of(client)._readers, "the line to be cut")


def test_a_large_result_takes_the_duct(farm: TcpFarm) -> None:
    start(farm)
    with zfarm.Executor(farm.connection) as client:
        assert client.submit(text, BIG >> 20).result(60) == text(BIG >> 20)
        assert ducts_of(client).received > MOST


def test_without_a_duct_all_takes_the_relay_and_no_worker_listens(farm: TcpFarm, tmp_path: Path) -> None:
    farm.start_broker()
    worker = farm.start_worker(1)
    with zfarm.Executor(farm.connection) as client:
        files = client.submit(send_big, str(tmp_path), BIG, False).files.into(tmp_path / "home").wait(60)

        assert same(files[0].path, BIG)
        assert ducts_of(client).received == 0
        assert farm.status()["workers"][0]["duct"] == ""
        assert psutil.CONN_LISTEN not in {
            link.status for link in psutil.Process(worker.pid).net_connections("inet")
        }


@pytest.mark.parametrize("answers", [True, False])
def test_a_duct_that_cannot_be_reached_costs_no_byte(
    farm: TcpFarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    start(farm)
    with socket.socket() as elsewhere, zfarm.Executor(farm.connection) as client:
        elsewhere.bind(("127.0.0.1", 0))
        if answers:  # and says nothing
            elsewhere.listen()
        where = f"tcp://127.0.0.1:{elsewhere.getsockname()[1]}"
        monkeypatch.setattr(dialled, "stream_address", lambda broker, said: where)
        files = client.submit(send_big, str(tmp_path), BIG, False).files.into(tmp_path / "home").wait(60)

        assert same(files[0].path, BIG)
        assert ducts_of(client).received == 0


def test_a_duct_that_breaks_again_and_again_costs_no_byte(farm: TcpFarm, tmp_path: Path) -> None:
    start(farm)
    port = port_of(farm)
    with zfarm.Executor(farm.connection) as client:
        files = client.submit(send_big, str(tmp_path), BIG, False, 0.05).files.into(tmp_path / "home")
        for share in (0.3, 0.6):
            some(files, share)
            wait_until(lambda: cut_links({port}), "a line to cut")

        assert same(files.wait(60)[0].path, BIG)
        assert files.progress.received_bytes == BIG, "what had come did not come again"
        assert ducts_of(client).received > BIG // 8
        assert not cut_links({port}), "after the second break it is left alone"


def by_way_of(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of this process dial the duct there."""
    monkeypatch.setattr(dialled, "stream_address", lambda broker, said: f"tcp://127.0.0.1:{proxy.port}")


def test_a_bit_that_is_flipped_on_a_duct_is_never_believed(
    farm: TcpFarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(farm)
    with Proxy(port_of(farm)) as proxy, zfarm.Executor(farm.connection) as client:
        by_way_of(proxy, monkeypatch)
        files = client.submit(send_big, str(tmp_path), BIG, False, 0.05).files.into(tmp_path / "home")
        wait_until(lambda: ducts_of(client).received, "items over the duct")
        proxy.corrupt("down")

        assert same(files.wait(60)[0].path, BIG)
        assert proxy.corrupted
        assert files.progress.received_bytes == BIG, "what had come did not come again"


def test_a_duct_that_swallows_everything_is_left_and_its_worker_knows(
    farm: TcpFarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = start(farm)
    port = port_of(farm)
    monkeypatch.setattr(sockets, "HEARTBEAT_MS", 300)
    monkeypatch.setattr(sockets, "HEARTBEAT_TIMEOUT_MS", 60_000)  # which the worker is told: it waits on
    with Proxy(port) as proxy, zfarm.Executor(farm.connection) as client:
        by_way_of(proxy, monkeypatch)
        files = client.submit(send_big, str(tmp_path), BIG, False, 0.25).files.into(tmp_path / "home")
        wait_until(lambda: ducts_of(client).received, "items over the duct")
        proxy.stall(1000.0)
        wait_until(lambda: proxy._until["up"], "the stall")
        duct = next(iter(ducts_of(client)._readers))
        client._link.call(lambda: ducts_of(client)._ended(duct, False, False))  # as when no pong comes

        wait_until(lambda: not lines(worker, port), "the worker to end the line")
        assert files.progress.received_bytes < BIG
        assert same(files.wait(60)[0].path, BIG)
        assert proxy.links == 1


def test_a_killed_broker_lets_the_duct_be_and_the_file_goes_on(farm: TcpFarm, tmp_path: Path) -> None:
    broker = farm.start_broker()
    port = farm.port
    farm.start_worker(1, "--duct", "0")
    with zfarm.Executor(farm.connection) as client:
        files = client.submit(send_big, str(tmp_path), BIG, False, 0.02).files.into(tmp_path / "home")
        wait_until(lambda: ducts_of(client).received > BIG // 4, "items over the duct")
        broker.process.kill()
        broker.process.wait()
        farm.start_broker(port=port)

        assert same(files.wait(90)[0].path, BIG)
        assert files.progress.received_bytes == BIG
        assert ducts_of(client).received > MOST, "it came over the duct also after that"


def test_the_call_of_a_killed_worker_sends_again_over_the_duct_of_the_next(
    farm: TcpFarm, tmp_path: Path
) -> None:
    worker = start(farm)
    with zfarm.Executor(farm.connection) as client:
        future = client.submit(send_big, str(tmp_path), BIG, False, 0.03)
        files = future.files.into(tmp_path / "home")
        wait_until(lambda: ducts_of(client).received > BIG // 4, "items over the duct")
        before = ducts_of(client).received
        worker.process.kill()
        worker.process.wait()
        farm.start_worker(1, "--duct", "0")
        future.result(60)
        last = files.wait(60)

        assert [(file.name, file.attempt) for file in last] == [("big", 2)]
        assert same(last[0].path, BIG)
        assert ducts_of(client).received - before > MOST


def test_a_killed_client_leaves_nobody_at_the_duct(farm: TcpFarm, tmp_path: Path) -> None:
    start(farm)
    command = [sys.executable, "-c", CLIENT, str(farm.connection), str(tmp_path), str(tmp_path / "home")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"middle\n"
        program.kill()
    with zfarm.Executor(farm.connection) as client:
        files = client.submit(send_big, str(tmp_path), BIG, False).files.into(tmp_path / "other").wait(90)

        assert same(files[0].path, BIG)
        assert ducts_of(client).received > MOST


def test_with_the_key_of_a_client_its_line_is_cut_though_it_does_nothing(
    farm: TcpFarm, tmp_path: Path
) -> None:
    worker = start(farm)
    port = port_of(farm)
    alice = admit(farm, "alice", "client")
    command = [sys.executable, "-c", CLIENT, str(alice), str(tmp_path), str(tmp_path / "home")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == b"middle\n"
            wait_until(lambda: lines(worker, port) == 1, "a line")
            program.send_signal(signal.SIGSTOP)
            revoke(keys_path(farm.connection), "alice")

            wait_until(lambda: lines(worker, port) == 0, "the line to be cut")
        finally:
            program.kill()


def test_who_is_not_permitted_gets_nothing(farm: TcpFarm, tmp_path: Path) -> None:
    worker = start(farm)
    context = new_context()
    knocking: list[DuctReader] = []
    ended: list[bool] = []
    try:
        with zfarm.Executor(farm.connection) as client, zfarm.Executor(farm.connection) as other:
            other.submit(abs, -1).result(30)
            files = client.submit(send_big, str(tmp_path), BIG, False, 0.02).files.into(tmp_path / "home")
            wait_until(lambda: ducts_of(client).received, "items over the duct")
            duct: Any = next(iter(ducts_of(client)._readers))
            leases = set(ducts_of(client)._readers[duct].leases)
            where = f"tcp://127.0.0.1{duct}"

            def knocks(keys: KeyPair) -> None:
                reader = DuctReader(context, where, keys, lambda reached, refused: ended.append(reached))
                knocking.append(reader)
                for lease in leases:
                    reader.want(lease)

            knocks(KeyPair.fresh())
            knocks(ducts_of(other)._keys)
            assert same(files.wait(60)[0].path, BIG)
            wait_until(lambda: not ducts_of(client)._readers, "the line to be cut")
            knocks(ducts_of(client)._keys)  # whose stream has ended

            def all_ended() -> bool:
                for reader in knocking:
                    reader.watch_link()
                return len(ended) >= len(knocking)

            wait_until(all_ended, "all of them to be refused")
            assert not any(reader.receive() for reader in knocking)
    finally:
        for reader in knocking:
            reader.close()
        context.term()
    assert worker.err.read_text().count("refused key") >= 1
