"""Handles of files wherever a call may have them, on a farm of this program alone, which leaves nothing."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zfarm
from zfarm import fetching
from zfarm.edge.beside import parts_name
from zfarm.edge.landing import Landing
from zfarm.edge.scratch import scratch_root
from zfarm.handles import FileHandle


@pytest.fixture
def farm() -> Iterator[zfarm.Executor]:
    with zfarm.Executor(max_workers=2) as farm:
        yield farm


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.csv"
    path.write_text("1,2,3")
    return path


def text(path: os.PathLike[str]) -> str:
    return Path(path).read_text()


def test_a_handle_may_stand_anywhere_in_the_arguments(farm: zfarm.Executor, data: Path) -> None:
    handle = farm.put(data)

    def deep(found: dict[str, list[FileHandle]], *, more: FileHandle) -> tuple[str, str]:
        return text(found["here"][0]), text(more)

    assert farm.submit(deep, {"here": [handle]}, more=handle).result(60) == ("1,2,3", "1,2,3")


def test_what_a_function_holds_it_has_at_every_call(farm: zfarm.Executor, data: Path) -> None:
    handle = farm.put(data)

    def closure() -> str:
        return text(handle)

    assert [farm.submit(closure).result(60) for _ in range(2)] == ["1,2,3"] * 2
    assert list(farm.map(lambda n: text(handle) * n, [1, 2])) == ["1,2,3", "1,2,31,2,3"]


def test_a_map_over_files_reads_each_of_them(farm: zfarm.Executor, tmp_path: Path) -> None:
    paths = [tmp_path / str(n) for n in range(30)]
    for n, path in enumerate(paths):
        path.write_text(f"file {n}")

    assert list(farm.map(text, map(farm.put, paths))) == [f"file {n}" for n in range(30)]


def test_a_task_may_hand_its_files_to_calls_of_its_own(farm: zfarm.Executor, data: Path) -> None:
    def outer(handle: FileHandle) -> str:
        return zfarm.current_farm().submit(text, handle).result()

    assert farm.submit(outer, farm.put(data)).result(60) == "1,2,3"


def test_a_task_cannot_spoil_the_original(farm: zfarm.Executor, data: Path) -> None:
    def spoil(handle: FileHandle) -> str:
        path = Path(handle)
        path.chmod(0o600)
        path.write_text("spoiled")
        return str(path)

    assert farm.submit(spoil, farm.put(data)).result(60) != str(data)
    assert data.read_text() == "1,2,3"


def test_a_handle_is_its_content(farm: zfarm.Executor, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("1,2,3")
    one, two = farm.put(data), farm.put(other)

    assert one == two
    assert len({one, two}) == 1
    assert (one.name, one.size, one.is_directory) == ("data.csv", 5, False)
    assert os.fspath(one) == str(data)
    assert one.digest == two.digest
    copy = pickle.loads(pickle.dumps(one))
    assert copy == one
    with pytest.raises(zfarm.TransferError, match="hand its handle to the task as an argument"):
        os.fspath(copy)


def test_pickling_a_handle_elsewhere_costs_other_calls_nothing(farm: zfarm.Executor, data: Path) -> None:
    pickle.dumps(farm.put(data))
    future = farm.submit(pow, 2, 5)

    assert future._terms is None
    assert future.result(60) == 32


def test_what_was_put_is_written_elsewhere_whole_or_not_at_all(
    farm: zfarm.Executor, data: Path, tmp_path: Path
) -> None:
    handle = farm.put(data)
    data.chmod(0o640)

    assert farm.get(farm.put(data), tmp_path / "a" / "copy").read_text() == "1,2,3"
    (tmp_path / "folder").mkdir()
    with pytest.raises(zfarm.TransferError, match="no regular file: it is not replaced"):
        farm.get(handle, tmp_path / "folder")
    data.write_text("other")
    with pytest.raises(zfarm.TransferError, match="has changed since it was put"):
        farm.get(handle, tmp_path / "b")
    assert sorted(os.listdir(tmp_path)) == ["a", "data.csv", "folder"]


@pytest.mark.parametrize(("path", "why"), [("", "empty"), ("a\0b", "NUL"), ("a\ud800", "not valid Unicode")])
def test_what_can_be_no_path_is_refused_by_name(
    farm: zfarm.Executor, data: Path, path: str, why: str
) -> None:
    with pytest.raises(zfarm.UnsafeName, match=why):
        farm.put(path)
    with pytest.raises(zfarm.UnsafeName, match=why):
        farm.get(farm.put(data), path)
    with pytest.raises(zfarm.UnsafeName, match=why):
        farm.options(files={"data": path})
    files = farm.submit(zfarm.send_file, str(data)).files
    with pytest.raises(zfarm.UnsafeName, match=why):
        files.into(path)

    assert [file.name for file in files.wait(60)] == ["data.csv"], "as if it had not been said"
    with pytest.raises(TypeError, match="fsdecode"):
        farm.put(os.fsencode(data))  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["copy_content", "build_tree"])
def test_files_that_arrive_beside_what_is_written_do_not_disturb_it(
    farm: zfarm.Executor, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    home = tmp_path / "home"
    write = getattr(fetching, what)

    def disturbed(*args: Any, **options: Any) -> Any:
        Landing(home).finish()  # which removes what nobody is at
        assert [path.is_dir() for path in home.iterdir()] == [True], "a killed program's could not be told"
        return write(*args, **options)

    monkeypatch.setattr(fetching, what, disturbed)
    (tmp_path / "folder").mkdir(mode=0o555)
    farm.get(farm.put(data if what == "copy_content" else tmp_path / "folder"), home / "copy")

    assert os.listdir(home) == ["copy"]
    assert home.joinpath("copy").stat().st_mode & 0o777 == (0o644 if what == "copy_content" else 0o555)


def test_what_a_killed_program_had_half_written_goes_and_what_it_had_fetched_stays(
    farm: zfarm.Executor, data: Path, tmp_path: Path
) -> None:
    half, fetched = (tmp_path / "home" / parts_name(digits) for digits in ("01" * 8, "01" * 12))
    for folder in (half, fetched):
        folder.mkdir(parents=True)
        (folder / "whole").write_bytes(b"half")
    farm.get(farm.put(data), half.parent / "copy")

    assert sorted(os.listdir(half.parent)) == [fetched.name, "copy"]


@pytest.mark.parametrize("name", ["../x", "/x", "a/../x", "", "nul\0"])
def test_files_are_placed_under_safe_names_only(farm: zfarm.Executor, data: Path, name: str) -> None:
    with pytest.raises(zfarm.UnsafeName):
        farm.options(files={name: data})


def test_options_that_cannot_be_are_told(farm: zfarm.Executor, data: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="mapping of names"):
        farm.options(files=[data])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scratch must be"):
        farm.options(scratch="here")  # type: ignore[arg-type]
    with pytest.raises(zfarm.TransferError, match="No such file"):
        farm.put(tmp_path / "none")
    with pytest.raises(zfarm.UnsafeName, match="clashes"):
        farm.options(files={"data": data, "DATA": data})


def test_each_item_of_a_map_has_a_directory_of_its_own(farm: zfarm.Executor, data: Path) -> None:
    def work(n: int) -> tuple[str, str]:
        here = Path("data.csv")
        found = here.read_text()
        here.write_text(str(n))
        return str(zfarm.scratch()), found

    view = farm.options(files={"data.csv": data}, scratch="cwd")
    found = list(view.map(work, range(6)))

    assert len({where for where, _ in found}) == 6
    assert {text for _, text in found} == {"1,2,3"}


def test_a_farm_that_has_gone_leaves_no_file(data: Path) -> None:
    with zfarm.Executor(max_workers=1) as farm:
        stored = farm.submit(os.fspath, farm.put(data)).result(60)
        assert Path(stored).is_relative_to(scratch_root())

    assert not os.path.lexists(stored)
