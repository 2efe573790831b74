"""What a store keeps for handles: it stays while it is named and its client is heard of, and no longer."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from zfarm.edge import keeping
from zfarm.edge.keeping import Shelf
from zfarm.edge.pins import Pins
from zfarm.edge.store import Store
from zfarm.edge.stored import Stored
from zfarm.errors import TransferError
from zfarm.messages import Keep, Need, Pin, Pinned

MIB = 1024 * 1024
AT = "here/1"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def keep(root: Path, fill: int, birth: bytes, mib: int = 2) -> Stored:
    """A child keeps a result in a store of 5 MiB."""
    with Shelf(str(root)) as shelf:
        shelf._bytes_max = 5 * MIB
        return shelf.put(memoryview(bytes([fill]) * (mib * MIB)), AT, birth)


def told(stored: Stored, number: int = 1, fresh: bool = True, owner: str = "c") -> Pin:
    return Pin(AT, number, [Keep(stored.digest, stored.size, stored.birth)], fresh=fresh, owner=owner)


def there(root: Path, stored: Stored) -> bool:
    return (root / "blobs" / f"{stored.digest.hex()}-{stored.size}").exists()


def pressed(root: Path) -> None:
    """Room is needed, and all goes that may."""
    store = Store(root, MIB, False, print)
    store._evict(MIB)
    store.close()


def aged(root: Path, pattern: str, by_s: float) -> None:
    for path in (root / "pins").glob(pattern):
        os.utime(path, (time.monotonic() - by_s,) * 2)


def test_a_result_stays_from_its_birth_until_no_handle_names_it(root: Path) -> None:
    pins, one, other = Pins(root, 60.0), keep(root, 1, b"one"), keep(root, 2, b"other")
    pressed(root)
    assert there(root, one)
    assert there(root, other)

    assert pins.follow(told(one)) == Pinned(AT, 1, True, "c")
    assert os.listdir(root / "pins" / "born") == [f"{b'other'.hex()}.{other.digest.hex()}-{other.size}"]
    aged(root, "born/*", 1000.0)
    pressed(root)
    assert there(root, one)
    assert not there(root, other), "nobody came for it"
    assert not os.listdir(root / "pins" / "born")
    pins.follow(Pin(AT, 2, drops=[Need(one.digest, one.size)], owner="c"))
    pins.follow(told(one, 1, fresh=False))  # late: it says nothing any more
    pressed(root)
    assert not there(root, one)


def test_equal_results_of_two_clients_end_each_by_itself(root: Path) -> None:
    pins, one = Pins(root), keep(root, 1, b"one")
    keep(root, 1, b"again")
    pins.follow(told(one))
    pins.follow(told(one._replace(birth=b"again"), owner="d"))
    pins.follow(Pin("", 0, owner="c", over=True))
    pressed(root)
    assert there(root, one)
    pins.follow(Pin("", 0, owner="d", over=True))
    pressed(root)
    assert not there(root, one)
    assert not os.listdir(root / "pins" / "named")


def test_a_client_that_was_silent_for_too_long_says_it_all_afresh(root: Path) -> None:
    pins, one, other = Pins(root, 60.0), keep(root, 1, b"one"), keep(root, 2, b"other")
    pins.follow(told(one))
    aged(root, "named/*/last", 50.0)
    assert pins.follow(Pin(AT, 2, owner="c")) == Pinned(AT, 2, True, "c")
    aged(root, "named/*/last", 61.0)
    assert pins.follow(told(other, 3, fresh=False)) == Pinned(AT, 3, False, "c")
    assert (root / "pins" / "born" / f"{b'other'.hex()}.{other.digest.hex()}-{other.size}").exists()
    assert pins.follow(told(one, 4)) == Pinned(AT, 4, True, "c")
    assert pins.follow(told(other, 5, fresh=False)) == Pinned(AT, 5, True, "c")
    pressed(root)
    assert there(root, one)
    assert there(root, other)


def test_nothing_is_kept_for_a_name_of_what_is_not_there(root: Path) -> None:
    one = keep(root, 1, b"one")
    gone = one._replace(digest=bytes(32))
    pins = Pins(root)
    assert pins.follow(told(gone)) == Pinned(AT, 1, True, "c")
    with pins.frozen() as pinned:
        assert pinned == {f"{one.digest.hex()}-{one.size}"}


def test_a_store_full_of_what_handles_name_refuses_more_and_takes_it_once_one_is_gone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "ROOM_WAIT_S", 0.0)
    pins = Pins(root)
    one, other = keep(root, 1, b"one"), keep(root, 2, b"other")
    for number, stored in enumerate((one, other), 1):
        pins.follow(told(stored, number, fresh=number == 1))

    with pytest.raises(TransferError, match=r"4,194,304 are kept results .*let go of handles.*BYTES_MAX"):
        keep(root, 3, b"third")
    assert os.listdir(root / "parts") == []
    pins.follow(Pin(AT, 3, drops=[Need(one.digest, one.size)], owner="c"))
    third = keep(root, 3, b"third")
    assert not there(root, one)
    assert there(root, other)
    assert there(root, third)


def test_what_is_brought_stays_until_it_is_mapped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zfarm.edge.stored.here", lambda: str(root))
    with Shelf(str(root)) as shelf:
        from zfarm.edge.parcels import digest_of, whole_digest

        data = bytes(MIB)
        stored = Stored(whole_digest(digest_of(data)), MIB, "there/1")
        shelf.bring(stored, lambda stored, at: [data], nullcontext)
        pressed(root)
        assert there(root, stored)
    pressed(root)
    assert not there(root, stored)
