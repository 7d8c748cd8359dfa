"""What a process has used and has. It runs as a script of its own too, and imports nothing of this package."""

from __future__ import annotations

import ctypes
import os
import resource
import sys

__all__ = ["sizes_on_darwin", "usage"]

_KB = 1024

# <libproc.h> and <sys/resource.h>: struct rusage_info_v4 is an identifier of 16 bytes, then numbers of 64 bits; the places
# of these among all, and room for more.
_RUSAGE_INFO_V4, _USAGE_NUMBERS = 4, 64
_RESIDENT, _FOOTPRINT, _MOST_FOOTPRINT = 8, 9, 30


def usage() -> dict[str, float]:
    """What this process has used, in seconds and page faults, and its memory in bytes, the most that it had (`peak`) too."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    if sys.platform == "darwin":
        # There, and not on Linux, the most that was resident is in bytes.
        sizes = {**sizes_on_darwin(os.getpid()), "VmHWM": used.ru_maxrss}
    else:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            lines = (line.split() for line in status if line.startswith(("Rss", "VmHWM")))
            sizes = {line[0].rstrip(":"): int(line[1]) * _KB for line in lines}
    return {
        "cpu": used.ru_utime + used.ru_stime,
        "faults": used.ru_minflt + used.ru_majflt,
        "peak": sizes["VmHWM"],
        "anonymous": sizes["RssAnon"],
        "file": sizes["RssFile"] + sizes["RssShmem"],
    }


def sizes_on_darwin(pid: int) -> dict[str, int]:
    """Sizes of a process in bytes, under the names that Linux has for them; {} if there is none.

    RssAnon is the footprint: what the process has of its own, also if it is compressed. VmHWM is the most that it ever was.
    """
    numbers = (ctypes.c_uint64 * _USAGE_NUMBERS)()
    if ctypes.CDLL(None).proc_pid_rusage(ctypes.c_int(pid), ctypes.c_int(_RUSAGE_INFO_V4), ctypes.byref(numbers)):
        return {}
    resident, own = numbers[_RESIDENT], numbers[_FOOTPRINT]
    return {
        "VmHWM": numbers[_MOST_FOOTPRINT],
        "VmRSS": resident,
        "RssAnon": own,
        "RssFile": max(resident - own, 0),
        "RssShmem": 0,
    }
