"""What macOS has in place of calls of Linux. Written after Apple's headers, and never run on a Mac."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import sys

__all__ = ["free_memory", "heap_bytes", "preallocate", "processor", "sysctl"]

# <sys/fcntl.h>: fcntl(2)'s F_PREALLOCATE takes a struct fstore_t (flags, how to read the offset, offset, length, and what it
# has allocated), here from the end of what the file has already, in one piece or, if there is none, in several.
_F_PREALLOCATE, _F_PEOFPOSMODE, _F_ALLOCATECONTIG, _F_ALLOCATEALL = 42, 3, 2, 4
_FSTORE = struct.Struct("=Iiqqq")

_SYSCTL_BYTES = 1024  # longer than any value that is asked for
# Pages of files can be had. Those that were read ahead are counted among them.
_FREE_PAGES = ("vm.page_free_count", "vm.page_purgeable_count", "vm.page_pageable_external_count")
_PROCESSOR = (
    "machdep.cpu.brand_string",
    "hw.cpufamily",
    "hw.cpusubfamily",
    "machdep.cpu.features",
    "machdep.cpu.leaf7_features",
)


def preallocate(descriptor: int, offset: int, size: int) -> None:
    """What posix_fallocate(3) does for an empty file and an offset of 0, of which there is none."""
    try:
        fcntl.fcntl(descriptor, _F_PREALLOCATE, _FSTORE.pack(_F_ALLOCATECONTIG, _F_PEOFPOSMODE, offset, size, 0))
    except OSError:
        fcntl.fcntl(descriptor, _F_PREALLOCATE, _FSTORE.pack(_F_ALLOCATEALL, _F_PEOFPOSMODE, offset, size, 0))
    os.ftruncate(descriptor, offset + size)


def sysctl(name: str) -> bytes:
    """The value of a variable of the kernel's as it is stored (sysctlbyname(3)); b"" if there is none of this name."""
    value, size = ctypes.create_string_buffer(_SYSCTL_BYTES), ctypes.c_size_t(_SYSCTL_BYTES)
    if ctypes.CDLL(None).sysctlbyname(name.encode(), value, ctypes.byref(size), None, ctypes.c_size_t(0)):
        return b""
    return value.raw[: size.value]


class _Statistics(ctypes.Structure):
    """malloc_statistics_t of <malloc/malloc.h>."""

    _fields_ = (
        ("blocks_in_use", ctypes.c_uint),
        ("size_in_use", ctypes.c_size_t),
        ("max_size_in_use", ctypes.c_size_t),
        ("size_allocated", ctypes.c_size_t),
    )


def heap_bytes() -> int:
    """Bytes in use of all zones of the C library's heap."""
    found = _Statistics()
    ctypes.CDLL(None).malloc_zone_statistics(None, ctypes.byref(found))
    return int(found.size_in_use)


def free_memory() -> int:
    """Bytes that could be had without swapping."""
    pages = sum(int.from_bytes(sysctl(name), sys.byteorder) for name in _FREE_PAGES)
    return pages * int.from_bytes(sysctl("hw.pagesize"), sys.byteorder)


def processor() -> list[str]:
    """What tells one kind of processor from another. Not all kinds have all of it."""
    return [sysctl(name).rstrip(b"\0").decode("latin-1") for name in _PROCESSOR]
