"""Work on threads of its own: no signal handler raises anything there, and no interrupt of its caller loses it.

Not a threading.Thread: its start() takes locks in Python code, which an interrupt can leave locked.
"""

from __future__ import annotations

import _thread
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

__all__ = ["Work"]

_T = TypeVar("_T")

_FORK_SECONDS = 1.0  # a thread that a fork has left behind never ends: then this is looked at again


class Work(Generic[_T]):
    """An action for another thread, and what came of it.

    Attributes:
        result: What it returned.
        error: What it raised.
        ended: Whether it is over.
    """

    result: _T
    error: BaseException | None = None
    ended = False

    def __init__(self, action: Callable[[], _T]) -> None:
        # Who takes the only item out, the thread or its caller, decides whether the action is begun.
        self._todo = [action]
        self._pid = os.getpid()
        self._wake = _thread.allocate_lock()
        self._wake.acquire()

    def start(self) -> None:
        """Have a new thread run it; RuntimeError if there can be none."""
        _thread.start_new_thread(self.run, ())

    def take_back(self) -> bool:
        """Whether it was not begun, and never will be."""
        with suppress(IndexError):
            self._todo.pop()
            return True
        return False

    def run(self) -> None:
        """Do it, unless it was taken back."""
        with suppress(IndexError):
            action = self._todo.pop()
            try:
                self.result = action()
            except BaseException as error:
                self.error = error
            self.ended = True
            self._wake.release()

    def take_error(self) -> BaseException | None:
        """What it raised, which it refers to no longer: the exception refers to it."""
        error, self.error = self.error, None
        return error

    def wait(self) -> None:
        """Wait until it is over, whatever a signal handler raises meanwhile; that is the error then."""
        while not self.ended:
            try:
                self._wake.acquire(timeout=_FORK_SECONDS)
                if os.getpid() != self._pid:
                    self.ended, self.error = True, RuntimeError("a signal handler has forked the process meanwhile")
            except BaseException as interrupt:
                self.error = interrupt
