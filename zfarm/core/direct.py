"""What a client's machine says and hears of ducts: its key there, what comes over them, and their ends."""

from __future__ import annotations

from msgspec import structs

from zfarm.core.inflow import Inflow
from zfarm.core.machine import NOW
from zfarm.messages import Hello, Items, Payload

__all__ = ["Direct"]


class Direct:
    """The part of a client's machine that knows of ducts."""

    deadline: float
    inflow: Inflow
    _hello: Hello

    def show(self, key: str) -> None:
        """Be known at ducts by this key, which was made for this client; to be called before it says
        Hello. Without one nobody offers it any."""
        self._hello = structs.replace(self._hello, key=key)

    def direct_items(self, duct: str, message: Items, payload: Payload, now: float) -> None:
        """Items have come over this duct."""
        self.inflow.direct(duct, message, payload, now)
        self.deadline = NOW

    def duct_broke(self, duct: str, reached: bool, now: float, refused: bool = False) -> None:
        """This duct has ended; or it was not ``reached`` at all, or ``refused``, as nobody was expected."""
        self.inflow.duct_broke(duct, reached, now, refused)
        self.deadline = NOW
