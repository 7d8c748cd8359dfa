"""Forks of this process: what they wait for, and what has to happen in the child. Some systems have none."""

from __future__ import annotations

import _thread
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress

__all__ = ["around_forks", "asleep", "fork_lock", "in_forked_child", "native_threads"]

# A module that one thread imports while another one forks the process can never be imported in the child: the child would
# wait for a thread that it does not have. The same is true of anything else that is made once, under a lock. So whoever
# imports late, or has something made once, holds this lock, and a fork waits for it.
fork_lock = _thread.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=fork_lock.acquire, after_in_parent=fork_lock.release, after_in_child=fork_lock.release)


def in_forked_child(function: Callable[[], None]) -> Callable[[], None]:
    """Have the decorated function called in every forked child, before `os.fork` returns there."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)
    return function


def around_forks(before: Callable[[], object], after: Callable[[], object]) -> None:
    """Have functions called `before` each fork of this process, and `after` it, both in the parent.

    `before` may wait for threads that want `fork_lock`, which is taken afterwards. What it raises is only printed. A fork
    that has begun already calls neither.
    """
    begun: list[None] = []  # forks

    def begin() -> None:
        begun.append(None)
        before()

    def end() -> None:
        # A fork that waits for an import may find here what that import has registered.
        if begun:
            begun.pop()
            after()

    if hasattr(os, "register_at_fork"):
        # What was registered last is called first before a fork.
        os.register_at_fork(before=begin, after_in_parent=end)


def native_threads() -> frozenset[int]:
    """The threads of this process that Python has not started, by the system's number. Some systems tell none."""
    try:
        numbers = frozenset(map(int, os.listdir("/proc/self/task")))
    except OSError:
        return frozenset()
    # Without that module no thread but the first one is Python's, and this has the number of the process.
    threading = sys.modules.get("threading")
    return numbers.difference(thread.native_id for thread in threading.enumerate()) if threading else numbers - {os.getpid()}


def asleep(threads: Iterable[int]) -> bool:
    """Whether each of these threads waits for something, or has ended."""
    for number in threads:
        with suppress(OSError), open(f"/proc/self/task/{number}/stat", "rb") as stat:
            # The name may have any characters; behind its closing parenthesis stands the state (proc(5)).
            if stat.read().rpartition(b")")[2].split()[0] in (b"R", b"D"):
                return False
    return True
