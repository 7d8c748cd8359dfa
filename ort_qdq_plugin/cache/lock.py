"""Waiting for the lock on a file."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ort_qdq_plugin.system.platform import files

__all__ = ["exclusive", "is_at", "open_lock"]

_POLL_SECONDS = 0.01


@contextmanager
def exclusive(path: str, patience: float) -> Iterator[bool]:
    """While the block runs, hold the lock on a file, which is created if it does not exist.

    Yields:
        Whether it is held. False: the file system has no locks.

    Raises:
        TimeoutError: Another process still holds it after `patience` seconds.
        OSError: The file cannot be opened.
    """
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
