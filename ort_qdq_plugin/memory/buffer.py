"""The packed buffer: memory that ONNX Runtime borrows for a session's whole life.

By default it is the mapping of a spill file that has no name, so that its pages need not stay in the process (they can be
trimmed while ONNX Runtime makes its own copies of them), count as reclaimable page cache once written, and vanish with the
process however it ends. Where no file can be had it is plain anonymous memory.
"""

from __future__ import annotations

import glob
import logging
import mmap
import os
import secrets
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress

import numpy as np

if sys.platform != "win32":
    import fcntl

__all__ = ["PackedBuffer", "make_buffers", "spill_directories", "sweep"]

_log = logging.getLogger("ort_qdq_plugin")

_PREFIX, _SUFFIX = "ort-qdq-", ".spill"

# A file is not worth its system calls below this.
_SMALL_BYTES = 1 << 20


class PackedBuffer:
    """Writable bytes, zero at first, as the uint8 array `array` [size] and as `mapping`.

    The mapping is unmapped when the last reference to it, or to the array, is gone; nothing here unmaps it earlier. Whoever
    hands it to ONNX Runtime keeps a reference until the session is destroyed. A buffer in a file has its `descriptor` until
    `seal`, and a `path` while the file has a name.
    """

    def __init__(
        self, mapping: mmap.mmap, descriptor: int | None = None, directory: str = "", path: str | None = None
    ) -> None:
        self.mapping = mapping
        self._directory = directory
        self.in_file = descriptor is not None
        self.path = path
        self.array: np.ndarray = np.frombuffer(mapping, np.uint8)
        self._descriptor = descriptor

    def write(self, offset: int, data: np.ndarray) -> None:
        """Put the contiguous uint8 array `data` at byte `offset`.

        Into a file this is a system call, not a copy to the mapping: no page has to be zeroed, faulted in and trimmed again.
        """
        if self._descriptor is None:
            self.array[offset : offset + data.size] = data.reshape(-1)
            return
        left = data.reshape(-1).data
        while left:
            count = os.pwrite(self._descriptor, left, offset)
            left, offset = left[count:], offset + count

    def link(self) -> None:
        """Give the file a name, mode 0600, for ONNX Runtime to open; `sweep` removes it should this process be killed."""
        if self._descriptor is None:
            raise OSError("plain memory has no name")
        # Held for as long as the mapping, which has a descriptor of its own for the same open file.
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        if self.path is None:
            name = f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"
            directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # os.link follows symbolic links, as this one has to be, only when it is given a directory.
                os.link(f"/proc/self/fd/{self._descriptor}", name, dst_dir_fd=directory, follow_symlinks=True)
            finally:
                os.close(directory)
            self.path = os.path.join(self._directory, name)

    def seal(self) -> None:
        """Nothing more will be written."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def discard(self) -> None:
        """Give the file up; the mapping goes with its last reference."""
        self.seal()
        self.unlink()

    def trim(self, offset: int, nbytes: int) -> None:
        """Drop the pages of a range from this process; their content stays in the file. Plain memory stays as it is."""
        if self.in_file:
            trim_mapping(self.mapping, offset, nbytes)

    def unlink(self) -> None:
        """Take the file's name away, if it has one."""
        if self.path is not None:
            path, self.path = self.path, None
            os.unlink(path)


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
            if linkable:
                sweep(directory)
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
    """Remove named spill files in `directory` whose processes are gone."""
    for path in glob.glob(os.path.join(glob.escape(directory), f"{_PREFIX}*{_SUFFIX}")):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            finally:
                os.close(descriptor)


def _file_buffers(sizes: Sequence[int], directory: str, linkable: bool) -> list[PackedBuffer]:
    with ExitStack() as undo:
        buffers = []
        for size in sizes:
            buffers.append(_file_buffer(size, directory, linkable))
            undo.callback(buffers[-1].discard)
        undo.pop_all()
    return buffers


def _file_buffer(size: int, directory: str, linkable: bool) -> PackedBuffer:
    descriptor, path = _open_spill(directory, linkable)
    try:
        # Without the reservation, touching the mapping on a full disk would end the process with SIGBUS.
        os.posix_fallocate(descriptor, 0, size)
        return PackedBuffer(mmap.mmap(descriptor, size), descriptor, directory, path)
    except BaseException:
        os.close(descriptor)
        if path is not None:
            os.unlink(path)
        raise


def _open_spill(directory: str, linkable: bool) -> tuple[int, str | None]:
    """(descriptor, path) of a new file of mode 0600; it has a path only where it could not get one later."""
    if not hasattr(os, "posix_fallocate"):
        raise OSError(f"{directory}: this system cannot reserve space for a file")
    if hasattr(os, "O_TMPFILE"):
        # Some file systems do not know O_TMPFILE.
        with suppress(OSError):
            return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), None
    descriptor, path = tempfile.mkstemp(prefix=_PREFIX, suffix=_SUFFIX, dir=directory)
    if linkable:
        return descriptor, path
    os.unlink(path)
    return descriptor, None
