"""Hosts that are network namespaces of this machine: links between them that can be cut and mended.

Needs root, and a kernel that lets it. A namespace lives as long as a process in it, and one end of each link
lives in a namespace, so nothing stays behind however the tests end.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

NET = "10.213"
"""Addresses of the links: private, and unlikely to be in use here."""
NETS = 250
LINK = "zf0"
"""The end of a link that is in the namespace."""


class NotAllowed(Exception):
    """This machine makes no network namespaces for us; the text says why."""


def _tool(name: str) -> str:
    return shutil.which(name) or f"/usr/sbin/{name}"


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
    except FileNotFoundError:
        raise NotAllowed(f"there is no command {command[0]}") from None
    except subprocess.CalledProcessError as error:
        raise NotAllowed(f"{' '.join(command)}: {error.stderr.strip()}") from None
    return done.stdout


def _ip(*arguments: str) -> str:
    return _run(_tool("ip"), *arguments)


@dataclass(frozen=True)
class Host:
    """A namespace with one link to this machine."""

    name: str
    """Also that of this machine's end of the link."""
    pid: int
    """Of a process that is there as long as the namespace is."""
    here: str
    """The address of this machine on that link."""
    there: str

    @property
    def before(self) -> Sequence[str]:
        """What makes a command run there."""
        return [_tool("nsenter"), f"--net=/proc/{self.pid}/ns/net"]

    def ip(self, *arguments: str) -> None:
        """Run the command ``ip`` there."""
        _run(*self.before, _tool("ip"), *arguments)

    def cut(self) -> None:
        """Nothing passes any more, and nobody is told."""
        self.ip("link", "set", LINK, "down")

    def mend(self) -> None:
        """It passes again."""
        self.ip("link", "set", LINK, "up")

    def swallow(self) -> None:
        """What it sends goes nowhere, while it hears all."""
        self.ip("route", "add", "blackhole", f"{self.here}/32")

    def release(self) -> None:
        """What it sends arrives again."""
        self.ip("route", "del", "blackhole", f"{self.here}/32")


@contextmanager
def host(number: int) -> Iterator[Host]:
    """Make a host, the ``number``-th of this process, and take it away.

    Raises:
        NotAllowed: it cannot be made here.
    """
    if os.geteuid() != 0:
        raise NotAllowed("only root may make network namespaces")
    with _namespace() as pid:
        net = _free_net()
        made = Host(f"zf{os.getpid()}h{number}", pid, f"{net}.1", f"{net}.2")
        _ip("link", "add", made.name, "type", "veth", "peer", "name", LINK, "netns", str(pid))
        try:
            _ip("addr", "add", f"{made.here}/30", "dev", made.name)
            _ip("link", "set", made.name, "up")
            made.ip("addr", "add", f"{made.there}/30", "dev", LINK)
            made.ip("link", "set", LINK, "up")
            yield made
        finally:
            with suppress(NotAllowed):  # gone already
                _ip("link", "del", made.name)


@contextmanager
def _namespace() -> Iterator[int]:
    """A process with a network namespace of its own, which ends with us: it reads what we never write."""
    try:
        # it says so when it is in its namespace
        command = [_tool("unshare"), "--net", "sh", "-c", "echo && exec cat"]
        keeper = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    except FileNotFoundError:
        raise NotAllowed("there is no command unshare") from None
    with keeper:
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        assert keeper.stderr is not None
        if keeper.stdout.readline() != "\n":
            raise NotAllowed(f"{' '.join(command)}: {keeper.stderr.read().strip()}")
        try:
            yield keeper.pid
        finally:
            keeper.stdin.close()


def _free_net() -> str:
    """Three numbers of an address that no link of this machine has; others may look for one just now."""
    used = {
        one["local"].rpartition(".")[0]
        for link in json.loads(_ip("-4", "-json", "addr"))
        for one in link["addr_info"]
    }
    nets = (f"{NET}.{(os.getpid() + n) % NETS}" for n in range(NETS))
    for net in nets:
        if net not in used:
            return net
    raise NotAllowed(f"all addresses of {NET} are in use")
