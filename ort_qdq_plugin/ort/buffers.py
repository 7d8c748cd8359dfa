"""Handing buffers to ONNX Runtime.

The rule is the borrowed hand-over: ``add_external_initializers_from_files_in_memory`` together with
``session.use_external_initializer_file_buffers_directly`` makes a session use our memory in place. Neither can be taken off
a SessionOptions again, and both would break the next model loaded with it. So this needs a private copy of the caller's.
What such a copy cannot carry goes by path: ONNX Runtime maps the same files itself, and the only changes to the caller's
object are entries that can be put back.
"""

from __future__ import annotations

import atexit
import ctypes
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ort_qdq_plugin.ort.keys import DIRECT_KEY, FOLDER_KEY, PARALLEL_KEY, config_entry
from ort_qdq_plugin.ort.options_lock import with_entries
from ort_qdq_plugin.system.platform import host

__all__ = ["Borrowed", "borrow", "by_path", "keep_until_destroyed", "trimming"]

_TRIM_INTERVAL = 0.01  # seconds; ONNX Runtime pre-packs some 10 MB meanwhile

# Below so many bytes in all, pages that are not dropped cost less than dropping them does.
_TRIM_BYTES = 64 << 20

Borrowed = Mapping[str, "mmap.mmap | bytes"]
"""NodeRef in the model -> buffer that stands for the file of that name."""


def borrow(options: Any, buffers: Borrowed) -> None:
    """Make sessions created with these options use buffers in place.

    ONNX Runtime keeps bare pointers. Every buffer must stay until the last such session is destroyed: see
    `keep_until_destroyed`.

    Args:
        options: A private copy; it cannot be used for other models afterwards.
        buffers: NodeRef in the model -> the buffer that stands for the file of that name.
    """
    _prepack_in_parallel(options)
    if buffers:
        options.add_session_config_entry(DIRECT_KEY, "1")
        lengths = [len(buffer) for buffer in buffers.values()]
        options.add_external_initializers_from_files_in_memory(list(buffers), list(buffers.values()), lengths)


@contextmanager
def trimming(mappings: Sequence[mmap.mmap]) -> Iterator[None]:
    """While the block runs, and once after it, drop the pages of these shared file mappings from this process.

    ONNX Runtime reads each weight once, to pre-pack it. Pages that it has read would otherwise count as the process's memory
    until the end. If no thread can be had for this, or would cost too much memory, they do.
    """
    finished = threading.Event()

    def trim() -> None:
        for mapping in mappings:
            host.drop_pages(mapping, 0, len(mapping))

    def keep_trimming() -> None:
        while not finished.wait(_TRIM_INTERVAL):
            trim()

    if not mappings:
        yield
        return
    thread = threading.Thread(target=keep_trimming, name="ort-qdq-trim", daemon=True)
    if sum(map(len, mappings)) >= _TRIM_BYTES and not host.memory_is_limited():
        with suppress(RuntimeError):
            thread.start()
    try:
        yield
    finally:
        finished.set()
        if thread.ident is not None:
            thread.join()
        trim()


def by_path(session_options: Any, create: Callable[[], None]) -> None:
    """Call `create` while sessions created with the caller's options look for external data below the root directory."""
    entries = {FOLDER_KEY: os.sep}
    if config_entry(session_options, PARALLEL_KEY) is None:
        entries[PARALLEL_KEY] = "1"
    with_entries(session_options, entries, create)


def _prepack_in_parallel(session_options: Any) -> None:
    """Unless the caller has said whether to."""
    if config_entry(session_options, PARALLEL_KEY) is None:
        session_options.add_session_config_entry(PARALLEL_KEY, "1")


# Buffers of sessions that are still alive.
_kept: dict[object, tuple[object, ...]] = {}


def keep_until_destroyed(native_session: Any, buffers: tuple[object, ...]) -> None:
    """Hold references to `buffers` until the C++ session is destroyed, whoever else drops theirs.

    It is the native object that counts, not its Python wrapper: bindings and metadata can outlive the wrapper. pybind11
    clears weak references to it after it has run the C++ destructor.
    """
    key = object()
    _kept[key] = buffers
    finalizer = weakref.finalize(native_session, _kept.pop, key)
    finalizer.atexit = False


@atexit.register
def _pin_for_good() -> None:
    """Keep everything mapped while the interpreter shuts down: a daemon thread may still be inside a run."""
    for buffers in _kept.values():
        for buffer in buffers:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(buffer))
