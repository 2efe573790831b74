"""Who a peer is and whether it fits: principals, their names in the books, versions that must agree."""

from __future__ import annotations

from zfarm.messages import Versions

__all__ = ["LOCAL", "bare", "book_key", "mismatch", "principal_of", "sees"]

LOCAL = "local"
"""The principal of all peers on a local socket: its owner."""


def book_key(principal: str, session: str) -> str:
    """Under what name the books know a session of ``principal``.

    Every principal has a name space of its own: what it calls a session is never another's, known or not.
    """
    return session if principal == LOCAL else f"{principal}/{session}"


def principal_of(key: str) -> str:
    """Whose session that is; a session itself has no slash."""
    return key.partition("/")[0] if "/" in key else LOCAL


def bare(key: str) -> str:
    """The session as its owner calls it."""
    return key.rpartition("/")[2]


def sees(principal: str, key: str) -> bool:
    """Whether ``principal`` may look at what belongs to the session that the books know as ``key``."""
    return not principal.startswith("client:") or principal_of(key) == principal


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
