"""What the system gives this process: memory, mappings and processors."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import resource
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from ort_qdq_plugin.system.posix import darwin
from ort_qdq_plugin.system.posix.descriptors import call
from ort_qdq_plugin.system.posix.files import File, open_to_read
from ort_qdq_plugin.system.posix.usage import sizes_on_darwin

__all__ = [
    "SHELL",
    "anonymous_bytes",
    "available_processors",
    "boot_id",
    "drop_pages",
    "free_heap_bytes",
    "free_memory",
    "heap_bytes",
    "is_arm",
    "map_anonymous",
    "map_file",
    "memory_is_limited",
    "opens_by_path",
    "processor",
    "resident_bytes",
    "sizes_of",
    "trim_heap",
]

SHELL: str | None = "/bin/sh"
"""A program that runs commands for a shell of POSIX; None where there is none."""

# <sys/mman.h>. Python knows the second one since 3.13.
_MAP_FIXED = 0x10
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x40 if sys.platform == "darwin" else 0x4000)

# Of a page, in /proc/self/pagemap; bit 63 says that it is present (the kernel's documentation, admin-guide/mm/pagemap).
_PAGEMAP_BYTES = 8


def map_file(file: File, size: int, *, writable: bool = False) -> mmap.mmap:
    """Map a file, shared. The mapping needs no descriptor: the file can be closed then, by whomever.

    Raises:
        ValueError: The file has not `size` bytes, or `size` is 0.
        OSError: That is refused.
    """
    import numpy as np  # there already where models are loaded, and not needed before

    access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
    if not hasattr(mmap, "MAP_SHARED"):
        return call(functools.partial(mmap.mmap, access=access), file, size)
    if not 0 < size <= call(os.fstat, file).st_size:
        raise ValueError(f"mmap length {size} is 0 or greater than file size")
    # Whether it can be mapped at all: what is refused below may leave a hole, which the object would unmap later, whatever
    # is there by then.
    call(functools.partial(mmap.mmap, access=access), file, 1).close()
    # A mapping of Python's keeps a descriptor of its own for the file (before Python 3.13 there is no `trackfd`). One of no
    # file has none. So it takes the addresses, and the file is mapped there. Nothing is reserved for it meanwhile.
    protection = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
    kind = mmap.MAP_SHARED | _MAP_NORESERVE if writable else mmap.MAP_PRIVATE
    mapping = mmap.mmap(-1, size, flags=kind | mmap.MAP_ANONYMOUS, prot=protection)
    address = np.frombuffer(mapping, np.uint8).__array_interface__["data"][0]
    if call(_libc_mmap(), address, size, protection, mmap.MAP_SHARED | _MAP_FIXED, file, 0) != address:
        problem = ctypes.get_errno()
        raise OSError(problem, os.strerror(problem))
    return mapping


@functools.cache
def _libc_mmap() -> Any:
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    return function


def map_anonymous(size: int) -> mmap.mmap:
    """Memory of this process's own, zero at first; OSError if there is not enough."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)


def drop_pages(mapping: mmap.mmap, offset: int, nbytes: int) -> None:
    """Drop the pages of a shared file mapping that a range touches, where that is allowed; they come back when read."""
    if not hasattr(mmap, "MADV_DONTNEED") or sys.platform == "darwin":
        # macOS takes it for advice on what to write back and take away first. It does not count pages of files as the
        # process's own, and calls that tell it to forget pages forget what was written to them.
        return
    start = offset // mmap.PAGESIZE * mmap.PAGESIZE
    if nbytes > 0:
        # Sandboxes refuse it, and so does the system for pages that the program has locked.
        with suppress(OSError):
            mapping.madvise(mmap.MADV_DONTNEED, start, offset + nbytes - start)


def trim_heap() -> None:
    """Give pages of the C library's heap in which nothing is any more back to the system, where that can be asked for."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def opens_by_path() -> bool:
    """Whether the system tells the path of an open file, without which ONNX Runtime opens none by path (since 1.31)."""
    return not sys.platform.startswith("linux") or os.path.isdir("/proc/self/fd")


def memory_is_limited() -> bool:
    """Whether this process may only map so much memory (``ulimit -v``, ``ulimit -d``).

    Each further thread then takes some of it for good, for its stack and its heap.
    """
    limits = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    with suppress(OSError):  # of a sandbox
        return any(resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in limits)
    return False


def sizes_of(pid: int | str = "self") -> dict[str, int]:
    """The sizes in /proc/PID/status, such as VmHWM and RssAnon, in bytes; {} for a zombie, and if the system tells none.

    macOS has other ones, which come under these names (`sizes_on_darwin`).
    """
    if sys.platform == "darwin":
        return sizes_on_darwin(os.getpid() if pid == "self" else int(pid))
    fields = (line.split() for line in _lines(f"/proc/{pid}/status") if line.startswith(("Vm", "Rss")))
    return {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes, _ in fields}


def anonymous_bytes() -> int:
    """This process's anonymous memory; 0 where the system does not tell."""
    return sizes_of().get("RssAnon", 0)


class _Mallinfo(ctypes.Structure):
    """struct mallinfo2 of <malloc.h> (mallinfo(3))."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


def heap_bytes() -> int:
    """Bytes of the C library's heap that are in use, not those that were freed; 0 where it does not tell.

    What another allocator of the program's gives does not count.
    """
    if sys.platform == "darwin":
        return darwin.heap_bytes()
    mallinfo = _mallinfo()
    if mallinfo is None:
        return 0
    found = mallinfo()
    return int(found.uordblks + found.hblkhd)


def free_heap_bytes() -> int:
    """Bytes that were freed, and that the C library's heap keeps, in RAM or not; 0 where it does not tell."""
    mallinfo = _mallinfo()
    return 0 if mallinfo is None else int(mallinfo().fordblks)


@functools.cache
def _mallinfo() -> Any:
    function = getattr(ctypes.CDLL(None), "mallinfo2", None)  # of glibc 2.33 and newer
    if function is not None:
        function.restype = _Mallinfo
    return function


def resident_bytes(path: str, ranges: Iterable[tuple[int, int]]) -> int | None:
    """How many bytes of a file are in this process: pages of its mappings that were touched and not dropped since.

    Args:
        path: The file.
        ranges: (offset, number of bytes) of what counts.

    Returns:
        The bytes, each page as a whole; None where the system does not tell.
    """
    import numpy as np

    page = mmap.PAGESIZE
    try:
        status = os.stat(path)
        touched = np.zeros(-(-status.st_size // page), bool)
        with open_to_read("/proc/self/pagemap") as pagemap:
            for line in _lines("/proc/self/maps"):
                # proc(5): addresses, permissions, offset, device, inode, path. File systems of layers show other inodes.
                fields = line.rstrip("\n").split(maxsplit=5)
                if fields[4:5] == [str(status.st_ino)] or fields[5:] == [path]:
                    start, end = (int(address, 16) for address in fields[0].split("-"))
                    first = int(fields[2], 16) // page
                    count = min((end - start) // page, max(len(touched) - first, 0))
                    entries = call(os.pread, pagemap, count * _PAGEMAP_BYTES, start // page * _PAGEMAP_BYTES)
                    present = np.frombuffer(entries, np.uint64) >> np.uint64(63)
                    touched[first : first + len(present)] |= present.astype(bool)
    except (OSError, ValueError):
        return None
    return sum(int(touched[at // page : -(-(at + nbytes) // page)].sum()) * page for at, nbytes in ranges)


def free_memory() -> int:
    """Bytes that could be had without swapping, in all of the machine; 0 where the system does not tell."""
    if sys.platform == "darwin":
        return darwin.free_memory()
    return next((int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemAvailable")), 0)


def processor() -> str:
    """What kind of processor this is, as far as it matters for which instructions are used."""
    wanted = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU implementer", "CPU part", "Features")
    facts = [os.uname().machine if hasattr(os, "uname") else ""]
    if sys.platform == "darwin":
        facts += darwin.processor()
    for line in _lines("/proc/cpuinfo"):
        # Of the first one; the others are alike.
        if not line.strip():
            break
        name, _, value = line.partition(":")
        if name.strip() in wanted:
            facts.append(value.strip())
    return " ".join(facts)


def is_arm() -> bool:
    """Whether this process runs on an ARM processor, of 32 or 64 bits."""
    return hasattr(os, "uname") and os.uname().machine.startswith(("arm", "aarch64"))


def available_processors() -> int:
    """The processors that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def boot_id() -> str:
    """The present start of the system; "" if it does not tell."""
    if sys.platform == "darwin":
        return darwin.sysctl("kern.bootsessionuuid").rstrip(b"\0").decode()
    return "".join(_lines("/proc/sys/kernel/random/boot_id")).strip()


def _lines(path: str) -> list[str]:
    """Those of a file in which the system tells something; none where it does not."""
    with suppress(OSError), open_to_read(path) as file:
        return file.readall().decode("utf-8", "replace").splitlines(keepends=True)
    return []
