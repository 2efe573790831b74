"""Hosts that are network namespaces of this machine: links between them that can be cut and mended.

Needs root, and a kernel that lets it. Nothing outside of the namespaces that are made here is touched but one
end of each link, which goes with its namespace.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

NET = "10.213"
"""Addresses of the links: private, and unlikely to be in use here."""


class NotAllowed(Exception):
    """This machine makes no network namespaces for us; the text says why."""


def _ip(*arguments: str) -> None:
    ip = shutil.which("ip") or "/usr/sbin/ip"
    try:
        subprocess.run([ip, *arguments], check=True, capture_output=True, text=True, timeout=20)
    except FileNotFoundError:
        raise NotAllowed("there is no command `ip`") from None
    except subprocess.CalledProcessError as error:
        raise NotAllowed(f"ip {' '.join(arguments)}: {error.stderr.strip()}") from None


@dataclass(frozen=True)
class Host:
    """A namespace with one link to this machine."""

    name: str
    link: str
    here: str
    """The address of this machine on that link."""
    there: str

    @property
    def before(self) -> Sequence[str]:
        """What makes a command run there."""
        return [shutil.which("ip") or "/usr/sbin/ip", "netns", "exec", self.name]

    def cut(self) -> None:
        """Nothing passes any more, and nobody is told."""
        _ip("-n", self.name, "link", "set", self.link, "down")

    def mend(self) -> None:
        """It passes again."""
        _ip("-n", self.name, "link", "set", self.link, "up")

    def swallow(self) -> None:
        """What it sends goes nowhere, while it hears all."""
        _ip("-n", self.name, "route", "add", "blackhole", f"{self.here}/32")

    def release(self) -> None:
        """What it sends arrives again."""
        _ip("-n", self.name, "route", "del", "blackhole", f"{self.here}/32")


@contextmanager
def host(number: int) -> Iterator[Host]:
    """Make host ``number`` (0 to 60), and take it away.

    Raises:
        NotAllowed: it cannot be made here.
    """
    if os.geteuid() != 0:
        raise NotAllowed("only root may make network namespaces")
    name, link = f"zf{os.getpid()}n{number}", f"zf{os.getpid()}l{number}"
    made = Host(name, link, f"{NET}.{number}.1", f"{NET}.{number}.2")
    ours = f"zf{os.getpid()}h{number}"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", ours, "type", "veth", "peer", "name", link, "netns", name)
        _ip("addr", "add", f"{made.here}/30", "dev", ours)
        _ip("link", "set", ours, "up")
        _ip("-n", name, "addr", "add", f"{made.there}/30", "dev", link)
        _ip("-n", name, "link", "set", link, "up")
        yield made
    finally:
        with suppress(NotAllowed):  # gone already, or never made
            _ip("link", "del", ours)
        _ip("netns", "del", name)
