"""Functions that travel once and are named from then on: who has which, and what was told to whom.

Nothing here waits for anything: who gets a name and has not what it stands for says so at once, and refuses
the calls that name it; then both come again. So a name is only ever a saving. It knows no peer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from zfarm.messages import Blob, Named, Payload

__all__ = ["Bodies", "Given", "Told", "digest_of", "name_of"]

TOLD_MAX: Final = 1024
"""Functions of which it is remembered that the other end has them: to forget one costs sending it again."""


def digest_of(body: Blob) -> bytes:
    """The digest of a function's pickle."""
    from blake3 import blake3

    digest: bytes = blake3(body).digest()
    return digest


def name_of(function: bytes) -> bytes:
    """The digest that a function goes by; empty: it travels whole with each message."""
    return function.digest if type(function) is Named else b""


class Told:
    """What the other end of a link has been sent: digests, and the number of the message that had each."""

    __slots__ = ("_numbers",)

    def __init__(self) -> None:
        self._numbers: OrderedDict[bytes, int] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._numbers

    def tell(self, digest: bytes, number: int) -> bool:
        """The message of this number names that: True if it must carry it, too."""
        numbers = self._numbers
        if digest in numbers:
            numbers.move_to_end(digest)
            return False
        numbers[digest] = number
        if len(numbers) > TOLD_MAX:
            numbers.popitem(last=False)
        return True

    def carry(
        self, functions: Iterable[bytes], digests: list[bytes], number: int
    ) -> tuple[list[Blob], list[bytes]]:
        """What the message of this number carries of these functions, which go by these digests, and the
        digests, if there is one."""
        if not any(digests):
            return list(functions), []
        pairs = zip(digests, functions, strict=True)
        return [b"" if digest and not self.tell(digest, number) else body for digest, body in pairs], digests

    def lacked(self, digests: list[bytes], seen: int) -> None:
        """The other end, which has seen all messages up to this number, does not have those."""
        numbers = self._numbers
        for digest in digests:
            if numbers.get(digest, seen) <= seen:  # else it is on its way
                numbers.pop(digest, None)

    def clear(self) -> None:
        """It is a new link: nothing is known of what is at its other end."""
        self._numbers.clear()


class Bodies:
    """Functions by digest, those that were used last; what calls hold besides is theirs."""

    __slots__ = ("_bodies", "_most", "bytes")

    def __init__(self, most: int) -> None:
        """Keep ``most`` bytes of them; one alone may have more."""
        self._most = most
        self._bodies: OrderedDict[bytes, Named] = OrderedDict()
        self.bytes = 0

    def take(self, digest: bytes, body: Blob) -> Named | None:
        """The function of this name, of which ``body`` has come, or nothing; None: it is not here."""
        bodies = self._bodies
        known = bodies.get(digest)
        if known is not None:
            bodies.move_to_end(digest)
            return known
        if not len(body):
            return None
        known = bodies[digest] = Named(body)
        known.digest = digest
        self.bytes += len(known)
        while self.bytes > self._most and len(bodies) > 1:
            self.bytes -= len(bodies.popitem(last=False)[1])
        return known

    def all_of(self, digests: list[bytes], bodies: Payload, lacks: list[bytes]) -> list[bytes | None]:
        """The functions of a message, None in place of those that are not here, which are added to
        ``lacks``."""
        if not digests:
            return [bytes(body) for body in bodies]
        functions: list[bytes | None] = []
        for digest, body in zip(digests, bodies, strict=True):
            function = self.take(digest, body) if digest else bytes(body)
            if function is None:
                lacks.append(digest)
            functions.append(function)
        return functions

    def check(self) -> None:
        """They are counted, and bounded."""
        assert self.bytes == sum(map(len, self._bodies.values()))
        assert self.bytes <= self._most or len(self._bodies) == 1


class Given:
    """What one child has: its pipe loses nothing, so that this is known, and it is told what to drop."""

    __slots__ = ("_sizes", "bytes")

    def __init__(self) -> None:
        self._sizes: OrderedDict[bytes, int] = OrderedDict()
        self.bytes = 0

    def give(self, digest: bytes, size: int) -> bool:
        """It is named to the child: True if it must be carried, too."""
        sizes = self._sizes
        if digest in sizes:
            sizes.move_to_end(digest)
            return False
        sizes[digest] = size
        self.bytes += size
        return True

    def shrink(self, most: int) -> list[bytes]:
        """What has to go if the child is to keep ``most`` bytes of them. To be asked once a message names all
        that it will: what went for one of them could be the next."""
        drops: list[bytes] = []
        while self.bytes > most:
            dropped, size = self._sizes.popitem(last=False)
            self.bytes -= size
            drops.append(dropped)
        return drops
