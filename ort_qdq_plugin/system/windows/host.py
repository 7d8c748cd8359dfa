"""What the system gives a process: mappings, memory and processors."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from functools import partial

from ort_qdq_plugin.system.opened import call
from ort_qdq_plugin.system.windows.calls import address_of, kernel32
from ort_qdq_plugin.system.windows.files import File
from ort_qdq_plugin.system.windows.usage import counters_of

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

SHELL: str | None = None
"""A program that runs commands for a shell of POSIX; None where there is none."""

_QUERY_LIMITED_INFORMATION = 0x1000  # PROCESS_QUERY_LIMITED_INFORMATION
_FEATURES = 64  # numbers of processor features that there can be (PF_* of <winnt.h>)
_BOOT = os.urandom(8).hex()


def map_file(file: File, size: int, *, writable: bool = False) -> mmap.mmap:
    """Map a file, shared. The mapping has a handle of its own: the file can be closed then.

    Raises:
        ValueError: The file has not `size` bytes, or `size` is 0.
        OSError: That is refused.
    """
    if not 0 < size <= call(os.fstat, file).st_size:
        raise ValueError(f"mmap length {size} is 0 or greater than file size")
    access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
    return call(partial(mmap.mmap, access=access), file, size)


def map_anonymous(size: int) -> mmap.mmap:
    """Memory of this process's own, zero at first; OSError if there is not enough."""
    return mmap.mmap(-1, size)


def drop_pages(mapping: mmap.mmap, offset: int, nbytes: int) -> None:
    """Drop the pages of a shared file mapping that a range touches from the working set; they come back when read."""
    if nbytes > 0:
        # Of pages that are not locked this takes them out of the working set (documentation of VirtualUnlock).
        kernel32.VirtualUnlock(address_of(mapping) + offset, nbytes)


def trim_heap() -> None:
    """Give pages of the heap in which nothing is any more back to the system, which does that itself for large blocks."""


def opens_by_path() -> bool:
    """Whether the system tells the path of an open file, without which ONNX Runtime opens none by path (since 1.31)."""
    return True


def memory_is_limited() -> bool:
    """Whether this process may only map so much memory. Threads take none of it for heaps of their own here."""
    return False


def sizes_of(pid: int | str = "self") -> dict[str, int]:
    """The sizes of a process in bytes, named as Linux does; {} if the system tells none.

    RssAnon is memory of its own, whether it is in RAM or paged out; RssFile is what else is in RAM.
    """
    if pid == "self":
        process = kernel32.GetCurrentProcess()
    else:
        process = kernel32.OpenProcess(_QUERY_LIMITED_INFORMATION, 0, int(pid))
    if not process:
        return {}
    found = counters_of(process)
    if pid != "self":
        kernel32.CloseHandle(process)
    if found is None:
        return {}
    shared = max(0, found.working_set_size - found.pagefile_usage)
    return {"VmHWM": found.peak_working_set_size, "RssAnon": found.pagefile_usage, "RssFile": shared, "RssShmem": 0}


def anonymous_bytes() -> int:
    """This process's anonymous memory; 0 where the system does not tell."""
    return sizes_of().get("RssAnon", 0)


def free_heap_bytes() -> int:
    """Bytes that were freed, and that the heap keeps: the system does not tell."""
    return 0


def heap_bytes() -> int:
    """Bytes of the heap that are in use: 0, since the system does not tell."""
    return 0


def resident_bytes(path: str, ranges: Iterable[tuple[int, int]]) -> int | None:
    """How many bytes of a file are in this process: None, since the system does not tell."""
    return None


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of <sysinfoapi.h>."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("memory_load", ctypes.c_uint32),
        *(
            (name, ctypes.c_uint64)
            for name in ("total_physical", "available_physical", "total_page_file", "available_page_file")
        ),
        *((name, ctypes.c_uint64) for name in ("total_virtual", "available_virtual", "available_extended_virtual")),
    )


def free_memory() -> int:
    """Bytes that could be had without swapping, in all of the machine; 0 where the system does not tell."""
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    return int(status.available_physical) if kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else 0


def processor() -> str:
    """What kind of processor this is, as far as it matters for which instructions are used."""
    told = [os.environ.get(name, "") for name in ("PROCESSOR_ARCHITECTURE", "PROCESSOR_IDENTIFIER", "PROCESSOR_REVISION")]
    features = "".join(str(kernel32.IsProcessorFeaturePresent(number)) for number in range(_FEATURES))
    return " ".join([*told, features])


def is_arm() -> bool:
    """Whether this process runs on an ARM processor, of 32 or 64 bits."""
    return os.environ.get("PROCESSOR_ARCHITECTURE", "").upper().startswith("ARM")


def available_processors() -> int:
    """The processors that this process may use, which can be fewer than the machine has."""
    own, all_of_them = ctypes.c_size_t(), ctypes.c_size_t()
    if kernel32.GetProcessAffinityMask(kernel32.GetCurrentProcess(), ctypes.byref(own), ctypes.byref(all_of_them)):
        # Both are 0 for a process that is in several groups of processors.
        return own.value.bit_count() or os.cpu_count() or 1
    return os.cpu_count() or 1


def boot_id() -> str:
    """The present start of the system, which it does not tell: so it is that of this process."""
    return _BOOT
