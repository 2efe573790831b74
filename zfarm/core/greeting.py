"""Which peers may speak with each other: the versions that must agree, and the sentence for the others."""

from __future__ import annotations

from zfarm.messages import Versions

__all__ = ["mismatch"]


def mismatch(mine: Versions, theirs: Versions) -> str:
    """What to tell a peer whose versions do not fit the broker's; empty if they do.

    Calls travel as pickles with byte code, so all peers need the same minor version of Python.
    """
    for what, ours, other in (
        ("protocol", str(mine.protocol), str(theirs.protocol)),
        ("zfarm", mine.zfarm, theirs.zfarm),
        ("Python", ".".join(mine.python.split(".")[:2]), ".".join(theirs.python.split(".")[:2])),
    ):
        if ours != other:
            return (
                f"the broker runs {what} {ours}, you run {what} {other}; "
                f"install the same {what} version on both sides"
            )
    return ""
