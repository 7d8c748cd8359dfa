"""Files: opening and naming them, what is in them, and who else may use them.

What is open belongs to an object, and is closed with it. No program that this process starts inherits it. What the system
refuses is an OSError.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from typing import Any

from ort_qdq_plugin.system.opened import (
    File,
    Identity,
    NotRegularError,
    Opened,
    call,
    check_regular,
    close_in_children,
    leave_to_children,
    pieces,
)
from ort_qdq_plugin.system.posix.darwin import preallocate
from ort_qdq_plugin.system.posix.descriptors import owners
from ort_qdq_plugin.system.posix.rights import is_own, is_private, owners_of, safe_directory, set_mode, user

__all__ = [
    "SHARES_FREELY",
    "File",
    "Folder",
    "NotRegularError",
    "allocated_bytes",
    "check_written_back",
    "chunks",
    "copy_range",
    "create",
    "give_name",
    "is_own",
    "is_private",
    "is_relative",
    "lock",
    "mark",
    "open_again",
    "open_to_lock",
    "open_to_read",
    "open_to_write",
    "open_to_write_back",
    "open_unnamed",
    "owners_of",
    "read_at",
    "reserve",
    "root_of",
    "safe_directory",
    "set_mode",
    "spill_folders",
    "try_lock",
    "unlock",
    "user",
    "write_at",
]

SHARES_FREELY = True
"""Whether what is open, or mapped, can be renamed and removed, and opened by others whatever it was opened for."""


_NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_RANDOM_BYTES = 8
_BLOCK_BYTES = 512  # what st_blocks counts
_SYNC_FILE_RANGE_WAIT_BEFORE = 1  # <linux/fs.h>
# What a file system or a sandbox without locks says, and what is said if others hold a lock.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EPERM}
_LOCKED = {errno.EWOULDBLOCK, errno.EACCES}


class Folder(Opened):
    """A folder, and not a link of one, that is held open: names in it mean the same if another one takes its path."""

    def __init__(self, path: str) -> None:
        super().__init__(_opened(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW))

    def names(self) -> list[str]:
        """Of everything in it."""
        return os.listdir(self.fileno())

    def status(self, name: str = ".") -> os.stat_result:
        """Of something in it, a symbolic link not followed, or its own."""
        return os.stat(name, dir_fd=self.fileno(), follow_symlinks=False)


def is_relative(location: str) -> bool:
    """Whether a location that a model gives is a relative path: one from the folder that it is looked for in."""
    return not os.path.isabs(location)


def root_of(path: str) -> str:
    """The topmost folder above an absolute path."""
    return os.sep


def spill_folders() -> list[str]:
    """Folders for temporary files too large for the usual one, which is often memory (tmpfs)."""
    # Filesystem Hierarchy Standard, 5.15.
    return [path for path in ("/var/tmp",) if os.path.isdir(path)]


def _opened(path: str, flags: int, mode: int = 0o777, *, within: int | None = None) -> tuple[Any, Identity]:
    """What owns the descriptor of a newly opened file (`owners`)."""
    return next(owners(map(partial(os.open, dir_fd=within), (path,), (flags | os.O_CLOEXEC,), (mode,))))


def open_to_read(path: str, *, folder: Folder | None = None, follow_link: bool = False) -> File:
    """Open a regular file, in a folder if one is given, without ever waiting; NotRegularError if it is something else."""
    within = None if folder is None else folder.fileno()
    # Not even opened if it is a FIFO: opening one waits for its writer, and closing it again can kill the writer.
    check_regular(os.stat(path, dir_fd=within, follow_symlinks=follow_link), path)
    # The path may lead to a FIFO by now: with O_NONBLOCK, opening it does not wait.
    file = File(_opened(path, os.O_RDONLY | os.O_NONBLOCK | (0 if follow_link else os.O_NOFOLLOW), within=within))
    try:
        check_regular(call(os.fstat, file), path)
    except BaseException:
        # The exception refers to this frame.
        file.close()
        raise
    return file


def open_to_write(path: str, *, create: bool = False, append: bool = False) -> File:
    """Open a file to write or lock it, without ever waiting; one of mode 0600 is made if there is none and `create` says so.

    A symbolic link is refused. With `append`, all that is written goes to the end.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    return File(_opened(path, flags | os.O_CREAT * create | os.O_APPEND * append, 0o600), "r+")


def open_to_write_back(name: str, folder: Folder) -> File:
    """Open a file of a folder so that what was written to it can be written back to the disk."""
    return open_to_read(name, folder=folder)


def open_to_lock(path: str) -> File:
    """Open a file to hold its lock while others read it."""
    return open_to_write(path)


def create(path: str, mode: int) -> File:
    """A new file of this mode, open to be read and written; FileExistsError if anything has its name, also a link."""
    return File(_opened(path, _NEW, mode), "r+")


def open_unnamed(directory: str, *, nameable: bool = False) -> File:
    """A new file of mode 0600 without a name, which is gone once nothing refers to it.

    If it is to be `nameable`, `give_name` works for it; not all systems and file systems can have that.
    """
    if hasattr(os, "O_TMPFILE") and (not nameable or os.path.isdir("/proc/self/fd")):
        with suppress(OSError):
            return File(_opened(directory, os.O_TMPFILE | os.O_RDWR, 0o600), "r+")
    if nameable:
        raise OSError(errno.EOPNOTSUPP, "a file needs its name from the start", directory)
    path = os.path.join(directory, f"ort-qdq-{os.urandom(_RANDOM_BYTES).hex()}")
    # In one step, like `owners`: an interrupt finds it with a name and an object, or with neither.
    owner, _ = next(zip(owners(map(os.open, (path,), (_NEW,), (0o600,))), map(os.unlink, (path,)), strict=False))
    return File(owner, "r+")


def open_again(file: File) -> File:
    """Open a file that is open to be written once more, whether it has a name or not."""
    return File(_opened(_path_of(file), os.O_RDWR), "r+")


def give_name(file: File, path: str) -> None:
    """Give a name to an unnamed file that is `nameable`."""
    directory, name = os.path.split(path)
    with closing(Folder(directory)) as folder:
        # The path below /proc is a symbolic link, and os.link follows one only when it is given a directory.
        os.link(_path_of(file), name, dst_dir_fd=folder.fileno(), follow_symlinks=True)


def _path_of(file: File) -> str:
    return f"/proc/self/fd/{file.fileno()}"


def read_at(file: File, offset: int, target: memoryview) -> int:
    """Read bytes at an offset into a buffer; how many, which can be fewer than it has, and is 0 where the file ends."""
    return call(os.preadv, file, [target], offset)


def write_at(file: File, offset: int, data: bytes | memoryview) -> None:
    """Write all of a buffer of bytes at an offset."""
    left = memoryview(data)
    while left:
        count = call(os.pwrite, file, left, offset)
        left, offset = left[count:], offset + count


def chunks(file: File, offset: int = 0, nbytes: int = sys.maxsize) -> Iterator[memoryview]:
    """A range of a file, or as much of it as there is, in pieces. Each is valid until the next one is asked for."""
    return pieces(partial(read_at, file), offset, nbytes)


def reserve(file: File, size: int) -> None:
    """Make an empty file `size` bytes long, all of them zero, and take the room for them on the disk."""
    limit = resource.RLIM_INFINITY
    with suppress(OSError):  # of a sandbox
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and size > limit:
        # Trying is answered by SIGXFSZ.
        raise OSError(errno.EFBIG, f"files may have {limit} bytes (ulimit -f)")
    call(getattr(os, "posix_fallocate", preallocate), file, 0, size)


def check_written_back(file: File, size: int) -> None:
    """Raise the error that writing back any page of a file of this size has met so far. Waits for none being written."""
    sync_file_range = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
    if sync_file_range is None:
        return
    # The call waits for a range of the file, but reports errors of all of it. So the range is one that has no pages
    # (sync_file_range(2), EIO and ENOSPC).
    behind = ctypes.c_int64(size + mmap.PAGESIZE)
    if sync_file_range(file.fileno(), behind, ctypes.c_int64(1), _SYNC_FILE_RANGE_WAIT_BEFORE):
        problem = ctypes.get_errno()
        if problem in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise OSError(problem, f"spill file cannot be written back: {os.strerror(problem)}")


# Locks are those of flock(2): they belong to what was opened, and last until nobody has that open any more or somebody gives
# them back. So a child that is forked meanwhile closes what is locked: otherwise it would hold the lock on if its parent was
# killed, and could give back what is its parent's. The other kinds are no better: fcntl(2)'s open file description locks are
# inherited as well, and its traditional ones do not exclude threads, and end when the process closes any descriptor of the
# file. Shared locks are left to children: they have what these are held for, the parent's sessions.


def lock(file: File | Folder) -> None:
    """Lock an open file or folder, once nobody else has locked it. Locks are advisory, and end with the process."""
    close_in_children(file)
    fcntl.flock(file, fcntl.LOCK_EX)


def try_lock(file: File | Folder, *, shared: bool = False) -> bool | None:
    """Lock an open file or folder; `shared`: together with others that do so, and with forked children.

    Returns:
        True if it is locked now, False if others have locked it, None if the file system has no locks.
    """
    if not shared:
        close_in_children(file)
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        leave_to_children(file)
        if error.errno in _NO_LOCKS:
            return None
        if error.errno in _LOCKED:
            return False
        raise
    return True


def unlock(file: File) -> None:
    """Give a lock back. Closing is not enough: a program that is started meanwhile has the file open for a moment, too."""
    if not file.closed:
        fcntl.flock(file, fcntl.LOCK_UN)
        leave_to_children(file)


def allocated_bytes(status: os.stat_result) -> int:
    """What a file of this status takes on the disk."""
    return status.st_blocks * _BLOCK_BYTES


def copy_range(source: File, offset: int, nbytes: int, target: File, at: int) -> int:
    """Copy bytes from one open file into another, sharing blocks where the file system can; how many, which is fewer than
    asked for if the source ends before."""
    done, copy_in_kernel = 0, getattr(os, "copy_file_range", None)
    if copy_in_kernel is not None:
        # Some file systems, and some sandboxes, refuse the call. If there is no room, writing says so.
        with suppress(OSError):
            while done < nbytes:
                count = call(copy_in_kernel, source, target, nbytes - done, offset + done, at + done)
                if count == 0:
                    break
                done += count
    for chunk in chunks(source, offset + done, nbytes - done):
        write_at(target, at + done, chunk)
        done += len(chunk)
    return done


def mark(folder: Folder, name: str) -> None:
    """Make an empty file of mode 0400 in a folder; FileExistsError if anything has its name."""
    Opened(_opened(name, _NEW, 0o400, within=folder.fileno())).close()
