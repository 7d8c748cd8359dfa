"""The packed buffer: memory that ONNX Runtime borrows for a session's whole life.

By default it is the mapping of a spill file that has no name, so that its pages need not stay in the process (they can be
trimmed while ONNX Runtime makes its own copies of them), count as reclaimable page cache once written, and vanish with the
process however it ends. Where no file can be had it is plain anonymous memory.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import numpy as np

from ort_qdq_plugin import log
from ort_qdq_plugin.system.forks import fork_lock
from ort_qdq_plugin.system.platform import files, host

if TYPE_CHECKING:
    from ort_qdq_plugin.memory.named_files import Name

__all__ = ["SMALL_BYTES", "PackedBuffer", "buffer_at", "make_buffers", "spill_directories"]

# Plain memory keeps the packed bytes in the process, beside ONNX Runtime's own copy of them; pages of a file leave it. On
# ext4, making and filling a file takes 0.1 ms more than memory at 16 KB, as long at 0.4 MB, and half as long at 2 MB. The
# limit is higher than that because other file systems may be slower.
SMALL_BYTES = 1 << 20

# What is said of a directory in which this process can make no file at all.
_NO_PLACE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR}


class PackedBuffer:
    """Writable bytes, zero at first.

    The mapping is unmapped when the last reference to it, or to the array, is gone; nothing here unmaps it earlier. Whoever
    hands it to ONNX Runtime keeps a reference until the session is destroyed.
    """

    path: str | None = None  # the file's, while it has a name
    _file: files.File | None = None
    _lock: files.File | None = None  # keeps others from removing the file while it has a name
    _name: Name | None = None
    _owner = 0
    _stays_at = ""  # the file's path, if it has one from the start that others may open later

    def __init__(
        self, mapping: mmap.mmap, file: files.File | None = None, name: Name | None = None, lock: files.File | None = None
    ) -> None:
        self.mapping = mapping
        self.in_file = file is not None  # it is open until `seal`
        self.array: np.ndarray = np.frombuffer(mapping, np.uint8)  # [size], the same bytes
        self._name = name
        self._owner = os.getpid()
        self._lock = lock
        if name is not None and lock is not None:
            self.path = self._stays_at = name.path
        self._file = file

    def __del__(self) -> None:
        # An interrupt may have come where nobody could discard it.
        self.discard()

    def write(self, offset: int, data: np.ndarray) -> None:
        """Put the contiguous uint8 array `data` at byte `offset`.

        A file is written by system calls, not through the mapping: then no page has to be zeroed, faulted in and dropped.
        """
        file = self._file
        if file is None:
            self.array[offset : offset + data.size] = data.reshape(-1)
        else:
            files.write_at(file, offset, data.reshape(-1).data)

    def finish(self) -> None:
        """Say that all is packed: where ONNX Runtime opens no file that can be written, it cannot be written any more."""
        if files.SHARES_FREELY or not self._stays_at:
            return
        if self.path is None:
            with files.open_to_read(self._stays_at) as file:
                mapping = host.map_file(file, len(self.mapping))
        else:
            # ONNX Runtime maps it itself, and as long as this process does, it cannot be removed.
            mapping = host.map_anonymous(1)
        self.mapping, self.array = mapping, np.frombuffer(mapping, np.uint8)
        file_to_write, self._file = self._file, None
        if file_to_write is not None:
            file_to_write.close()

    def link(self) -> None:
        """Give the file a name, mode 0600, for ONNX Runtime to open. Should this process be killed, others remove it."""
        if self.path is None:
            if self._file is None or self._name is None:
                raise OSError("plain memory has no name")
            # Of a file that was opened for it alone: the mapping has a share in what it was made of, also in a forked child.
            self._lock = files.open_again(self._file)
            files.lock(self._lock)
            self._name.remover.wait_until_ready()
            try:
                self.path = self._name.path
                files.give_name(self._file, self.path)
            except OSError:
                self.path = None
                raise

    def seal(self) -> None:
        """Say that nothing more will be written.

        Raises:
            OSError: The disk has refused some of what was written, which could come back as zeros.
        """
        try:
            if self._file is not None:
                files.check_written_back(self._file, len(self.mapping))
        finally:
            file, self._file = self._file, None
            if file is not None:
                file.close()

    def discard(self) -> None:
        """Take the file's name away, and let the file go. The mapping goes with its last reference."""
        # Not closed: a thread that packs may be in the midst of writing to it, when an interrupt ends the load.
        self._file = None
        self.unlink()

    def trim(self, offset: int, nbytes: int) -> None:
        """Drop the pages of a range from this process; their content stays in the file. Plain memory stays as it is."""
        if self.in_file:
            host.drop_pages(self.mapping, offset, nbytes)

    def unlink(self) -> None:
        """Take the file's name away, if it has one.

        Some systems refuse that while a session has it mapped. Then it still has its `path`, until this object goes.
        """
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
        except PermissionError:
            if files.SHARES_FREELY:
                raise
            self.path, self._name = path, name
        finally:
            if self.path is None:
                self._lock = None
                if name is not None:
                    name.remover.gone(name.path)


def make_buffers(sizes: Sequence[int], kind: str, spill_dir: str | None, linkable: bool = False) -> list[PackedBuffer]:
    """Make zeroed buffers of these sizes in bytes, all above 0: plain memory where no file can be had.

    That is worth a warning if a file was asked for, or a directory has no room. A container may have no directory at all.

    Args:
        kind: `Options.buffer`.
        spill_dir: Where files go; None for the system's own directory.
        linkable: Whether they must be files that can get a name.

    Raises:
        OSError: No file can be had, but they must be files.
    """
    if not sizes:
        return []
    if not linkable and (kind == "memory" or (kind == "auto" and sum(sizes) < SMALL_BYTES)):
        return [PackedBuffer(host.map_anonymous(size)) for size in sizes]
    problem, there_is_one = "there is no directory for temporary files", False
    for directory in spill_directories(spill_dir):
        try:
            return _file_buffers(sizes, directory, linkable)
        except OSError as error:
            # Not the exception itself, which would keep the buffers that were made before it.
            problem = str(error)
            there_is_one |= error.errno not in _NO_PLACE
    if linkable:
        raise OSError(f"packed weights need a file with a name here: {problem}")
    was_named = kind == "file" or spill_dir is not None or os.environ.get("TMPDIR")
    tell = log.warning if was_named or there_is_one else log.info
    advice = "spill_dir, or TMPDIR, can name another directory"
    tell("no room for spill files of %d bytes (%s): packing into memory instead; %s", sum(sizes), problem, advice)
    return [PackedBuffer(host.map_anonymous(size)) for size in sizes]


def buffer_at(path: str, size: int) -> PackedBuffer:
    """A zeroed buffer in a new file of mode 0400; OSError if there is no room for it."""
    buffer = _file_buffer(size, files.create(path, 0o400))
    buffer._stays_at = path
    return buffer


def spill_directories(spill_dir: str | None) -> Iterator[str]:
    """Where to try to put a spill file: this directory, or the system's ones for large temporary files."""
    if spill_dir is not None:
        yield spill_dir
        return
    large = [] if os.environ.get("TMPDIR") else files.spill_folders()
    yield from large
    with fork_lock:
        # This takes some milliseconds, and is needed for the second choice only.
        import tempfile
    try:
        directory = tempfile.gettempdir()
    except FileNotFoundError:
        return
    if directory not in large:
        yield directory


def _file_buffers(sizes: Sequence[int], directory: str, linkable: bool) -> list[PackedBuffer]:
    with ExitStack() as undo:
        names: list[Name | None] = [None] * len(sizes)
        if linkable or not files.SHARES_FREELY:
            with fork_lock:
                from ort_qdq_plugin.memory.named_files import new_names, sweep
            directory = files.safe_directory(directory)
            sweep(directory)
        if linkable:
            names = [*new_names(directory, len(sizes), undo)]
        buffers = []
        for size, name in zip(sizes, names, strict=True):
            buffers.append(_spill_buffer(size, directory, name))
            undo.callback(buffers[-1].discard)
        undo.pop_all()
    return buffers


def _spill_buffer(size: int, directory: str, name: Name | None) -> PackedBuffer:
    """A buffer in a new file of mode 0600, without a name; or with one, if it is to get one and could not get it later."""
    try:
        file = files.open_unnamed(directory, nameable=name is not None)
    except OSError:
        if name is None:
            raise
        with fork_lock:
            from ort_qdq_plugin.memory.named_files import open_named
        return _file_buffer(size, *open_named(name), name)
    return _file_buffer(size, file, None, name)


def _file_buffer(size: int, file: files.File, lock: files.File | None = None, name: Name | None = None) -> PackedBuffer:
    """A buffer in a new file. If that fails, the file is closed, and removed if it has its name already."""
    try:
        # Without the reservation, touching the mapping on a full disk would end the process with SIGBUS.
        files.reserve(file, size)
        return PackedBuffer(host.map_file(file, size, writable=True), file, name, lock)
    except BaseException:
        file.close()
        if name is not None and lock is not None:
            with suppress(FileNotFoundError):
                os.unlink(name.path)
            lock.close()
        raise
