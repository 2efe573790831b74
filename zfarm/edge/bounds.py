"""The bounds of numbers, names and lists in messages, and the refusal of what is outside; no message."""

from __future__ import annotations

import re
from collections.abc import Sequence, Sized
from math import isfinite
from typing import Final

from zfarm.errors import ProtocolError
from zfarm.messages import DIGEST_BYTES
from zfarm.settings import settings

__all__ = [
    "AMOUNT_MAX", "COUNT_MAX", "NAME_MAX", "NUMBER_MAX", "RESOURCES_MAX", "SESSION_MAX", "TASK_NUMBER_MAX",
    "Malformed", "blobs", "duct", "key", "listed", "name", "named", "names", "number", "numbers", "real",
]  # fmt: skip

NUMBER_MAX: Final = 2**63 - 1
"""Of task numbers, lease ids and counters: what a signed 64-bit integer holds."""
TASK_NUMBER_MAX: Final = 2**40 - 1
"""Of a client: a journal has room for no more."""
COUNT_MAX: Final = 2**31 - 1
"""Of items, attempts, slots, channels and pids."""
NAME_MAX: Final = 1024
"""Characters of a host or function name, and of a session with its principal."""
RESOURCES_MAX: Final = 64
"""Of a worker or a call: resources, and labels."""
AMOUNT_MAX: Final = 10**15
"""Of a resource, in thousandths."""
_Z85: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_DIGITS: Final = str.maketrans(_Z85, "".join(map(chr, range(len(_Z85)))))
_WORD_MAX: Final = "%nSc0".translate(_DIGITS)
"""Five digits that stand for the largest number of 32 bits."""
_KEY: Final = re.compile(rf"[{re.escape(_Z85)}]{{40}}")
_DUCT: Final = re.compile(r"(tcp://[0-9a-fA-F.:\[\]]{1,64})?:([0-9]{1,5}) ([^ ]{40})")
SESSION_MAX: Final = 256
"""Characters of a session."""


class Malformed(ProtocolError, ValueError):
    """What a peer sent is no message of its direction; the text says why."""


def blobs(message: object, count: int, expected: int) -> None:
    """As many blobs as the message says."""
    if count != expected:
        raise Malformed(f"{type(message).__name__} with {count} blobs, {expected} expected")


def listed(what: str, values: Sized, most: int) -> None:
    """No more than so many."""
    if len(values) > most:
        raise Malformed(f"{len(values)} {what}, at most {most} allowed")


def number(what: str, value: int, most: int = NUMBER_MAX, least: int = 0) -> None:
    """Within these bounds."""
    if not least <= value <= most:
        raise Malformed(f"{what} is {value}, not within {least} to {most}")


def numbers(what: str, values: Sequence[int], most: int = NUMBER_MAX, least: int = 0) -> None:
    """All of them within these bounds."""
    if values and (min(values) < least or max(values) > most):
        raise Malformed(f"{what} from {min(values)} to {max(values)}, not within {least} to {most}")


def named(digests: Sequence[bytes], *others: int) -> None:
    """Digests of functions, or of one of the ``others`` sizes."""
    if len(digests) > settings.blobs_max:
        raise Malformed(f"{len(digests)} digests, at most {settings.blobs_max} allowed")
    for size in set(map(len, digests)).difference(others):
        if size != DIGEST_BYTES:
            raise Malformed(f"the digest of a function has {size} bytes")


def names(digests: Sequence[bytes], functions: int) -> None:
    """One for each function, empty where it has no name; or none at all."""
    if digests:
        if len(digests) != functions:
            raise Malformed(f"{len(digests)} digests of {functions} functions")
        named(digests, 0)


def real(what: str, *values: float) -> None:
    """Finite."""
    if not all(map(isfinite, values)):
        raise Malformed(f"{what} is not a finite number")


def name(what: str, *values: str, most: int = NAME_MAX) -> None:
    """No longer than so many characters."""
    for value in values:
        if len(value) > most:
            raise Malformed(f"{what} has {len(value)} characters, at most {most} allowed")


def key(key: str) -> None:
    """A public key in Z85, or none."""
    digits = key.translate(_DIGITS)
    words = [digits[start : start + 5] for start in range(0, len(digits), 5)]
    if key and (not _KEY.fullmatch(key) or max(words) > _WORD_MAX):
        raise Malformed("a key is no key")


def duct(duct: str, own: bool = False) -> None:
    """Where a worker may be dialled, and its key there, or nothing. ``own``: said by the worker, who names no
    host."""
    found = _DUCT.fullmatch(duct) if duct else None
    if duct and (found is None or not 0 < int(found[2]) < 1 << 16 or (own and found[1])):
        raise Malformed("a duct is not at a port, or has no key")
    if found is not None:
        key(found[3])
