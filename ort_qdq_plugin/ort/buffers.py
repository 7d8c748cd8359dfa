"""Handing buffers to ONNX Runtime.

The rule is the borrowed hand-over: ``add_external_initializers_from_files_in_memory`` together with
``session.use_external_initializer_file_buffers_directly`` makes a session use our memory in place. Neither can be taken off
a SessionOptions again, and both would break the next model loaded with it. So this needs a private copy of the caller's.
What such a copy cannot carry goes by path: ONNX Runtime maps the same files itself, and the only changes to the caller's
object are entries that can be put back. By path goes everything where ONNX Runtime copies files in memory.
"""

from __future__ import annotations

import _thread
import ctypes
import mmap
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from ort_qdq_plugin.ort.keys import DIRECT_KEY, FOLDER_KEY, PARALLEL_KEY, config_entry
from ort_qdq_plugin.ort.options_lock import with_entries
from ort_qdq_plugin.system.platform import host
from ort_qdq_plugin.system.threads import Work

__all__ = ["Borrowed", "borrow", "by_path", "keep_until_destroyed", "open_by_path", "trimming"]

_TRIM_INTERVAL = 0.01  # seconds; ONNX Runtime pre-packs some 10 MB meanwhile
_TRIM_HEAP_INTERVAL = 0.15  # what is freed and trimmed has to be touched anew: every 0.05 s, a load takes a fifth longer

# Below so many bytes in all, pages that are not dropped cost less than dropping them does.
_TRIM_BYTES = 64 << 20

# Below so many bytes in all, pre-packing takes less time than threads for it cost: they look for more work for 40 ms
# afterwards, each on a processor of its own.
_PARALLEL_BYTES = 32 << 20

Borrowed = Mapping[str, "mmap.mmap | bytes"]
"""NodeRef in the model -> buffer that stands for the file of that name."""


def borrow(options: Any, buffers: Borrowed, callers: Any | None = None, nbytes: int | None = None) -> None:
    """Make sessions created with these options use buffers in place.

    ONNX Runtime keeps bare pointers. Every buffer must stay until the last such session is destroyed: see
    `keep_until_destroyed`.

    Args:
        options: A private copy; it cannot be used for other models afterwards.
        buffers: NodeRef in the model -> the buffer that stands for the file of that name.
        callers: The caller's own options, if these are a copy of such.
        nbytes: How many bytes of the buffers are weights; None: nearly all.
    """
    lengths = [len(buffer) for buffer in buffers.values()]
    if (sum(lengths) if nbytes is None else nbytes) >= _PARALLEL_BYTES:
        _prepack_in_parallel(options, callers)
    if buffers:
        options.add_session_config_entry(DIRECT_KEY, "1")
        options.add_external_initializers_from_files_in_memory(list(buffers), list(buffers.values()), lengths)


class _Block:
    """Lives as long as the frame that has it."""


@contextmanager
def trimming(mappings: Sequence[mmap.mmap], shared_bytes: int = 0) -> Iterator[None]:
    """While the block runs, and once after it, drop pages that are not needed any more from this process.

    ONNX Runtime reads each weight once, to pre-pack it. Pages that it has read would otherwise count as the process's memory
    until the end. If no thread can be had for this, or would cost too much memory, they do.

    Args:
        mappings: Shared mappings of files, whose pages are dropped.
        shared_bytes: Of pre-packed weights that ONNX Runtime makes to compare them with those in a file, and throws away.
            What several threads free in turns stays in the heap otherwise.
    """
    nbytes = sum(map(len, mappings)) or shared_bytes
    if not nbytes or (shared_bytes and nbytes < _TRIM_BYTES):
        yield
        return
    trim: Callable[[], None] = host.trim_heap if shared_bytes else partial(_trim, mappings)
    interval = _TRIM_HEAP_INTERVAL if shared_bytes else _TRIM_INTERVAL
    block, going_on = _Block(), _thread.allocate_lock()
    going_on.acquire()
    work = Work(partial(_keep_trimming, trim, interval, weakref.ref(block), going_on))
    if nbytes >= _TRIM_BYTES and not host.memory_is_limited():
        with suppress(RuntimeError):
            work.start()
    try:
        yield
    finally:
        going_on.release()
        if not work.take_back():
            work.wait()
        trim()
        error = work.take_error()
        if error is not None:
            raise error


def _keep_trimming(
    trim: Callable[[], None], interval: float, block: Callable[[], object], going_on: _thread.LockType
) -> None:
    """Trim until the lock is released, or until the block is gone because an interrupt came before that."""
    while not going_on.acquire(timeout=interval) and block() is not None:
        trim()


def _trim(mappings: Sequence[mmap.mmap]) -> None:
    for mapping in mappings:
        host.drop_pages(mapping, 0, len(mapping))


def by_path(session_options: Any, given: Mapping[str, str], create: Callable[[], None]) -> None:
    """Call `create` while sessions created with the caller's options look for external data below the root directory.

    Meanwhile the options have the `given` config entries too, one of which may name another directory.
    """
    entries = {FOLDER_KEY: os.sep, **given}
    # An empty one is left of an earlier call: `entry_to_put_back`.
    if not config_entry(session_options, PARALLEL_KEY):
        entries[PARALLEL_KEY] = "1"
    with_entries(session_options, entries, create)


def open_by_path(options: Any, folder: str, callers: Any | None = None) -> None:
    """Make sessions created with these options look for external data below a folder. The options are a private copy, of the
    caller's if there are any."""
    _prepack_in_parallel(options, callers)
    options.add_session_config_entry(FOLDER_KEY, folder)


def _prepack_in_parallel(options: Any, callers: Any | None) -> None:
    """Have weights pre-packed by several threads, unless the caller has said whether to.

    It is the caller's options that are asked, of which there may be none: ONNX Runtime says by an exception that there is no
    entry, and the first one in a process costs 1 MB, the tables for unwinding its library.
    """
    if not config_entry(callers, PARALLEL_KEY):
        options.add_session_config_entry(PARALLEL_KEY, "1")


class _Kept(weakref.ref[Any]):
    """A reference to a native session, and what has to live as long."""

    __slots__ = ("buffers",)
    buffers: tuple[object, ...]
    # One for each call, also if there are several for one session.
    __hash__ = object.__hash__
    __eq__ = object.__eq__


_kept: set[_Kept] = set()
# For good, while the interpreter shuts down as well: a daemon thread may still be inside a run then.
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_kept))


def keep_until_destroyed(native_session: Any, buffers: tuple[object, ...]) -> None:
    """Hold references to `buffers` until the C++ session is destroyed, whoever else drops theirs.

    It is the native object that counts, not its Python wrapper: bindings and metadata can outlive the wrapper. pybind11
    clears weak references to it after it has run the C++ destructor.
    """
    # What is called then is no Python code, which an interrupt could end.
    kept = _Kept(native_session, _kept.discard)
    kept.buffers = buffers
    _kept.add(kept)
