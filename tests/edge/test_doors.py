"""A control socket for each role: where it is, and that no two peers are taken for one."""

from __future__ import annotations

import socket as sockets
from pathlib import Path

import pytest
import zmq

from tests.edge.waiting import until
from zfarm.edge.doors import Doors, beside, plan
from zfarm.edge.security import ROLES, Role, ServerKeys, new_connection
from zfarm.edge.sockets import Context, new_socket
from zfarm.errors import ConfigurationError

HEAD = "tcp://head:5555"


def test_doors_stand_side_by_side_after_each_address_of_the_clients() -> None:
    assert plan([HEAD, "tcp://[::1]:7000"], {}, None) == {
        "client": [HEAD, "tcp://[::1]:7000"],
        "worker": ["tcp://head:5556", "tcp://[::1]:7001"],
        "admin": ["tcp://head:5557", "tcp://[::1]:7002"],
        "monitor": ["tcp://head:5558", "tcp://[::1]:7003"],
    }
    assert plan(["tcp://*:*"], {}, None) == {"client": ["tcp://*:*"]} | {
        one: ["tcp://*:0"] for one in ROLES[1:]
    }


def test_a_door_that_is_named_is_there() -> None:
    planned = plan([HEAD], {"worker": ["tcp://inner:1", "tcp://inner:2"], "admin": []}, None)
    assert planned["worker"] == ["tcp://inner:1", "tcp://inner:2"]
    assert planned["admin"] == ["tcp://head:5557"]


def test_a_broker_that_comes_back_has_its_doors_where_they_were(keys: ServerKeys) -> None:
    where: dict[Role, list[str]] = {
        "client": [HEAD], "worker": ["tcp://head:41"], "admin": ["tcp://head:42"], "monitor": ["tcp://head:43"],
    }  # fmt: skip
    before = new_connection("farm", where, 1, keys)
    again = plan([HEAD], {"admin": ["tcp://head:99"]}, before)
    assert (again["worker"], again["admin"]) == (["tcp://head:41"], ["tcp://head:99"])
    assert plan(["tcp://head:5655"], {}, before)["worker"] == ["tcp://head:5656"], "another place"
    assert plan([HEAD, "tcp://x:1"], {}, before)["worker"] == ["tcp://head:5556", "tcp://x:2"]


def test_what_is_no_door_stands_behind_them_or_at_any_free_port() -> None:
    with sockets.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert beside(f"tcp://127.0.0.1:{port - 4}", 4, {}) == "tcp://127.0.0.1:*"
    bind = f"tcp://127.0.0.1:{port - 4}"
    assert beside(bind, 4, {}) == f"tcp://127.0.0.1:{port}"
    assert beside(bind, 4, {"worker": [f"tcp://127.0.0.1:{port}"]}) == "tcp://127.0.0.1:*"
    assert beside("tcp://127.0.0.1:*", 4, {}) == beside("tcp://127.0.0.1:65534", 4, {}) == "tcp://127.0.0.1:*"


@pytest.mark.parametrize(
    ("binds", "named", "text"),
    [
        ([HEAD, "tcp://head:5556"], {}, "door of clients and of workers: .*--worker-bind"),
        ([HEAD], {"worker": [HEAD]}, "--worker-bind"),
        ([HEAD], {"worker": ["tcp://head:5557"]}, "door of workers and of admins.*--admin-bind"),
        (["tcp://head:65534"], {}, "no port for admins 2 after tcp://head:65534: .*--admin-bind"),
    ],
)
def test_doors_that_cannot_be_are_said(binds: list[str], named: dict[Role, list[str]], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        plan(binds, named, None)


def test_a_door_that_is_taken_is_said_with_what_to_do(context: Context, directory: Path) -> None:
    places: dict[Role, list[str]] = {"client": [f"ipc://{directory}/c"], "worker": [f"ipc://{directory}/c"]}
    with pytest.raises(ConfigurationError, match=r"the door of workers: .*--worker-bind"):
        Doors(context, places)


def test_one_routing_id_at_two_doors_is_two_peers(context: Context, directory: Path) -> None:
    places: dict[Role, list[str]] = {role: [f"ipc://{directory}/{role}"] for role in ROLES}
    doors = Doors(context, places)
    assert doors.addresses == places
    dealers = {}
    for role in ROLES:
        dealers[role] = new_socket(context, zmq.DEALER, "ipc://", 1024)
        dealers[role].setsockopt(zmq.IDENTITY, b"same")
        dealers[role].connect(places[role][0])
        dealers[role].send(role.encode())
    got: dict[bytes, bytes] = {}
    until(lambda: len(got) == 4, lambda: got.update({m.peer: bytes(m.frames[0]) for m in doors.receive()}))
    assert sorted(got.values()) == sorted(role.encode() for role in ROLES)
    for peer, said in got.items():
        doors.send(peer, [said, b"heard"])
    for role in ROLES:
        assert dealers[role].poll(5000)
        assert dealers[role].recv_multipart() == [role.encode(), b"heard"]
    doors.close()


@pytest.mark.parametrize("identity", [b"", b"worker", b"c"])
def test_whatever_routing_id_a_local_peer_chooses_it_is_answered(
    context: Context, directory: Path, identity: bytes
) -> None:
    """Nobody is kept from choosing one there, and no choice may end the farm."""
    doors = Doors(context, f"ipc://{directory}/b")
    dealer = new_socket(context, zmq.DEALER, "ipc://", 1024)
    if identity:
        dealer.setsockopt(zmq.IDENTITY, identity)
    dealer.connect(f"ipc://{directory}/b")
    dealer.send(b"hello")
    (got,) = until(doors.receive)
    doors.send(got.peer, [b"heard"])
    assert dealer.poll(5000)
    assert dealer.recv_multipart() == [b"heard"]
    assert not doors.fault(got.peer), "a local socket counts no faults"
    doors.forget(got.peer)
    doors.close()
