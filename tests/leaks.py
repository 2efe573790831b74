"""What a test may leave behind: nothing. Takes stock of threads, processes, descriptors and files.

It knows nothing of zfarm; a process counts as ours when it descends from us or was started with our mark.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "ZFARM_TEST_RUN"
"""Environment variable that every process started by a test run inherits, however it was orphaned since."""

TRIAL = b"blat"
TRIAL_NAME_LENGTH = 8
"""What tempfile writes into a directory before it takes it for the one of temporary files."""

_value = uuid.uuid4().hex
_shm = Path("/dev/shm")
_shm_prefixes = ("zfarm", "psm_", "sem.", "wnsm_")  # zfarm's and multiprocessing's
_fds = Path("/proc/self/fd") if os.path.isdir("/proc/self/fd") else Path("/dev/fd")


@dataclass(frozen=True)
class Stock:
    """What is there at one moment, each thing by a key that is not used again."""

    pids: frozenset[int]
    threads: dict[int, str]
    descriptors: dict[tuple[int, str], str]
    files: dict[str, str]


def mark_processes() -> None:
    """From now on, processes started from here can be found again by their environment."""
    os.environ[MARK] = _value


def take_stock(watched: Path) -> Stock:
    """Look at what this process holds now, at the processes there are, and at the files below ``watched``."""
    return Stock(frozenset(psutil.pids()), _threads(), _descriptors(), dict(_files(watched)))


def left_over(before: Stock, now: Stock) -> list[str]:
    """What is there now and was not before, one line each."""
    lines = [f"process {text}" for text in our_processes(now.pids - before.pids).values()]
    lines += [f"thread {text}" for key, text in now.threads.items() if key not in before.threads]
    lines += [f"descriptor {text}" for key, text in now.descriptors.items() if key not in before.descriptors]
    new_files = {key: text for key, text in now.files.items() if key not in before.files}
    lines += [f"file {text}" for key, text in new_files.items() if not _held_by_others(key, now)]
    return lines


def wait_settled(before: Stock, watched: Path, deadline_s: float) -> list[str]:
    """Wait until nothing is left over, or for ``deadline_s``; what is left then, if anything."""
    end = time.monotonic() + deadline_s
    pause_s = 0.001
    while True:
        lines = left_over(before, take_stock(watched))
        if not lines or time.monotonic() > end:
            return lines
        gc.collect()  # a cycle of the test's own, say an exception and its frame, is no leak
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.05)


def end_processes(before: Stock) -> None:
    """Kill what a failed test left running, so that it cannot disturb the tests after it."""
    for pid in our_processes(frozenset(psutil.pids()) - before.pids):
        try:
            psutil.Process(pid).kill()
        except psutil.Error:
            continue  # it went by itself, which is what we want


def our_processes(among: frozenset[int] | None = None) -> dict[int, str]:
    """The processes of this test run but ourselves, all or those ``among`` these: pid to a readable line."""
    among = frozenset(psutil.pids()) if among is None else among
    relatives = {child.pid for child in psutil.Process().children(recursive=True)} if among else set()
    found = {}
    for pid in among - {os.getpid()}:
        try:
            process = psutil.Process(pid)
            if pid in relatives or _marked(process):
                state = process.status()
                command = "" if state == psutil.STATUS_ZOMBIE else " ".join(process.cmdline())[:150]
                found[pid] = f"{pid} ({state}, parent {process.ppid()}): {command}"
        except psutil.Error:
            continue  # gone while we looked, or not ours to look at
    return found


def _marked(process: psutil.Process) -> bool:
    if os.path.isdir("/proc/self"):
        try:
            return f"{MARK}={_value}".encode() in Path(f"/proc/{process.pid}/environ").read_bytes()
        except OSError:
            return False
    marked: bool = process.environ().get(MARK) == _value
    return marked


def _threads() -> dict[int, str]:
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    native = {thread.id for thread in psutil.Process().threads()}
    found = {ident: f"{ident} (native: no Python thread)" for ident in native}
    found.update({ident: f"{ident} {name}" for ident, name in names.items() if ident is not None})
    return found


def _descriptors() -> dict[tuple[int, str], str]:
    found = {}
    for name in os.listdir(_fds):
        try:
            target = os.readlink(_fds / name) if _fds.parts[1] == "proc" else str(os.fstat(int(name)))
        except OSError:
            continue  # the one that listdir itself had open
        found[int(name), target] = f"{name} -> {target}"
    return found


def _files(watched: Path) -> Iterator[tuple[str, str]]:
    shared = [path for path in _shm.iterdir() if path.name.startswith(_shm_prefixes)] if _shm.is_dir() else []
    for path in (*watched.rglob("*"), *shared):
        if path.parent != watched or not _is_trial(path):
            yield str(path), str(path)


def _is_trial(path: Path) -> bool:
    """Whether the standard library wrote it to see if that directory can be used, in a process that was
    killed before it could remove it again."""
    if len(path.name) != TRIAL_NAME_LENGTH:
        return False
    try:
        return path.is_file() and path.read_bytes() in (b"", TRIAL)
    except OSError:
        return False  # gone, or of no use to anybody


def _held_by_others(path: str, now: Stock) -> bool:
    """True for a file in shared memory that a process of somebody else's run has open or mapped."""
    if not path.startswith(f"{_shm}/"):
        return False
    for pid in now.pids - our_processes(now.pids).keys() - {os.getpid()}:
        try:
            maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
            opened = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        if path in opened or path in maps:
            return True
    return False
