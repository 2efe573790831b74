"""What becomes of the calls, jobs and namesakes of a client whose key was taken away."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import zfarm
from tests.face.processes import TcpFarm, wait_until
from tests.integration.test_security import admit
from zfarm.edge.principals import enrol, keys_path, revoke
from zfarm.errors import AccessDenied


def _run_until(go: str, marks: str, number: int) -> int:
    """A call that says that it runs, and ends when it may."""
    (Path(marks) / str(number)).touch()
    while not Path(go).exists():
        time.sleep(0.02)
    return number


def test_what_a_revoked_client_had_is_stopped_and_no_namesake_inherits_it(farm: TcpFarm) -> None:
    farm.start_broker()
    farm.start_worker(1)
    farm.wait_slots(1)
    marks, go = farm.directory / "marks", farm.directory / "go"
    marks.mkdir()
    job = zfarm.Job("payroll", admit(farm, "alice", "client"))
    first = job.submit(pow, 2, 3)
    assert first.result(20) == 8
    futures = [job.submit(_run_until, str(go), str(marks), n) for n in range(3)]
    wait_until(lambda: len(list(marks.iterdir())) == 1, "a call runs")
    wait_until(lambda: all(future.accepted for future in futures), "all are in the journal")

    revoke(keys_path(farm.connection), "alice")
    wait_until(lambda: not any(farm.status()["tasks"][what] for what in ("running", "queued")), "the end")
    assert not farm.status()["clients"]
    with pytest.raises(AccessDenied):
        futures[0].result(20)
    (farm.directory / "alice.json").unlink()
    again = admit(farm, "alice", "client")
    with pytest.raises(zfarm.JobUnknown):
        zfarm.attach("payroll", again)
    with zfarm.Executor(again) as honest:
        assert honest.submit(pow, 2, 5).result(20) == 32, "the slot is free"
    assert len(list(marks.iterdir())) == 1, "what waited never ran"


def test_who_is_revoked_while_there_is_no_broker_has_nothing_after_its_start(farm: TcpFarm) -> None:
    broker = farm.start_broker()
    port = farm.port
    for name in ("alice", "bob"):
        job = zfarm.Job(f"job of {name}", admit(farm, name, "client"))
        future = job.submit(pow, 2, 3)
        wait_until(lambda future=future: future.accepted, "it is in the journal")  # type: ignore[misc]
        job.shutdown(wait=False)
    broker.process.kill()
    broker.wait()
    revoke(keys_path(farm.connection), "alice")
    enrol(keys_path(farm.connection), "alice", "client")
    farm.start_broker(port=port)

    wait_until(lambda: farm.status()["tasks"]["queued"] == 1, "one of two is left")
    mine = zfarm.attach("job of bob", farm.directory / "bob.json")
    farm.start_worker(1)
    assert mine.futures[0].result(30) == 8, "a key that is read again is the same principal"
    mine.shutdown()
