"""Contexts, directories and keys for tests with real sockets; each test gets its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zfarm.edge.security import ServerKeys
from zfarm.edge.sockets import Context, close_context, new_context
from zfarm.edge.zap import Doorkeeper, Table, table_of


@pytest.fixture
def context() -> Iterator[Context]:
    context = new_context()
    yield context
    close_context(context)


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="p"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def keys() -> ServerKeys:
    return ServerKeys.fresh()


@pytest.fixture
def doorkeeper(context: Context, keys: ServerKeys) -> Iterator[Doorkeeper]:
    doorkeeper = Doorkeeper(context, table_of(keys.roles))
    doorkeeper.start()
    yield doorkeeper
    doorkeeper.stop()


class _Lax(dict[bytes, tuple[str, str]]):
    def get(self, key: bytes, default: Any = None) -> Any:
        return "client", "anybody"


@pytest.fixture
def lax() -> Table:
    """A table by which whoever knocks is a client."""
    return _Lax()
