"""Files: opening and naming them, what is in them, and who else may use them.

What is open belongs to an object, and is closed with it. No program that this process starts inherits it. What the system
refuses is an OSError.

Windows has no file without a name, and decides by what a file was opened for who else may open, rename or remove it. So
all of this is opened in a way that allows others everything. Others may not be so: ONNX Runtime opens files in a way that
nobody may write to them meanwhile.
"""

from __future__ import annotations

import ctypes
import errno
import msvcrt
import os
import stat
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from ort_qdq_plugin.system import opened
from ort_qdq_plugin.system.opened import Identity, NotRegularError, call, check_regular, pieces
from ort_qdq_plugin.system.windows.calls import Overlapped, address_of, kernel32, last_error
from ort_qdq_plugin.system.windows.descriptors import owners
from ort_qdq_plugin.system.windows.rights import is_own, is_private, owners_of, safe_directory, set_mode, user

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

SHARES_FREELY = False
"""Whether what is open, or mapped, can be renamed and removed, and opened by others whatever it was opened for."""

_RANDOM_BYTES = 8
_MOST_BYTES = 1 << 30  # that one call reads or writes: its count has 32 bits

# Of <winnt.h> and <winbase.h>.
_GENERIC_READ, _GENERIC_WRITE, _DELETE = 0x80000000, 0x40000000, 0x00010000
_SHARE_ALL = 0x7
_CREATE_NEW, _OPEN_EXISTING, _OPEN_ALWAYS = 1, 3, 4
_DELETE_ON_CLOSE = 0x04000000
_END_OF_FILE_INFO = 6
_FAIL_IMMEDIATELY, _EXCLUSIVE = 0x1, 0x2

# Of <winerror.h>.
_INVALID_FUNCTION, _LOCK_VIOLATION, _HANDLE_EOF, _NOT_SUPPORTED, _IO_PENDING = 1, 33, 38, 50, 997

# Locks keep others from reading and writing what they are on: so they are on a byte that no file has.
_LOCKED_BYTE = 1 << 62


class File(opened.File):
    """An open file."""

    _next = 0  # of what is read in sequence: calls that are given an offset move the position that the system keeps

    def readall(self) -> bytes:
        """All that was not read yet."""
        return self.read(-1)

    def read(self, size: int | None = -1) -> bytes:
        """As many bytes as there are, `size` at the most, that were not read yet."""
        data = b"".join(map(bytes, chunks(self, self._next, sys.maxsize if size is None or size < 0 else size)))
        self._next += len(data)
        return data


class Folder:
    """A folder, and not a link of one. It cannot be renamed while any file in it is open."""

    _lock: File | None = None

    def __init__(self, path: str) -> None:
        self._path = path
        if not stat.S_ISDIR(self.status().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)

    def within(self, name: str) -> str:
        """The path of something in it."""
        return os.path.join(self._path, name)

    def names(self) -> list[str]:
        """Of everything in it."""
        return os.listdir(self._path)

    def status(self, name: str = "") -> os.stat_result:
        """Of something in it, a symbolic link not followed, or its own."""
        return os.stat(os.path.join(self._path, name) if name else self._path, follow_symlinks=False)

    def to_lock(self) -> File:
        """A file beside it that stands for it, since a folder cannot be locked. It goes when nobody has it open any more."""
        if self._lock is None:
            access = _GENERIC_READ | _GENERIC_WRITE | _DELETE
            self._lock = File(_opened(f"{self._path}.lock", access, _OPEN_ALWAYS, _DELETE_ON_CLOSE), "r+")
        return self._lock

    def close(self) -> None:
        """Give its lock back."""
        if self._lock is not None:
            self._lock.close()


def _opened(path: str, access: int, disposition: int, flags: int = 0, *, append: bool = False) -> tuple[Any, Identity]:
    """What owns the descriptor of a newly opened file (`owners`)."""
    handles = map(kernel32.CreateFileW, (path,), (access,), (_SHARE_ALL,), (None,), (disposition,), (flags,), (None,))
    ctypes.set_last_error(0)
    try:
        return next(owners(map(msvcrt.open_osfhandle, handles, (os.O_APPEND if append else 0,))))
    except OSError:
        if ctypes.get_last_error():
            raise last_error(path) from None
        raise


def is_relative(location: str) -> bool:
    """Whether a location that a model gives is a relative path: one from the folder that it is looked for in.

    Neither with a drive nor from the root of one. A colon also begins the name of a file's second content.
    """
    return ":" not in location and not location.startswith(("/", "\\"))


def root_of(path: str) -> str:
    """The topmost folder above an absolute path: there is one for each drive, and for each share of another machine."""
    return os.path.join(os.path.splitdrive(path)[0], os.sep)


def spill_folders() -> list[str]:
    """Folders for temporary files too large for the usual one, of which there are none."""
    return []


def open_to_read(path: str, *, folder: Folder | None = None, follow_link: bool = False) -> File:
    """Open a regular file, in a folder if one is given, without ever waiting; NotRegularError if it is something else."""
    path = path if folder is None else folder.within(path)
    seen = os.stat(path, follow_symlinks=follow_link)
    check_regular(seen, path)
    return _checked(File(_opened(path, _GENERIC_READ, _OPEN_EXISTING)), path, None if follow_link else seen)


def _checked(file: File, path: str, seen: os.stat_result | None = None) -> File:
    """An open file, if it is a regular one, and the one that was seen at the path."""
    try:
        status = call(os.fstat, file)
        check_regular(status, path)
        # Some file systems tell no numbers, and none tells them of some files that are mapped.
        if seen is not None and seen.st_ino and not os.path.samestat(status, seen):
            raise NotRegularError(errno.EINVAL, "replaced while it was opened", path)
    except BaseException:
        # The exception refers to this frame.
        file.close()
        raise
    return file


def open_to_write(path: str, *, create: bool = False, append: bool = False) -> File:
    """Open a file to write or lock it, without ever waiting; one is made if there is none and `create` says so.

    A symbolic link is refused. With `append`, all that is written goes to the end.
    """
    if os.path.islink(path):
        raise OSError(errno.ELOOP, "a symbolic link", path)
    access, disposition = _GENERIC_READ | _GENERIC_WRITE, _OPEN_ALWAYS if create else _OPEN_EXISTING
    file = File(_opened(path, access, disposition, append=append), "r+")
    return _checked(file, path, os.stat(path, follow_symlinks=False))


def open_to_write_back(name: str, folder: Folder) -> File:
    """Open a file of a folder so that what was written to it can be written back to the disk."""
    return open_to_write(folder.within(name))


def open_to_lock(path: str) -> File:
    """Open a file to hold its lock while others read it: those who want nobody to write to it find nobody who could."""
    return open_to_read(path)


def create(path: str, mode: int) -> File:
    """A new file, open to be read and written; FileExistsError if anything has its name, also a link.

    Of the mode nothing is used: what nobody may write to cannot be removed either.
    """
    return File(_opened(path, _GENERIC_READ | _GENERIC_WRITE, _CREATE_NEW), "r+")


def open_unnamed(directory: str, *, nameable: bool = False) -> File:
    """A new file that the system removes once nothing has it open any more, mappings of it included.

    It has a name that nobody knows, and can get no other: `nameable` is refused.
    """
    if nameable:
        raise OSError(errno.EOPNOTSUPP, "a file needs its name from the start", directory)
    path = os.path.join(directory, f"ort-qdq-{os.urandom(_RANDOM_BYTES).hex()}.spill")
    file = File(_opened(path, _GENERIC_READ | _GENERIC_WRITE | _DELETE, _CREATE_NEW, _DELETE_ON_CLOSE), "r+")
    # So that nobody takes it for one that was left behind. A mapping of it has a share in the lock.
    try_lock(file)
    return file


def open_again(file: File) -> File:
    """Open an unnamed file once more, which cannot be had."""
    raise OSError(errno.EOPNOTSUPP, "an open file cannot be opened once more without its name")


def give_name(file: File, path: str) -> None:
    """Give a name to an unnamed file, which cannot be had."""
    raise OSError(errno.EOPNOTSUPP, "a file needs its name from the start", path)


def _handle(number: int) -> int:
    return msvcrt.get_osfhandle(number)


def read_at(file: File, offset: int, target: memoryview) -> int:
    """Read bytes at an offset into a buffer; how many, which can be fewer than it has, and is 0 where the file ends."""
    if not len(target):
        return 0
    done, size = ctypes.c_uint32(), min(len(target), _MOST_BYTES)
    at = Overlapped.at(offset)
    if not kernel32.ReadFile(call(_handle, file), address_of(target), size, ctypes.byref(done), ctypes.byref(at)):
        if ctypes.get_last_error() == _HANDLE_EOF:
            return 0
        raise last_error()
    return done.value


def write_at(file: File, offset: int, data: bytes | memoryview) -> None:
    """Write all of a buffer of bytes at an offset."""
    left, done = memoryview(data), ctypes.c_uint32()
    while left:
        size, at = min(len(left), _MOST_BYTES), Overlapped.at(offset)
        if not kernel32.WriteFile(call(_handle, file), address_of(left), size, ctypes.byref(done), ctypes.byref(at)):
            raise last_error()
        left, offset = left[done.value :], offset + done.value


def chunks(file: File, offset: int = 0, nbytes: int = sys.maxsize) -> Iterator[memoryview]:
    """A range of a file, or as much of it as there is, in pieces. Each is valid until the next one is asked for."""
    return pieces(partial(read_at, file), offset, nbytes)


def copy_range(source: File, offset: int, nbytes: int, target: File, at: int) -> int:
    """Copy bytes from one open file into another; how many, which is fewer than asked for if the source ends before."""
    done = 0
    for chunk in chunks(source, offset, nbytes):
        write_at(target, at + done, chunk)
        done += len(chunk)
    return done


def reserve(file: File, size: int) -> None:
    """Make an empty file `size` bytes long, all of them zero, and take the room for them on the disk."""
    end = ctypes.c_int64(size)
    if not kernel32.SetFileInformationByHandle(
        call(_handle, file), _END_OF_FILE_INFO, ctypes.byref(end), ctypes.sizeof(end)
    ):
        raise last_error()


def check_written_back(file: File, size: int) -> None:
    """Raise the error that writing back any page of a file has met, which the system does not tell."""


# Locks belong to what was opened, as those of flock(2) do.


def lock(file: File | Folder) -> None:
    """Lock an open file or folder, once nobody else has locked it. Locks end with the process."""
    if _locked(file, _EXCLUSIVE) is None:
        raise last_error()


def try_lock(file: File | Folder, *, shared: bool = False) -> bool | None:
    """Lock an open file or folder; `shared`: together with others that do so.

    Returns:
        Whether it is locked; None if the file system has no locks.
    """
    return _locked(file, _FAIL_IMMEDIATELY | (0 if shared else _EXCLUSIVE))


def _locked(file: File | Folder, flags: int) -> bool | None:
    file = file.to_lock() if isinstance(file, Folder) else file
    # A lock that is held already would be in the way of one of another kind.
    unlock(file)
    at = Overlapped.at(_LOCKED_BYTE)
    if kernel32.LockFileEx(call(_handle, file), flags, 0, 1, 0, ctypes.byref(at)):
        return True
    if ctypes.get_last_error() in (_INVALID_FUNCTION, _NOT_SUPPORTED):
        return None
    if ctypes.get_last_error() in (_LOCK_VIOLATION, _IO_PENDING):
        return False
    raise last_error()


def unlock(file: File) -> None:
    """Give a lock back, if it is held."""
    if not file.closed:
        at = Overlapped.at(_LOCKED_BYTE)
        kernel32.UnlockFileEx(call(_handle, file), 0, 1, 0, ctypes.byref(at))


def allocated_bytes(status: os.stat_result) -> int:
    """What a file of this status takes on the disk: no more than what is in it is told."""
    return status.st_size


def mark(folder: Folder, name: str) -> None:
    """Make an empty file in a folder; FileExistsError if anything has its name."""
    create(folder.within(name), 0o400).close()
