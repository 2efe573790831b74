"""What a process sees of its Python and its host, as plain data; it compares nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import sys
import tempfile
import time
from contextlib import suppress
from typing import Any

import msgspec

import zfarm
from zfarm.edge.cores import cpu_quotas, usable_cores

__all__ = ["Sight", "look_around"]


class Sight(msgspec.Struct):
    """What one process sees. Sizes are in bytes; -1: that is not known."""

    host: str
    python: str
    implementation: str
    prefix: str
    system: str
    zfarm: str
    packages: dict[str, str]
    time_s: float
    """When it looked, in seconds since 1970 by its clock."""
    cores: int
    quota_cores: float
    """The smallest quota of its control groups; 0: none."""
    files_max: int
    """Descriptors that a process here may open at most."""
    shm_free_bytes: int
    temp: str
    temp_free_bytes: int


def look_around() -> dict[str, Any]:
    """What this process sees, as a plain dict: another version of zfarm may have to read it."""
    quotas = list(cpu_quotas("/proc/self/cgroup", "/sys/fs/cgroup"))
    temp = tempfile.gettempdir()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    sight = Sight(
        host=platform.node(),
        python=platform.python_version(),
        implementation=platform.python_implementation(),
        prefix=sys.prefix,
        system=f"{platform.system()} {platform.machine()}",
        zfarm=zfarm.__version__,
        packages=_packages(),
        time_s=time.time(),
        cores=usable_cores(),
        quota_cores=min(quotas, default=0.0),
        files_max=-1 if hard == resource.RLIM_INFINITY else hard,
        shm_free_bytes=_free("/dev/shm"),
        temp=temp,
        temp_free_bytes=_free(temp),
    )
    found: dict[str, Any] = msgspec.to_builtins(sight)
    return found


def _packages() -> dict[str, str]:
    """The installed distributions by their normal names; of several of one name the first is what is used."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        with suppress(KeyError, TypeError, AttributeError, OSError):  # a broken one is as good as none
            name = distribution.metadata["Name"].lower().replace("_", "-")
            found.setdefault(name, distribution.version)
    return found


def _free(path: str) -> int:
    try:
        state = os.statvfs(path)
    except OSError:
        return -1
    return state.f_bavail * state.f_frsize
