"""Streams of real tasks, over TCP and local sockets, while children, links, workers and brokers break."""

from __future__ import annotations

import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

import zfarm
from tests.face.processes import TcpFarm, wait_until

pytestmark = pytest.mark.timeout(120)


def count(many: int) -> Iterator[int]:
    """Emit so many numbers at once."""
    yield from range(many)


def count_slowly(many: int, until: str = "") -> Iterator[int]:
    """Emit numbers, a few at a time, and after the last one wait for a file."""
    for n in range(many):
        yield n
        if n % 50 == 0:
            time.sleep(0.005)
    while until and not os.path.exists(until):
        time.sleep(0.01)


def die_once(many: int, mark: str) -> Iterator[int]:
    """Emit numbers; in the first attempt, stop in the middle and wait to be killed."""
    first = not os.path.exists(mark)
    for n in range(many):
        yield n
        if first and n == many // 2:
            Path(mark).write_text(str(os.getpid()))
            time.sleep(60)


def whole(items: list[zfarm.Item[Any]], many: int) -> bool:
    """Whether these are all items of one attempt, each once and in order."""
    return [(item.number, item.value) for item in items] == [(n + 1, n) for n in range(many)]


def cut_links(ports: set[int]) -> int:
    """Break every connection of this process to one of these ports; how many there were."""
    cut = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as link:
                if link.family == socket.AF_INET and link.getpeername()[1] in ports:
                    link.shutdown(socket.SHUT_RDWR)
                    cut += 1
        except OSError:
            continue
    return cut


def items_port(client: zfarm.Executor) -> int:
    """Where this client gets what is published."""
    reader: Any = wait_until(lambda: client._link.road._reader, "a subscription")  # type: ignore[attr-defined]
    wait_until(lambda: reader.up, "the subscription to be up")
    return int(reader.address.rpartition(":")[2])


def test_a_stream_comes_whole_over_tcp(farm: TcpFarm) -> None:
    farm.start_broker()
    farm.start_worker(2)
    farm.wait_slots(2)
    with zfarm.Executor(farm.connection) as client:
        futures = [client.submit(count, 30_000) for _ in range(4)]
        streams = [list(future.stream()) for future in futures]
        assert items_port(client)

        assert all(whole(items, 30_000) for items in streams)
        assert [future.result(30) for future in futures] == [None] * 4


def test_a_child_that_is_killed_begins_a_second_attempt(farm: TcpFarm, tmp_path: Path) -> None:
    farm.start_broker()
    farm.start_worker(1)
    mark = tmp_path / "mark"
    with zfarm.Executor(farm.connection) as client:
        future = client.submit(die_once, 1000, str(mark))
        stream = future.stream()
        got = []
        for item in stream:
            got.append(item)
            if item.attempt == 1 and item.number == 501:
                wait_until(lambda: mark.exists() and mark.read_text(), "the middle")
                os.kill(int(mark.read_text()), signal.SIGKILL)
        first = [item for item in got if item.attempt == 1]
        second = [item for item in got if item.attempt == 2]

        assert len(got) == len(first) + len(second)
        assert whole(first, 501)
        assert whole(second, 1000)
        assert future.result(30) is None


def test_links_that_break_lose_nothing(farm: TcpFarm, tmp_path: Path) -> None:
    farm.start_broker()
    farm.start_worker(1)
    until = tmp_path / "until"
    with zfarm.Executor(farm.connection) as client:
        future = client.submit(count_slowly, 20_000, str(until))
        got = []
        for item in future.stream():
            got.append(item)
            if item.number in (2_000, 9_000):
                wait_until(lambda: cut_links({items_port(client)}), "a link to cut")
            elif item.number == 5_000:
                wait_until(lambda: cut_links({farm.port, items_port(client)}) > 1, "links to cut")
            elif item.number == 20_000:
                until.touch()

        assert whole(got, 20_000)


def test_a_broker_that_is_killed_and_started_again_loses_nothing(farm: TcpFarm, tmp_path: Path) -> None:
    broker = farm.start_broker()
    port = farm.port
    farm.start_worker(1)
    until = tmp_path / "until"
    with zfarm.Executor(farm.connection) as client:
        future = client.submit(count_slowly, 5_000, str(until))
        got = []
        for item in future.stream():
            got.append(item)
            if item.number == 1_000:
                os.kill(broker.pid, signal.SIGKILL)
                broker.wait()
                farm.start_broker(port=port)
            elif item.number == 5_000:
                until.touch()

        assert whole(got, 5_000)
        assert future.result(30) is None


def test_a_slow_reader_slows_its_own_task_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZFARM_STREAM_BUFFER_ITEMS", "2000")
    with zfarm.Executor(max_workers=2) as client:
        slow = client.submit(count, 50_000)
        stream = slow.stream()
        assert next(iter(stream)).value == 0
        quick = client.submit(count, 100_000)

        assert whole(list(quick.stream()), 100_000)
        assert quick.result(30) is None
        assert not slow.done()
        rest = list(stream)
        assert [item.number for item in rest] == list(range(2, 50_001))
        assert slow.result(30) is None


def test_a_reader_that_stops_blocks_its_task_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZFARM_STREAM_BUFFER_ITEMS", "2000")
    monkeypatch.setenv("ZFARM_STREAM_PATIENCE_S", "0.5")
    with zfarm.Executor(max_workers=1) as client:
        future = client.submit(count, 200_000)
        stream = future.stream()
        assert next(iter(stream)).value == 0
        assert future.result(60) is None  # nobody has read on
        numbers, gaps = [1], []
        while True:
            try:
                for item in stream:
                    numbers.append(item.number)
                break
            except zfarm.StreamGap as gap:
                gaps.append((gap.first, gap.last))
                numbers += range(gap.first, gap.last + 1)

        assert numbers == list(range(1, 200_001))
        assert gaps


def test_what_nobody_read_is_told_to_who_comes_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZFARM_STREAM_BUFFER_ITEMS", "2000")
    monkeypatch.setenv("ZFARM_STREAM_GRACE_S", "0.2")
    with zfarm.Executor(max_workers=1) as client:
        short = client.submit(count, 1000)
        assert short.result(60) is None
        assert whole(list(short.stream()), 1000)
        long = client.submit(count, 50_000)
        assert long.result(60) is None
        stream = long.stream()
        with pytest.raises(zfarm.StreamGap) as missed:
            next(iter(stream))

        assert (missed.value.attempt, missed.value.first) == (1, 1)
        assert [item.number for item in stream] == list(range(missed.value.last + 1, 50_001))


def test_whoever_leaves_and_comes_back_reads_on(tmp_path: Path) -> None:
    until = str(tmp_path / "until")
    with zfarm.Executor(max_workers=1) as client:
        future = client.submit(count_slowly, 3_000, until)
        numbers = []
        for item in future.stream():
            numbers.append(item.number)
            if item.number == 500:
                break
        for item in future.stream():
            numbers.append(item.number)
            if item.number == 3_000:
                Path(until).touch()

        assert sorted(set(numbers)) == list(range(1, 3_001))
        assert numbers == sorted(numbers)


def block_in_emit(mark: str) -> str:
    """Emit until interrupted."""
    try:
        for n in range(1_000_000):
            zfarm.emit(n)
            if n == 1_000:
                Path(mark).touch()
    except KeyboardInterrupt:
        return "interrupted"
    return "not interrupted"


def test_a_call_that_waits_in_emit_can_be_interrupted_and_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZFARM_STREAM_BUFFER_ITEMS", "1000")
    with zfarm.Executor(max_workers=1) as client:
        for number, grace in enumerate((20.0, 0.0)):
            mark = tmp_path / str(number)
            future = client.submit(block_in_emit, str(mark))
            stream = future.stream()
            assert next(iter(stream)).value == 0
            wait_until(mark.exists, "it emits")
            cancelling = threading.Thread(target=future.cancel, args=(True, grace))
            cancelling.start()
            if grace:  # what was emitted is read, so that the task can come to its end
                assert len(list(stream)) > 1_000
                assert future.result(30) == "interrupted"
            cancelling.join()
            assert future.cancelled() is (grace == 0.0)
        assert client.submit(pow, 2, 3).result(30) == 8


def test_many_streams_at_once(farm: TcpFarm) -> None:
    farm.start_broker()
    for _ in range(2):
        farm.start_worker(2)
    farm.wait_slots(4)
    with zfarm.Executor(farm.connection) as client:
        futures = [client.submit(count, n) for n in range(200)]
        got: dict[int, list[Any]] = {n: [] for n in range(200)}
        for n, future in enumerate(futures):
            future.on_item(got[n].append)
        wait(futures, 60)

    assert all(whole(got[n], n) for n in range(200))


def show(many: int, gate: str) -> int:
    """Show a gauge many times between two items."""
    zfarm.emit("first")
    for n in range(many):
        zfarm.emit(n, latest=True)
    zfarm.emit("last")
    Path(gate).touch()
    zfarm.emit(many, latest=True)
    return many


def test_of_a_gauge_the_newest_comes_and_nothing_waits_for_its_reader(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZFARM_STREAM_BUFFER_ITEMS", "100")
    monkeypatch.setenv("ZFARM_STREAM_GRACE_S", "60")
    monkeypatch.setenv("ZFARM_STREAM_PATIENCE_S", "60")
    with zfarm.Executor(max_workers=1) as client:
        future = client.submit(show, 20_000, str(tmp_path / "gate"))
        stream = iter(future.stream())
        assert next(stream).value == "first"  # and now nobody reads
        assert future.result(30) == 20_000
        values = [item.value for item in stream]

        last = values.index("last")
        shown = [*values[:last], *values[last + 1 :]]
        assert shown == sorted(shown)
        assert shown[-1] == 20_000
        assert values[last - 1] == 19_999
        assert len(values) < 100


def emit_much(many: int) -> int:
    """Emit so many numbers; their count."""
    for n in range(many):
        zfarm.emit(n)
    return many


def test_what_a_mapped_function_emits_neither_waits_nor_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZFARM_STREAM_BUFFER_ITEMS", "100")
    monkeypatch.setenv("ZFARM_STREAM_GRACE_S", "3600")  # so long would a task wait for its first reader
    with zfarm.Executor(max_workers=2) as client:
        assert list(client.map(emit_much, [30_000] * 4)) == [30_000] * 4
        future = client.submit(emit_much, 10)
        assert whole(list(future.stream()), 10)
