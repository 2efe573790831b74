"""A door for each role, with a real broker: who gets in where, and where the doors are."""

from __future__ import annotations

import psutil
import pytest

import zfarm
from tests.face.processes import TcpFarm
from tests.integration.proxy import through
from tests.integration.test_security import admit, refusals
from zfarm.edge.principals import keys_path
from zfarm.edge.security import ROLES, KeyPair, ServerKeys, load_connection
from zfarm.edge.sockets import close_context, new_context
from zfarm.edge.zap import knock
from zfarm.errors import AccessDenied

pytestmark = pytest.mark.timeout(120)


def test_each_role_gets_in_at_its_own_door_and_at_no_other(farm: TcpFarm) -> None:
    farm.start_broker()
    own = {role: load_connection(admit(farm, f"the-{role}", role)) for role in ROLES}
    shared = ServerKeys.load(keys_path(farm.connection)).roles
    let_in = set()
    context = new_context()
    for door in ROLES:
        address = f"tcp://127.0.0.1:{farm.door(door)}"
        for role in ROLES:
            for keys in (own[role].keys[role], shared[role]):
                said = knock(context, address, own[role].server, keys)
                assert said is not None, (door, role)
                let_in |= {(door, role)} if said else set()
        assert knock(context, address, own["client"].server, KeyPair.fresh()) is False
    close_context(context)
    assert let_in == {(role, role) for role in ROLES}
    assert refusals(farm)["handshakes"] >= 28


def test_a_program_at_a_door_that_is_not_its_own_is_refused_and_told_so(farm: TcpFarm) -> None:
    farm.start_broker()
    worker = farm.start(
        "worker", "--connection", str(through(farm.connection, farm.port, farm.directory / "bent.json"))
    )
    assert (worker.wait(), "each role has its own" in worker.said) == (77, True)
    bent = through(farm.connection, farm.door("worker"), farm.directory / "other.json")
    with pytest.raises(AccessDenied, match="each role has its own"):
        zfarm.Executor(bent)
    assert farm.run("status", "--connection", str(bent)).returncode == 77
    status = farm.status()
    assert (status["workers"], status["clients"]) == ([], [])


def test_an_admins_file_serves_a_program_and_a_look_at_the_admins_door(farm: TcpFarm) -> None:
    farm.start_broker()
    farm.start_worker(1)
    farm.wait_slots(1)
    file = admit(farm, "root", "admin")
    with zfarm.Executor(file) as client:
        assert client.submit(pow, 2, 3).result(20) == 8
        assert farm.run("status", "--connection", str(file)).returncode == 0
        dialled = {link.raddr.port for link in psutil.Process().net_connections("tcp") if link.raddr}
        assert dialled & {farm.door(role) for role in ROLES} == {farm.door("admin")}


def test_the_doors_of_a_broker_that_is_killed_are_where_they_were_when_it_is_back(farm: TcpFarm) -> None:
    broker = farm.start_broker()
    worker = farm.start_worker(1)
    farm.wait_slots(1)
    doors = {role: farm.door(role) for role in ROLES}
    broker.process.kill()
    broker.wait()
    again = farm.start_broker(port=farm.port)
    assert {role: farm.door(role) for role in ROLES} == doors
    assert all(f"127.0.0.1:{doors[role]} for {role}s" in again.out.read_text() for role in ROLES)
    farm.wait_slots(1)
    assert worker.process.poll() is None


def test_doors_can_be_named_and_a_broker_on_several_addresses_has_all_of_them_on_each(farm: TcpFarm) -> None:
    farm.start_broker("--bind", "tcp://127.0.0.2:0", "--admin-bind", "tcp://127.0.0.3:0")
    where = load_connection(farm.connection).addresses
    hosts = {role: [address.split(":")[1].strip("/") for address in where[role]] for role in ROLES}
    assert hosts.pop("admin") == ["127.0.0.3"]
    assert set(map(tuple, hosts.values())) == {("127.0.0.1", "127.0.0.2")}
    farm.start("worker", "--slots", "1", where["client"][1], "--connection", str(farm.connection))
    farm.wait_slots(1)
    assert farm.run("status", where["client"][1], "--connection", str(farm.connection)).returncode == 0
