"""What a machine has free, and bringing it into the same state before each measurement."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from ort_qdq_plugin.system.platform import host

__all__ = ["available_memory", "make_ready", "read_files", "settle_free_memory"]

_READ_BYTES = 8 << 20
# More than any way of loading needs: the packed weights and ONNX Runtime's copies of them.
_TOUCHED_PER_BYTE = 3
_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), "/proc/self/cgroup"
# By what /proc/self/cgroup has for controllers: the folder in which groups are (version 1, 2), and files in each.
_LIMITS = {
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    "": ("", "memory.max", "memory.current"),
}


def make_ready(nbytes: int, files: Iterable[str | os.PathLike[str]]) -> None:
    """Bring the machine into the state that every load of a model of this size finds, with these files in the page cache."""
    settle_free_memory(_TOUCHED_PER_BYTE * nbytes)
    # Last: touching memory may have taken pages of files away.
    read_files(files)


def available_memory() -> int:
    """Bytes that could be had without swapping, and within what control groups allow."""
    return max(0, min([host.free_memory(), *_left_by_groups()]))


def _left_by_groups() -> Iterator[int]:
    """What each control group of this process leaves it; pages of files make room for others.

    Source: the kernel's cgroup-v2.rst and cgroup-v1/memory.rst.
    """
    for folder, limit, used in _groups():
        with suppress(OSError, ValueError):
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            left = int((folder / limit).read_text()) - int((folder / used).read_text())
            yield left + int(stat.get("active_file", 0)) + int(stat.get("inactive_file", 0))


def _groups() -> Iterator[tuple[Path, str, str]]:
    """The folders of this process's groups and of those that they are in, and their files for the limit and what is used."""
    with suppress(OSError):
        for line in Path(_OWN_GROUPS).read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            if controllers in _LIMITS:
                root, limit, used = _LIMITS[controllers]
                group = Path(root, own.lstrip("/"))
                yield from ((_GROUPS / folder, limit, used) for folder in (group, *group.parents))


def settle_free_memory(nbytes: int) -> None:
    """Touch this many bytes of memory once, at most half of what is free, and give them back.

    A virtual machine's host takes free memory away after a while; who touches it first then pays for that, several times the
    cost of clearing it. Done before every start, so that none finds more of it paid for by the one before.
    """
    nbytes = max(mmap.PAGESIZE, min(nbytes, available_memory() // 2))
    # What cannot be had, because of a limit for instance, is not free.
    with suppress(OSError), host.map_anonymous(nbytes) as touched:
        for offset in range(0, len(touched), mmap.PAGESIZE):
            touched[offset] = 1


def read_files(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Read those that exist, so that they are in the page cache."""
    for path in paths:
        if os.path.isfile(path):
            with open(path, "rb", buffering=0) as file:
                while file.read(_READ_BYTES):
                    pass
