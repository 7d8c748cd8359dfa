"""Advisory locks on files. They end with the process that holds them, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["exclusive", "hold_shared", "try_exclusive"]

_POLL_SECONDS = 0.01
# What a file system without locks says.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def exclusive(path: str, patience: float) -> Iterator[bool]:
    """While the block runs, hold the lock on a file, which is created if need be.

    Args:
        path: The file.
        patience: Seconds to wait for others at most.

    Yields:
        Whether it is held. False: the file system has no locks.

    Raises:
        TimeoutError: Others still hold it.
        OSError: The file cannot be opened.
    """
    end = time.monotonic() + patience
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            while (held := try_exclusive(descriptor)) is False:
                if time.monotonic() > end:
                    raise TimeoutError(errno.ETIMEDOUT, "another process is busy with it", path)
                time.sleep(_POLL_SECONDS)
            if not _is_at(descriptor, path):
                continue  # it was removed meanwhile, and others lock its successor
            try:
                yield held is True
            finally:
                if held:
                    # Closing is not enough: a child that was forked meanwhile has the descriptor too.
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
            return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def try_exclusive(descriptor: int) -> bool | None:
    """Lock an open file: True if it worked, False if others have locked it, None if the file system has no locks."""
    return _try(descriptor, fcntl.LOCK_EX)


def hold_shared(descriptor: int) -> bool | None:
    """Lock an open file together with others that do so; results as of `try_exclusive`."""
    return _try(descriptor, fcntl.LOCK_SH)


def _try(descriptor: int, kind: int) -> bool | None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True
