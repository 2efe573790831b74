"""A link to a broker that is driven by whoever wants something of it; it knows one message, Refused."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from zfarm import __version__
from zfarm.edge import wire
from zfarm.edge.loop import Loop
from zfarm.edge.ports import DealerPort
from zfarm.edge.security import Access
from zfarm.edge.sockets import close_context, new_context
from zfarm.errors import FarmError, VersionMismatch
from zfarm.messages import Payload, Refused

__all__ = ["Dialogue"]


class Dialogue:
    """To be closed, or used by ``with``. Subclasses say to ``_port`` what they want, in turns of ``loop``."""

    def __init__(self, find: Callable[[], Access]) -> None:
        """Connect to the broker that ``find`` names.

        Raises:
            ConfigurationError: there is no such broker, or its keys cannot be used.
        """
        self.loop = Loop()
        self.trouble: FarmError | None = None
        """Why the broker does not let us in, if it said so."""
        self._find = find
        self._context = new_context()
        try:
            self._access = find()
            self._open()
        except BaseException:
            close_context(self._context)
            self.loop.close()
            raise

    @property
    def address(self) -> str:
        """Where the farm is, as people name it."""
        return self._access.farm_address or self._access.address

    def _hear(self, message: Any, payload: Payload) -> None:
        """The broker says something, and it is no refusal."""

    def _hear_refusal(self, message: Refused) -> None:
        """The broker refuses us."""
        self._refused(FarmError.named(message.code, message.text))

    def _refused(self, error: FarmError) -> None:
        self.trouble = error

    def _link(self, up: bool) -> None:
        """The link is there, or not any more."""

    def _open(self) -> None:
        self._port = DealerPort(self._context, self._access, on_trouble=self._refused, on_link=self._link)
        self.loop.add_source(self._port.socket, self._receive)
        self.loop.add_source(self._port.monitor, self._port.watch_link)
        self.loop.add_flusher(self._port.flush)

    def _receive(self) -> None:
        for frames in self._port.receive():
            try:
                message, payload = wire.to_client.decode(frames)
            except wire.Malformed as error:
                if self._port.misunderstood():
                    return
                self._refused(
                    VersionMismatch(
                        f"the broker at {self.address} answers in a way that zfarm {__version__} does not "
                        f"understand ({error}); install the same zfarm version on both sides"
                    )
                )
                continue
            if isinstance(message, Refused):
                self._hear_refusal(message)
            else:
                self._hear(message, payload)

    def _close_port(self) -> None:
        self.loop.remove_source(self._port.socket)
        self.loop.remove_source(self._port.monitor)
        self.loop.remove_flusher(self._port.flush)
        self._port.close()

    def close(self) -> None:
        """Give everything back."""
        self._close_port()
        close_context(self._context)
        self.loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
