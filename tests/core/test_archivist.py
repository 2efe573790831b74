"""The archive of one owner, as its messages have it: who is asked for what, and who is given what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from msgspec import structs

from tests.core.rigs import FIRST, BrokerRig, sent
from tests.core.test_needs import NEED, met, needy
from zfarm.core.archivist import Archivist, Reader
from zfarm.messages import (
    CHUNK_BYTES,
    Archive,
    Archived,
    Chunk,
    Chunks,
    Give,
    NameBlob,
    Need,
    SeekBlob,
    SpoilBlob,
    StoreChunk,
    Want,
    Wanted,
)
from zfarm.settings import settings

DIGEST = bytes(32)
LARGE = Need(DIGEST, 3 * CHUNK_BYTES)
ARCHIVE = Archive(7, "reference", LARGE, 0o640)


def turn(machine: Archivist, now: float = 0.0) -> list[Any]:
    actions = machine.advance(now)
    machine.check()
    return actions


def chunks(lease: int, at: int) -> tuple[Chunks, list[bytes]]:
    return Chunks(lease, 0, [Chunk(DIGEST, LARGE.size, at, DIGEST)]), [bytes(CHUNK_BYTES)]


def asked(machine: Archivist) -> tuple[int, Want]:
    """An upload that lacks all but its first chunk: the errand, and what its client is asked for."""
    machine.archive("C", ARCHIVE, 0.0)
    (seek,) = turn(machine)
    assert isinstance(seek, SeekBlob)
    machine.blob_found(seek.errand, CHUNK_BYTES, (), 0.0)
    (want,) = sent(turn(machine), "C")
    assert isinstance(want, Want)
    return seek.errand, want


def test_an_upload_gets_its_name_when_all_that_lacked_is_stored_and_not_before() -> None:
    machine = Archivist(settings)
    errand, want = asked(machine)
    assert (want.host, want.wants[0].at, want.wants[0].upto) == ("", CHUNK_BYTES, LARGE.size)

    for at in (CHUNK_BYTES, 2 * CHUNK_BYTES):
        machine.chunks("C", *chunks(want.lease, at), 0.0)
        (store,) = (action for action in turn(machine) if isinstance(action, StoreChunk))
        assert not any(isinstance(action, NameBlob) for action in turn(machine))
        machine.blob_stored(errand, store.at + CHUNK_BYTES, 0.0)
    (name,) = (action for action in turn(machine) if isinstance(action, NameBlob))
    assert name.archive == ARCHIVE

    machine.named(name.upload, "")
    assert sent(turn(machine), "C") == [Archived(7)]
    assert not machine.needs


def test_nobody_adds_to_the_upload_of_another() -> None:
    machine = Archivist(settings)
    _, want = asked(machine)

    machine.chunks("D", *chunks(want.lease, CHUNK_BYTES), 0.0)

    assert not any(isinstance(action, StoreChunk) for action in turn(machine))


def test_a_path_that_a_client_names_ends_its_upload_and_is_passed_on_to_nobody() -> None:
    machine = Archivist(settings)
    _, want = asked(machine)

    machine.chunks("C", Chunks(want.lease, 0, [Chunk(DIGEST, LARGE.size, path="/etc/shadow")]), [b""], 0.0)

    actions = turn(machine)
    assert not any(isinstance(action, StoreChunk) for action in actions)
    (answer,) = sent(actions, "C")
    assert (answer.code, "opens no file" in answer.text) == ("TransferError", True)
    assert actions[-1] == SpoilBlob(LARGE)


def test_an_upload_whose_client_is_silent_or_gone_is_given_up_and_can_be_had_again() -> None:
    machine = Archivist(settings)
    asked(machine)
    turn(machine, settings.client_lost_after_s + 1.0)
    assert not machine.needs

    asked(machine)
    machine.gone("C")
    turn(machine)
    assert not machine.needs
    asked(machine)


def test_what_cannot_be_kept_is_told_once_and_the_upload_ends() -> None:
    machine = Archivist(settings)
    errand, _ = asked(machine)

    machine.blob_failed(errand, "the disk is full", 0, 0.0)

    actions = turn(machine)
    assert sent(actions, "C") == [Archived(7, code="TransferError", text="the disk is full")]
    assert actions[-1] == SpoilBlob(LARGE)
    assert not machine.needs


def test_readers_are_given_no_more_at_once_than_the_window_and_the_rest_when_it_came() -> None:
    machine = Archivist(replace(settings, gives_window_bytes=CHUNK_BYTES))
    reader = Reader("archive", "c", FIRST, 1)
    want = Want(FIRST, [Wanted(DIGEST, LARGE.size, 0, LARGE.size)], host="w")
    machine.want(reader, want, 0.0)
    (give,) = turn(machine)
    assert isinstance(give, Give)
    assert (give.token, give.host, give.wants[0].upto) == (reader, "w", CHUNK_BYTES)
    assert turn(machine) == []

    machine.want(reader, structs.replace(want, wants=[], taken=CHUNK_BYTES), 0.0)
    assert turn(machine) == []  # it has all that it needs

    machine.want(reader, want, 0.0)
    machine.gone("archive")  # is no peer
    assert len(turn(machine)) == 1


# ---------------------------------------------------------------- the broker between


def needs_of_archive() -> BrokerRig:
    rig = met()
    message, payload = needy(1)
    kept = structs.replace(NEED, digest=b"k" * 32, archived=True)
    rig.say("C", structs.replace(message, needs=[(NEED, kept)]), payload)
    return rig


WANTS = [Wanted(NEED.digest, 100, 0, 100), Wanted(b"k" * 32, 100, 0, 100, archived=True)]


def test_a_worker_is_given_by_client_and_archive_what_each_of_them_has() -> None:
    rig = needs_of_archive()
    rig.machine.archive = "archive"

    actions = rig.say("W", Want(FIRST, WANTS))

    assert [want.wants for want in sent(actions, "C")] == [WANTS[:1]]
    (want,) = sent(actions, "archive")
    assert (want.wants, want.owner, want.task, want.host) == (WANTS[1:], "c", 1, "host-w")
    answer = Chunks(FIRST, 1, [Chunk(b"k" * 32, 100, 0, DIGEST)])
    rig.machine.routes.on_archive(want.owner, answer, [bytes(100)], 0.0)
    assert sent(rig.machine.advance(0.0), "W") == [answer]
    for lease, owner in ((FIRST + 1, "c"), (FIRST, "c2"), (FIRST, "nobody")):
        rig.machine.routes.on_archive(owner, structs.replace(answer, lease=lease), [bytes(100)], 0.0)
    assert not sent(rig.machine.advance(0.0), "W")


def test_a_broker_without_an_archive_says_so_to_whoever_needs_one() -> None:
    rig = needs_of_archive()

    (told,) = sent(rig.say("W", Want(FIRST, WANTS[1:])), "W")

    assert isinstance(told, Chunks)
    assert "--files none" in told.chunks[0].text
