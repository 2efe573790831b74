"""Places: directories are private or refused, farms are found while they live and swept when dead."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from zfarm.edge import places
from zfarm.edge.places import (
    claim_socket,
    list_local_farms,
    new_place,
    private_directory,
    runtime_directory,
    sweep,
)
from zfarm.errors import ConfigurationError


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of this test's own."""
    path = Path(tempfile.mkdtemp(prefix="r"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    yield path
    shutil.rmtree(path)


# ---------------------------------------------------------------- directories


def test_the_runtime_directory_is_private_and_made_once(run: Path) -> None:
    before = os.umask(0)
    try:
        assert runtime_directory() == run / "zfarm" == runtime_directory()
    finally:
        os.umask(before)
    assert (run / "zfarm").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("given", ["", "relative", "/nowhere/at/all"])
def test_without_a_good_xdg_runtime_dir_there_is_one_in_tmp(
    run: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    checked: list[Path] = []

    def check(path: Path, create: bool = False) -> Path:
        if path.is_relative_to("/nowhere"):
            raise ConfigurationError("there is no such directory")
        checked.append(path)
        return path

    monkeypatch.setenv("XDG_RUNTIME_DIR", given)
    monkeypatch.setattr(places, "private_directory", check)  # /tmp itself is not for tests
    assert [runtime_directory()] == [Path(f"/tmp/zfarm-{os.geteuid()}")] == checked


def test_an_open_xdg_runtime_dir_is_not_used(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run.chmod(0o755)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(run))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert runtime_directory() == run / f"zfarm-{os.geteuid()}"
    assert not (run / "zfarm").exists()


def test_a_place_that_somebody_else_prepared_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = run / "theirs"
    target.mkdir(mode=0o700)
    (run / "link").symlink_to(target)
    with pytest.raises(ConfigurationError, match="symbolic link"):
        private_directory(run / "link", create=True)
    (run / "file").write_text("")
    with pytest.raises(ConfigurationError, match="no directory"):
        private_directory(run / "file", create=True)
    for mode in (0o750, 0o705, 0o777):
        target.chmod(mode)
        with pytest.raises(ConfigurationError, match=f"chmod 700 {target}"):
            private_directory(target, create=True)
    target.chmod(0o700)
    with pytest.raises(ConfigurationError, match="cannot use"):
        private_directory(run / "missing")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigurationError, match="belongs to user"):
        private_directory(target)


# ---------------------------------------------------------------- farms


def test_a_farm_is_found_while_it_lives_and_gone_after(run: Path) -> None:
    place = new_place()
    assert place.directory.parent == run / "zfarm"
    assert len(place.address) < 90
    assert list_local_farms() == []  # it has not described itself yet
    place.describe(pid=os.getpid(), client_pid=1, program="demo.py")
    (farm,) = list_local_farms()
    assert (farm.pid, farm.client_pid, farm.program) == (os.getpid(), 1, "demo.py")
    assert (farm.address, farm.notes_address) == (place.address, place.notes_address)
    assert farm.directory == str(place.directory)
    assert sweep() == []
    place.remove()
    place.remove()
    assert list_local_farms() == []
    assert list((run / "zfarm").iterdir()) == []


HOLD = """
import sys
from zfarm.edge.places import new_place
place = new_place()
place.describe(1, 2)
print(place.directory, flush=True)
sys.stdin.read()
"""


def holder() -> tuple[subprocess.Popen[str], Path]:
    """A process that holds a place, and the directory of that."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=20)


def test_the_place_of_a_killed_process_is_swept_and_that_of_a_living_one_is_not(run: Path) -> None:
    living, living_directory = holder()
    killed, killed_directory = holder()
    assert {farm.directory for farm in list_local_farms()} == {str(living_directory), str(killed_directory)}
    end(killed)
    assert [farm.directory for farm in list_local_farms()] == [str(living_directory)]
    assert killed_directory.exists()
    place = new_place()  # sweeps on its way
    assert not killed_directory.exists()
    assert living_directory.exists()
    place.remove()
    end(living)
    assert sweep() == [living_directory]


def test_a_place_can_be_handed_to_another_process(run: Path) -> None:
    place = new_place()
    heir = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[place.lock_fd],
        text=True,
    )
    place.describe(heir.pid, os.getpid())
    place.release()
    assert sweep() == []
    assert len(list_local_farms()) == 1
    end(heir)
    assert list_local_farms() == []
    assert sweep() == [place.directory]


def test_many_who_make_and_sweep_at_once_never_lose_a_living_place(run: Path) -> None:
    problems: list[str] = []

    def make_many() -> None:
        for _ in range(60):
            place = new_place()
            place.describe(1, 2)
            if not (place.directory / "farm.json").exists():
                problems.append(f"{place.directory} was swept")
            list_local_farms()
            place.remove()

    runtime_directory()
    threads = [threading.Thread(target=make_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    sweep()
    assert list((run / "zfarm").iterdir()) == []


def test_a_sweep_leaves_alone_what_is_no_directory_of_ours(run: Path) -> None:
    parent = runtime_directory()
    outside = run / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (parent / "link").symlink_to(outside)
    (parent / "file").write_text("x")
    assert sweep() == []
    assert (outside / "precious").exists()
    assert (parent / "file").exists()


# ---------------------------------------------------------------- sockets


CLAIM_AND_DIE = """
import os, sys
from pathlib import Path
from zfarm.edge.places import claim_socket
claim = claim_socket(Path(sys.argv[1]))
os._exit(0)
"""


def test_a_claim_is_held_by_one_and_free_when_its_process_dies(run: Path) -> None:
    path = run / "broker"
    claim = claim_socket(path)
    with pytest.raises(ConfigurationError, match="another process listens"):
        claim_socket(path)
    claim.release()
    claim.release()
    assert list(run.iterdir()) == []
    subprocess.run([sys.executable, "-c", CLAIM_AND_DIE, str(path)], check=True, timeout=60)
    assert path.with_name("broker.lock").exists()
    claim_socket(path).release()


def test_claims_in_a_race_are_given_to_one_at_a_time(run: Path) -> None:
    path = run / "broker"
    held = [0]
    most = [0]
    rounds = [0]

    def claim_many() -> None:
        while rounds[0] < 300:
            try:
                claim = claim_socket(path)
            except ConfigurationError:
                continue
            held[0] += 1
            most[0] = max(most[0], held[0])
            held[0] -= 1
            rounds[0] += 1
            claim.release()

    threads = [threading.Thread(target=claim_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
