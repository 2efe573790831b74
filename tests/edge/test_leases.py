"""Who has a file open or mapped, as leases tell it: noticed of every process, and only of others."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zfarm.edge import segments
from zfarm.edge.leases import is_at_rest, memory_file
from zfarm.edge.segments import leases_tell

SIZE = 5000


@pytest.mark.skipif(not hasattr(fcntl, "F_SETLEASE"), reason="the system does not say")
def test_a_file_is_at_rest_when_nobody_else_has_it_open(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * SIZE)
    fd = os.open(path, os.O_RDONLY)
    found = [is_at_rest(fd)]
    with path.open("r+b") as writer:
        found.append(is_at_rest(fd))
        area = mmap.mmap(writer.fileno(), SIZE)
    found.append(is_at_rest(fd))  # what is mapped can be written to
    area.close()
    with path.open("rb"):  # and what is read be cut off under its reader
        found.append(is_at_rest(fd))
    found.append(is_at_rest(fd))
    os.close(fd)

    assert found == [True, False, False, False, True]


@pytest.fixture
def memory() -> Iterator[int]:
    if not (segments.POSSIBLE and leases_tell()):
        pytest.skip("this system does not tell")
    fd = memory_file("zfarm-test")
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


@pytest.fixture
def untried() -> Iterator[None]:
    leases_tell.cache_clear()
    yield
    leases_tell.cache_clear()


@pytest.mark.parametrize("way", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_memory_is_not_at_rest_while_anybody_has_it_open(memory: int, way: int) -> None:
    assert is_at_rest(memory)
    others = [os.open(f"/proc/self/fd/{memory}", way) for _ in range(2)]
    for other in others:
        assert not is_at_rest(memory)
        os.close(other)

    assert is_at_rest(memory)


def test_what_is_mapped_is_noticed_in_a_process_that_was_killed_until_it_is_gone(memory: int) -> None:
    other = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY)
    address = segments.place_area(other, SIZE, segments.PRIVATE, mmap.PROT_READ)
    os.close(other)
    gate, go = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(go)
        os.read(gate, 1)
        os._exit(0)
    segments.unmap(address, SIZE)
    assert not is_at_rest(memory), "it has inherited a mapping and no descriptor"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(gate)
    os.close(go)

    assert is_at_rest(memory)


def test_what_is_our_own_counts_as_ours(memory: int) -> None:
    copy = os.dup(memory)
    area = segments.map_area(memory, SIZE, mmap.MAP_SHARED, mmap.PROT_READ)

    assert is_at_rest(memory)
    os.close(copy)
    del area


@pytest.mark.usefixtures("untried")
def test_a_system_that_refuses_leases_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, command: int, argument: Any = 0) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(fcntl, "fcntl", refuse)

    assert not leases_tell()


@pytest.mark.usefixtures("untried")
def test_a_system_that_gives_leases_to_everybody_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "fcntl", lambda fd, command, argument=0: 0)

    assert not leases_tell()


@pytest.mark.usefixtures("untried")
def test_a_system_without_leases_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(fcntl, "F_SETLEASE", raising=False)

    assert not leases_tell()


@pytest.mark.skipif(not segments.POSSIBLE, reason="no memfd and /proc here")
@pytest.mark.usefixtures("untried")
def test_to_try_leaves_nothing_open() -> None:
    before = os.listdir("/proc/self/fd")
    leases_tell()

    assert os.listdir("/proc/self/fd") == before
