"""What a user imports: the Executor, and the farm that a task runs on; it decides nothing.

Nothing heavy is imported at the top: ``import zfarm`` must cost little, and the process of an embedded farm
boots while the first Executor imports the rest.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, ParamSpec, TypeVar

from zfarm.arguments import check_arguments, check_sizes, default_workers, end_of, name_of, picklers, sized
from zfarm.beyond import Beyond
from zfarm.errors import BrokerUnreachable, NotPortable
from zfarm.futures import Future
from zfarm.settings import settings

if TYPE_CHECKING:
    from zfarm.edge.callables import Portable
    from zfarm.edge.inside import Inside
    from zfarm.edge.setups import Setups
    from zfarm.edge.stowage import Stowage
    from zfarm.link import Link, Road
    from zfarm.mapping import Map
    from zfarm.terms import Terms
    from zfarm.views import View

__all__ = ["Executor", "current_farm"]

P = ParamSpec("P")
T = TypeVar("T")

_SAME: Any = object()
"""An option that was not given."""
LEAVE_WAIT_S = 10.0
"""How long an interrupted ``with`` block waits for the farm to go."""


class Executor(Beyond):
    """Runs calls on a farm: the cores of this machine, or the hosts behind ``address``.

    It keeps the whole contract of ``concurrent.futures``, and what process pools cannot do works: lambdas,
    closures, functions and classes of ``__main__`` and of notebooks. A child that dies costs only the call
    that ran in it one of its ``max_attempts``; so a call may run more than once.

    >>> with Executor(max_workers=2) as farm:
    ...     farm.submit(pow, 2, 10).result()
    1024
    """

    def __init__(
        self,
        address: str | os.PathLike[str] | int | None = None,
        max_workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks_per_child: int | None = None,
    ) -> None:
        """Join the farm at ``address``, or start one of this process alone.

        ``address`` is ``tcp://HOST:PORT``, ``ipc://PATH`` or the path of a connection file; without one, the
        environment variables ZFARM_ADDRESS and ZFARM_CONNECTION_FILE are asked, and without those an embedded
        farm is started: processes of this machine that end with this executor, or with this process in
        whatever way. ``max_workers`` is how many calls an embedded farm runs at once (default:
        ZFARM_MAX_WORKERS, else the usable cores); a farm that is there already has the slots that it has.
        ``initializer(*initargs)`` runs once in each child before its first call. A child is replaced after
        ``max_tasks_per_child`` calls. A number in the first place is ``max_workers``, as in other executors.

        Raises:
            ValueError: max_workers or max_tasks_per_child is not greater than 0.
            TypeError: initializer is not callable.
            BrokerUnreachable: nobody answered at the address within ``settings.reach_timeout_s`` seconds.
            AccessDenied, VersionMismatch: the broker refused us.
            ConfigurationError: the address or its keys cannot be used.
            FarmBroken: an embedded farm cannot be started.
        """
        if isinstance(address, int) and max_workers is None:
            address, max_workers = None, address
        check_arguments(address, max_workers, initializer, max_tasks_per_child)
        world = _World(initializer, initargs, max_tasks_per_child or 0)
        where = os.fspath(address or os.environ.get("ZFARM_ADDRESS", ""))  # type: ignore[arg-type]
        if where or os.environ.get("ZFARM_CONNECTION_FILE"):
            self._serve(*_open_remote(where, world))
            self._reach(self._link)
        else:
            self._serve(*_open_embedded(max_workers or default_workers(), world))
        self._link.serve(self)

    def _serve(self, link: Link, portable: Portable, setups: Setups) -> None:
        self._link = link
        self._encode_function: Callable[[Callable[..., Any]], bytes] = portable.encode_function
        self._setup = setups.current
        if link.output:
            self._encode_function = partial(portable.encode_function, output=link.output)
            if link.output != "off":
                self._setup = setups.attentive
        self._encode_arguments = portable.encode_arguments
        self._portable = portable
        self._setups = setups
        self._named = (b"", "")
        self._submitted = link.inbox.append
        self._wake = link.loop.wake

    def _reach(self, link: Link) -> None:
        """Wait for the broker's first answer."""
        try:
            answered = link.reached.wait(settings.reach_timeout_s)
        except BaseException:
            link.abandon()
            raise
        if answered and link.failure is None:
            return
        error = link.failure or BrokerUnreachable(
            f"no broker answered at {link.road.address} within {settings.reach_timeout_s:g} s; "
            "is it running, and does this address reach it?"
        )
        link.abandon()
        link.join(LEAVE_WAIT_S)
        raise error

    # ------------------------------------------------------------ submitting

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Ask the farm to call ``fn(*args, **kwargs)``, and return a future for its outcome.

        Returns at once. The call is safe against the loss of any child or worker: it is run again until it
        has an outcome, at most ``settings.max_attempts`` times.

        An argument may be a Future, of this farm, of another one, or of any other executor: the call is sent
        when all of them are done, with their results in their places; other arguments are pickled then. If
        one raises, the call raises the same exception; if one is cancelled, the call is cancelled. Futures
        inside of other objects are not looked for.

        Raises:
            NotPortable: the function or an argument cannot be pickled; the text says which and why.
            TooLarge: the pickled call exceeds ``settings.payload_bytes_max``, here or of the broker.
            FarmClosed: the executor was shut down.
            FarmBroken: the farm is beyond repair.
            ForkError: this process was forked after the executor was made.
        """
        link = self._link
        if link.refusal is not None:
            raise link.refusal()
        try:
            name, function, body = self._pickled(fn, args, kwargs)
        except NotPortable as error:
            if not error.has_futures:
                raise
            from zfarm.pending import submit_later

            return submit_later(self, Future(link, name_of(fn)), fn, args, kwargs)
        future: Future[T] = Future(link, name)
        if picklers or link.named:
            future._terms = self._with_files(future._terms, fn, function, (args, kwargs))
        self._submitted((future, name, function, self._setup(), body))
        self._wake()
        if link.ended:
            link.sweep()
        return future

    def _pickled(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[str, bytes, bytes]:
        """Name, function and body of a call."""
        function = self._encode_function(fn)
        body = self._encode_arguments(args, kwargs, fn)
        if len(body) + len(function) > self._link.bytes_max:
            from zfarm.mapping import too_large

            raise too_large(f"the call of {name_of(fn)}", len(body) + len(function), self._link.bytes_max)
        known, name = self._named
        if known is not function:  # the same bytes again are the same function
            name = name_of(fn)
            self._named = (function, name)
        return name, function, body

    def _with_files(self, terms: Terms | None, fn: Any, function: bytes, body: Any) -> Terms | None:
        """The terms of a call with the files that its ``body`` and its function need."""
        if threading.get_ident() not in picklers and function not in self._link.named:
            return terms
        from zfarm.fetching import needed
        from zfarm.terms import PLAIN

        found = needed(terms or PLAIN, self._portable, self._link.named, fn, function, body)
        self._link.check_files(found.handles)
        return terms if terms is None and not found.handles else found

    def options(
        self,
        *,
        timeout: float | None = _SAME,
        retries: int | None = _SAME,
        retry_on: type[Exception] | tuple[type[Exception], ...] | None = _SAME,
        max_attempts: int | None = _SAME,
        priority: int = _SAME,
        name: str | None = _SAME,
        force_cancel: bool = _SAME,
        memory: int | str | None = _SAME,
        resources: Mapping[str, float] | None = _SAME,
        labels: str | Iterable[str] | Mapping[str, str] | None = _SAME,
        output: Literal["forward", "keep", "off"] | None = _SAME,
        keep: bool = _SAME,
        files: Mapping[str, str | os.PathLike[str]] | None = _SAME,
        scratch: bool | Literal["cwd"] = _SAME,
        exclusive: bool = _SAME,
    ) -> View:
        """The same farm with other terms: an Executor whose ``submit`` and ``map`` ask for them.

        ``timeout`` is how many seconds a call may run, from its start in a child and with the unpickling of
        its arguments; then its child is killed, even if the call holds the interpreter, and the future raises
        TaskTimeout. None: no limit.

        ``retries`` is how often a call may be run again, whatever the reason (default: 2); ``max_attempts``
        is one more, the runs in all. Without ``retry_on`` the only reason is that a child or worker died
        under it; when that was once too often it raises TaskLost, and an exception is an outcome like any
        other. ``retry_on`` names exceptions (a class or a tuple, subclasses included, as in ``except``) after
        which it is run again, too, ``settings.retry_backoff_s`` seconds later and each time twice as long;
        the last exception is the outcome, with a note. ``retries=0`` is at most once: the call never begins
        a second time, whatever dies and is started again, and TaskLost has ``maybe_ran`` when nobody can know
        whether it has. With ``timeout``, ``memory``, ``retry_on`` or ``retries=0`` each item of a ``map``
        travels alone and has its own time, limit and runs.

        ``exclusive`` calls never run in two places at once, also where they are run again: a worker that has
        no word from its broker for three quarters of ``worker_lost_after_s`` stops them, which costs one of
        their runs, and where a broker was started anew they wait until such a worker has. So they do not
        outlive a broker that is away for longer, as other calls do; in ``map`` each item travels alone.

        ``memory`` is how many bytes (or a text: ``"500MB"``, ``"2GiB"``) the call's child may have in use,
        together with the processes that it starts, while the call runs. A call that wants more raises
        MemoryLimit, either where it is refused the memory or because its child is killed; it is not run
        again. None: no limit.

        Calls of higher ``priority`` go before others of this client that wait. ``name`` is what dashboards
        and messages call these calls. With ``force_cancel`` every cancel stops calls that run, too: that of
        asyncio, of a dropped ``map``, of ``shutdown(cancel_futures=True)``.

        ``resources`` are what a call takes from its worker while it runs, such as ``{"gpu": 1}``: workers say
        what they have with ``zfarm worker --resource gpu=2``. ``labels`` are what its worker must have said
        of itself: ``zone=a`` or several, or a mapping. What no worker has is waited for: see ``Future.why``.

        ``output`` is where what the calls print goes, C libraries included: ``forward`` shows it here, line
        by line and tagged; ``keep`` does not; with both ``future.stdout`` and ``future.stderr`` have the last
        of it; ``off`` drops it. None: as ZFARM_OUTPUT says, else ``forward`` from a farm that is there (and
        in notebooks); of an embedded farm it goes to this program's own, as in process pools.

        With ``keep`` a large result stays where it is while its handle lives, in shared memory or, over TCP,
        on its host: the future has a Kept, which may be an argument, and whose ``get`` brings it.

        ``files`` are placed in the call's own scratch directory, by the names that they shall have there:
        paths, or handles of ``put``. They are copies, which the call may change. With ``scratch`` it has such
        a directory without files, too; ``"cwd"`` makes it the working directory while the call runs. It is
        ``zfarm.scratch()``, and is removed when the call has ended, in whatever way.

        What is not said stays as it is here. The view lives as long as this executor; its ``shutdown`` waits
        only for what was submitted through it.

        Raises:
            TypeError, ValueError: an option that cannot be; the text says which.
            TransferError: a file cannot be put; see ``put``.
        """
        from zfarm.terms import PLAIN
        from zfarm.views import View

        given = {
            "timeout": timeout, "retries": retries, "retry_on": retry_on, "max_attempts": max_attempts,
            "priority": priority, "name": name, "force_cancel": force_cancel, "memory": memory,
            "resources": resources, "labels": labels, "output": output, "keep": keep, "files": files,
            "scratch": scratch,
            "exclusive": exclusive,
        }  # fmt: skip
        terms = getattr(self, "_terms", PLAIN).but(**{k: v for k, v in given.items() if v is not _SAME})
        return View(self, terms)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> Iterator[T]:
        """Call ``fn`` on the items of ``iterables``, as ``map`` does, and return an iterator over the
        results.

        Results come in the order of the input and are dropped as they are read. All input is taken at once,
        unless ``buffersize`` bounds how many items are taken ahead of the results that were read. Items
        travel in batches whose size follows the measured run time; a ``chunksize`` above 1 fixes it. Each
        item has its own outcome: an exception comes at its place and ends the iterator, which cancels the
        rest, as dropping it does once it was begun. With ``progress`` it has a bar: see ``zfarm.track``.

        Raises:
            NotPortable: the function cannot be pickled. What cannot be pickled of the items comes at its
            place.
            TimeoutError: by the iterator, when a result is not there ``timeout`` seconds after this call.
            Others: as ``submit``.
        """
        end = end_of(timeout)
        if self._one_by_one:
            from zfarm.singles import map_one_by_one

            check_sizes(chunksize, buffersize)
            results = map_one_by_one(self, fn, iterables, end, buffersize)
        else:
            owner, results = self._map(fn, iterables, end, chunksize, buffersize)
            owner.start()
        if progress:
            from zfarm.bars import track

            return track(results, sized(iterables), name_of(fn))
        return results

    def _note(self, future: Future[Any]) -> None:
        """A call was submitted here, or to a view of this."""

    @property
    def _one_by_one(self) -> bool:
        """Each item of a map has a task and a future of its own."""
        return False

    def _map(
        self,
        fn: Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        end: float | None,
        chunksize: int,
        buffersize: int | None,
        terms: Terms | None = None,
    ) -> tuple[Map, Iterator[Any]]:
        from zfarm import mapping
        from zfarm.core.pace import Pace

        check_sizes(chunksize, buffersize)
        link = self._link
        link.check_open()
        star = len(iterables) != 1
        called = mapping.Function(
            (terms and terms.name) or name_of(fn), self._encode_function(fn), self._setup(), star, terms, fn
        )
        if threading.get_ident() in picklers:  # what the function needs: its batches are made elsewhere
            self._with_files(None, fn, called.blob, ())
        source: Iterator[Any] = zip(*iterables) if star else iter(iterables[0])  # noqa: B905  the shortest ends it
        batches: mapping.Batches = deque()
        # where children are counted by tasks, an item is a task, as in a process pool
        alone = terms is not None and terms.alone
        pace = Pace(1 if alone else chunksize if chunksize > 1 or self._setups.max_tasks_per_child else 0)
        if buffersize is not None:
            most = buffersize * chunksize
            taken = list(islice(source, most))
            if len(taken) == most:
                owner = mapping.Map(link, self._portable, called, taken, pace, batches, more=True)
                return owner, mapping.buffered_results(owner, batches, end, source, most)
            items: list[Any] | range = taken
        else:
            only = None if star else iterables[0]
            items = only if isinstance(only, range) else list(source)
        owner = mapping.Map(link, self._portable, called, items, pace, batches)
        return owner, mapping.results(owner, batches, end)

    # ------------------------------------------------------------ the end

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. What was submitted still runs, unless ``cancel_futures`` cancels what has not
        started.

        With ``wait``, return when every call has its outcome and everything is given back: threads,
        processes, sockets, files. May be called again and from any thread; from a callback it never waits.
        """
        link = self._link
        link.close(cancel=cancel_futures)
        if wait:
            link.join()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> Literal[False]:
        """Shut down and wait. After a KeyboardInterrupt, give up all calls instead, those that run
        included."""
        if exc_type is not None and issubclass(exc_type, KeyboardInterrupt):
            self._give_up()
            return False
        try:
            self.shutdown(wait=True)
        except KeyboardInterrupt:
            self._give_up()
            raise
        return False

    def _give_up(self) -> None:
        self._link.abandon()
        self._link.join(LEAVE_WAIT_S)

    # ------------------------------------------------------------ looking

    @property
    def address(self) -> str:
        """Where the farm's broker listens; of an embedded farm that still boots: empty."""
        return self._link.road.address

    @property
    def _max_workers(self) -> int:
        """How many calls run at once, at least 1. Dask and others read it."""
        return self._link.slots

    def __reduce__(self) -> Any:
        raise TypeError(
            "an Executor stays where it is: within a call, zfarm.current_farm() is the farm that it runs on"
        )

    def __repr__(self) -> str:
        link = self._link
        state = f"{link.slots} slots, {link.open} open"
        if link.failure is not None:
            state = f"broken: {link.failure}"
        elif link.refusal is not None:
            state += ", shut down"
        return f"<zfarm.{type(self).__name__} at {self.address or 'an embedded farm'}: {state}>"


def current_farm() -> Executor:
    """The farm that the calling task runs on, as an Executor.

    While a task waits there (for a result, in ``wait`` and ``as_completed``, for the next result of ``map``),
    its slot is free for others, so that nested calls never block one another. ``Executor()`` in a task, on
    the other hand, is a farm of its own.

    Raises:
        RuntimeError: this process does not run a task of a farm.
    """
    module = sys.modules.get("zfarm.edge.inside")
    inside = None if module is None else module.current()
    if inside is None:
        raise RuntimeError(
            "current_farm() is the farm that a task runs on, and this process runs no task: "
            "make an Executor here, and call current_farm() in the functions that it runs"
        )
    from zfarm.views import Guest

    return Guest(*_guest_parts(inside))


# ---------------------------------------------------------------- what an executor is made of


class _Parts(NamedTuple):
    link: Link
    portable: Portable
    setups: Setups


class _World(NamedTuple):
    """What a user wants around every call."""

    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    max_tasks_per_child: int

    def parts(
        self, road: Road, slots: int, job: str = "", attach: bool = False, stowage: Stowage | None = None
    ) -> _Parts:
        """All parts of an executor over ``road``; the link is started."""
        from zfarm.edge.callables import Portable
        from zfarm.edge.setups import Setups
        from zfarm.edge.ways import AS_THEY_ARE, BOUNDED, IN_PIECES
        from zfarm.link import Link

        session = os.urandom(16).hex()
        portable = Portable()
        initializer = b""
        if self.initializer is not None:
            initializer = portable.encode_initializer(self.initializer, tuple(self.initargs))
        portable.stowage = stowage
        lends = bool(stowage and stowage.lends)
        results = AS_THEY_ARE if not road.remote else BOUNDED if job else IN_PIECES
        setups = Setups.fresh(session, initializer, self.max_tasks_per_child, lends, results)
        link = Link(road, session, slots, job, attach, stowage)
        link.start()
        return _Parts(link, portable, setups)


def _open_embedded(slots: int, world: _World) -> _Parts:
    from zfarm.farmhouse import Farmhouse

    house = Farmhouse(slots)
    house.start()  # it boots while we import the rest
    place = None
    try:
        from zfarm.edge.places import new_place
        from zfarm.edge.stowage import Stowage

        place = new_place()
        stowage = Stowage()
        house.configure(str(place.directory), stowage.probe())
        from zfarm.roads import EmbeddedRoad

        return world.parts(EmbeddedRoad(house, place, stowage), slots, stowage=stowage)
    except BaseException:
        house.stop()
        if place is not None:
            place.remove()
        raise


def _open_remote(where: str, world: _World, job: str = "", attach: bool = False) -> _Parts:
    from zfarm.edge.bales import Bales
    from zfarm.edge.security import CLIENT, parse_address
    from zfarm.roads import SocketRoad

    # what belongs to this program cannot be needed by the calls of a job, which outlive it
    return world.parts(SocketRoad(parse_address(where, CLIENT)), 1, job, attach, None if job else Bales())


_guest_lock = threading.Lock()
_guest_made: tuple[Inside, _Parts] | None = None


def _guest_parts(inside: Inside) -> _Parts:
    """One link serves all tasks that this child will ever run."""
    global _guest_made
    with _guest_lock:
        if _guest_made is None or _guest_made[0] is not inside:
            from zfarm.edge.callables import Portable
            from zfarm.edge.setups import Setups
            from zfarm.edge.stowage import Stowage
            from zfarm.link import Link
            from zfarm.tunnel import TunnelRoad

            assert inside.setup is not None
            link = Link(TunnelRoad(inside), os.urandom(16).hex(), stowage=Stowage())
            if inside.setup.trees:
                from zfarm.syncing import Shipped

                link.shipped = Shipped.inherited(inside.setup)
            link.start()
            _guest_made = (inside, _Parts(link, Portable(), Setups.inherited(inside.setup)))
        return _guest_made[1]
