"""What is open belongs to one object, which closes it whatever comes between: a signal handler that raises, a fork, or a
program that closes descriptors which it does not know.

Of the modules for each system, `descriptors` says what owns a descriptor there, and `files` how one is opened.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from io import FileIO
from itertools import compress, starmap, tee
from operator import attrgetter, methodcaller
from typing import Any, TypeAlias, TypeVar
from weakref import WeakSet

from ort_qdq_plugin.system.forks import in_forked_child

__all__ = [
    "File",
    "Identity",
    "NotRegularError",
    "Opened",
    "call",
    "check_regular",
    "close_in_children",
    "identified",
    "leave_to_children",
    "pieces",
]

Identity: TypeAlias = tuple[int, int]
"""What tells one open file from another: its device and its number there."""

_CHUNK_BYTES = 1 << 20
_identity_of = attrgetter("st_dev", "st_ino")
_T = TypeVar("_T")


def identified(owners: Iterable[Any]) -> Iterator[tuple[Any, Identity]]:
    """Objects that own a descriptor each, which an iterator of the interpreter's own opens; each with what identifies that.

    Asked by `next`, it opens and hands over in one step. In ``own(os.open(path))`` an interrupt could come between.
    """
    opened, seen = tee(owners)
    return zip(opened, map(_identity_of, map(os.fstat, map(methodcaller("fileno"), seen))), strict=True)


class Opened:
    """Something open. It is closed at the latest when nothing refers to it any more.

    Unless its number is by then that of another file: a program may close all descriptors, as one does that becomes a
    daemon, and open files of its own.

    Args:
        owner: Of `identified`.
    """

    _owner: Any = None
    _number, _pid = -1, 0

    def __init__(self, owner: tuple[Any, Identity]) -> None:
        self._owner, self._identity = owner
        self._number, self._pid = int(self._owner.fileno()), os.getpid()

    def fileno(self) -> int:
        """Its number; ValueError if it is closed."""
        if self._owner is None:
            raise ValueError("it is closed")
        return self._number

    def close(self) -> None:
        """Close it, if it is open."""
        owner, self._owner = self._owner, None
        if owner is None:
            return
        try:
            if owner.closed:
                # Both were garbage, and the owner came first; or it is a kqueue in a forked child, where Python takes it for
                # closed, since none is inherited. What it stands for here is.
                inherited = self._matches(self._number) if os.getpid() != self._pid else ()
                for _ in map(os.close, compress((self._number,), inherited)):
                    pass
                return
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


class File(Opened, FileIO):
    """An open file."""

    def __init__(self, owner: tuple[Any, Identity], mode: str = "r") -> None:
        Opened.__init__(self, owner)
        try:
            FileIO.__init__(self, Opened.fileno(self), mode, closefd=False)
        except BaseException:
            # The exception refers to this object.
            Opened.close(self)
            raise

    def fileno(self) -> int:
        """Its number; ValueError if it is closed."""
        return FileIO.fileno(self)

    def write(self, data: Any) -> int:
        """Write bytes where the last ones ended; how many were written."""
        return call(os.write, self, data)

    def close(self) -> None:
        """Close it, if it is open."""
        try:
            Opened.close(self)
        finally:
            FileIO.close(self)


class NotRegularError(OSError):
    """A path leads to something that is no regular file."""


def check_regular(status: os.stat_result, path: str) -> None:
    """Raise NotRegularError if what has this status is no regular file."""
    if not stat.S_ISREG(status.st_mode):
        raise NotRegularError(errno.EINVAL, "not a regular file", path)


def pieces(read: Callable[[int, memoryview], int], offset: int, nbytes: int) -> Iterator[memoryview]:
    """A range of a file, or as much of it as there is, in pieces. Each is valid until the next one is asked for.

    Args:
        read: Reads bytes at an offset into a buffer, and says how many.
        offset: Where the range begins.
        nbytes: Its length.
    """
    chunk = memoryview(bytearray(min(_CHUNK_BYTES, nbytes)))
    while count := read(offset, chunk[:nbytes]):
        yield chunk[:count]
        offset, nbytes = offset + count, nbytes - count


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
