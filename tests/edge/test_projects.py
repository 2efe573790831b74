"""Which files of a project are taken, as git would say, and that a snapshot stays what it is."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zfarm import settings as settings_module
from zfarm.edge.handover import copy_content
from zfarm.edge.holdings import FileHolding
from zfarm.edge.ignoring import Rules
from zfarm.edge.projects import Projects
from zfarm.edge.trees import Entry, Manifest, pack_manifest, read_manifest
from zfarm.errors import TooLarge, TransferError, UnsafeName


@pytest.fixture
def projects() -> Projects:
    return Projects()


def names(projects: Projects, top: Path, prefix: str = "") -> set[str]:
    try:
        held = projects.take(top, prefix)
        return {entry.name for entry in held.manifest.entries if entry.kind != "d"}
    finally:
        projects.close()


def write(top: Path, *files: str, **texts: str) -> None:
    for name in files:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(texts.get(name, name))


def test_gitignore_files_hold_as_in_git(tmp_path: Path, projects: Projects) -> None:
    write(
        tmp_path, "a.py", "b.log", "keep.log", "data/x.bin", "data/keep.bin", "build/out.py", "sub/build",
        "sub/a.tmp", "sub/deep/a.tmp", "sub/deep/b.log", "only/here.txt", "sub/only/here.txt", "x y.txt",
        "#odd.txt", "pkg/__pycache__/m.pyc", ".git/config", "env/pyvenv.cfg", "env/lib/m.py", ".venv/m.py",
    )  # fmt: skip
    (tmp_path / ".gitignore").write_text(
        "# a comment\n*.log\n!keep.log\nbuild/\n/data/*\n!/data/keep.bin\n*.tmp\n/only/\n"
        "\\#odd.txt\nx\\ y.txt\n"
    )
    (tmp_path / "sub" / ".gitignore").write_text("!a.tmp\n")
    (tmp_path / "sub" / "deep" / ".gitignore").write_text("a.tmp\n!b.log\n")

    assert names(projects, tmp_path) == {
        ".gitignore", "a.py", "keep.log", "data/keep.bin", "sub/.gitignore", "sub/build", "sub/a.tmp",
        "sub/deep/.gitignore", "sub/deep/b.log", "sub/only/here.txt",
    }  # fmt: skip


def test_a_part_of_a_repository_obeys_the_rules_above_it(tmp_path: Path, projects: Projects) -> None:
    write(tmp_path, ".git/config", "sub/a.py", "sub/b.py", "sub/part/c.py", "sub/part/d.py")
    (tmp_path / ".gitignore").write_text("/sub/b.py\nd.py\n")

    assert names(projects, tmp_path / "sub") == {"a.py", "part/c.py"}
    assert names(projects, tmp_path / "sub", "pkg/") == {"pkg/a.py", "pkg/part/c.py"}


LINES = st.sampled_from(
    [
        "*.a",
        "!*.a",
        "x/",
        "!x/",
        "/x",
        "x/*",
        "!x/b.a",
        "**/b.a",
        "x/**",
        "y",
        "!y",
        "*",
        "!*/",
        "",
        "#x",
        "b.?",
    ]
)
TREE = ["a.a", "b.a", "b.c", "x/a.a", "x/b.a", "x/y/b.a", "y/a.a", "y/x/c", "z/b.c"]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is the judge")
@settings(deadline=None, max_examples=40)
@given(outer=st.lists(LINES, max_size=4), inner=st.lists(LINES, max_size=3))
def test_git_itself_takes_the_same_files(
    tmp_path_factory: pytest.TempPathFactory, outer: list[str], inner: list[str]
) -> None:
    top = tmp_path_factory.mktemp("repository")
    write(top, *TREE)
    (top / ".gitignore").write_text("\n".join(outer) + "\n")
    (top / "x" / ".gitignore").write_text("\n".join(inner) + "\n")
    run = ["git", "-c", "core.excludesFile=/dev/null", "-C", str(top)]
    subprocess.run([*run, "init", "-q"], check=True)
    listed = subprocess.run([*run, "ls-files", "-co", "--exclude-standard"], check=True, capture_output=True)

    assert names(Projects(), top) == set(listed.stdout.decode().split())


def test_what_was_taken_stays_and_what_has_not_changed_is_not_taken_again(
    tmp_path: Path, projects: Projects
) -> None:
    top = tmp_path / "project"
    write(top, "a.py", "b.py", "empty.py")
    (top / "empty.py").write_text("")
    (top / "tool").write_text("#!/bin/sh\n")
    os.chmod(top / "tool", 0o700)
    os.symlink("a.py", top / "link.py")
    first = projects.take(top)
    (top / "a.py").write_text("edited")
    (top / "b.py").unlink()
    second = projects.take(top)
    modes = {entry.name: oct(entry.mode) for entry in first.manifest.entries if entry.kind == "f"}
    assert modes == {"a.py": "0o444", "b.py": "0o444", "empty.py": "0o444", "tool": "0o555"}
    folders = set()
    for held, expected in ((first, b"a.py"), (second, b"edited")):
        (entry,) = [entry for entry in held.manifest.entries if entry.name == "a.py"]
        found = held.blob(entry.digest)
        assert isinstance(found, FileHolding)
        assert found.path.read_bytes() == expected
        folders.add(found.path.parent)
    digests = [{entry.digest for entry in held.manifest.entries if entry.digest} for held in (first, second)]
    assert len(digests[1] - digests[0]) == 1
    (scratch,) = folders
    projects.close()
    assert not scratch.exists()


def test_what_cannot_travel_is_refused_with_its_name(
    tmp_path: Path, projects: Projects, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = tmp_path / "project"
    write(top, "a.py")
    os.symlink("../outside", top / "out")
    with pytest.raises(UnsafeName, match="leads out"):
        projects.take(top)
    (top / "out").unlink()
    os.mkfifo(top / "pipe")
    with pytest.raises(TransferError, match=r"pipe.* is no file: remove it, or name it in \.gitignore"):
        projects.take(top)
    (top / ".gitignore").write_text("pipe\n")
    (top / "big.bin").write_bytes(b"x" * 100_000)
    small = settings_module.Settings(sync_bytes_max=50_000)
    monkeypatch.setattr("zfarm.edge.projects.settings", small)
    with pytest.raises(TooLarge, match=r"the largest are big\.bin \(0\.1 MB\)"):
        projects.take(top)
    monkeypatch.setattr("zfarm.edge.projects.settings", settings_module.Settings(sync_files_max=2))
    with pytest.raises(TooLarge, match=r"at most 2 files"):
        projects.take(top)
    projects.close()


def test_rules_with_patterns_of_the_caller(tmp_path: Path) -> None:
    rules, called = Rules.of_project(tmp_path, ["*.md", "!*.pyc"])
    assert called == ""
    assert rules.ignore("read.md")
    assert not rules.ignore("m.pyc")
    assert rules.ignore("__pycache__", str(tmp_path / "__pycache__"))


ODD_LINES = {
    "a mark before it": b"\xef\xbb\xbf*.log\n",
    "of Windows": b"*.log\r\nfoo\r\n",
    "nothing is taken back": b"!\n*.log\n",
    "a last backslash": b"foo\\\n*.log\n",
    "a class": b"[[:alpha:]_]*.log\n",
    "no class": b"[:alpha:]*.log\n",
    "another end of lines": b"a.log\x0cfoo\n",
}


@pytest.mark.skipif(shutil.which("git") is None, reason="git is the judge")
@pytest.mark.parametrize("lines", ODD_LINES.values(), ids=ODD_LINES)
def test_odd_lines_are_what_they_are_to_git(tmp_path: Path, projects: Projects, lines: bytes) -> None:
    """Found where a .gitignore of an editor that begins with a mark shipped what its first line names."""
    write(tmp_path, "a.log", "1.log", "foo", "foo\\", "b/a.log")
    (tmp_path / ".gitignore").write_bytes(lines)
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    listed = subprocess.run(
        [*git, "ls-files", "-z", "-co", "--exclude-standard"], check=True, capture_output=True, text=True
    ).stdout

    assert names(projects, tmp_path) == set(listed.split("\0")) - {""}


def test_a_pattern_that_is_none_is_told_with_its_place(tmp_path: Path, projects: Projects) -> None:
    write(tmp_path, "a.py")
    with pytest.raises(ValueError, match=r"exclude has '\[z-a\]', which is no pattern"):
        projects.take(tmp_path, exclude=["[z-a]"])
    with pytest.raises(TypeError, match=r"such as \['\*\.csv'\], not '\*\.py'"):
        projects.take(tmp_path, exclude="*.py")  # else each of its characters is a pattern, and the * all
    (tmp_path / ".gitignore").write_text("ok\n[z-a]\n")
    with pytest.raises(TransferError, match=r"\.gitignore' has '\[z-a\]', .*; change that line"):
        projects.take(tmp_path)
    projects.close()


def test_a_file_that_somebody_writes_is_named_with_what_can_be_done(
    tmp_path: Path, projects: Projects, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a.log")

    def copy_and_write(source: int, target: int) -> None:
        copy_content(source, target)
        (tmp_path / "a.log").write_text("more than before")

    monkeypatch.setattr("zfarm.edge.projects.copy_content", copy_and_write)
    with pytest.raises(TransferError, match=r"a.log' was changed while it was read: .* in \.gitignore"):
        projects.take(tmp_path)
    projects.close()


def test_a_line_that_is_too_long_for_any_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("ok\n" + "[" * 1_000_000)
    with pytest.raises(
        TransferError, match=r"\.gitignore' has a line of 1,000,000 characters, .*; change that"
    ):
        Rules.of_project(tmp_path)


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil.py", "a/../../evil.py", "nul\0", "", "a//b", "."])
def test_a_list_of_files_with_malicious_names_is_refused(name: str) -> None:
    listed = pack_manifest(Manifest(0o755, [Entry(name, "f", 0o444, bytes(32), 1)]))
    with pytest.raises(UnsafeName):
        read_manifest(listed)
