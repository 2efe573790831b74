"""Jobs: named tasks that outlive the program that submitted them, to be taken over by another one.

A job is kept by a broker with a journal. Its tasks go on when its program ends in whatever way; whoever
attaches to it by name has its futures again, with the outcomes that have not arrived anywhere yet. Without
a program it is kept for ``settings.job_kept_s``, a week.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import wait
from time import monotonic
from typing import Any

from zfarm.api import LEAVE_WAIT_S, Executor, _open_remote, _World
from zfarm.arguments import end_of
from zfarm.errors import ConfigurationError, FarmBusy
from zfarm.futures import Future, Home
from zfarm.messages import JobTask

__all__ = ["Job", "attach"]

NAME_MAX = 200


class Job(Executor):
    """An Executor whose calls outlive it. Its futures in the order of submission are in ``futures``, those of
    its ``options(...)`` and of its maps as well: each item of a map has one of its own.

    The end of its ``with`` block waits for all calls, like that of any executor; ``detach`` lets them go on
    without this program, and so does the program's death.
    """

    def __init__(
        self,
        name: str,
        address: str | os.PathLike[str] | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks_per_child: int | None = None,
    ) -> None:
        """Begin the job ``name`` on the farm at ``address`` (default: ZFARM_ADDRESS or
        ZFARM_CONNECTION_FILE).

        Raises:
            JobExists: there is one of this name; `attach` to it.
            TypeError: the name is no string.
            ConfigurationError: no farm is named, its broker keeps no journal, or the name is empty, has more
                than 200 characters, or some that cannot be printed.
            Others: as Executor.
        """
        self._open(name, address, _World(initializer, initargs, max_tasks_per_child or 0), attach=False)

    def _open(self, name: str, address: str | os.PathLike[str] | None, world: _World, attach: bool) -> None:
        _check_name(name)
        where = os.fspath(address or os.environ.get("ZFARM_ADDRESS", ""))
        if not where and not os.environ.get("ZFARM_CONNECTION_FILE"):
            raise ConfigurationError(
                "a job outlives its program, and an embedded farm does not: give the address of a farm"
            )
        self.name = name
        self._serve(*_open_remote(where, world, name, attach))
        self._reach(self._link)
        self._link.serve(self)
        self.futures: list[Future[Any]] = list(self._link.taken_over)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See Executor.submit; the future is also added to ``futures``."""
        future = super().submit(fn, *args, **kwargs)
        self._note(future)
        return future

    def _note(self, future: Future[Any]) -> None:
        self.futures.append(future)

    @property
    def _one_by_one(self) -> bool:
        return True  # whoever attaches to a batch would not know whose items are in it

    def detach(self, timeout: float | None = 60.0) -> None:
        """Leave the job to the farm: return when all that was submitted is in the broker's journal.

        The futures of this program become cancelled; the calls go on, and `attach` finds them.

        Raises:
            FarmBusy: not all was in the journal within ``timeout`` seconds; the job was not left.
        """
        end = end_of(timeout)
        booked = self._link.booked
        for future in list(self.futures):
            while not _safe(future):
                booked.clear()
                if _safe(future):
                    break
                if not booked.wait(None if end is None else max(0.0, end - monotonic())):
                    raise FarmBusy(
                        f"the broker has not written all of job {self.name!r} within {timeout:g} s"
                    )
        self._link.abandon()
        self._link.join(LEAVE_WAIT_S)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until every call of ``futures`` has its outcome; False: not within ``timeout`` seconds."""
        return not wait(self.futures, timeout).not_done


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"the name of a job must be a string, not {type(name).__name__}")
    if not 0 < len(name) <= NAME_MAX:
        raise ConfigurationError(f"the name of a job has 1 to {NAME_MAX} characters, not {len(name)}")
    if not name.isprintable():
        raise ConfigurationError(
            f"the name of a job has printable characters alone, as logs show it: not {name!a}"
        )


def stand_ins(home: Home, tasks: list[JobTask]) -> list[tuple[JobTask, Future[Any]]]:
    """A future for each task of a job that is taken over over the link ``home``."""
    pairs = []
    for task in tasks:
        future: Future[Any] = Future(home, task.name)
        future._task = task.task
        future._accepted = True
        pairs.append((task, future))
    return pairs


def _safe(future: Future[Any]) -> bool:
    return future.accepted or future.done()


def attach(name: str, address: str | os.PathLike[str] | None = None) -> Job:
    """Take over the job ``name`` of the farm at ``address``: its futures are in ``futures``.

    Outcomes that arrived at an earlier program, and were forgotten there, are not among them. If an earlier
    program still has the job open, its futures fail with JobTakenOver, and the calls go on, but for those of
    which it had not heard yet that they were accepted and that had not arrived.

    Raises:
        JobUnknown: the farm has no such job (any more); the text says which there are.
        Others: as Job.
    """
    job = Job.__new__(Job)
    job._open(name, address, _World(None, (), 0), attach=True)
    return job
