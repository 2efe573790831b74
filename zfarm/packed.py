"""Many small blobs in one piece of memory, as they travel; it knows no message and no wire.

Whoever only counts items and hands them on never makes an object of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import overload

__all__ = ["Packed", "bytes_of"]


class Packed(Sequence[bytes]):
    """A sequence of blobs that makes them when they are asked for."""

    __slots__ = ("data", "sizes")

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        """``sizes`` are the bytes of each blob in ``data``, which is no longer than they are together."""
        self.data = data
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[bytes]:
        data = self.data
        return iter([data[start:end] for start, end in pairwise(accumulate(self.sizes, initial=0))])

    @overload
    def __getitem__(self, at: int) -> bytes: ...

    @overload
    def __getitem__(self, at: slice) -> Packed: ...

    def __getitem__(self, at: int | slice) -> bytes | Packed:
        if isinstance(at, int):
            index = range(len(self.sizes))[at]
            start = sum(self.sizes[:index])
            return self.data[start : start + self.sizes[index]]
        first, last, step = at.indices(len(self.sizes))
        if step != 1:
            raise ValueError(f"blobs are taken as they follow each other, not in steps of {step}")
        sizes = self.sizes[first:last]
        start = sum(self.sizes[:first])
        return Packed(self.data[start : start + sum(sizes)], sizes)


def bytes_of(blobs: Sequence[bytes | bytearray | memoryview]) -> int:
    """The bytes of all of them."""
    return len(blobs.data) if isinstance(blobs, Packed) else sum(map(len, blobs))
