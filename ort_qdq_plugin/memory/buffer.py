"""The packed buffer: memory that ONNX Runtime borrows for a session's whole life.

By default it is the mapping of a spill file that has no name, so that its pages need not stay in the process (they can be
trimmed while ONNX Runtime makes its own copies of them), count as reclaimable page cache once written, and vanish with the
process however it ends. Where no file can be had it is plain anonymous memory.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import logging
import mmap
import os
import secrets
import stat
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import FileIO

import numpy as np

if sys.platform != "win32":
    import fcntl
    import resource

__all__ = ["PackedBuffer", "make_buffers", "spill_directories", "sweep"]

_log = logging.getLogger("ort_qdq_plugin")

_PREFIX, _SUFFIX = "ort-qdq-", ".spill"

# A file is not worth its system calls below this.
_SMALL_BYTES = 1 << 20

_SYNC_FILE_RANGE_WAIT_BEFORE = 1  # <linux/fs.h>


class _Remover:
    """Takes files away that have a name when this process is killed: a shell that waits for the end of a pipe.

    Where none can be started, `sweep` has to do it later.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        _removers.add(self)
        self._left = set(paths)
        self._process: subprocess.Popen[bytes] | None = None
        with suppress(OSError):
            self._process = subprocess.Popen(
                # A line says that all is well: then nothing is to be done.
                ["/bin/sh", "-c", 'read -r line || rm -f -- "$@"', "sh", *paths],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=os.sep,
                env={"PATH": os.defpath},
                # What ends a whole process group must not end it.
                start_new_session=True,
            )

    def gone(self, path: str) -> None:
        """`path` has no file any more, or never had one; once that is true of all, the shell is ended."""
        self._left.discard(path)
        if self._process is not None and not self._left:
            process, self._process = self._process, None
            process.kill()
            process.communicate()

    def leave_to_parent(self) -> None:
        """In a forked child: neither end the shell nor hold the pipe, which has to end with the parent."""
        process, self._process = self._process, None
        if process is not None:
            process.returncode = 0  # it is no child of this process
            if process.stdin is not None:
                process.stdin.close()


_removers: weakref.WeakSet[_Remover] = weakref.WeakSet()


def _leave_to_parent() -> None:
    for remover in list(_removers):
        remover.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


class PackedBuffer:
    """Writable bytes, zero at first, as the uint8 array `array` [size] and as `mapping`.

    The mapping is unmapped when the last reference to it, or to the array, is gone; nothing here unmaps it earlier. Whoever
    hands it to ONNX Runtime keeps a reference until the session is destroyed. A buffer in a file has it open until `seal`,
    and a `path` while the file has a name.
    """

    path: str | None = None
    _file: FileIO | None = None
    _name: _Name | None = None
    _owner = 0

    def __init__(
        self, mapping: mmap.mmap, file: FileIO | None = None, name: _Name | None = None, path: str | None = None
    ) -> None:
        self.mapping = mapping
        self.in_file = file is not None
        self.array: np.ndarray = np.frombuffer(mapping, np.uint8)
        self.path = path
        self._name = name
        self._owner = os.getpid()
        self._file = file

    def __del__(self) -> None:
        # Of an interrupt that came where nobody could discard it.
        self.discard()

    def write(self, offset: int, data: np.ndarray) -> None:
        """Put the contiguous uint8 array `data` at byte `offset`.

        Into a file this is a system call, not a copy to the mapping: no page has to be zeroed, faulted in and trimmed again.
        """
        if self._file is None:
            self.array[offset : offset + data.size] = data.reshape(-1)
            return
        left = data.reshape(-1).data
        while left:
            count = os.pwrite(self._file.fileno(), left, offset)
            left, offset = left[count:], offset + count

    def link(self) -> None:
        """Give the file a name, mode 0600, for ONNX Runtime to open; `sweep` removes it should this process be killed."""
        if self._file is None or self._name is None:
            raise OSError("plain memory has no name")
        if self.path is None:
            # Held for as long as the mapping, which has a descriptor of its own for the same open file.
            fcntl.flock(self._file, fcntl.LOCK_EX)
            directory, name = os.path.split(self._name.path)
            folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self.path = self._name.path
                # os.link follows symbolic links, as this one has to be, only when it is given a directory.
                os.link(f"/proc/self/fd/{self._file.fileno()}", name, dst_dir_fd=folder, follow_symlinks=True)
            except OSError:
                self.path = None
                raise
            finally:
                os.close(folder)

    def seal(self) -> None:
        """Nothing more will be written. OSError where the disk has refused some of it: pages could come back as zeros."""
        try:
            if self._file is not None:
                _check_written_back(self._file, len(self.mapping))
        finally:
            self._close()

    def discard(self) -> None:
        """Give the file up; the mapping goes with its last reference."""
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
            # A forked child's copy: the name is the parent's.
            return
        try:
            if path is not None:
                # Others may clean up as well.
                with suppress(FileNotFoundError):
                    os.unlink(path)
        finally:
            if name is not None:
                name.remover.gone(name.path)


def _check_written_back(file: FileIO, size: int) -> None:
    """Raise the error that writing back any page of the file has met so far, without waiting for those being written."""
    sync_file_range = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
    if sync_file_range is None:
        return
    # Waits for the range, which is behind all pages, but reports on the whole file (sync_file_range(2), EIO and ENOSPC).
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
    """Zeroed buffers of `sizes` > 0 bytes. `kind`: "auto", "file" or "memory".

    `linkable`: they must be files that can get a name. Where no file can be had, "auto" and "file" warn once and give plain
    memory instead, unless it must be one: then OSError.
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
            # Not the exception itself: it would hold the buffers that were made before it.
            problem = str(error)
    if linkable:
        raise OSError(problem)
    _log.warning("no room for spill files of %d bytes (%s): packing into memory instead", sum(sizes), problem)
    return [PackedBuffer(_anonymous(size)) for size in sizes]


def spill_directories(spill_dir: str | None) -> list[str]:
    """Where to try to put a spill file: the directory asked for, or the system's ones for large temporary files."""
    if spill_dir is not None:
        return [spill_dir]
    if os.environ.get("TMPDIR"):
        return [tempfile.gettempdir()]
    # /tmp is often memory (tmpfs); /var/tmp is meant for files too large for that (Filesystem Hierarchy Standard 5.15).
    return list(dict.fromkeys(path for path in ("/var/tmp", tempfile.gettempdir()) if os.path.isdir(path)))


def _anonymous(size: int) -> mmap.mmap:
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)


def sweep(directory: str) -> None:
    """Remove named spill files of this user in `directory` whose processes are gone."""
    for path in glob.glob(os.path.join(glob.escape(directory), f"{_PREFIX}*{_SUFFIX}")):
        with suppress(OSError):
            if not _is_ours(os.lstat(path)):
                continue
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            try:
                if _is_ours(os.fstat(descriptor)):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(path)
            finally:
                os.close(descriptor)


def _is_ours(status: os.stat_result) -> bool:
    """Whether this user made it: others can put anything of such a name there, hard links to his files, too."""
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_nlink == 1


def _safe_directory(directory: str) -> str:
    """The real path of a directory where nobody but root and this user can exchange a named file; OSError for others."""
    real = os.path.realpath(directory)
    folder = real
    while True:
        status = os.stat(folder)
        if status.st_uid not in (0, os.geteuid()):
            raise PermissionError(errno.EPERM, f"belongs to another user ({status.st_uid})", folder)
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX:
            raise PermissionError(errno.EPERM, "others can write to it, and it is not sticky", folder)
        if folder == os.path.dirname(folder):
            return real
        folder = os.path.dirname(folder)


def _file_buffers(sizes: Sequence[int], directory: str, linkable: bool) -> list[PackedBuffer]:
    if not hasattr(os, "posix_fallocate"):
        raise OSError(f"{directory}: this system cannot reserve space for a file")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and max(sizes) > limit:
        # Trying is answered by SIGXFSZ.
        raise OSError(errno.EFBIG, f"files may have {limit} bytes", directory)
    with ExitStack() as undo:
        names: list[_Name | None] = [None] * len(sizes)
        if linkable:
            directory = _safe_directory(directory)
            sweep(directory)
            names = [*_new_names(directory, len(sizes), undo)]
        buffers = []
        for size, name in zip(sizes, names, strict=True):
            buffers.append(_file_buffer(size, directory, name))
            undo.callback(buffers[-1].discard)
        undo.pop_all()
    return buffers


@dataclass(frozen=True)
class _Name:
    """A path that a spill file may get, and who removes it should this process be killed."""

    path: str
    remover: _Remover


def _new_names(directory: str, count: int, undo: ExitStack) -> Iterator[_Name]:
    paths = [os.path.join(directory, f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}") for _ in range(count)]
    remover = _Remover(paths)
    for path in paths:
        undo.callback(remover.gone, path)
        yield _Name(path, remover)


def _file_buffer(size: int, directory: str, name: _Name | None) -> PackedBuffer:
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


def _open_spill(directory: str, name: _Name | None) -> tuple[FileIO, str | None]:
    """A new file of mode 0600, and its path: it has one, and is locked, only where it could not get one later."""
    if hasattr(os, "O_TMPFILE"):
        # Some file systems do not know O_TMPFILE.
        with suppress(OSError):
            return FileIO(os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), "r+"), None
    if name is None:
        descriptor, path = tempfile.mkstemp(prefix=_PREFIX, suffix=_SUFFIX, dir=directory)
        os.unlink(path)
        return FileIO(descriptor, "r+"), None
    while True:
        file = FileIO(os.open(name.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+")
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file, name.path
        # Somebody else's sweep came before the lock.
        file.close()
