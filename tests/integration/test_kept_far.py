"""Results that stay on the hosts that made them, over TCP: arguments of later calls, brought where they are
needed, and lost with a clear word."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import pytest

import zfarm
from tests.face.processes import Command, TcpFarm, wait_until
from tests.integration import large

MIB = 1024 * 1024
DEADLINE_S = 60.0


def host(farm: TcpFarm, name: str) -> Command:
    """A worker of one slot, on a host of its own as far as anybody can tell."""
    return farm.start_worker(
        1, "--name", name, "--label", f"at={name}", "--store", str(farm.directory / name)
    )


def blobs(farm: TcpFarm, name: str) -> list[str]:
    """What is in the store of a host, the empty blob aside."""
    folder = farm.directory / name / "blobs"
    return [file.name for file in folder.iterdir() if file.stat().st_size] if folder.exists() else []


def test_a_kept_result_is_used_where_it_is_and_brought_once_to_another_host(farm: TcpFarm) -> None:
    farm.start_broker("--journal", "none")
    for name in ("a", "b"):
        host(farm, name)
    farm.wait_slots(2)
    with zfarm.Executor(farm.connection) as client:
        on = {name: client.options(labels=f"at={name}") for name in ("a", "b")}
        keep = {name: client.options(labels=f"at={name}", keep=True) for name in ("a", "b")}
        one = keep["a"].submit(large.make, 1.0).result(DEADLINE_S)
        small = keep["a"].submit(large.make, 3.0, 0).result(DEADLINE_S)

        assert isinstance(one, zfarm.Kept)
        assert one.nbytes > 17 * MIB
        assert on["a"].submit(large.spoil_in, one).result(DEADLINE_S) == 1
        assert on["a"].submit(large.total_of, one, small).result(DEADLINE_S) == 2.125 * MIB + 4
        assert (len(blobs(farm, "a")), blobs(farm, "b")) == (1, [])
        two = keep["b"].submit(large.make, 2.0)  # a future may be an argument, too
        crossed = [on[name].submit(large.total_of, one, two) for name in ("a", "b") * 3]
        assert {future.result(DEADLINE_S) for future in crossed} == {6.375 * MIB + 3}, (
            "no slot is held in a wait"
        )
        assert sorted(blobs(farm, "a")) == sorted(blobs(farm, "b"))
        assert not os.listdir(farm.directory / "b" / "parts")
        back = one.get()
        assert large.total_of(back) == 2.125 * MIB + 1
        assert list(on["b"].map(large.total_of, [one, small])) == [2.125 * MIB + 1, 3]
        three, before = keep["b"].submit(large.make, 4.0, 2).result(DEADLINE_S), sorted(blobs(farm, "a"))
        for _ in range(2):  # it rather runs there
            assert client.submit(large.total_of, three).result(DEADLINE_S) == MIB + 4
        assert sorted(blobs(farm, "a")) == before
        giver = client._link._giver
        assert giver is None or giver.given_bytes == 0


def test_calls_may_need_what_is_here_and_what_is_not(farm: TcpFarm) -> None:
    """Found by a call with a large argument whose result is kept: the client was asked for the argument, and
    said that it had not put what each worker makes itself."""
    farm.start_broker("--journal", "none")
    host(farm, "a")
    farm.wait_slots(1)
    named, own = farm.directory / "named", farm.directory / "own"
    for path in (named, own):
        path.write_bytes(os.urandom(2 * MIB))
    with zfarm.Executor(farm.connection) as client:
        client.put(named, name="named")
        there, here = client.handle("named"), client.put(own)
        keeping = client.options(keep=True)
        kept = keeping.submit(large.grown, large.make(1.0), 1.0).result(DEADLINE_S)

        assert isinstance(kept, zfarm.Kept)
        assert client.submit(large.total_of, kept, large.make(3.0)).result(DEADLINE_S) > 4
        assert client.submit(large.total_of, large.make(5.0), kept).result(DEADLINE_S) > 4
        for files in ((there, here), (here, there), (kept, there, here)):
            assert client.submit(large.sizes_of, *files).result(DEADLINE_S)[-2:] == [2 * MIB, 2 * MIB]


def test_a_kept_result_is_lost_with_its_host_and_that_is_said(farm: TcpFarm) -> None:
    farm.start_broker("--journal", "none")
    worker = host(farm, "a")
    farm.wait_slots(1)
    with zfarm.Executor(farm.connection) as client:
        keeping = client.options(keep=True)
        one, two = (keeping.submit(large.make, value, 2).result(DEADLINE_S) for value in (1.0, 2.0))
        worker.process.send_signal(signal.SIGKILL)
        worker.wait()
        again = host(farm, "a")
        wait_until(
            lambda: [w["pid"] for w in farm.status()["workers"]] == [again.pid], "the loss of the first"
        )
        assert client.submit(large.total_of, one).result(DEADLINE_S) == MIB / 4 + 1, (
            "another worker of the host has it"
        )
        for file in (farm.directory / "a" / "blobs").iterdir():
            file.unlink()
        with pytest.raises(zfarm.TransferError, match=r"not in the store of worker a/.*ZFARM_PINS_KEPT_S"):
            two.get()
        host(farm, "b")
        farm.wait_slots(2)
        again.process.send_signal(signal.SIGKILL)
        again.wait()
        futures = [client.submit(large.total_of, one), client.submit(large.total_of, two)]

        for future in futures:
            with pytest.raises(zfarm.TransferError, match=r"is lost: worker a/\d+"):
                future.result(DEADLINE_S)
        assert client.submit(pow, 2, 10).result(DEADLINE_S) == 1024


def named(farm: TcpFarm, name: str) -> list[str]:
    """What the store of a host keeps for handles, the newborn included."""
    pins = farm.directory / name / "pins"
    files = [*pins.glob("born/*"), *pins.glob("named/*/*")]
    return [file.name for file in map(Path, files) if file.name != "last"]


def test_what_a_handle_names_stays_in_a_store_that_is_full(farm: TcpFarm) -> None:
    farm.start_broker("--journal", "none")
    farm.variables = {"ZFARM_STORE_BYTES_MAX": str(9 * MIB)}
    worker = host(farm, "a")
    farm.wait_slots(1)
    with zfarm.Executor(farm.connection) as client:
        keeping = client.options(keep=True)
        one = keeping.submit(large.make, 1.0, 2).result(DEADLINE_S)
        for value in range(5):  # each goes with its handle, to make room for the next ones
            keeping.submit(large.make, float(value), 3).result(DEADLINE_S)
        worker.process.send_signal(signal.SIGKILL)
        worker.wait()
        again = host(farm, "a")
        wait_until(lambda: [w["pid"] for w in farm.status()["workers"]] == [again.pid], "the other worker")
        wait_until(lambda: len(named(farm, "a")) == 1, "that it has heard of what went meanwhile")
        more = [keeping.submit(large.make, 10.0 + n, 3).result(DEADLINE_S) for n in range(2)]

        with pytest.raises(zfarm.TransferError, match=r"kept results that handles.*let go of handles"):
            keeping.submit(large.make, 20.0, 3).result(DEADLINE_S)
        more.clear()
        gc.collect()
        assert isinstance(keeping.submit(large.make, 20.0, 3).result(DEADLINE_S), zfarm.Kept)
        assert client.submit(large.total_of, one).result(DEADLINE_S) == MIB / 4 + 1
        assert large.total_of(one.get()) == MIB / 4 + 1
        wait_until(lambda: len(named(farm, "a")) == 1, "that but one handle is left")
    wait_until(lambda: not named(farm, "a"), "that the client is gone")
