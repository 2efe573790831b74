"""The wire: what goes in comes out, and nothing else ever comes out of a decoder than a sound message."""

from __future__ import annotations

import math
import random
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from msgspec import structs

from zfarm import messages as m
from zfarm.edge import checks, wire
from zfarm.settings import settings

UNIONS: dict[str, tuple[Any, wire.Decoder[Any]]] = {
    "FromClient": (m.FromClient, wire.from_client),
    "ToClient": (m.ToClient, wire.to_client),
    "FromWorker": (m.FromWorker, wire.from_worker),
    "ToWorker": (m.ToWorker, wire.to_worker),
    "ToChild": (m.ToChild, wire.to_child),
    "FromChild": (m.FromChild, wire.from_child),
}
LARGE = settings.frame_share_max + 1
KEY = "%nSc0" * 8
"""The highest of all keys: as digits of 85 it has no higher one of 32 bytes."""
JOIN: Any = m.Join("w", m.Versions(1, "", ""), 1, "h", 1)
quick = hypothesis_settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


def blobs_of(count: int) -> st.SearchStrategy[list[bytes]]:
    some = st.one_of(st.just(b""), st.binary(max_size=40), st.just(b"L" * LARGE))
    return st.lists(some, min_size=count, max_size=count)


numbers = st.integers(0, 2**63 - 1)
small = st.integers(0, 2**31 - 1)
versions = st.builds(m.Versions, small, st.text(max_size=9), st.text(max_size=9))
fates = st.builds(m.Fate, st.text(max_size=9), st.text(max_size=9), small, st.integers(-9, 300), st.text())
sessions = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=40)
held = st.lists(st.builds(m.Held, numbers, st.text(max_size=9), numbers, st.booleans()), max_size=5)
vitals = st.builds(m.Vitals, st.floats(0, 100), st.floats(0, 9), small, numbers)


@st.composite
def submits(draw: Any) -> tuple[m.Message, list[bytes]]:
    names, setups = draw(st.lists(st.text(max_size=9), min_size=1, max_size=3)), draw(st.integers(1, 3))
    call = st.builds(
        m.Call,
        st.integers(0, 2**40 - 1),
        st.integers(0, len(names) - 1),
        st.integers(0, setups - 1),
        small,
        st.integers(1, 9),
    )
    calls = draw(st.lists(call, max_size=6))
    return m.Submit(calls, names, setups), draw(blobs_of(len(names) + setups + len(calls)))


@st.composite
def grants(draw: Any) -> tuple[m.Message, list[bytes]]:
    owners = draw(st.lists(st.text(max_size=9), min_size=1, max_size=3))
    functions, setups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    index = [st.integers(0, n - 1) for n in (len(owners), functions, setups)]
    lease = st.builds(m.Lease, numbers, index[0], numbers, index[1], index[2], small, numbers)
    leases = draw(st.lists(lease, max_size=6))
    return m.Grants(draw(numbers), leases, owners, functions, setups), draw(
        blobs_of(functions + setups + len(leases))
    )


@st.composite
def reports(draw: Any) -> tuple[m.Message, list[bytes]]:
    plain = st.builds(
        m.Report, numbers, st.sampled_from([m.VALUE, m.ERROR, m.MIXED, m.CANCELLED, m.BROKEN]), numbers
    )
    lost = st.builds(m.Report, numbers, st.sampled_from([m.LOST, m.TIMEOUT]), numbers, fates)
    many = draw(st.lists(plain | lost, max_size=6))
    return m.Reports(many), draw(blobs_of(len(many)))


@st.composite
def endeds(draw: Any) -> tuple[m.Message, list[bytes]]:
    kinds = st.integers(0, m.TIMEOUT)
    one = st.builds(m.Outcome, numbers, kinds, numbers, st.lists(fates, max_size=3).map(tuple))
    many = draw(st.lists(one, max_size=6))
    return m.Ended(many), draw(blobs_of(len(many)))


@st.composite
def runs(draw: Any) -> tuple[m.Message, list[bytes]]:
    functions, setup = draw(st.integers(1, 3)), draw(st.booleans())
    calls = draw(st.lists(st.builds(m.ChildCall, numbers, st.integers(0, functions - 1), small), max_size=6))
    return m.Run(calls, functions, setup), draw(blobs_of(functions + setup + len(calls)))


def alone(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[m.Message, list[bytes]]]:
    return st.tuples(strategy, st.just([]))


tasks = st.lists(numbers, max_size=9)
tunnels = st.tuples(st.builds(m.Tunnel, small), st.integers(1, 4).flatmap(blobs_of))
sound: dict[str, list[st.SearchStrategy[tuple[m.Message, list[bytes]]]]] = {
    "FromClient": [
        submits(),
        alone(st.builds(m.Hello, sessions, versions, st.text(max_size=40), small)),
        *(alone(st.builds(kind, tasks)) for kind in (m.Ask, m.Forget)),
        alone(st.builds(m.Cancel, tasks, st.booleans(), numbers)),
        alone(st.builds(m.Pulse, numbers, numbers)),
        alone(st.just(m.Bye())),
        alone(st.builds(m.Look, small)),
    ],
    "ToClient": [
        endeds(),
        alone(st.builds(m.Welcome, numbers, versions, numbers, numbers)),
        alone(st.just(m.Stranger())),
        alone(st.builds(m.Refused, st.text(max_size=20), st.text())),
        *(alone(st.builds(kind, tasks)) for kind in (m.Began, m.Unknown)),
        alone(st.builds(m.Echo, numbers, numbers)),
    ],
    "FromWorker": [
        reports(),
        tunnels,
        alone(st.builds(m.Join, sessions, versions, small, st.text(max_size=9), small, held)),
        alone(st.builds(m.Beat, numbers, tasks, small, st.none() | vitals)),
        alone(st.builds(m.Return, tasks)),
        alone(st.builds(m.Room, small)),
        alone(st.builds(m.Leave, tasks)),
        alone(st.builds(m.TunnelClosed, small)),
    ],
    "ToWorker": [
        grants(),
        tunnels,
        alone(st.builds(m.Revoke, tasks, st.booleans(), numbers)),
        alone(st.builds(m.Thanks, tasks)),
        alone(st.just(m.Drain())),
    ],
    "ToChild": [runs(), tunnels],
    "FromChild": [
        tunnels,
        alone(st.builds(m.Waits, st.booleans())),
        alone(st.builds(m.Starts, numbers)),
    ],
}


@pytest.mark.parametrize("direction", UNIONS)
def test_what_goes_in_comes_out(direction: str) -> None:
    decoder = UNIONS[direction][1]

    @quick
    @given(st.one_of(sound[direction]), st.booleans())
    def run(both: tuple[m.Message, list[bytes]], views: bool) -> None:
        message, payload = both
        frames = wire.encode(message, payload)
        if views:
            frames = [memoryview(frame) for frame in frames]
        back, blobs = decoder.decode(frames)
        assert back == message
        assert type(back) is type(message)
        assert [bytes(blob) for blob in blobs] == payload
        assert all(type(blob) is bytes for blob in blobs if len(blob) < LARGE)

    run()


@pytest.mark.parametrize("direction", UNIONS)
def test_mutations_are_malformed_or_sound(direction: str) -> None:
    """Whatever happens to the frames on the way, a decoder gives a message of its union or says Malformed."""
    union, decoder = UNIONS[direction]
    kinds: Any = typing.get_args(union)

    @quick
    @given(st.one_of(sound[direction]), st.randoms(use_true_random=False))
    def run(both: tuple[m.Message, list[bytes]], rng: random.Random) -> None:
        frames = [bytearray(frame) for frame in wire.encode(*both)]
        for _ in range(rng.randint(1, 3)):
            frame = rng.choice(frames) if frames else bytearray()
            position = rng.randrange(len(frame) + 1)
            match rng.randrange(6):
                case 0 if frame:
                    frame[position % len(frame)] = rng.randrange(256)
                case 1:
                    del frame[position:]
                case 2:
                    frame[position:position] = rng.randbytes(rng.randint(1, 5))
                case 3:
                    frames.append(bytearray(frame))
                case 4 if frames:
                    frames.pop(rng.randrange(len(frames)))
                case _:
                    rng.shuffle(frames)
        try:
            message, blobs = decoder.decode([bytes(frame) for frame in frames])
        except wire.Malformed as error:
            assert str(error)
        else:
            assert isinstance(message, kinds)
            checks.CHECKS[type(message)](message, len(blobs))

    run()


@quick
@given(st.lists(st.binary(max_size=200), max_size=4))
def test_garbage_is_malformed(frames: list[bytes]) -> None:
    for _, decoder in UNIONS.values():
        try:
            message, _blobs = decoder.decode(frames)
        except wire.Malformed:
            continue
        assert type(message) in checks.CHECKS  # a lucky one


@quick
@given(st.binary(max_size=100))
def test_garbage_is_no_note_and_no_setup(frame: bytes) -> None:
    for decode in (wire.decode_note, wire.decode_setup):
        try:
            back: Any = decode(frame)
        except wire.Malformed:
            continue
        assert type(back) in (*typing.get_args(m.Note), m.Setup)


def test_every_message_of_every_direction_has_a_check() -> None:
    kinds = {kind for union, _ in UNIONS.values() for kind in typing.get_args(union)}
    assert kinds | set(typing.get_args(m.Note)) == set(checks.CHECKS)


def header(sizes: Any, message: Any) -> bytes:
    return msgspec.msgpack.encode((sizes, message))


SUBMIT = m.Submit([m.Call(1, 0, 0)], ["f"], 1)


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "no frame"),
        ([b""], "bad header"),
        ([b"\xc1"], "bad header"),
        ([b"\x91" * 5000], "bad header"),
        ([header([], m.Drain())], "bad header"),  # a message of another direction
        ([header(["1"], m.Bye())], "bad header"),
        ([header([], m.Bye()), b"x"], "1 payload frames"),
        ([header([1], m.Bye()), b"x"], "Bye with 1 blobs"),
        ([header([1, 1, 1], SUBMIT)], "0 payload frames"),
        ([header([1, 1, 1], SUBMIT), b"xxxx"], "shared frame has 4"),
        ([header([1, 1, 1], SUBMIT), b"xxx", b""], "2 payload frames"),
        ([header([1, 1, ~1], SUBMIT), b"xx", b"yy"], "blob of 1 bytes in a frame of 2"),
        ([header([1, 1, ~1], SUBMIT), b"xx"], "2 frames, 3 expected"),
        ([header([1, 1, -(2**62)], SUBMIT), b"xx", b"x"], "blob of"),
        ([header([1, 1], SUBMIT), b"xx"], "2 blobs, 3 expected"),
        ([header([0] * (settings.blobs_max + 1), m.Bye())], "at most"),
        ([header([], m.Bye()) + bytes(settings.header_bytes_max)], "header of"),
    ],
)
def test_wrong_frames_are_named(frames: list[bytes], reason: str) -> None:
    with pytest.raises(wire.Malformed, match=reason):
        wire.from_client.decode(frames)


@pytest.mark.parametrize(
    ("decoder", "message", "blobs", "reason"),
    [
        (wire.from_client, m.Submit([m.Call(-1, 0, 0)], ["f"], 1), 3, "tasks"),
        (wire.from_client, m.Submit([m.Call(2**40, 0, 0)], ["f"], 1), 3, "tasks"),
        (wire.from_client, m.Submit([m.Call(1, 1, 0)], ["f"], 1), 3, "function"),
        (wire.from_client, m.Submit([m.Call(1, -1, 0)], ["f"], 1), 3, "function"),
        (wire.from_client, m.Submit([m.Call(1, 0, 1)], ["f"], 1), 3, "setup"),
        (wire.from_client, m.Submit([m.Call(1, 0, 0)], [], 1), 2, "function"),
        (wire.from_client, m.Submit([m.Call(1, 0, 0)], ["f"], -1), 1, "setups"),
        (wire.from_client, m.Submit([m.Call(1, 0, 0, -1)], ["f"], 1), 3, "items"),
        (wire.from_client, m.Submit([m.Call(1, 0, 0, 2**31)], ["f"], 1), 3, "items"),
        (wire.from_client, m.Submit([m.Call(1, 0, 0, 0, 0)], ["f"], 1), 3, "max_attempts"),
        (wire.from_client, m.Submit([m.Call(1, 0, 0, 0, 1, -1)], ["f"], 1), 3, "timeout_us"),
        (wire.from_client, m.Submit([m.Call(1, 0, 0, 0, 1, 0, 2**31)], ["f"], 1), 3, "priority"),
        (wire.from_client, m.Submit([], ["f" * 1025], 1), 2, "name"),
        (wire.from_client, m.Submit([m.Call(1, 0, 0)] * 2001, ["f"], 1), 2003, "2001 calls"),
        (wire.from_client, m.Cancel([1, -1]), 0, "tasks"),
        (wire.from_client, m.Cancel([1], True, -1), 0, "grace_us"),
        (wire.to_worker, m.Revoke([1], True, -1), 0, "grace_us"),
        (wire.from_client, m.Ask([1] * (settings.blobs_max + 1)), 0, "tasks"),
        (wire.from_client, m.Hello("", m.Versions(1, "", "")), 0, "session"),
        (wire.from_client, m.Hello("s" * 257, m.Versions(1, "", "")), 0, "session"),
        (wire.from_client, m.Hello("client:alice/s", m.Versions(1, "", "")), 0, "slash"),
        (wire.from_client, m.Hello("s", m.Versions(1, "", ""), "h", -1), 0, "pid"),
        (wire.from_client, m.Hello("s", m.Versions(1, "", ""), key="k" * 39), 0, "key"),
        (wire.from_client, m.Hello("s", m.Versions(1, "", ""), key="k" * 39 + '"'), 0, "key"),
        (wire.from_client, m.Hello("s", m.Versions(1, "", ""), key="#" * 40), 0, "key"),
        (wire.to_worker, m.Listen([], "#" * 40), 0, "key"),
        (wire.from_client, m.Look(-1), 0, "tasks_max"),
        (wire.to_client, m.Ended([m.Outcome(1, 8)]), 1, "kinds"),
        (wire.to_client, m.Ended([m.Outcome(1, 0)]), 2, "2 blobs"),
        (wire.from_worker, m.Reports([m.Report(1, m.LOST)]), 1, "no fate"),
        (wire.from_worker, m.Reports([m.Report(1, m.TIMEOUT)]), 1, "no fate"),
        (wire.from_worker, m.Reports([m.Report(1, -1)]), 1, "kinds"),
        (wire.from_worker, m.Reports([m.Report(1, m.REFUSED)]), 1, "kinds"),
        (wire.from_worker, m.Reports([m.Report(-1, 0)]), 1, "leases"),
        (wire.from_worker, m.Reports([m.Report(1, 0, -1)]), 1, "run times"),
        (wire.from_worker, m.Beat(0, [], 0, m.Vitals(cpu_percent=math.nan)), 0, "finite"),
        (wire.from_worker, m.Beat(0, [], 0, m.Vitals(load_1m=math.inf)), 0, "finite"),
        (wire.from_worker, m.Beat(0, [], -1), 0, "room"),
        (wire.from_worker, m.Join("w", m.Versions(1, "", ""), -1, "h", 1), 0, "slots"),
        (wire.from_worker, structs.replace(JOIN, duct=f":0 {KEY}"), 0, "duct"),
        (wire.from_worker, structs.replace(JOIN, duct=f":65536 {KEY}"), 0, "duct"),
        (wire.from_worker, structs.replace(JOIN, duct=":5 " + "#" * 40), 0, "key"),
        (wire.from_worker, structs.replace(JOIN, duct=f"tcp://8.8.8.8:5 {KEY}"), 0, "port"),
        (wire.to_client, m.Streams([m.Streaming(-1, "", -1, 1, ":5 " + "#" * 40)]), 0, "key"),
        (wire.from_worker, m.Tunnel(1), 0, "without a frame"),
        (wire.to_worker, m.Grants(1, [m.Lease(1, 1, 1, 0, 0)], ["o"], 1, 1), 3, "owner"),
        (wire.to_worker, m.Grants(1, [m.Lease(1, 0, 1, 1, 0)], ["o"], 1, 1), 3, "function"),
        (wire.to_worker, m.Grants(1, [m.Lease(-1, 0, 1, 0, 0)], ["o"], 1, 1), 3, "leases"),
        (wire.to_child, m.Run([m.ChildCall(1, 1)], 1), 2, "functions"),
        (wire.to_child, m.Run([m.ChildCall(1, 0)], 1, True), 2, "2 blobs, 3 expected"),
        (wire.from_child, m.Dones([m.Done(1, m.LOST, 0)]), 1, "kind 4"),
        (wire.from_child, m.Dones([m.Done(1, m.CANCELLED, 0)]), 1, "kind 3"),
    ],
)
def test_inconsistent_messages_are_named(decoder: Any, message: Any, blobs: int, reason: str) -> None:
    with pytest.raises(wire.Malformed, match=reason):
        decoder.decode(wire.encode(message, [b"x"] * blobs))


@pytest.mark.parametrize("said", ["", f":5 {KEY}", f":65535 {KEY}"])
def test_a_duct_that_can_be_dialled_is_taken(said: str) -> None:
    message: Any = wire.from_worker.decode(wire.encode(structs.replace(JOIN, duct=said), ()))[0]
    assert message.duct == said


def test_large_blobs_are_not_copied() -> None:
    large = bytearray(LARGE)
    frames = wire.encode(SUBMIT, [b"f", b"s", large])
    assert frames[1] == b"fs"
    assert frames[2] is large
    _, blobs = wire.from_client.decode(frames)
    assert blobs[2] is large


def test_a_view_of_wide_items_is_counted_in_bytes() -> None:
    wide: Any = memoryview(bytes(80)).cast("d")
    _, blobs = wire.from_client.decode(wire.encode(SUBMIT, [b"f", b"s", wide]))
    assert blobs[2] == bytes(80)


def test_shared_blobs_of_a_foreign_buffer_become_bytes_of_their_own() -> None:
    payload = [b"a" * 40_000, b"b" * 40_000, b"c" * 50_000]
    head, shared = wire.encode(SUBMIT, payload)
    _, blobs = wire.from_client.decode([head, memoryview(shared)])
    assert blobs == payload
    assert all(type(blob) is bytes for blob in blobs)


def test_notes_and_setups_round_trip() -> None:
    setup = m.Setup("realm", "/tmp", ("/a", "/b"), "/usr", "host", b"init", 7)
    assert wire.decode_setup(wire.encode_setup(setup)) == setup
    note = m.TextNote(4, "info", "a worker joined")
    assert wire.decode_note(wire.encode_note(note)) == note
    with pytest.raises(wire.Malformed):
        wire.decode_note(wire.encode_setup(setup))
