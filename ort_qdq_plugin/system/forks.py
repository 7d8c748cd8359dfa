"""Forks of this process: what they wait for, and what has to happen in the child. Some systems have none."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

__all__ = ["fork_lock", "in_forked_child"]

# A module that one thread imports while another one forks the process can never be imported in the child: the child would
# wait for a thread that it does not have. The same is true of anything else that is made once, under a lock. So whoever
# imports late, or has something made once, holds this lock, and a fork waits for it.
fork_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=fork_lock.acquire, after_in_parent=fork_lock.release, after_in_child=fork_lock.release)


def in_forked_child(function: Callable[[], None]) -> Callable[[], None]:
    """Have the decorated function called in every forked child, before `os.fork` returns there."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)
    return function
