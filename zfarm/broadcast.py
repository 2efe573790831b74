"""One call on every worker of a farm, bound to it: see ``Executor.broadcast``; it knows no socket."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from zfarm.errors import TaskLost
from zfarm.messages import Demand
from zfarm.settings import settings
from zfarm.terms import PLAIN
from zfarm.views import View

if TYPE_CHECKING:
    from zfarm.api import Executor
    from zfarm.edge.loop import Timer
    from zfarm.futures import Future
    from zfarm.link import Link

__all__ = ["broadcast", "watched"]

T = TypeVar("T")

_GONE: Final = frozenset(("unmet", "no-workers"))
_LOOKS: Final = 5
"""So many beats in a row a worker must be missing before its calls fail: it may come back to a new broker."""


def broadcast(
    farm: Executor, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Future[T]]:
    """See Executor.broadcast."""
    link = farm._link
    link.check_open()
    link.check_waiting()
    terms = getattr(farm, "_terms", PLAIN)
    futures: dict[str, Future[T]] = {}
    workers = [worker for worker in farm.workers() if worker.open]
    named = Counter(f"{worker.host}/{worker.pid}" for worker in workers)
    for worker in workers:
        name = f"{worker.host}/{worker.pid}"
        labels = (*terms.labels, worker.label)
        bound = View(farm, replace(terms, demand=Demand(terms.resources, labels, terms.exclusive)))
        futures[name if named[name] == 1 else f"{name}/{worker.name}"] = bound.submit(fn, *args, **kwargs)
    if futures:
        watched(farm, futures)
    return futures


def watched(farm: Executor, futures: Mapping[str, Future[Any]]) -> None:
    """See to it that these calls, which are bound to the workers that they are named by, end when those are
    gone."""
    link = farm._link
    link.call(_Watch(link, futures).start)


class _Watch:
    """Fails the calls whose worker has gone. In the link's thread."""

    def __init__(self, link: Link, futures: Mapping[str, Future[Any]]) -> None:
        self._link = link
        self._futures = futures
        self._missing: Counter[str] = Counter()
        self._timer: Timer | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._timer = self._link.loop.add_timer(self._look, settings.beat_interval_s)

    def _look(self) -> None:
        self._futures = {name: future for name, future in self._futures.items() if not future.done()}
        if not self._futures and self._timer is not None:
            self._timer.cancel()
        for name, future in self._futures.items():
            if future._task > 0:
                self._link.questions.watch(future._task, partial(self._heard, name, future))

    def _heard(self, name: str, future: Future[Any], code: str) -> None:
        if code not in _GONE:
            self._missing[name] = 0
            return
        self._missing[name] += 1
        if self._missing[name] == _LOOKS:
            text = f"{future._name}: it was to run on worker {name}, and that has left the farm"
            task = future._task
            future._fail(TaskLost(text))
            self._link.cancel_task(task)
