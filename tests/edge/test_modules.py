"""What of a module's code a process would import, without importing it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import pytest

from zfarm.edge.modules import Module, importing_from, look_at_modules, modules_of


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A directory with modules that must not be imported, and with what is none."""
    modules = "mod_of_zf.py pack_of_zf/__init__.py pack_of_zf/deep/part.py src/sub_of_zf/__init__.py".split()
    others = "setup.py conftest.py no-name.py __main__.py loose/part.py text.txt json.py".split()
    others += ["pack_of_zf/__pycache__/x.py", "pack_of_zf/table.csv"]
    for name in (*modules, *others):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise SystemExit('imported')\n" if name in modules else "")
    return tmp_path


def look(*names: str) -> dict[str, Module]:
    return msgspec.convert(look_at_modules(names), dict[str, Module])


def test_the_modules_of_a_directory_are_those_that_a_program_there_would_import(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = list(sys.path)
    assert modules_of(str(top)) == ["mod_of_zf", "pack_of_zf"]  # json is loaded from elsewhere
    assert sys.path == before
    monkeypatch.syspath_prepend(str(top / "src"))  # as an editable installation has it
    assert modules_of(str(top)) == ["mod_of_zf", "pack_of_zf", "sub_of_zf"]
    assert modules_of(str(top / "none")) == []


def test_a_module_is_its_source_files(top: Path) -> None:
    with importing_from(str(top)):
        found = look("mod_of_zf", "pack_of_zf", "none_of_zf", "sys")
    assert set(found) == {"mod_of_zf", "pack_of_zf", "sys"}
    assert found["mod_of_zf"].place == str(top / "mod_of_zf.py")
    assert found["pack_of_zf"].place == str(top / "pack_of_zf")
    assert set(found["pack_of_zf"].files) == {"pack_of_zf/__init__.py", "pack_of_zf/deep/part.py"}
    digests = {file.digest for module in found.values() for file in module.files.values()}
    assert len(digests) == 1
    assert found["sys"].files == {}


def test_an_edit_changes_the_digest_and_what_cannot_be_read_has_none(top: Path) -> None:
    with importing_from(str(top)):
        before = look("mod_of_zf")["mod_of_zf"].files["mod_of_zf.py"]
        (top / "mod_of_zf.py").write_text("x = 1\n")
        os.utime(top / "mod_of_zf.py", (1000.0, 1000.0))
        after = look("mod_of_zf")["mod_of_zf"].files["mod_of_zf.py"]
        (top / "pack_of_zf" / "deep" / "part.py").unlink()
        os.mkfifo(top / "pack_of_zf" / "deep" / "part.py")
        pipe = look("pack_of_zf")["pack_of_zf"].files["pack_of_zf/deep/part.py"]
    assert before.digest != after.digest
    assert after.modified_s == 1000.0
    assert pipe.digest == ""


def test_a_module_of_too_many_files_is_looked_at_in_part(top: Path) -> None:
    with importing_from(str(top)):
        found = msgspec.convert(look_at_modules(["pack_of_zf"], 1), dict[str, Module])["pack_of_zf"]
    assert found.partly
    assert len(found.files) == 1
