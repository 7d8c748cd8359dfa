"""Files: opening and naming them, what is in them, and who else may use them.

What is open belongs to an object, and is closed with it. No program that this process starts inherits it. What the system
refuses is an OSError.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import sys
from collections.abc import Collection, Iterator
from contextlib import closing, suppress
from io import FileIO

if sys.platform != "win32":
    import fcntl
    import resource

__all__ = [
    "File",
    "Folder",
    "NotRegularError",
    "check_written_back",
    "chunks",
    "copy_file",
    "copy_range",
    "create",
    "give_name",
    "hard_link",
    "is_own",
    "is_private",
    "lock",
    "mark",
    "open_to_read",
    "open_to_write",
    "open_unnamed",
    "owners_of",
    "read_at",
    "reserve",
    "safe_directory",
    "try_lock",
    "unlock",
    "user",
    "write_at",
]

_CHUNK_BYTES = 1 << 20
_RANDOM_BYTES = 8
_FICLONE = 0x40049409  # <linux/fs.h>, ioctl_ficlonerange(2)
_SYNC_FILE_RANGE_WAIT_BEFORE = 1  # <linux/fs.h>
# What a file system without locks says, and what one says if others hold a lock.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_LOCKED = {errno.EWOULDBLOCK, errno.EACCES}


class NotRegularError(OSError):
    """A path leads to something that is no regular file."""


class File(FileIO):
    """An open file, which is closed at the latest when nothing refers to it any more."""

    def __del__(self) -> None:
        self.close()


class Folder:
    """A folder, and not a link of one, that is held open: names in it mean the same if another one takes its path."""

    _descriptor = -1

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def fileno(self) -> int:
        return self._descriptor

    def names(self) -> list[str]:
        """Of everything in it."""
        return os.listdir(self._descriptor)

    def status(self, name: str = ".") -> os.stat_result:
        """Of something in it, a symbolic link not followed, or its own."""
        return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    __del__ = close


def open_to_read(path: str, *, folder: Folder | None = None, follow_link: bool = False) -> File:
    """Open a regular file, in a folder if one is given, without ever waiting; NotRegularError if it is something else."""
    within = None if folder is None else folder.fileno()
    # Not even opened if it is a FIFO: opening one waits for its writer, and closing it again can kill the writer.
    _check_regular(os.stat(path, dir_fd=within, follow_symlinks=follow_link), path)
    # The path may lead to a FIFO by now: with O_NONBLOCK, opening it does not wait.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_link else os.O_NOFOLLOW)
    descriptor = os.open(path, flags, dir_fd=within)
    try:
        _check_regular(os.fstat(descriptor), path)
        return File(descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(status: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotRegularError(errno.EINVAL, "not a regular file", path)


def open_to_write(path: str, *, create: bool = False, append: bool = False) -> File:
    """Open a file to write or lock it, without ever waiting; one of mode 0600 is made if there is none and `create` says so.

    A symbolic link is refused. With `append`, all that is written goes to the end.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    return File(os.open(path, flags | os.O_CREAT * create | os.O_APPEND * append, 0o600), "r+")


def create(path: str, mode: int) -> File:
    """A new file of this mode, open to be read and written; FileExistsError if anything has its name, also a link."""
    return File(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, mode), "r+")


def open_unnamed(directory: str, *, nameable: bool = False) -> File:
    """A new file of mode 0600 without a name, which is gone once nothing refers to it.

    If it is to be `nameable`, `give_name` works for it; not all systems and file systems can have that.
    """
    if sys.platform == "win32":
        raise OSError(errno.ENOSYS, "an open file keeps its name on this system", directory)
    if hasattr(os, "O_TMPFILE"):
        with suppress(OSError):
            return File(os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), "r+")
    if nameable:
        raise OSError(errno.EOPNOTSUPP, "a file needs its name from the start", directory)
    path = os.path.join(directory, f"ort-qdq-{os.urandom(_RANDOM_BYTES).hex()}")
    file = create(path, 0o600)
    os.unlink(path)
    return file


def give_name(file: File, path: str) -> None:
    """Give a name to an unnamed file that is `nameable`."""
    directory, name = os.path.split(path)
    with closing(Folder(directory)) as folder:
        # The path below /proc is a symbolic link, and os.link follows one only when it is given a directory.
        os.link(f"/proc/self/fd/{file.fileno()}", name, dst_dir_fd=folder.fileno(), follow_symlinks=True)


def hard_link(path: str, name: str) -> None:
    """Give a file a second name; a symbolic link gets it itself."""
    os.link(path, name, follow_symlinks=False)


def read_at(file: File, offset: int, target: memoryview) -> int:
    """Read bytes at an offset into a buffer; how many, which can be fewer than it has, and is 0 where the file ends."""
    return os.preadv(file.fileno(), [target], offset)


def write_at(file: File, offset: int, data: bytes | memoryview) -> None:
    """Write all of a buffer of bytes at an offset."""
    left = memoryview(data)
    while left:
        count = os.pwrite(file.fileno(), left, offset)
        left, offset = left[count:], offset + count


def chunks(file: File, offset: int = 0, nbytes: int = sys.maxsize) -> Iterator[memoryview]:
    """A range of a file, or as much of it as there is, in pieces. Each is valid until the next one is asked for."""
    chunk = memoryview(bytearray(min(_CHUNK_BYTES, nbytes)))
    while count := read_at(file, offset, chunk[:nbytes]):
        yield chunk[:count]
        offset, nbytes = offset + count, nbytes - count


def copy_file(path: str, copy: str) -> None:
    """Copy a file into a new one of mode 0400, sharing its blocks where the file system can."""
    with open_to_read(path, follow_link=True) as source, create(copy, 0o400) as target:
        try:
            fcntl.ioctl(target, _FICLONE, source.fileno())
        except OSError:
            done = 0
            for chunk in chunks(source):
                write_at(target, done, chunk)
                done += len(chunk)


def reserve(file: File, size: int) -> None:
    """Make an empty file `size` bytes long, all of them zero, and take the room for them on the disk."""
    if not hasattr(os, "posix_fallocate"):
        raise OSError(errno.ENOSYS, "this system cannot reserve space for a file")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and size > limit:
        # Trying is answered by SIGXFSZ.
        raise OSError(errno.EFBIG, f"files may have {limit} bytes")
    os.posix_fallocate(file.fileno(), 0, size)


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


def lock(file: File | Folder) -> None:
    """Lock an open file or folder, once nobody else has locked it. Locks are advisory, and end with the process."""
    fcntl.flock(file, fcntl.LOCK_EX)


def try_lock(file: File | Folder, *, shared: bool = False) -> bool | None:
    """Lock an open file or folder; `shared`: together with others that do so.

    Returns:
        True if it is locked now, False if others have locked it, None if the file system has no locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        if error.errno in _LOCKED:
            return False
        raise
    return True


def unlock(file: File) -> None:
    """Give a lock back. Closing is not enough: a child that was forked meanwhile has the file open too."""
    fcntl.flock(file, fcntl.LOCK_UN)


def is_own(status: os.stat_result) -> bool:
    """Whether what has this status is this user's."""
    return status.st_uid == os.geteuid()


def is_private(status: os.stat_result, owners: Collection[int] = ()) -> bool:
    """Whether what has this status is this user's, or one's of `owners`, and no other one can write to it."""
    is_ours = is_own(status) or status.st_uid in owners
    return is_ours and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def owners_of(path: str) -> set[int]:
    """Those who can do anything with what is at a path: its owner and root."""
    return {0, os.stat(path).st_uid}


def safe_directory(directory: str, owners: Collection[int] = ()) -> str:
    """The real path of a directory.

    Raises:
        PermissionError: Others than root, this user and `owners` can exchange a named file in it.
    """
    real = os.path.realpath(directory)
    folder = real
    while True:
        status = os.stat(folder)
        if status.st_uid not in (0, os.geteuid(), *owners):
            raise PermissionError(errno.EPERM, f"belongs to another user ({status.st_uid})", folder)
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX:
            raise PermissionError(errno.EPERM, "others can write to it, and it is not sticky", folder)
        if folder == os.path.dirname(folder):
            return real
        folder = os.path.dirname(folder)


def copy_range(source: File, offset: int, nbytes: int, target: File, at: int) -> int:
    """Copy bytes from one open file into another, sharing blocks where the file system can; how many, which is fewer than
    asked for if the source ends before."""
    done, copy_in_kernel = 0, getattr(os, "copy_file_range", None)
    if copy_in_kernel is not None:
        # Some file systems, and some sandboxes, refuse the call. If there is no room, writing says so.
        with suppress(OSError):
            while done < nbytes:
                count = copy_in_kernel(source.fileno(), target.fileno(), nbytes - done, offset + done, at + done)
                if count == 0:
                    break
                done += count
    for chunk in chunks(source, offset + done, nbytes - done):
        write_at(target, at + done, chunk)
        done += len(chunk)
    return done


def user() -> int:
    """The number of the user who is the owner of what this process makes."""
    return os.geteuid()


def mark(folder: Folder, name: str) -> None:
    """Make an empty file of mode 0400 in a folder; FileExistsError if anything has its name."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(os.open(name, flags, 0o400, dir_fd=folder.fileno()))
