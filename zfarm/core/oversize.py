"""What is said of a call of which something is larger than its broker takes; pure functions.

A larger blob would be no message to the broker: who says such a one again and again is sent away, with all
calls of others that it has.
"""

from __future__ import annotations

from math import inf

from zfarm.core.asked import Asked
from zfarm.messages import Fate, Welcome

__all__ = ["most_of", "text_of_call", "text_of_result", "why_unsent"]


def most_of(welcome: Welcome | None) -> float:
    """Bytes of the largest blob that this broker takes."""
    return (welcome.blob_bytes if welcome is not None else 0) or inf


def text_of_result(size: int, most: float) -> str:
    """Why the result of a call does not travel."""
    return (
        f"the result has {size:,} bytes, at most {most:,} may travel through this broker; return less, write "
        "a file, or set ZFARM_PAYLOAD_BYTES_MAX for the broker"
    )


def text_of_call(what: str, size: int, most: float) -> str:
    """Why a call, or the ``what`` of it, does not travel."""
    return (
        f"{what} has {size:,} bytes when pickled, at most {most:,} may travel through this broker; give "
        "less, put a file, or set ZFARM_PAYLOAD_BYTES_MAX for the broker"
    )


def why_unsent(asked: Asked, most: float) -> Fate | None:
    """Why a call cannot be submitted; None: it can."""
    parts = (("the call", asked.body), ("its function", asked.function), ("its initializer", asked.setup))
    size, what = max((len(blob), what) for what, blob in parts)
    if size <= most:
        return None
    doubt = "; an earlier broker was given it, and may have let it begin" if asked.books else ""
    return Fate(host="", worker="", text=text_of_call(what, size, most) + doubt)
