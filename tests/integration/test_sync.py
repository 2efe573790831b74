"""Code that is shipped to real workers: a snapshot, moved by content, isolated by client, never stale."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import zfarm
from tests.face.processes import ROOT, TcpFarm
from zfarm.checkup import examine
from zfarm.likeness import Difference, look_here

pytestmark = pytest.mark.timeout(120)

FILES = 40


def write_project(top: Path, version: int) -> Path:
    """A package of many modules, with data beside them, and what does not belong to it."""
    package = top / "shipped_parts"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "deep" / "__init__.py").write_text("")
    for n in range(FILES):
        (package / "deep" / f"part{n}.py").write_text(f"VALUE = {n}\n# {'x' * 1000}\n")
    (package / "version.py").write_text(f"VERSION = {version}\n")
    (package / "table.csv").write_text("1,2,3\n")
    (package / "main.py").write_text(
        "import importlib, os, sys\n"
        "from pathlib import Path\n"
        "from shipped_parts import version\n"
        "STATE = []\n"
        "def run():\n"
        f"    names = [f'shipped_parts.deep.part{{n}}' for n in range({FILES})]\n"
        "    parts = [importlib.import_module(name).VALUE for name in names]\n"
        "    STATE.append(1)\n"
        "    table = Path(__file__).with_name('table.csv').read_text()\n"
        "    return sum(parts), table, version.VERSION, len(STATE), os.getpid()\n"
        "def where():\n"
        "    return __file__, os.getcwd(), sorted(os.listdir())\n"
        "def write():\n"
        "    Path('written.txt').write_text('by a call')\n"
        "    return os.listdir()\n"
        "def nest():\n"
        "    import zfarm\n"
        "    with zfarm.current_farm() as farm:\n"
        "        return farm.submit(run).result()[:3]\n"
    )
    (top / ".gitignore").write_text("secret.txt\n*.log\n")
    (top / "secret.txt").write_text("not for others")
    (top / "run.log").write_text("of yesterday")
    (top / "notes.txt").write_text("for all")
    (top / ".venv" / "lib").mkdir(parents=True)
    return top


EXPECTED = (sum(range(FILES)), "1,2,3\n")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project in its own directory, which is ours and on our path."""
    top = write_project(tmp_path / "project", 1)
    monkeypatch.chdir(top)
    monkeypatch.syspath_prepend(str(top))
    yield top
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "shipped_parts"]:
        del sys.modules[name]
    importlib.invalidate_caches()


def call(name: str) -> Callable[[], Any]:
    """A function of the project."""
    found: Callable[[], Any] = getattr(importlib.import_module("shipped_parts.main"), name)
    return found


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """To all workers this is another host."""
    monkeypatch.setattr("zfarm.edge.setups.platform.node", lambda: "elsewhere")


@pytest.fixture
def worker(farm: TcpFarm, tmp_path: Path) -> Iterator[TcpFarm]:
    """A farm with a worker that leaves nothing behind, since it ends in peace."""
    farm.start_broker()
    farm.variables = {"ZFARM_STORE": str(tmp_path / "store")}
    started = farm.start_worker(2)
    farm.wait_slots(2)
    yield farm
    os.kill(started.pid, signal.SIGTERM)
    assert started.wait() == 0


def given(farm: zfarm.Executor) -> int:
    """Bytes of files that this client has sent so far."""
    giver = farm._link._giver
    return 0 if giver is None else giver.given_bytes


@pytest.mark.usefixtures("far")
def test_a_worker_elsewhere_runs_a_project_and_an_edit_moves_one_file(worker: TcpFarm, project: Path) -> None:
    run = call("run")
    with zfarm.Executor(worker.connection) as client:
        taken = client.sync()
        os.rename(project, project.with_name("away"))  # what runs is what was taken
        first = client.submit(run).result(60)
        assert first[:3] == (*EXPECTED, 1)
        assert "notes.txt" in taken.changed
        assert not {"secret.txt", "run.log"} & set(taken.changed)
        assert taken.files == len(taken.changed) == FILES + 7
        os.rename(project.with_name("away"), project)
        before = given(client)
        assert before > taken.bytes

        (project / "shipped_parts" / "version.py").write_text("VERSION = 2  # edited\n")
        assert client.submit(run).result(60)[2] == 1
        again = client.sync()
        assert again.changed == ("shipped_parts/version.py",)
        results = [client.submit(run) for _ in range(20)]
        results.append(client.options(priority=1).submit(run))
        ended = [future.result(60) for future in results]
        assert {result[:3] for result in ended} == {(*EXPECTED, 2)}
        assert first[4] not in {result[4] for result in ended}  # no child that has seen the old code
        moved = given(client) - before
        manifest = farm_manifest_size(client)
        assert moved == len("VERSION = 2  # edited\n") + manifest
        assert list(client.map(call_version, range(8))) == [2] * 8
        assert client.submit(call("nest")).result(60) == (*EXPECTED, 2)


def call_version(_n: int) -> int:
    """In a child: the version of the project there."""
    version: int = importlib.import_module("shipped_parts.version").VERSION
    return version


def farm_manifest_size(client: zfarm.Executor) -> int:
    shipped = client._link.shipped
    assert shipped is not None
    return list(shipped._handles)[-1].size


def test_two_versions_live_side_by_side(worker: TcpFarm, project: Path, tmp_path: Path) -> None:
    other = write_project(tmp_path / "other", 7)
    run = call("run")
    with zfarm.Executor(worker.connection) as one, zfarm.Executor(worker.connection) as two:
        one.sync(project)
        two.sync(other)
        pairs = [(one.submit(run), two.submit(run)) for _ in range(10)]
        results = [(a.result(60), b.result(60)) for a, b in pairs]
    assert {a[:3] for a, _ in results} == {(*EXPECTED, 1)}
    assert {b[:3] for _, b in results} == {(*EXPECTED, 7)}
    assert not {a[4] for a, _ in results} & {b[4] for _, b in results}


def test_on_one_host_it_is_a_snapshot_too_and_calls_write_elsewhere(project: Path) -> None:
    with zfarm.Executor(max_workers=2) as farm:
        live = farm.submit(call("where")).result(30)
        assert live[:2] == (str(project / "shipped_parts" / "main.py"), str(project))
        farm.sync(".", exclude=["notes.txt"])
        path, cwd, listed = farm.submit(call("where")).result(30)
        assert not path.startswith(str(project))
        assert cwd != str(project)
        assert listed == [".gitignore", "shipped_parts"]
        (project / "shipped_parts" / "version.py").write_text("VERSION = 5\n")
        assert farm.submit(call("run")).result(30)[2] == 1
        assert "written.txt" in farm.submit(call("write")).result(30)
        assert not (project / "written.txt").exists()
        assert not (Path(path).parents[1] / "written.txt").exists()
        assert not list(Path(path).parents[1].rglob("__pycache__"))


def test_a_module_that_was_left_behind_is_told_with_the_remedy(project: Path) -> None:
    """Found by one who was told to sync what he had synced."""
    (project / "shipped_parts" / "left.py").write_text("def run():\n    return 1\n")
    (project / ".gitignore").write_text("left.py\n")
    left = importlib.import_module("shipped_parts.left").run
    with zfarm.Executor(max_workers=1) as farm:
        farm.sync()
        inside = farm.submit(importlib.import_module, "shipped_parts.left").exception(30)
        assert isinstance(inside, ModuleNotFoundError)
        with pytest.raises(zfarm.ModuleMissing) as caught:
            farm.submit(left).result(30)

    for text in (*inside.__notes__, str(caught.value)):
        assert "not in what farm.sync() has shipped" in text
        assert "see whether a .gitignore leaves it out" in text


@pytest.mark.usefixtures("far")
def test_a_checkup_tells_what_code_is_not_the_same_there(
    farm: TcpFarm, project: Path, tmp_path: Path
) -> None:
    stale = write_project(tmp_path / "stale", 0) / "shipped_parts"
    (stale / "main.py").unlink()
    (project / "fresh_tool.py").write_text("")
    (project / ".gitignore").write_text("fresh_tool.py")
    farm.start_broker()
    farm.variables = {
        "ZFARM_STORE": str(tmp_path / "store"),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{stale.parent}",
    }
    started = farm.start_worker(1)
    farm.wait_slots(1)
    with zfarm.Executor(farm.connection) as client:
        live = examine(client, 30, look_here())
        assert live.workers[0].code == [
            Difference(
                "shipped_parts", str(stale), ["shipped_parts/version.py"], [], ["shipped_parts/main.py"]
            )
        ]
        assert "code" in {finding.code for finding in live.findings}
        client.sync()
        assert examine(client, 30, look_here()).workers[0].code == [
            Difference("fresh_tool")
        ]  # git ignores it
        (project / "shipped_parts" / "version.py").write_text("VERSION = 2\n")
        edited = examine(client, 30, look_here())
        assert edited.workers[0].code is not None
        assert [one.changed for one in edited.workers[0].code] == [[], ["shipped_parts/version.py"]]
        assert all("again" in one.text for one in edited.findings if one.code.startswith("code"))
    os.kill(started.pid, signal.SIGTERM)
    assert started.wait() == 0


def test_links_and_modes_that_change_are_changes_too(project: Path) -> None:
    with zfarm.Executor(max_workers=1) as farm:
        first = farm.sync(project)
        (project / "link").symlink_to("shipped_parts/version.py")
        (project / "shipped_parts" / "version.py").chmod(0o755)
        (project / "folder").mkdir()
        changed = farm.sync(project)

        assert changed.digest != first.digest
        assert changed.changed == ("link", "shipped_parts/version.py")
        assert farm.sync(project).changed == ()


def test_a_package_is_shipped_by_its_module_or_its_directory(project: Path, tmp_path: Path) -> None:
    main = importlib.import_module("shipped_parts")
    with zfarm.Executor(max_workers=1) as farm:
        first = farm.sync(main)
        assert farm.sync(project / "shipped_parts").digest == first.digest
        assert "shipped_parts/version.py" in first.changed
        path, cwd, listed = farm.submit(call("where")).result(30)
        assert not path.startswith(str(project))
        assert listed == ["shipped_parts"]
        assert cwd != str(project)
        with pytest.raises(zfarm.TransferError, match="no package"):
            farm.sync(os)
        with pytest.raises(zfarm.TransferError, match="is no directory"):
            farm.sync(tmp_path / "none")


def test_a_source_directory_within_the_project_is_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_project(tmp_path / "project" / "src", 3)
    library = tmp_path / "project" / "env" / "lib"
    library.mkdir(parents=True)
    (tmp_path / "project" / "env" / "pyvenv.cfg").write_text("")
    (library / "installed_thing.py").write_text("HERE = __file__\n")
    for entry in (library, tmp_path / "project" / "src"):
        monkeypatch.syspath_prepend(str(entry))
    try:
        with zfarm.Executor(max_workers=1) as farm:
            farm.sync(tmp_path / "project")
            assert farm.submit(call("run")).result(30)[2] == 3
            assert not farm.submit(call("where")).result(30)[0].startswith(str(tmp_path / "project"))
            assert farm.submit(installed).result(30) == str(library / "installed_thing.py")
    finally:
        forget()


def installed() -> str:
    """In a child: where a library comes from that is within the project, and no part of it."""
    found: str = importlib.import_module("installed_thing").HERE
    return found


def test_an_initializer_finds_what_was_shipped_before(worker: TcpFarm, project: Path) -> None:
    with zfarm.Executor(worker.connection, initializer=call("run")) as client:
        client.sync(project)
        assert client.submit(call("run")).result(60)[3] == 2
