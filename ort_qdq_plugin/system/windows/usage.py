"""What a process has used and has. It runs as a script of its own too, and imports nothing of this package."""

from __future__ import annotations

import ctypes
import time

__all__ = ["MemoryCounters", "counters_of", "usage"]


class MemoryCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of <psapi.h>."""

    _fields_ = (
        ("cb", ctypes.c_uint32),
        ("page_fault_count", ctypes.c_uint32),
        *(
            (name, ctypes.c_size_t)
            for name in (
                "peak_working_set_size", "working_set_size", "quota_peak_paged_pool_usage", "quota_paged_pool_usage",
                "quota_peak_non_paged_pool_usage", "quota_non_paged_pool_usage", "pagefile_usage", "peak_pagefile_usage",
            )
        ),
    )  # fmt: skip


_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
_kernel32.GetCurrentProcess.restype = ctypes.c_void_p
_kernel32.K32GetProcessMemoryInfo.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)


def counters_of(process: int) -> MemoryCounters | None:
    """The memory of a process, by its handle; None if the system does not tell."""
    found = MemoryCounters(cb=ctypes.sizeof(MemoryCounters))
    return found if _kernel32.K32GetProcessMemoryInfo(process, ctypes.byref(found), found.cb) else None


def usage() -> dict[str, float]:
    """What this process has used, in seconds and page faults, and its memory in bytes, the most that it had (`peak`) too.

    `anonymous` is memory of its own, its commit charge, whether it is in RAM or paged out; `file` is what else is in RAM.
    """
    found = counters_of(_kernel32.GetCurrentProcess())
    if found is None:
        raise ctypes.WinError(ctypes.get_last_error())
    return {
        "cpu": time.process_time(),
        "faults": found.page_fault_count,
        "peak": found.peak_working_set_size,
        "anonymous": found.pagefile_usage,
        "file": max(0, found.working_set_size - found.pagefile_usage),
    }
