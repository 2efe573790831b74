"""The fuzzer's target is sound: real stories are taken, and changed ones harm nobody."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.stories import entries, recorded, tell, written


@pytest.fixture(scope="module")
def stories() -> list[bytes]:
    return [recorded(seed) for seed in range(6)]


def test_a_story_is_read_as_it_was_written(stories: list[bytes]) -> None:
    for story in stories:
        assert b"".join(map(written, entries(story))) == story


def test_real_stories_are_taken(stories: list[bytes]) -> None:
    for story in stories:
        assert 5 < tell(story) <= len(list(entries(story)))  # a rogue's words are refused


@pytest.mark.parametrize("seed", range(6))
def test_changed_stories_are_refused_or_change_what_is_their_own(stories: list[bytes], seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(25):
        story = bytearray(rng.choice(stories))
        for _ in range(rng.randint(1, 20)):
            at = rng.randrange(len(story))
            match rng.randrange(4):
                case 0:
                    story[at] = rng.randrange(256)
                case 1:
                    story[at] ^= 1 << rng.randrange(8)
                case 2:
                    del story[at : at + rng.randint(1, 300)]
                case _:
                    other = rng.choice(stories)
                    start = rng.randrange(len(other))
                    story[at:at] = other[start : start + rng.randint(1, 300)]
        tell(bytes(story))
