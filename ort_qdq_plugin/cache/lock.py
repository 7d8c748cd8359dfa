"""Waiting for the lock on a file."""

from __future__ import annotations

import errno
import os
import stat
import time
from _thread import get_ident
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ort_qdq_plugin.system.forks import in_forked_child
from ort_qdq_plugin.system.platform import files

__all__ = ["exclusive", "is_at", "open_lock"]

_POLL_SECONDS = 0.01

# The threads that hold a lock or wait for it, with its path: a signal handler that wants it too would wait for what it has
# interrupted.
_inside: set[tuple[int, str]] = set()


@in_forked_child
def _only_this_thread_is_there() -> None:
    _inside.difference_update([who for who in _inside if who[0] != get_ident()])


@contextmanager
def exclusive(path: str, patience: float) -> Iterator[bool]:
    """While the block runs, hold the lock on a file, which is created if it does not exist.

    Yields:
        Whether it is held. False: the file system has no locks.

    Raises:
        TimeoutError: Another process still holds it after `patience` seconds.
        OSError: The file cannot be opened, or this is a signal handler of a thread that is inside such a block.
    """
    me = get_ident(), path
    if me in _inside:
        raise OSError(errno.EDEADLK, "a signal handler cannot wait for what it has interrupted", path)
    try:
        _inside.add(me)
        with _locked(path, patience) as held:
            yield held
    finally:
        _inside.discard(me)


@contextmanager
def _locked(path: str, patience: float) -> Iterator[bool]:
    end = time.monotonic() + patience
    while True:
        with open_lock(path, create=True) as file:
            while (held := files.try_lock(file)) is False:
                if time.monotonic() > end:
                    raise TimeoutError(errno.ETIMEDOUT, "another process is busy with it", path)
                time.sleep(_POLL_SECONDS)
            if not is_at(file, path):
                continue  # it was removed meanwhile, and others lock its successor
            try:
                yield held is True
            finally:
                if held:
                    files.unlock(file)
            return


def open_lock(path: str, *, create: bool = False) -> files.File:
    """Open the file of a lock, to lock it or to write to its end; arguments and errors as of `files.open_to_write`.

    Raises:
        NotRegularError: It is no regular file, or that of another user, who could hold it for ever.
    """
    with suppress(FileNotFoundError):
        # Not even opened if it is something else, such as a FIFO.
        _check_own(os.stat(path, follow_symlinks=False), path)
    file = files.open_to_write(path, create=create, append=True)
    try:
        _check_own(os.fstat(file.fileno()), path)
    except BaseException:
        file.close()
        raise
    return file


def _check_own(status: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(status.st_mode) or not files.is_own(status):
        raise files.NotRegularError(errno.EINVAL, "not a regular file of this user", path)


def is_at(file: files.File, path: str) -> bool:
    """Whether an open file is the one that has this path now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
