"""Memory control groups of our own, in which the kernel kills for lack of memory.

A group is made within the one that we are in, or where that cannot be (version 2 has no processes beside
groups) next to it or above: what runs in it is still accounted to whoever has started us.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.face.processes import Command, TcpFarm, wait_until

MOUNT = Path("/sys/fs/cgroup")
VERSIONS = (
    ("memory.max", "memory.swap.max", "0"),
    ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", ""),
)
"""Names of the files for a limit, one without which there may be swap, and what is to stand there."""


class NotAllowed(Exception):
    """This machine makes no control groups of memory for us; the text says why."""


@contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """A control group that may have so many bytes; whoever is in it must have ended when this ends.

    Raises:
        NotAllowed: it cannot be made here.
    """
    group = _made(limit)
    try:
        yield group
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "an empty group")
        group.rmdir()


def _made(limit: int) -> Path:
    reason = "there are none"
    for base in _bases():
        group = base / f"zfarm-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError as error:
            reason = str(error)
            continue
        try:
            _limit(group, limit)
        except OSError as error:
            reason = str(error)
            group.rmdir()
            continue
        return group
    raise NotAllowed(reason)


def _limit(group: Path, limit: int) -> None:
    for name, swap, most in VERSIONS:
        if (group / name).exists():
            (group / name).write_text(str(limit))
            if (group / swap).exists():
                (group / swap).write_text(most or str(limit))
            return
    raise OSError(f"{group.parent} has no groups of memory")


def _bases() -> Iterator[Path]:
    """Where such a group may be made, the nearest first."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return  # not Linux
    for line in lines:
        _, kinds, place = line.split(":", 2)
        root = MOUNT / "memory" if kinds else MOUNT
        if kinds and "memory" not in kinds.split(","):
            continue
        own = root / place.lstrip("/")
        yield own
        yield from (above for above in own.parents if above.is_relative_to(root))


def kills(group: Path) -> int:
    """How many processes of this group the kernel has killed for lack of memory."""
    for name in ("memory.events", "memory.oom_control"):
        if (group / name).exists():
            fields = dict(line.split() for line in (group / name).read_text().splitlines())
            return int(fields["oom_kill"])
    raise OSError(f"{group} counts no kills")


def start_worker_in(group: Path, farm: TcpFarm, slots: int) -> Command:
    """A worker that has joined the group before anything else."""
    join = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')"
    main = "import sys; from zfarm.face.cli import main; sys.argv[0] = 'zfarm'; sys.exit(main())"
    worker = ["worker", "--slots", str(slots), "--connection", str(farm.connection)]
    return farm.start(*worker, program=["-c", f"{join}; {main}"])
