"""What cannot be pickled, and what goes off where it is unpickled."""

from __future__ import annotations

import os
from typing import Any


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


class Bomb:
    """Goes off where it is unpickled."""

    def __init__(self, kind: type[BaseException] = ValueError) -> None:
        self.kind = kind

    def __reduce__(self) -> Any:
        return _explode, (self.kind, os.getpid())


def _explode(kind: type[BaseException], pid: int) -> Bomb:
    if os.getpid() != pid:
        raise kind("went off")
    return Bomb(kind)
