"""Waiting for the lock on a file."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ort_qdq_plugin.system.platform import files

__all__ = ["exclusive", "is_at"]

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
        with files.open_to_write(path, create=True) as file:
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


def is_at(file: files.File, path: str) -> bool:
    """Whether an open file is the one that has this path now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
