"""Whether anybody else has a file open, or mapped: what the system's leases tell; it knows no file's use.

A write lease is given only if no other open file description of the file exists, and a mapping keeps the one
that it was made from. So it is known of all processes at once, whatever they are, and however they have died.
"""

from __future__ import annotations

import fcntl
import os
import signal

__all__ = ["is_at_rest", "memory_file"]


def is_at_rest(fd: int) -> bool:
    """Whether nobody but us has this file open, or mapped; False where the system does not say.

    That is what a lease is given for. It is given back at once: who comes meanwhile waits so long, and its
    signal is one that does nothing. Descriptors that were duplicated or inherited from this one, and what is
    mapped from those, count as ours.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True


def memory_file(name: str) -> int:
    """A descriptor of a new memfd. Raises OSError.

    It is one that was opened: the system does not count the one that a memfd is made with among those that
    write, so its lease would be refused to us when we are alone, and given when another one writes.
    """
    made = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        return os.open(f"/proc/self/fd/{made:d}", os.O_RDWR | os.O_CLOEXEC)
    finally:
        os.close(made)
