"""A broker with smaller limits than its peers: what it does not take costs its own call, and no other."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import zfarm
from tests.face.processes import TcpFarm

pytestmark = pytest.mark.timeout(120)

DEADLINE_S = 60.0
MOST = 1_000_000
MORE = 1_040_000  # and yet too little to go another way: as a blob, or in pieces
SAID = r"1,[01]\d\d,\d{3} bytes.* at most 1,000,000 .*ZFARM_PAYLOAD_BYTES_MAX"


def size_of(data: bytes) -> int:
    return len(data)


def give(size: int) -> bytes:
    return os.urandom(size)


def fail(size: int) -> None:
    raise ValueError("x" * size)


def emit(size: int) -> int:
    try:
        zfarm.emit(os.urandom(size))
    except zfarm.TooLarge as error:
        assert "at most 1,000,000" in str(error)
        return 1
    return 0


def within(size: int) -> tuple[str, str, int]:
    """What a client in a task is told."""
    inner = zfarm.current_farm()
    given: BaseException | None
    try:  # before the broker has answered a call is taken, and refused later
        given = inner.submit(size_of, os.urandom(size)).exception(DEADLINE_S)
    except zfarm.TooLarge as error:
        given = error
    with pytest.raises(zfarm.TooLarge):
        inner.submit(size_of, os.urandom(size))
    gave = inner.submit(give, size).exception(DEADLINE_S)
    small = inner.submit(size_of, b"abc").result(DEADLINE_S)
    return f"{type(given).__name__}: {given}", f"{type(gave).__name__}: {gave}", small


@pytest.fixture
def narrow(farm: TcpFarm) -> Iterator[TcpFarm]:
    """A broker that takes a megabyte, and a worker that knows nothing of that."""
    farm.variables |= {"ZFARM_PAYLOAD_BYTES_MAX": str(MOST)}
    broker = farm.start_broker()
    farm.variables.clear()
    worker = farm.start_worker()
    farm.wait_slots(2)
    yield farm
    assert broker.process.poll() is None
    assert worker.process.poll() is None, worker.said
    assert "did not understand" not in worker.said
    assert farm.status()["slots"]["total"] == 2


def test_an_argument_beyond_the_limit_of_the_broker_is_refused_at_once(narrow: TcpFarm) -> None:
    with zfarm.Executor(narrow.connection) as farm:
        other = farm.submit(size_of, bytes(MOST // 2))
        with pytest.raises(zfarm.TooLarge, match=SAID):
            farm.submit(size_of, bytes(MORE))
        with pytest.raises(zfarm.TooLarge, match=SAID):
            list(farm.map(size_of, [bytes(MORE)]))
        assert other.result(DEADLINE_S) == MOST // 2
        assert farm.submit(size_of, bytes(MOST - 1000)).result(DEADLINE_S) == MOST - 1000


def test_a_result_beyond_the_limit_of_the_broker_is_an_error_of_its_call(narrow: TcpFarm) -> None:
    with zfarm.Executor(narrow.connection) as neighbour, zfarm.Executor(narrow.connection) as farm:
        others = [neighbour.submit(give, 1000) for _ in range(20)]
        for _ in range(8):  # more often than a worker may be misunderstood
            with pytest.raises(zfarm.TooLarge, match=SAID):
                farm.submit(give, MORE).result(DEADLINE_S)
        with pytest.raises(zfarm.TooLarge, match=SAID):
            farm.submit(fail, MORE).result(DEADLINE_S)
        with pytest.raises(zfarm.TooLarge, match=SAID):
            list(farm.map(give, [MORE]))
        assert [len(data) for data in farm.map(give, [400_000] * 20)] == [400_000] * 20, "a batch can be cut"
        assert farm.submit(emit, MORE).result(DEADLINE_S) == 1
        assert {len(future.result(DEADLINE_S)) for future in others} == {1000}


def test_what_travels_in_pieces_and_what_is_small_may_be_more_together(narrow: TcpFarm) -> None:
    with zfarm.Executor(narrow.connection) as farm:
        assert farm.submit(size_of, bytes(5 * MORE)).result(DEADLINE_S) == 5 * MORE
        assert len(farm.submit(give, 5 * MORE).result(DEADLINE_S)) == 5 * MORE
        futures = [farm.submit(size_of, os.urandom(60_000)) for _ in range(100)]
        assert {future.result(DEADLINE_S) for future in futures} == {60_000}


def test_a_client_in_a_task_is_told_as_well(narrow: TcpFarm) -> None:
    with zfarm.Executor(narrow.connection) as farm:
        given, gave, small = farm.submit(within, MORE).result(DEADLINE_S)

    for said in (given, gave):
        assert said.startswith("TooLarge: ")
        assert "at most 1,000,000" in said
    assert small == 3
