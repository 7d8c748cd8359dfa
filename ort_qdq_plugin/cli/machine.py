"""What a machine has free, and bringing it into the same state before each measurement."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable

__all__ = ["available_memory", "read_files", "settle_free_memory"]

_READ_BYTES = 8 << 20


def available_memory() -> int:
    """Bytes that could be had without swapping."""
    with open("/proc/meminfo", encoding="ascii") as meminfo:
        return next(int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemAvailable"))


def settle_free_memory(nbytes: int) -> None:
    """Touch so much memory once, at most half of what is free, and give it back.

    A virtual machine's host takes free memory away after a while; who touches it first then pays for that, several times the
    cost of clearing it. Done before every start, so that none finds more of it paid for by the one before.
    """
    nbytes = max(mmap.PAGESIZE, min(nbytes, available_memory() // 2))
    with mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as touched:
        for offset in range(0, len(touched), mmap.PAGESIZE):
            touched[offset] = 1


def read_files(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Read those that exist, so that they are in the page cache."""
    for path in paths:
        if os.path.isfile(path):
            with open(path, "rb", buffering=0) as file:
                while file.read(_READ_BYTES):
                    pass
