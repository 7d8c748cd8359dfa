"""What is open belongs to one object, which closes it whatever comes between: a signal handler that raises, a fork, or a
program that closes descriptors which it does not know.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, compress, islice, starmap, tee
from operator import attrgetter, methodcaller
from typing import Any, TypeAlias, TypeVar
from weakref import WeakSet

from ort_qdq_plugin.system.forks import in_forked_child

__all__ = ["Opened", "call", "close_in_children", "leave_to_children", "owners", "pipe"]

# The one type of the standard library whose objects own a descriptor of any kind, and close it with their last reference
# without a line of Python code. None of them is used as what the type is for.
_Owner: Any = getattr(select, "epoll", getattr(select, "kqueue", None))

_identity_of = attrgetter("st_dev", "st_ino")
_Identity: TypeAlias = tuple[int, int]
_T = TypeVar("_T")


def owners(descriptors: Iterable[int]) -> Iterator[tuple[Any, _Identity]]:
    """Objects that own what an iterator of the interpreter's own, such as `map`, opens; each with what identifies that.

    Asked by `next`, it opens and hands over in one step. In ``own(os.open(path))`` an interrupt could come between.
    """
    opened, seen = tee(map(_Owner.fromfd, descriptors))
    return zip(opened, map(_identity_of, map(os.fstat, map(methodcaller("fileno"), seen))), strict=True)


class Opened:
    """Something open. It is closed at the latest when nothing refers to it any more.

    Unless its number is by then that of another file: a program may close all descriptors, as one does that becomes a
    daemon, and open files of its own.

    Args:
        owner: Of `owners`.
    """

    _owner: Any = None

    def __init__(self, owner: tuple[Any, _Identity]) -> None:
        self._owner, self._identity = owner

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
        try:
            for _ in starmap(owner.close, compress([()], self._matches(owner.fileno()))):
                return
        except OSError as error:
            if error.errno != errno.EBADF:
                return
        # The number is another's, or will be, and what owns it must never end.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))

    def __del__(self) -> None:
        self.close()

    def _matches(self, number: int) -> Iterator[bool]:
        """Whether a number is still that of what was opened: one answer, once it is asked for."""
        # Iterators of the interpreter's own: no signal handler runs between the answer and what is done about it.
        return map(self._identity.__eq__, map(_identity_of, map(os.fstat, (number,))))


def call(function: Callable[..., _T], *arguments: Any) -> _T:
    """Call a function of the interpreter's own that takes descriptors, with those of what is given as `Opened`.

    Raises:
        OSError: One of them is not what was opened: a program has closed it, and the number may be another file's (EBADF).
    """
    given = [
        compress((number := argument.fileno(),), argument._matches(number)) if isinstance(argument, Opened) else (argument,)
        for argument in arguments
    ]
    for result in map(function, *given):
        return result
    raise OSError(errno.EBADF, os.strerror(errno.EBADF))


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
