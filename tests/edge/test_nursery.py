"""The nursery and the worlds of its children: where it runs, what it survives, and what it cannot do."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.edge.rig import Rig
from tests.edge.test_children import gone
from zfarm.edge import nursery, wire
from zfarm.edge.nursery import Failed
from zfarm.errors import ProtocolError
from zfarm.messages import BROKEN, Setup


def number(n):
    return n


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def use_helper():
    import a_helper_of_this_test  # type: ignore[import-not-found]

    return a_helper_of_this_test.value, os.getcwd()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_do_not_end_the_nursery(signum):
    with Rig() as rig:
        rig.call(number, 1)
        os.kill(rig.nursery.pid, signum)
        rig.send((number, 2), child=2)
        assert rig.outcome(1, child=2) == (2, None)
        assert rig.call(number, 3) == 3


def test_a_child_is_killed_at_its_time_unless_that_is_put_off():
    with Rig() as rig:
        assert rig.call(number, 1) == 1
        rig.send((number, 2), child=2)
        assert rig.outcome(1, child=2) == (2, None)
        soon = time.monotonic() + 0.1
        for child in (1, 2):
            rig.nursery.doom(child, soon)
        rig.nursery.doom(2, None)
        rig.until(lambda: 1 in rig.deaths)
        assert time.monotonic() >= soon
        assert rig.deaths[1][1] == signal.SIGKILL
        assert rig.left[1].doomed
        rig.send((number, 3), child=2)
        assert rig.outcome(2, child=2) == (3, None), "it was let live"
        rig.send((die,), child=2)
        rig.until(lambda: 2 in rig.deaths)
        assert not rig.left[2].doomed


def test_it_works_without_what_only_linux_has(monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(nursery, "_CAN_PEEK", False)
    with Rig() as rig:
        assert rig.call(number, 1) == 1
        (seq,) = rig.send((die,))
        rig.until(lambda: rig.deaths)
        assert rig.deaths[1][:2] == (seq, signal.SIGKILL)


def leave_behind(path):
    """Start processes in a session of their own: one that is left behind, and two that end for nothing less
    than a kill."""
    script = f"sleep 1000 & echo $! >> {path}; trap '' TERM; echo $$ >> {path}; sleep 1000; :"
    script = f"setsid sh -c {shlex.quote(script)} &"
    subprocess.run(["sh", "-c", script], check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def left_behind(path):
    pids = path.read_text().split() if path.exists() else []
    return list(map(int, pids)) if len(pids) == 2 else []


@pytest.mark.skipif(sys.platform != "linux", reason="other systems give orphans to the first process of all")
def test_what_calls_have_left_behind_in_sessions_of_their_own_ends_with_the_nursery(tmp_path):
    path = tmp_path / "pids"
    with Rig() as rig:
        rig.call(leave_behind, str(path))
        rig.until(lambda: left_behind(path))
        rig.send((die,))
        rig.until(lambda: rig.deaths)
        pids = left_behind(path)
        assert not any(map(gone, pids)), "their child's death is not theirs"
    assert all(map(gone, pids))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems give orphans to the first process of all")
def test_what_calls_have_left_behind_is_buried_when_it_ends(tmp_path):
    path = tmp_path / "pids"
    with Rig() as rig:
        rig.call(leave_behind, str(path))
        rig.until(lambda: left_behind(path))
        for pid in left_behind(path):
            os.kill(pid, signal.SIGKILL)
        rig.until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in left_behind(path)))
        assert rig.call(number, 1) == 1


def test_a_child_that_has_no_descriptors_is_told_as_unborn(monkeypatch):
    def refuse(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with Rig() as rig:
        monkeypatch.setattr(socket, "socketpair", refuse)
        rig.children.start(1)
        monkeypatch.undo()
        rig.until(lambda: rig.unborn)
        assert rig.unborn[1].startswith("could not be started: Too many open files (raise the limit")
        rig.send((number, 2), child=2)
        assert rig.outcome(1, child=2) == (2, None)


def test_a_fork_that_fails_is_told_as_a_child_unborn():
    with Rig() as rig:
        rig.call(number, 1)
        rig.children._note(Failed(1, errno.EAGAIN))
        assert rig.unborn[1].startswith(f"could not be started: {os.strerror(errno.EAGAIN)}")
        assert not rig.deaths


def test_a_setup_that_is_none_breaks_the_calls():
    with Rig() as rig:
        rig.setup = b"garbage"
        (seq,) = rig.send((number, 1))
        _, error = rig.outcome(seq)
        assert rig.outcomes[1, seq][0].kind == BROKEN
        assert isinstance(error, ProtocolError)


def test_directory_and_path_follow_the_client(tmp_path):
    (tmp_path / "a_helper_of_this_test.py").write_text("value = 7\n")
    with Rig() as rig:
        with pytest.raises(ModuleNotFoundError, match="a_helper_of_this_test"):
            rig.call(use_helper)
        setup = wire.decode_setup(rig.setup)
        rig.change_setup(
            Setup(setup.realm, str(tmp_path), (*sys.path, str(tmp_path)), setup.prefix, setup.host)
        )
        assert rig.call(use_helper) == (7, str(tmp_path))


def test_on_another_host_only_what_exists_is_added(tmp_path):
    here = os.getcwd()
    with Rig() as rig:
        rig.setup = wire.encode_setup(
            Setup("realm", "/not/there", ("/not/there", str(tmp_path)), "/other/python", "elsewhere")
        )
        path, cwd = rig.call(look)
        assert path[: len(sys.path)] == sys.path
        assert path[len(sys.path) :] == [str(tmp_path)]
        assert cwd == here


def look():
    return list(sys.path), os.getcwd()
