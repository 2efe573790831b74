"""What is said of keys that are refused: a line for each address now and then, with a count; it opens no
socket."""

from __future__ import annotations

import logging
from typing import Final

from zfarm.settings import settings

__all__ = ["Refusals"]

ADDRESSES_MAX: Final = 256
"""Addresses that are counted each for itself; those beyond are counted together."""
OTHERS: Final = "other addresses"

_log: Final = logging.getLogger("zfarm.security")


class Refusals:
    """Counts refusals, and says the first of an address at once and the others together, later."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[int, str, float]] = {}  # not said yet, the last of them, and since when

    def note(self, key: str, address: str, domain: str, now: float) -> None:
        """A connection from there with that key was refused."""
        text = f"key {key} from {address} at {domain}"
        if address not in self._since and len(self._since) >= ADDRESSES_MAX:
            address = OTHERS
        known = self._since.get(address)
        if known is None:
            _log.warning("refused %s", text)
            self._since[address] = 0, text, now
        else:
            self._since[address] = known[0] + 1, text, known[2]

    def tell(self, now: float) -> None:
        """Say what has been kept for long enough. To be called every second or so."""
        for address, (count, text, since) in list(self._since.items()):
            if now - since < settings.refusals_said_every_s:
                continue
            if count:
                _log.warning("refused %d more from %s, the last: %s", count, address, text)
                self._since[address] = 0, text, now
            else:
                del self._since[address]
