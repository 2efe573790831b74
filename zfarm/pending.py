"""Calls that wait for their arguments: futures in the places of values, until all of them are done; no thread
waits for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future as StandardFuture
from typing import TYPE_CHECKING, Any

from zfarm.arguments import picklers
from zfarm.futures import Future
from zfarm.reasons import Reason
from zfarm.terms import Terms

if TYPE_CHECKING:
    from zfarm.api import Executor
    from zfarm.link import Link

__all__ = ["Pending", "awaited", "submit_later"]

Encode = Callable[[tuple[Any, ...], Mapping[str, Any], Any], bytes]
WithFiles = Callable[[Terms | None, Any, bytes, Any], Terms | None]


def awaited(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, StandardFuture[Any]]:
    """The futures among the arguments of a call, by what people call their places."""
    places = {f"argument {n}": arg for n, arg in enumerate(args, 1)}
    places |= {f"argument {name!r}": arg for name, arg in kwargs.items()}
    return {place: arg for place, arg in places.items() if isinstance(arg, StandardFuture)}


def submit_later(
    farm: Executor,
    future: Future[Any],
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Future[Any]:
    """Submit a call for ``future`` when the futures among its arguments are done. Raises NotPortable for its
    function alone."""
    call = fn, farm._encode_function(fn), farm._setup()
    Pending(farm._link, future, call, args, kwargs, farm._encode_arguments, farm._with_files).start()
    return future


class Pending:
    """One call that is submitted when the futures among its arguments are done. To its link, a feeder."""

    def __init__(
        self,
        link: Link,
        future: Future[Any],
        call: tuple[Any, bytes, bytes],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        encode: Encode,
        with_files: WithFiles,
    ) -> None:
        """``call``: the function, its blob and the setup."""
        self._link = link
        self._future = future
        self._call = call
        self._args = args
        self._kwargs = kwargs
        self._encode = encode
        self._with_files = with_files
        self._lock = threading.Lock()
        self._open = awaited(args, kwargs)
        self._left = len(self._open) + 1
        self._then: list[Callable[[], None]] | None = []
        """What to do when the call is submitted; None: it was, or never will be."""

    def start(self) -> None:
        """Begin to wait."""
        self._future._awaits = self
        self._link.feeders.add(self)
        self._future.add_done_callback(self._over)
        for arg in list(self._open.values()):
            arg.add_done_callback(self._done)
        self._done(None)
        if self._link.ended:
            self.forget(self._link.refused())

    def why(self) -> Reason:
        """Why the call is not submitted."""
        waits = [f"{place}, {arg!r}" for place, arg in self._open.items() if not arg.done()]
        return Reason("argument", f"it waits for {' and for '.join(waits) or 'its arguments'}")

    def then(self, call: Callable[[], None]) -> bool:
        """Do this in the link's thread as soon as the call is submitted, or done without; False: it is."""
        with self._lock:
            if self._then is None:
                return False
            self._then.append(call)
            return True

    def feed(self) -> None:
        """There is room in the farm, which is not what this waits for."""

    def forget(self, error: BaseException | None) -> None:
        """Wait no more: the call was cancelled (None), or fails with ``error``."""
        if error is None:
            self._future._drop()
        elif self._future._withdraw():
            self._future._fail(error)

    def _done(self, arg: StandardFuture[Any] | None) -> None:
        """An argument is done. In the thread that brought its outcome."""
        if arg is not None and arg.cancelled():
            if self._future._withdraw():
                self._future._drop()
            return
        if arg is not None and (error := arg.exception()) is not None:
            if self._future._withdraw():
                self._future._fail(error)
            return
        with self._lock:
            self._left -= 1
            if self._left:
                return
        if not self._future.done():
            self._submit()

    def _submit(self) -> None:
        function, blob, setup = self._call
        future, link = self._future, self._link
        try:
            args = tuple(map(_value, self._args))
            kwargs = {name: _value(value) for name, value in self._kwargs.items()}
            body = self._encode(args, kwargs, function)
            if len(body) + len(blob) > link.bytes_max:
                from zfarm.mapping import too_large

                raise too_large(f"the call of {future._name}", len(body) + len(blob), link.bytes_max)
            if picklers or link.named:
                future._terms = self._with_files(future._terms, function, blob, (args, kwargs))
        except BaseException as error:  # of user code, too: a result may not let itself be pickled
            if future._withdraw():
                future._fail(error)
            return
        with self._lock:  # whoever comes now waits here until the link can take it
            self._do_then()
            link.inbox.append((future, future._name, blob, setup, body))
        future._awaits = None
        link.feeders.discard(self)
        link.loop.wake()
        if link.ended:
            link.sweep()

    def _over(self, future: StandardFuture[Any]) -> None:
        """The call is done, perhaps before it was submitted."""
        self._link.feeders.discard(self)
        with self._lock:
            self._do_then()
        self._future._awaits = None
        self._args, self._kwargs, self._open = (), {}, {}
        self._link.call(self._link.leave_when_done)

    def _do_then(self) -> None:
        then, self._then = self._then, None
        for call in then or ():
            self._link.call(call)


def _value(arg: Any) -> Any:
    return arg.result() if isinstance(arg, StandardFuture) else arg
