"""What is open belongs to one object, which closes it whatever comes between: a signal handler that raises, a fork, or a
program that closes descriptors which it does not know.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any
from weakref import WeakSet

from ort_qdq_plugin.system.forks import in_forked_child

__all__ = ["Opened", "close_in_children", "leave_to_children", "owners", "pipe"]

# The one type of the standard library whose objects own a descriptor of any kind, and close it with their last reference
# without a line of Python code. None of them is used as what the type is for.
_Owner: Any = getattr(select, "epoll", getattr(select, "kqueue", None))


def owners(descriptors: Iterable[int]) -> Iterator[Any]:
    """Objects that own what an iterator of the interpreter's own, such as `map`, opens.

    Asked by `next`, it opens and hands over in one step. In ``own(os.open(path))`` an interrupt could come between.
    """
    return map(_Owner.fromfd, descriptors)


class Opened:
    """Something open. It is closed at the latest when nothing refers to it any more.

    Unless its number is by then that of another file: a program may close all descriptors, as one does that becomes a
    daemon, and open files of its own.

    Args:
        owner: Of `owners`.
    """

    _owner: Any = None
    _status: os.stat_result | None = None

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._status = os.fstat(owner.fileno())

    def fileno(self) -> int:
        """Its number; ValueError if it is closed."""
        if self._owner is None:
            raise ValueError("it is closed")
        return int(self._owner.fileno())

    def close(self) -> None:
        """Close it, if it is open."""
        owner, self._owner = self._owner, None
        if owner is None:
            return
        if self._is_still_open(owner):
            owner.close()
        else:
            # The number is another's, and what owns it must never end.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))

    def __del__(self) -> None:
        self.close()

    def _is_still_open(self, owner: Any) -> bool:
        if self._status is None:  # it has been open for no time
            return True
        try:
            return os.path.samestat(os.fstat(owner.fileno()), self._status)
        except OSError as error:
            return error.errno != errno.EBADF


def pipe() -> tuple[Opened, Opened]:
    """The end to read from and the end to write to."""
    # The numbers come in a tuple, which nothing but these iterators sees.
    reader, writer = owners(islice(chain.from_iterable(iter(os.pipe, None)), 2))
    return Opened(reader), Opened(writer)


_left_alone: WeakSet[Opened] = WeakSet()


def close_in_children(opened: Opened) -> None:
    """Have forked children close something at once, so that what ends when nobody has it open ends with this process."""
    _left_alone.add(opened)


def leave_to_children(opened: Opened) -> None:
    """Undo `close_in_children`."""
    _left_alone.discard(opened)


@in_forked_child
def _close_in_child() -> None:
    for opened in list(_left_alone):
        opened.close()
