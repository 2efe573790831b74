"""With which exit code a command ends, by what went wrong; the numbers are those of sysexits.h."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from zfarm.errors import (
    AccessDenied,
    BrokerUnreachable,
    ConfigurationError,
    FarmError,
    FileUnknown,
    JournalCorrupt,
    JournalError,
    ProtocolError,
    TransferError,
    UnsafeName,
)

__all__ = ["HELP", "Failure", "exit_code", "reading", "writing"]

BAD_INPUT: Final = 65
NO_INPUT: Final = 66
NO_TARGET: Final = 73
DISK: Final = 74

_CODES: Final[tuple[tuple[type[Exception], int], ...]] = (
    (BrokerUnreachable, 69),
    (AccessDenied, 77),
    (ProtocolError, 76),
    (ConfigurationError, 78),
    (JournalCorrupt, BAD_INPUT),
    (JournalError, DISK),
    (FileUnknown, NO_INPUT),
    (UnsafeName, BAD_INPUT),
    (TransferError, DISK),
    (FarmError, 70),
)
"""The first that fits counts. 2: wrong usage, 130: interrupted."""

HELP: Final = (
    "Exit codes: 0 fine, 2 wrong usage, 65 a damaged journal or what cannot travel, 66 no such file or name, "
    "69 the broker does not answer, 73 the target cannot be made, 74 a disk or transfer that fails, "
    "76 versions do not fit, 77 access denied, 78 wrong configuration."
)

_NOT_THERE: Final = frozenset(
    {
        errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG,
    }
)  # fmt: skip
"""A path that its user had better not named."""
_NOT_TO_BE_MADE: Final = _NOT_THERE | {errno.EEXIST, errno.ENOTEMPTY, errno.EROFS, errno.EINVAL}


class Failure(Exception):
    """A command has failed for a reason that the kind of its error does not tell; with an exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def exit_code(error: FarmError | Failure) -> int:
    """That with which a command ends that met this."""
    if isinstance(error, Failure):
        return error.code
    return next(code for kind, code in _CODES if isinstance(error, kind))


@contextmanager
def reading() -> Iterator[None]:
    """What fails in here is what the user gave us to read. Raises Failure instead of TransferError."""
    try:
        yield
    except TransferError as error:
        code = DISK if error.errno else BAD_INPUT
        raise Failure(str(error), NO_INPUT if error.errno in _NOT_THERE else code) from error


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """What fails in here is what is written where the user wants it. Raises Failure instead of OSError."""
    try:
        yield
    except TransferError as error:
        raise _unwritten(str(error), error.errno) from error
    except FarmError:  # such as BrokerUnreachable, which is an OSError, too
        raise
    except OSError as error:
        raise _unwritten(f"cannot write {str(target)!r}: {error.strerror}", error.errno) from error


def _unwritten(text: str, reason: int | None) -> Failure:
    return Failure(text, NO_TARGET if reason in _NOT_TO_BE_MADE else DISK)
