"""A monitor over a real broker and real sockets: pictures, notes, a farm that moves, which one is meant."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from zfarm import monitor as monitors
from zfarm.brokershell import BrokerShell
from zfarm.core.view import View
from zfarm.edge.doors import plan
from zfarm.edge.loop import Loop
from zfarm.edge.places import new_place, runtime_directory
from zfarm.edge.security import Access, ServerKeys, new_connection, write_connection
from zfarm.edge.sockets import close_context, new_context
from zfarm.errors import BrokerUnreachable, ConfigurationError
from zfarm.messages import FarmNote, Note, Picture, WorkersNote
from zfarm.monitor import Monitor, find_farm

WAIT_S = 20.0


class LocalBroker:
    """A broker in a thread, on sockets of a private directory."""

    def __init__(self, directory: Path, epoch: int = 1) -> None:
        self.access = Access(f"ipc://{directory}/broker", f"ipc://{directory}/notes")
        self.loop = Loop()
        self.context = new_context()
        self.shell = BrokerShell(
            self.loop, self.context, self.access.address, self.access.notes_address, epoch
        )
        self.thread = threading.Thread(target=self.loop.run, name="broker under test")
        self.thread.start()

    def close(self) -> None:
        self.loop.stop()
        self.thread.join(WAIT_S)
        self.shell.close()
        close_context(self.context)
        self.loop.close()


@pytest.fixture(scope="module", autouse=True)
def _runtime() -> None:
    runtime_directory()  # it stays, for the next farm


@pytest.fixture
def place() -> Iterator[Path]:
    place = new_place()
    yield place.directory
    place.remove()


@pytest.fixture
def broker(place: Path) -> Iterator[LocalBroker]:
    broker = LocalBroker(place)
    yield broker
    broker.close()


def turn_until(monitor: Monitor, true: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline
        monitor.loop.turn(0.1)


def test_look_brings_a_picture(broker):
    with Monitor(lambda: broker.access) as monitor:
        picture = monitor.look()
        again = monitor.look()

    assert picture.farm.epoch == 1
    assert (picture.workers, picture.running, picture.queue) == ([], [], {})
    assert again.farm.uptime_s > picture.farm.uptime_s
    assert monitor.address == monitor.title == broker.access.address


def test_an_embedded_farm_is_called_by_its_program(broker):
    with Monitor(lambda: replace(broker.access, name="fit.py")) as monitor:
        assert monitor.title == "fit.py (embedded farm)"


def test_a_broker_that_is_not_there_is_unreachable_in_time(place):
    access = Access(f"ipc://{place}/broker", f"ipc://{place}/notes")
    began = time.monotonic()
    with (
        Monitor(lambda: access) as monitor,
        pytest.raises(BrokerUnreachable, match="no broker answered at ipc"),
    ):
        monitor.look(timeout_s=0.3)

    assert time.monotonic() - began < 5.0


def test_followed_notes_keep_a_view_current(broker):
    heard: list[Picture | Note] = []
    view = View()

    def hear(message: Picture | Note) -> None:
        heard.append(message)
        if isinstance(message, Picture):
            view.take(message, 0.0)
        else:
            view.fold(message, 0.0)

    with Monitor(lambda: broker.access) as monitor:
        monitor.follow(hear)
        turn_until(monitor, lambda: sum(isinstance(message, FarmNote) for message in heard) >= 2)
        assert view.stale  # no picture yet
        monitor.ask()
        turn_until(monitor, lambda: not view.stale)
        before = len(heard)
        turn_until(monitor, lambda: len(heard) >= before + 4)

    assert not view.stale
    assert any(isinstance(message, WorkersNote) for message in heard)


def test_nobody_watches_after_the_end(broker):
    with Monitor(lambda: broker.access) as monitor:
        monitor.follow(lambda message: None)
        turn_until(monitor, lambda: broker.shell.notes.watched)

    deadline = time.monotonic() + WAIT_S
    while broker.shell.notes.watched:
        assert time.monotonic() < deadline


def test_a_farm_that_is_back_at_another_place_is_found_again(place):
    (place / "second").mkdir(mode=0o700)
    first = LocalBroker(place, epoch=1)
    found = [first.access]
    epochs: list[int] = []
    with Monitor(lambda: found[0]) as monitor:
        monitor.follow(
            lambda message: epochs.append(message.farm.epoch) if isinstance(message, FarmNote) else None
        )
        turn_until(monitor, lambda: 1 in epochs)
        first.close()
        second = LocalBroker(place / "second", epoch=2)
        try:
            found[0] = second.access
            monitor.reopen()
            turn_until(monitor, lambda: 2 in epochs)
            assert monitor.address == second.access.address
        finally:
            second.close()


def test_a_farm_that_is_not_back_yet_keeps_its_place(broker):
    found: list[Access] = [broker.access]

    with Monitor(lambda: found.pop() if found else find_nothing()) as monitor:
        monitor.reopen()
        assert str(monitor.trouble) == "no farm"
        turn_until(monitor, lambda: monitor.trouble is None)  # it answers all the same


def find_nothing() -> Access:
    raise ConfigurationError("no farm")


# ---------------------------------------------------------------- which farm is meant


@pytest.fixture
def _nowhere(monkeypatch, tmp_path):
    for name in ("ZFARM_ADDRESS", "ZFARM_CONNECTION_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(monitors, "list_local_farms", list)


def connection_file(path: Path, port: int = 5555, pid: int | None = None) -> Path:
    connection = new_connection(
        "farm", plan([f"tcp://127.0.0.1:{port}"], {}, None), port + 4, ServerKeys.fresh()
    )
    write_connection(path, replace(connection, pid=os.getpid() if pid is None else pid))
    return path


@pytest.mark.usefixtures("_nowhere")
def test_without_any_farm_the_error_says_what_to_name():
    with pytest.raises(ConfigurationError, match=r"no farm runs on this host.*ZFARM_ADDRESS"):
        find_farm()


@pytest.mark.usefixtures("_nowhere")
def test_argument_then_connection_then_environment(monkeypatch, tmp_path):
    one, two, three = (connection_file(tmp_path / f"{n}.json", 5000 + n) for n in (1, 2, 3))
    monkeypatch.setenv("ZFARM_ADDRESS", str(one))
    monkeypatch.setenv("ZFARM_CONNECTION_FILE", str(three))

    assert find_farm(str(two)).farm_address == "tcp://127.0.0.1:5002"
    assert find_farm(None, two).farm_address == "tcp://127.0.0.1:5002"
    assert find_farm().farm_address == "tcp://127.0.0.1:5001"
    assert find_farm("tcp://127.0.0.1:9999").notes_address == "tcp://127.0.0.1:5007"  # keys of the third
    monkeypatch.delenv("ZFARM_ADDRESS")
    assert find_farm().farm_address == "tcp://127.0.0.1:5003"


@pytest.mark.usefixtures("_nowhere")
def test_the_only_embedded_farm_is_meant_and_two_are_listed(monkeypatch):
    from zfarm.edge.places import LocalFarm

    farms = [LocalFarm("ipc:///a/broker", "ipc:///a/notes", 10, 11, 1.0, "fit.py")]
    monkeypatch.setattr(monitors, "list_local_farms", lambda: farms)
    assert find_farm() == Access("ipc:///a/broker", "ipc:///a/notes", name="fit.py")

    farms.append(LocalFarm("ipc:///b/broker", "ipc:///b/notes", 20, 21, 2.0))
    with pytest.raises(ConfigurationError) as caught:
        find_farm()
    assert "ipc:///a/broker  (embedded in fit.py, process 11)" in str(caught.value)
    assert "ipc:///b/broker  (embedded in a program, process 21)" in str(caught.value)


@pytest.mark.usefixtures("_nowhere")
def test_the_only_broker_of_this_host_is_meant_unless_it_is_gone(tmp_path):
    path = connection_file(tmp_path / "zfarm" / "connections" / "default.json")
    connection_file(tmp_path / "zfarm" / "connections" / "old.json", 7000, pid=2**22 + 1)

    access = find_farm()

    assert access.farm_address == "tcp://127.0.0.1:5555"
    assert access.keys is not None
    assert socket.gethostname()
    path.unlink()
    with pytest.raises(ConfigurationError, match="no farm runs"):
        find_farm()
