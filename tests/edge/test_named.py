"""Functions that travel once: how they get their names, and what a child makes of them."""

from __future__ import annotations

import os
from typing import Any

import pytest
from blake3 import blake3

from zfarm.edge import wire
from zfarm.edge.callables import Portable
from zfarm.edge.realm import Realm
from zfarm.messages import ChildCall, Grants, Named, Return, Run, Submit, Unknown

DIGEST = b"d" * 32


def carrying(data: bytes) -> Any:
    def function(number: int) -> int:
        return len(data) + number

    return function


def test_a_large_function_has_its_digest_for_a_name_and_a_small_one_has_none() -> None:
    portable = Portable()
    function = carrying(os.urandom(5000))

    blob = portable.encode_function(function)

    assert isinstance(blob, Named)
    assert blob.digest == blake3(blob).digest()
    assert portable.encode_function(function) is blob
    assert type(portable.encode_function(len)) is bytes


def test_a_child_runs_what_it_was_sent_under_that_name_until_it_drops_it() -> None:
    realm, one, other = Realm(), carrying(b"x" * 5000), carrying(b"x" * 6000)
    blobs = [Portable().encode_function(function) for function in (one, other)]
    names = [blob.digest for blob in blobs if isinstance(blob, Named)]

    first = realm.functions(Run([], 2, digests=names), list(blobs))
    again = realm.functions(Run([], 2, digests=names, drops=names[:1]), [b"", b""])

    assert [function.ready()(1) for function in first] == [5001, 6001]
    assert again == first
    assert realm.functions(Run([], 1, digests=names[1:]), [b""]) == first[1:]
    with pytest.raises(wire.Malformed, match="never sent"):
        realm.functions(Run([], 1, digests=names[:1]), [b""])


@pytest.mark.parametrize(
    "message",
    [
        Submit([], ["f"], 0, digests=[b"short"]),
        Submit([], ["f"], 0, digests=[DIGEST, DIGEST]),
        Grants(1, [], [], 1, 0, digests=[b"", DIGEST]),
        Run([ChildCall(1, 0)], 1, digests=[b"short"]),
        Run([ChildCall(1, 0)], 1, digests=[DIGEST], drops=[b""]),
        Unknown([1], 1, [b""]),
        Return([1], 1, [b"short"]),
    ],
    ids=lambda message: type(message).__name__,
)
def test_names_that_are_no_digests_are_malformed(message: Any) -> None:
    decoder: Any = wire.Decoder(type(message))
    blobs = [b"function", b"body"][: 2 if isinstance(message, Run) else 1]
    payload = blobs if isinstance(message, Submit | Grants | Run) else []

    with pytest.raises(wire.Malformed, match="digest"):
        decoder.decode(wire.encode(message, payload))


def test_a_message_may_name_some_of_its_functions() -> None:
    message = Grants(1, [], [], 2, 0, digests=[b"", DIGEST])

    assert wire.to_worker.decode(wire.encode(message, [b"small", b""])) == (message, [b"small", b""])
