"""A function that carries data travels once, and again when somebody who had it is gone; real processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import zfarm
from tests.face.processes import TcpFarm
from zfarm.edge import ports

MIB = 1 << 20


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the messages that this process sends."""
    sizes: list[int] = []
    send: Callable[[Any, Sequence[Any]], None] = vars(ports)["send_frames"]

    def counted(socket: Any, frames: Sequence[Any]) -> None:
        send(socket, frames)
        sizes.append(sum(map(len, frames)))

    monkeypatch.setattr(ports, "send_frames", counted)
    return sizes


def carrying(data: bytes | bytearray) -> Callable[[int], int]:
    def function(number: int) -> int:
        return data[0] + number

    return function


def test_a_function_is_sent_once_for_all_its_calls(sent: list[int]) -> None:
    function = carrying(b"\1" * MIB)
    with zfarm.Executor(max_workers=2) as client:
        assert [client.submit(function, n).result(60) for n in range(20)] == list(range(1, 21))
        assert MIB < sum(sent) < 2 * MIB

        assert [client.submit(carrying(b"\2" * MIB), n).result(60) for n in range(2)] == [2, 3]
        assert client.submit(function, 1).result(60) == 2
        assert sum(sent) < 3 * MIB


def test_what_has_changed_in_it_is_seen_by_later_calls() -> None:
    data = bytearray(MIB)
    function = carrying(data)
    with zfarm.Executor(max_workers=1) as client:
        got = []
        for n in range(3):
            data[0] = n
            got.append(client.submit(function, 0).result(60))

    assert got == [0, 1, 2]


def test_a_function_comes_again_to_a_new_worker_and_a_new_broker(farm: TcpFarm, sent: list[int]) -> None:
    broker, worker = farm.start_broker("--journal", "none"), farm.start_worker(1)
    port = farm.port
    function = carrying(b"\1" * MIB)
    with zfarm.Executor(farm.connection) as client:
        assert client.submit(function, 1).result(60) == 2
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        farm.start_worker(1)
        assert client.submit(function, 2).result(60) == 3
        assert sum(sent) < 2 * MIB
        os.kill(broker.pid, signal.SIGKILL)
        broker.wait()
        farm.start_broker("--journal", "none", port=port)
        assert client.submit(function, 3).result(60) == 4
        assert sum(sent) > 2 * MIB
