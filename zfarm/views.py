"""Executors that share the link of another one, so that their end is not its end: inside a task, and with
terms of their own."""

from __future__ import annotations

import concurrent.futures
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from zfarm.api import Executor
from zfarm.arguments import name_of, picklers
from zfarm.errors import ConfigurationError, FarmClosed, NotPortable
from zfarm.futures import Future
from zfarm.pending import submit_later
from zfarm.terms import LISTENED, Terms

if TYPE_CHECKING:
    from zfarm.edge.callables import Portable
    from zfarm.edge.setups import Setups
    from zfarm.link import Link
    from zfarm.mapping import Map

__all__ = ["Guest", "View"]

P = ParamSpec("P")
T = TypeVar("T")


class Guest(Executor):
    """The farm that a task runs on. Its end is not the farm's: ``shutdown`` only waits for what was submitted
    here."""

    def __init__(self, link: Link, portable: Portable, setups: Setups) -> None:
        self._serve(link, portable, setups)
        self._closed = False
        self._futures: set[Future[Any]] = set()
        self._maps: weakref.WeakSet[Map] = weakref.WeakSet()
        # what a task has submitted leaves before its outcome does, so that nobody believes the farm idle
        weakref.finalize(self, link.flush).atexit = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See Executor.submit."""
        self._check_open()
        future = super().submit(fn, *args, **kwargs)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    def _map(self, *args: Any) -> tuple[Map, Iterator[Any]]:
        self._check_open()
        owner, results = super()._map(*args)
        self._maps.add(owner)
        return owner, results

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls here; wait for those that were submitted here, if ``wait``. The farm goes on."""
        self._closed = True
        if cancel_futures:
            for future in list(self._futures):
                future.cancel()
            for owner in list(self._maps):
                owner.cancel()
        if wait:
            concurrent.futures.wait(list(self._futures))
            for owner in list(self._maps):
                owner.join()

    def _give_up(self) -> None:
        self.shutdown(wait=False, cancel_futures=True)

    def _check_open(self) -> None:
        if self._closed:
            raise FarmClosed("cannot schedule new futures after shutdown")


class View(Guest):
    """The farm of another executor, with terms of its own for every call."""

    def __init__(self, parent: Executor, terms: Terms) -> None:
        super().__init__(parent._link, parent._portable, parent._setups)
        harbour = parent._link.harbour
        if terms.keep and harbour is None:
            raise ConfigurationError(
                "keep=True is for programs that wait for their calls: those of a job outlive it; without it "
                "the result comes home, and may be an argument as it is"
            )
        keep = terms.keep and harbour is not None and not harbour.stowage.lends
        if keep:
            from zfarm.bringing import STORE

            terms = replace(terms, handles=(*terms.handles, STORE))
        placing = terms.placing(keep)
        self._parent = parent  # a farm ends when nobody holds its executor any more
        self._terms = terms
        output = terms.output or parent._link.output
        if terms.handles:
            parent._link.check_files(terms.handles)
        if terms.retry_on or output or placing:
            self._encode_function = partial(
                parent._portable.encode_function,
                retry_on=terms.retry_on,
                output=output,
                placing=placing,
            )
        self._setup = parent._setups.attentive if output in LISTENED else parent._setups.current

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See Executor.submit; the call runs on the terms of this view."""
        self._check_open()
        link = self._link
        link.check_open()
        try:
            name, function, body = self._pickled(fn, args, kwargs)
        except NotPortable as error:
            if not error.has_futures:
                raise
            future = self._future(name_of(fn))
            submit_later(self, future, fn, args, kwargs)
        else:
            future = self._future(name)
            if picklers or link.named:
                future._terms = self._with_files(self._terms, fn, function, (args, kwargs))
            self._submitted((future, future._name, function, self._setup(), body))
            self._wake()
            if link.ended:
                link.sweep()
        future.add_done_callback(self._futures.discard)
        return future

    def _future(self, name: str) -> Future[Any]:
        """A future on the terms of this view."""
        future: Future[Any] = Future(self._link, self._terms.name or name)
        if self._terms.force_cancel:
            future._force = True
        future._terms = self._terms
        self._futures.add(future)
        self._note(future)
        return future

    def _note(self, future: Future[Any]) -> None:
        self._parent._note(future)

    @property
    def _one_by_one(self) -> bool:
        return self._parent._one_by_one

    def _map(self, *args: Any) -> tuple[Map, Iterator[Any]]:
        if self._terms.keep:
            raise ConfigurationError("keep=True is for submit: the results of a map come home in batches")
        return super()._map(*args, self._terms)
