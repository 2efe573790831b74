"""How many files a worker may have open; it opens none."""

from __future__ import annotations

import resource
from contextlib import suppress
from typing import Final

__all__ = ["allow_descriptors"]

_WANTED: Final = 10_000


def allow_descriptors() -> None:
    """Each child takes five descriptors, and hundreds may wait for nested calls; they keep the old limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED if hard == resource.RLIM_INFINITY else min(_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # then it stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
