"""A log record or warning as a line of JSON, between a child, its worker and its client; plain data only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

__all__ = ["Logged", "Warned", "as_text", "decode", "encode"]


class Logged(msgspec.Struct, tag="log", gc=False):
    """One record of logging."""

    name: str
    level: int
    level_name: str
    message: str
    created: float
    path: str = ""
    line: int = 0
    function: str = ""
    pid: int = 0
    process: str = ""
    thread: str = ""
    traceback: str = ""
    stack: str = ""
    extra: dict[str, Any] = {}


class Warned(msgspec.Struct, tag="warning", gc=False):
    """One warning."""

    message: str
    category: str
    path: str
    line: int
    module: str = ""


encode: Final = msgspec.json.Encoder().encode
_decode: Final[Callable[[bytes], Logged | Warned]] = msgspec.json.Decoder(Logged | Warned).decode


def decode(line: bytes) -> Logged | Warned | None:
    """What a line says; None: it was cut, or is nothing of ours."""
    try:
        return _decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def as_text(lines: bytes) -> bytes:
    """The same as people read it on standard error."""
    return b"".join(_readable(line) for line in lines.split(b"\n") if line)


def _readable(line: bytes) -> bytes:
    said = decode(line)
    if said is None:
        return line + b"\n"
    if isinstance(said, Warned):
        kind = said.category.rpartition(":")[2]
        text = f"{said.path}:{said.line}: {kind}: {said.message}\n"
    else:
        more = "".join(f"{part}\n" for part in (said.traceback, said.stack) if part)
        text = f"{said.level_name}:{said.name}:{said.message}\n{more}"
    return text.encode("utf-8", "backslashreplace")
