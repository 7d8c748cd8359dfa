"""What this process may do, and what a fork of it must not interrupt."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "anonymous_bytes",
    "available_processors",
    "collecting_no_garbage",
    "fork_lock",
    "memory_is_limited",
    "processor",
    "sizes_of",
]

# A module that one thread imports while another one forks the process can never be imported in the child: the child would
# wait for a thread that it does not have. The same is true of anything else that is made once, under a lock. So whoever
# imports late, or has something made once, holds this lock, and a fork waits for it.
fork_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=fork_lock.acquire, after_in_parent=fork_lock.release, after_in_child=fork_lock.release)


@contextmanager
def collecting_no_garbage() -> Iterator[None]:
    """While the block runs, the cyclic garbage collector does not: it would look at thousands of new objects in vain."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def memory_is_limited() -> bool:
    """Whether this process may only map so much memory (``ulimit -v``, ``ulimit -d``).

    Each further thread then takes some of it for good, for its stack and its heap.
    """
    try:
        import resource
    except ImportError:  # not on this system
        return False
    limits = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    return any(resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in limits)


def anonymous_bytes() -> int:
    """This process's anonymous memory; 0 where the system does not tell."""
    return sizes_of().get("RssAnon", 0)


def sizes_of(pid: int | str = "self") -> dict[str, int]:
    """The sizes in /proc/PID/status, such as VmHWM and RssAnon, in bytes; {} where the system does not tell.

    A zombie has none.
    """
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            lines = status.read().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.startswith(("Vm", "Rss")))
    return {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes, _ in fields}


def processor() -> str:
    """What kind of processor this is, as far as it matters for which instructions are used."""
    wanted = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU implementer", "CPU part", "Features")
    facts = [os.uname().machine if hasattr(os, "uname") else ""]
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            # Of the first one; the others are alike.
            for line in file:
                if not line.strip():
                    break
                name, _, value = line.partition(":")
                if name.strip() in wanted:
                    facts.append(value.strip())
    except OSError:
        pass
    return " ".join(facts)


def available_processors() -> int:
    """The processors that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
