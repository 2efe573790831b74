"""The world that a client's calls expect around them, made once in a child: directory, path, initializer."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from zfarm.edge import homes, wire
from zfarm.edge.callables import Function, open_blob
from zfarm.edge.missing import noted, opened
from zfarm.edge.outcomes import encode_error, forget_frames
from zfarm.messages import Blob, Run, Setup

if TYPE_CHECKING:
    from zfarm.edge.shipped import Shipment

__all__ = ["Realm", "unfit"]

_FUNCTIONS_MAX: Final = 512
_FUNCTION_MAX: Final = 1024 * 1024
_FUNCTION_BYTES_MAX: Final = 64 * 1024 * 1024


class Realm:
    """One client's world in this child. ``broken`` has the exception of an initializer that failed."""

    def __init__(self) -> None:
        self.setup: Setup | None = None
        self.broken: bytes | None = None
        self.host = platform.node()
        self._away = False  # modules may be missing that the client has
        self._blob = b""
        self._directory = ""
        self._shipment: Shipment | None = None
        self._functions: OrderedDict[bytes, Function] = OrderedDict()
        self._function_bytes = 0
        self._named: dict[bytes, Function] = {}  # the worker says which of them are to go

    def adopt(self, blob: Blob, store: str = "") -> None:
        """Take on a setup: the first makes the realm and runs its initializer, others change its world.
        ``store`` is where the code is that was shipped."""
        if blob == self._blob:
            return
        first = self.setup is None
        try:
            setup = wire.decode_setup(blob)
            if self.setup is not None and setup.realm != self.setup.realm:
                raise wire.Malformed(
                    f"a setup of realm {setup.realm} for a child of realm {self.setup.realm}"
                )
        except wire.Malformed as error:
            self._break(error)
            return
        self.setup = setup
        self._away = bool(setup.trees) or not _at_home(setup, self.host)
        self._blob = bytes(blob)
        if first:
            homes.ours.settle()
        if setup.trees and self._shipment is None:
            from zfarm.edge.shipped import Shipment

            self._shipment = Shipment(setup, store)
        _take_place(setup, self.host, self._shipment)
        if first and setup.initializer:
            self._initialize(setup.initializer)
        self._directory = _directory()  # where an initializer went, calls begin

    def return_home(self) -> None:
        """Go back to where calls begin, should the last one have gone elsewhere."""
        if _directory() != self._directory and self._directory:
            with suppress(OSError):  # it was removed meanwhile
                os.chdir(self._directory)

    def _initialize(self, blob: bytes) -> None:
        try:
            function, args = open_blob(blob)
        except BaseException as error:
            self._break(self.opened(error))
            return
        try:
            function(*args)
        except BaseException as error:  # SystemExit too: an initializer that gives up has failed
            self.note(error)
            self._break(error)

    def note(self, error: BaseException) -> None:
        """Code of the user's has raised this: say where, if a module is missing that the client may have."""
        if self._away:
            noted(error, self.host, self._shipment is not None)

    def opened(self, error: BaseException) -> BaseException:
        """What to report when opening a blob has raised this."""
        return opened(error, self.host, self._shipment is not None)

    def _break(self, error: BaseException) -> None:
        self.broken = encode_error(error, skip=1)
        forget_frames(error)

    def functions(self, run: Run, blobs: Sequence[Blob]) -> list[Function]:
        """The functions of these calls: of ``blobs``, or what was sent before by the same digest."""
        if not run.digests:
            return [self.function(blob) for blob in blobs]
        functions: list[Function] = []
        for digest, blob in zip(run.digests, blobs, strict=True):
            if not digest:
                functions.append(self.function(blob))
                continue
            if len(blob):
                self._named[digest] = Function(bytes(blob))
            elif digest not in self._named:
                raise wire.Malformed("a function is named that was never sent")
            functions.append(self._named[digest])
        for digest in run.drops:
            self._named.pop(digest, None)
        return functions

    def function(self, blob: Blob) -> Function:
        """The function of a blob, the same one for the same bytes."""
        key = bytes(blob)
        function = self._functions.get(key)
        if function is not None:
            self._functions.move_to_end(key)
            return function
        function = Function(key)
        if len(key) > _FUNCTION_MAX:
            return function  # one that carries data: it is freed after this message
        self._functions[key] = function
        self._function_bytes += len(key)
        while len(self._functions) > _FUNCTIONS_MAX or self._function_bytes > _FUNCTION_BYTES_MAX:
            old, _ = self._functions.popitem(last=False)
            self._function_bytes -= len(old)
        return function


def _directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed under us
        return ""


def _at_home(setup: Setup, host: str) -> bool:
    return setup.prefix == sys.prefix and setup.host in ("", host)


def _take_place(setup: Setup, host: str, shipment: Shipment | None = None) -> None:
    """Go where the client is, and import from where it imports, as far as this host has that."""
    wanted = list(setup.path) if shipment is None else shipment.path(setup.path)
    if _at_home(setup, host):
        path = wanted
    else:
        first = len(setup.trees)
        mine = [entry for entry in sys.path if entry not in wanted[:first]]
        more = [entry for entry in wanted[first:] if entry not in mine and os.path.exists(entry)]
        path = [*wanted[:first], *mine, *more]
    for name, value in setup.environment.items():
        if value is None:
            os.environ.pop(name, None)
        elif os.environ.get(name) != value:
            os.environ[name] = value
    try:
        os.chdir(setup.cwd if shipment is None else shipment.directory(setup.cwd))
    except OSError:
        pass  # another host need not have it, and a directory may have been removed
    if path != sys.path:
        sys.path[:] = path
        importlib.invalidate_caches()


def unfit(kind: str, size: int, limit: int) -> bytes:
    """The blob of the error that a result is too large to travel."""
    from zfarm.errors import TooLarge

    text = (
        f"the {kind} has {size:,} bytes pickled, at most {limit:,} may travel; return less, write a file, "
        f"or set ZFARM_PAYLOAD_BYTES_MAX for client, broker and workers"
    )
    return encode_error(TooLarge(text))
