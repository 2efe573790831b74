"""Who a client is, for its broker and for dashboards."""

from __future__ import annotations

import os
import sys

from zfarm import __version__
from zfarm.messages import PROTOCOL, Versions

__all__ = ["our_versions", "program_name"]


def our_versions() -> Versions:
    """What we speak and run on."""
    return Versions(protocol=PROTOCOL, zfarm=__version__, python=".".join(map(str, sys.version_info[:3])))


def program_name() -> str:
    """What dashboards call this client."""
    argv = getattr(sys, "argv", None) or [""]
    name = os.path.basename(str(argv[0])) or "python"
    return name[:100].encode("utf-8", "replace").decode()
