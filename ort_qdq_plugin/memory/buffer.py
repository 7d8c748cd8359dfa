"""The packed buffer: memory that ONNX Runtime borrows for a session's whole life.

By default it is the mapping of a spill file that has no name, so that its pages need not stay in the process (they can be
trimmed while ONNX Runtime makes its own copies of them), count as reclaimable page cache once written, and vanish with the
process however it ends. Where no file can be had it is plain anonymous memory.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from io import FileIO
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from ort_qdq_plugin import log
from ort_qdq_plugin.system.process import fork_lock

if sys.platform != "win32":
    import fcntl
    import resource

if TYPE_CHECKING:
    from ort_qdq_plugin.memory.named_files import Name

__all__ = ["PackedBuffer", "buffer_at", "make_buffers", "spill_directories", "trim_mapping"]

# Plain memory keeps the packed bytes in the process, beside ONNX Runtime's own copy of them; pages of a file leave it. On
# ext4, making and filling a file takes 0.1 ms more than memory at 16 KB, as long at 0.4 MB, and half as long at 2 MB. The
# limit is higher than that because other file systems may be slower.
_SMALL_BYTES = 1 << 20

_SYNC_FILE_RANGE_WAIT_BEFORE = 1  # <linux/fs.h>


class PackedBuffer:
    """Writable bytes, zero at first.

    The mapping is unmapped when the last reference to it, or to the array, is gone; nothing here unmaps it earlier. Whoever
    hands it to ONNX Runtime keeps a reference until the session is destroyed.

    Attributes:
        mapping: The bytes, mapped.
        array: The same as a uint8 array [size].
        in_file: Whether the mapping is of a file, which is open until `seal`.
        path: The file's, while it has a name.
    """

    path: str | None = None
    _file: FileIO | None = None
    _name: Name | None = None
    _owner = 0

    def __init__(
        self, mapping: mmap.mmap, file: FileIO | None = None, name: Name | None = None, path: str | None = None
    ) -> None:
        self.mapping = mapping
        self.in_file = file is not None
        self.array: np.ndarray = np.frombuffer(mapping, np.uint8)
        self.path = path
        self._name = name
        self._owner = os.getpid()
        self._file = file

    def __del__(self) -> None:
        # An interrupt may have come where nobody could discard it.
        self.discard()

    def write(self, offset: int, data: np.ndarray) -> None:
        """Put the contiguous uint8 array `data` at byte `offset`.

        A file is written by system calls, not through the mapping: then no page has to be zeroed, faulted in and dropped.
        """
        if self._file is None:
            self.array[offset : offset + data.size] = data.reshape(-1)
            return
        left = data.reshape(-1).data
        while left:
            count = os.pwrite(self._file.fileno(), left, offset)
            left, offset = left[count:], offset + count

    def link(self) -> None:
        """Give the file a name, mode 0600, for ONNX Runtime to open. Should this process be killed, others remove it."""
        if self._file is None or self._name is None:
            raise OSError("plain memory has no name")
        if self.path is None:
            # The lock lasts as long as the mapping, which has a descriptor of its own for the same open file.
            fcntl.flock(self._file, fcntl.LOCK_EX)
            directory, name = os.path.split(self._name.path)
            folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self.path = self._name.path
                # The path below /proc is a symbolic link, and os.link follows one only when it is given a directory.
                os.link(f"/proc/self/fd/{self._file.fileno()}", name, dst_dir_fd=folder, follow_symlinks=True)
            except OSError:
                self.path = None
                raise
            finally:
                os.close(folder)

    def seal(self) -> None:
        """Say that nothing more will be written.

        Raises:
            OSError: The disk has refused some of what was written, which could come back as zeros.
        """
        try:
            if self._file is not None:
                _check_written_back(self._file, len(self.mapping))
        finally:
            self._close()

    def discard(self) -> None:
        """Close the file and take its name away. The mapping goes with its last reference."""
        self._close()
        self.unlink()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def trim(self, offset: int, nbytes: int) -> None:
        """Drop the pages of a range from this process; their content stays in the file. Plain memory stays as it is."""
        if self.in_file:
            trim_mapping(self.mapping, offset, nbytes)

    def unlink(self) -> None:
        """Take the file's name away, if it has one."""
        name, self._name = self._name, None
        path, self.path = self.path, None
        if self._owner != os.getpid():
            # This is a forked child's copy: the name is the parent's.
            return
        try:
            if path is not None:
                # Somebody else may have removed it already.
                with suppress(FileNotFoundError):
                    os.unlink(path)
        finally:
            if name is not None:
                name.remover.gone(name.path)


def _check_written_back(file: FileIO, size: int) -> None:
    """Raise the error that writing back any page of the file has met so far. Waits for no page that is being written."""
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


def trim_mapping(mapping: mmap.mmap, offset: int, nbytes: int) -> None:
    """Drop the pages of a shared file mapping that a range touches; they come back from the file when read."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = offset // mmap.PAGESIZE * mmap.PAGESIZE
    if nbytes > 0:
        mapping.madvise(mmap.MADV_DONTNEED, start, offset + nbytes - start)


def make_buffers(sizes: Sequence[int], kind: str, spill_dir: str | None, linkable: bool = False) -> list[PackedBuffer]:
    """Make zeroed buffers. Where no file can be had they are plain memory, with one warning.

    Args:
        sizes: Their lengths in bytes, all above 0.
        kind: "file", "memory", or "auto", which is a file unless they are small.
        spill_dir: Where files go; None for the system's own directory.
        linkable: Whether they must be files that can get a name.

    Raises:
        OSError: No file can be had, but they must be files.
    """
    if not sizes:
        return []
    if not linkable and (kind == "memory" or (kind == "auto" and sum(sizes) < _SMALL_BYTES)):
        return [PackedBuffer(_anonymous(size)) for size in sizes]
    problem = "no directory for temporary files"
    for directory in spill_directories(spill_dir):
        try:
            return _file_buffers(sizes, directory, linkable)
        except OSError as error:
            # Not the exception itself, which would keep the buffers that were made before it.
            problem = str(error)
    if linkable:
        raise OSError(problem)
    log.warning("no room for spill files of %d bytes (%s): packing into memory instead", sum(sizes), problem)
    return [PackedBuffer(_anonymous(size)) for size in sizes]


def buffer_at(path: str, size: int) -> PackedBuffer:
    """A zeroed buffer in a new file of mode 0400.

    Raises:
        OSError: There is no room for it.
    """
    _check_size_limit(size, path)
    file = FileIO(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400), "r+")
    try:
        os.posix_fallocate(file.fileno(), 0, size)
        return PackedBuffer(mmap.mmap(file.fileno(), size), file)
    except BaseException:
        file.close()
        raise


def spill_directories(spill_dir: str | None) -> Iterator[str]:
    """Where to try to put a spill file: the directory asked for, or the system's ones for large temporary files."""
    if spill_dir is not None:
        yield spill_dir
        return
    # /tmp is often memory (tmpfs); /var/tmp is meant for files too large for that (Filesystem Hierarchy Standard 5.15).
    large = "/var/tmp"
    if os.environ.get("TMPDIR") or not os.path.isdir(large):
        yield _tempfile().gettempdir()
        return
    yield large
    if _tempfile().gettempdir() != large:
        yield _tempfile().gettempdir()


def _anonymous(size: int) -> mmap.mmap:
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)


def _file_buffers(sizes: Sequence[int], directory: str, linkable: bool) -> list[PackedBuffer]:
    if not hasattr(os, "posix_fallocate"):
        raise OSError(f"{directory}: this system cannot reserve space for a file")
    _check_size_limit(max(sizes), directory)
    with ExitStack() as undo:
        names: list[Name | None] = [None] * len(sizes)
        if linkable:
            directory = _named().safe_directory(directory)
            _named().sweep(directory)
            names = [*_named().new_names(directory, len(sizes), undo)]
        buffers = []
        for size, name in zip(sizes, names, strict=True):
            buffers.append(_file_buffer(size, directory, name))
            undo.callback(buffers[-1].discard)
        undo.pop_all()
    return buffers


def _check_size_limit(size: int, path: str) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and size > limit:
        # Trying is answered by SIGXFSZ.
        raise OSError(errno.EFBIG, f"files may have {limit} bytes", path)


def _file_buffer(size: int, directory: str, name: Name | None) -> PackedBuffer:
    file, path = _open_spill(directory, name)
    try:
        # Without the reservation, touching the mapping on a full disk would end the process with SIGBUS.
        os.posix_fallocate(file.fileno(), 0, size)
        return PackedBuffer(mmap.mmap(file.fileno(), size), file, name, path)
    except BaseException:
        file.close()
        if path is not None:
            with suppress(FileNotFoundError):
                os.unlink(path)
        raise


def _open_spill(directory: str, name: Name | None) -> tuple[FileIO, str | None]:
    """A new file of mode 0600, and its path. It has one, and is locked, only if it could not get one later."""
    if hasattr(os, "O_TMPFILE"):
        # Some file systems do not know O_TMPFILE.
        with suppress(OSError):
            return FileIO(os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), "r+"), None
    if name is not None:
        return _named().open_named(name), name.path
    descriptor, path = _tempfile().mkstemp(dir=directory)
    os.unlink(path)
    return FileIO(descriptor, "r+"), None


def _named() -> ModuleType:
    """What only files with names need."""
    with fork_lock:
        from ort_qdq_plugin.memory import named_files as named

        return named


def _tempfile() -> ModuleType:
    # Its import takes some milliseconds, and is needed for the second choice only.
    with fork_lock:
        import tempfile

        return tempfile
