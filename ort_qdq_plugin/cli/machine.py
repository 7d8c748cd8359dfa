"""What a machine has free, and bringing it into the same state before each measurement."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["available_memory", "read_files", "settle_free_memory"]

_READ_BYTES = 8 << 20
_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), "/proc/self/cgroup"


def available_memory() -> int:
    """Bytes that could be had without swapping, and within what control groups allow."""
    with open("/proc/meminfo", encoding="ascii") as meminfo:
        free = next(int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemAvailable"))
    return max(0, min([free, *_left_by_groups()]))


def _left_by_groups() -> Iterator[int]:
    """What each control group of this process leaves it; pages of files make room for others.

    Source: the kernel's cgroup-v2.rst and cgroup-v1/memory.rst.
    """
    with suppress(OSError):
        for line in Path(_OWN_GROUPS).read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            if controllers == "memory":
                root, names = _GROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
            elif not controllers:
                root, names = _GROUPS, ("memory.max", "memory.current")
            else:
                continue
            group = Path(own.lstrip("/"))
            for folder in (root / group, *(root / parent for parent in group.parents)):
                with suppress(OSError, ValueError):
                    limit, used = (int((folder / name).read_text()) for name in names)
                    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    yield limit - used + int(stat.get("active_file", 0)) + int(stat.get("inactive_file", 0))


def settle_free_memory(nbytes: int) -> None:
    """Touch so much memory once, at most half of what is free, and give it back.

    A virtual machine's host takes free memory away after a while; who touches it first then pays for that, several times the
    cost of clearing it. Done before every start, so that none finds more of it paid for by the one before.
    """
    nbytes = max(mmap.PAGESIZE, min(nbytes, available_memory() // 2))
    # What cannot be had, because of a limit for instance, is not free.
    with suppress(OSError), mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as touched:
        for offset in range(0, len(touched), mmap.PAGESIZE):
            touched[offset] = 1


def read_files(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Read those that exist, so that they are in the page cache."""
    for path in paths:
        if os.path.isfile(path):
            with open(path, "rb", buffering=0) as file:
                while file.read(_READ_BYTES):
                    pass
