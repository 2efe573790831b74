"""Join tokens: one line in, the same access out; whatever else comes in is refused without repeating it."""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zfarm.edge.doors import plan
from zfarm.edge.principals import keys_path
from zfarm.edge.security import (
    ServerKeys,
    load_connection,
    new_connection,
    parse_address,
    write_connection,
)
from zfarm.edge.tokens import new_token, read_token, token_of
from zfarm.errors import ConfigurationError


@pytest.fixture
def broker(directory: Path) -> Path:
    file = directory / "farm.json"
    keys = ServerKeys.load_or_create(keys_path(file))
    write_connection(file, new_connection("farm", plan(["tcp://head:5555"], {}, None), 5560, keys))
    return file


def test_a_token_is_a_registered_worker_key(broker: Path) -> None:
    line = new_token(broker, "w7")
    access = read_token(f"  {line}\n")
    keys = ServerKeys.load(keys_path(broker))
    assert access.keys is not None
    assert (access.address, access.server, access.name) == ("tcp://head:5556", keys.server.public, "w7")
    assert [(one.name, one.role, one.public) for one in keys.principals] == [
        ("w7", "worker", access.keys.public)
    ]
    assert access.keys.secret not in repr(access) + keys_path(broker).read_text()
    assert read_token(new_token(broker, address="tcp://10.0.0.1:7")).address == "tcp://10.0.0.1:7"
    assert read_token(new_token(broker, address="tcp://10.0.0.1:5555")).address == "tcp://10.0.0.1:5556"
    with pytest.raises(ConfigurationError, match="there is a key called 'w7'"):
        new_token(broker, "w7")


def test_a_token_comes_from_a_private_file_or_a_pipe(
    broker: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = new_token(broker)
    file = directory / "token"
    file.touch(0o600)
    file.write_text(line)
    assert token_of(str(file)) == line
    monkeypatch.setattr(sys, "stdin", io.StringIO(line + "\nmore"))
    assert token_of("-") == line + "\n"
    file.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        token_of(str(file))


def _line(text: bytes) -> str:
    return "zfarm-join:" + base64.urlsafe_b64encode(text).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "zfarm-join",
        "zfarm-join:",
        "zfarm-join:!!!!",
        "zfarm-join:" + "A" * 5000,
        _line(b"{}"),
        _line(b"[1,2,3,4,5]"),
        _line(b'["tcp://h:1","short","secretsecret","x","n"]'),
        _line(b"[" * 3000),
        "zfarm-join:\udcff",
    ],
)
def test_what_is_no_token_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigurationError, match="token") as caught:
        read_token(text)
    assert "secretsecret" not in str(caught.value)
    assert "AAAA" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_half_a_line_is_no_token(broker: Path) -> None:
    line = new_token(broker)
    with pytest.raises(ConfigurationError, match="damaged"):
        read_token(line[: len(line) // 2])


@pytest.mark.parametrize("name", [str, lambda text: "/tmp/" + text])
def test_a_token_in_the_place_of_a_file_is_not_repeated(broker: Path, name: Callable[[str], str]) -> None:
    line = new_token(broker)
    for misused in (token_of, load_connection):
        with pytest.raises(ConfigurationError, match="a token is a secret") as caught:
            misused(name(line))
        assert line[20:40] not in str(caught.value)


def test_a_secret_in_the_place_of_an_address_is_not_repeated(broker: Path) -> None:
    line, whole = new_token(broker), broker.read_text()
    for secret in (line, whole):
        with pytest.raises(ConfigurationError, match="is a secret, and belongs into a") as caught:
            parse_address(secret)
        assert line[20:40] not in str(caught.value)
        assert load_connection(broker).keys["client"].secret not in str(caught.value)
