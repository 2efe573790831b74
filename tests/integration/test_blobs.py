"""Large arguments over TCP: once to each host, mapped by children, through deaths; memory is given back."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

import zfarm
from tests.face.processes import TcpFarm, wait_until
from tests.integration import large
from zfarm.edge import segments
from zfarm.settings import settings

pytestmark = pytest.mark.skipif(not segments.POSSIBLE, reason="no memfd and /proc here")

MIB = 1024 * 1024
FAR = ("--name", "far")
"""The host of workers that is not that of the client: blobs have to be sent to it."""
DEADLINE_S = 60.0


def sent(client: zfarm.Executor) -> int:
    giver = client._link._giver
    return giver.given_bytes if giver is not None else 0


def memory_of(client: zfarm.Executor) -> int:
    """Bytes of shared memory that the calls of a client use."""
    assert client._link.harbour is not None
    pool = client._link.harbour.stowage._pool
    return pool.bytes - pool.warm


def store(farm: TcpFarm) -> Path:
    return farm.directory / "cache" / "zfarm" / "store" / "blobs"


def test_what_many_calls_have_goes_once_to_a_host_is_mapped_there_and_released_here(
    farm: TcpFarm,
) -> None:
    farm.start_broker("--journal", "none")
    for _ in range(2):
        farm.start_worker(1, *FAR)
    farm.wait_slots(2)
    with zfarm.Executor(farm.connection) as client:
        array = large.ones(8)
        futures = [client.submit(large.spoil, array) for _ in range(20)]
        array[:] = 7  # as in a process pool, what a call gets is what was there when it was submitted
        results = {future.result(DEADLINE_S) for future in futures}
        moved = sent(client)

        assert results == {(2.0 * MIB, results.copy().pop()[1])}, "each has a copy of its own to write to"
        assert str(store(farm)) in results.pop()[1]
        assert array.nbytes <= moved < 2 * array.nbytes, "a slow client may be asked twice for a part"
        assert client.submit(large.total, array).result(DEADLINE_S) == 7 * MIB
        assert list(client.map(large.total, [array, large.ones(2), array])) == [7 * MIB, MIB / 4, 7 * MIB]
        assert sent(client) < 4 * array.nbytes
        wait_until(lambda: memory_of(client) == 0, "the memory")

    with zfarm.Executor(farm.connection) as client:
        handle = client.share({"array": large.ones(8, 3.0), "other": b"x" * 100})
        assert memory_of(client) == 8 * MIB
        seen = [
            future.result(DEADLINE_S) for future in [client.submit(large.look, handle) for _ in range(20)]
        ]
        last = client.submit(large.look, handle)
        del handle
        gc.collect()

        assert {found[1:] for found in [*seen, last.result(DEADLINE_S)]} == {(False, 3.0 * MIB)}
        assert 8 * MIB <= sent(client) < 16 * MIB
        wait_until(lambda: memory_of(client) == 0, "the memory")


def test_a_shared_object_that_its_store_had_to_remove_is_forgotten_by_children(farm: TcpFarm) -> None:
    farm.variables = {"ZFARM_STORE_BYTES_MAX": str(20 * MIB)}
    farm.start_broker("--journal", "none")
    farm.start_worker(1, *FAR)
    with zfarm.Executor(farm.connection) as client:
        for value in range(6):
            assert (
                client.submit(large.total, client.share(large.ones(8, value))).result(DEADLINE_S)
                == value * MIB
            )
            assert sum(file.stat().st_size for file in store(farm).iterdir()) <= 20 * MIB
        assert client.submit(large.kept).result(DEADLINE_S) <= 3
        for value in range(6):
            assert client.submit(large.total, large.ones(8, -value)).result(DEADLINE_S) == -value * MIB
        with pytest.raises(zfarm.TransferError, match="ZFARM_STORE_BYTES_MAX"):
            client.submit(large.total, large.ones(24)).result(DEADLINE_S)
        assert sum(file.stat().st_size for file in store(farm).iterdir()) <= 20 * MIB


def test_on_the_clients_own_host_no_byte_passes_the_broker(farm: TcpFarm) -> None:
    farm.start_broker("--journal", "none")
    farm.start_worker(1)
    with zfarm.Executor(farm.connection) as client:
        handle = client.share(large.ones(4, 2.0))
        assert client.submit(large.total, handle).result(DEADLINE_S) == MIB
        assert client.submit(large.total, large.ones(4)).result(DEADLINE_S) == MIB / 2
        assert client.submit(len, b"x" * 3 * MIB).result(DEADLINE_S) == 3 * MIB
        assert sent(client) == 0
        assert len(list(store(farm).iterdir())) == 3


def test_a_worker_killed_in_the_middle_costs_what_was_on_its_way(farm: TcpFarm) -> None:
    array = large.ones(64, 2.0)
    farm.start_broker("--journal", "none")
    worker = farm.start_worker(1, *FAR)
    farm.wait_slots(1)
    with zfarm.Executor(farm.connection) as client:
        future = client.submit(large.total, array)
        handle = client.share(array)
        wait_until(lambda: sent(client) > 12 * MIB, "a part was sent")
        worker.process.kill()
        worker.wait()
        assert sent(client) < array.nbytes, "all was sent before anybody could die"
        farm.start_worker(1, *FAR)

        assert future.result(DEADLINE_S) == 16 * MIB
        assert client.submit(large.total, handle).result(DEADLINE_S) == 16 * MIB
        assert sent(client) <= array.nbytes + 2 * settings.wants_window_bytes
        del handle
        gc.collect()
        wait_until(lambda: memory_of(client) == 0, "the memory")
    assert not [name for name in os.listdir("/dev/shm") if "zfarm" in name]
