"""How a child keeps a call within its memory limit: what cannot fit is refused at once, and told as that.

The worker watches what is really in use (zfarm.edge.memory). But a call can ask for more than a host has
between two looks, so the system is told to refuse what is far beyond: RLIMIT_DATA. Threads and libraries
reserve memory that they never touch; there is room for that.
"""

from __future__ import annotations

import errno
import resource
from contextlib import suppress
from typing import Final

from zfarm.edge.cores import usable_cores
from zfarm.edge.processes import HAS_PROC, anonymous_bytes, data_bytes
from zfarm.errors import MemoryLimit, NotPortable

__all__ = ["Fence"]

RESERVED_BYTES: Final = 64 * 1024**2
"""What a thread of a numerical library reserves: its stack, its buffers. There is one per core."""


class Fence:
    """The limit around the calls of one child, while there is one."""

    def __init__(self) -> None:
        self.too_fat = False
        """It has kept so much of what earlier calls left that the next one should have a fresh child."""
        self._most = 0
        self._old = (0, 0)
        self._at_first = anonymous_bytes()

    def settle(self) -> None:
        """The initializer has run: what is in use now is not the fault of any call."""
        self._at_first = anonymous_bytes()

    def raise_to(self, most: int, used: bool) -> bool:
        """Begin a call that may have ``most`` bytes in use; ``used``: this child has run others. True: it
        cannot begin here, since too much is left of them."""
        now = anonymous_bytes()
        if used and now > most // 2 and now - self._at_first > most // 4:
            self.too_fat = True
            return True
        self._most = most
        if HAS_PROC:
            self._old = soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
            wanted = data_bytes() - now + most + RESERVED_BYTES * usable_cores()
            known = [limit for limit in (soft, hard, wanted) if limit != resource.RLIM_INFINITY]
            with suppress(ValueError, OSError):  # then the worker's watch must do
                resource.setrlimit(resource.RLIMIT_DATA, (min(known), hard))
        return False

    def lift(self) -> None:
        """The call has ended; nothing happens if it has been lifted already."""
        if self._most and HAS_PROC:
            with suppress(ValueError, OSError):  # a task may have lowered the hard limit
                resource.setrlimit(resource.RLIMIT_DATA, self._old)
        self._most = 0

    def judged(self, error: BaseException) -> MemoryLimit | None:
        """The error of a call that was refused memory; None if that is not what has happened."""
        if not self._most or not _is_refusal(error):
            return None
        most = self._most
        self.lift()  # there must be room to tell it
        said = f": {text}" if (text := str(error)) else ""
        text = f"the call wanted more memory than its limit of {most / 1e6:.1f} MB{said}"
        over = MemoryLimit(text)
        over.__cause__ = error
        trace = error.__traceback__
        if trace is not None and trace.tb_next is not None:  # without the frame that called the task
            error.__traceback__ = trace.tb_next
        return over


def _is_refusal(error: BaseException) -> bool:
    if isinstance(error, NotPortable) and error.__cause__ is not None:
        error = error.__cause__  # of a result that could not be pickled
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
