"""The last stage of a load: ONNX Runtime creates the native session from a prepared model."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ort_qdq_plugin.load.journal import Journal
from ort_qdq_plugin.load.prepared import PreparedModel
from ort_qdq_plugin.model.imports import imported_domains
from ort_qdq_plugin.options import Progress
from ort_qdq_plugin.ort import hook
from ort_qdq_plugin.ort.buffers import by_path, keep_until_destroyed, trimming
from ort_qdq_plugin.ort.copies import copy_loses_something, foreign_domains, private_options
from ort_qdq_plugin.ort.hook import CreateCall
from ort_qdq_plugin.ort.keys import EXTENSIONS_DOMAIN, options_are_in_models
from ort_qdq_plugin.ort.options_lock import reading, with_entries
from ort_qdq_plugin.ort.spare_copies import copied_once
from ort_qdq_plugin.report import Report
from ort_qdq_plugin.system.forks import fork_lock
from ort_qdq_plugin.system.platform import host
from ort_qdq_plugin.values import replace

__all__ = ["create_stock_with", "hand_over"]

# From so many bytes of weights in float on, what ONNX Runtime leaves in the heap is worth the milliseconds that it takes to
# give it back.
_TRIM_HEAP_BYTES = 16 << 20


def hand_over(session: Any, prepared: PreparedModel, call: CreateCall, progress: Progress | None = None) -> Report:
    """Create the native session of an InferenceSession from a prepared model.

    The packed buffers are owned by `prepared` before, and by the native session afterwards.

    Raises:
        OSError: The disk could not write what was packed. Also the errors of ONNX Runtime.
    """
    journal = Journal(progress, prepared.report.seconds)
    # For get_session_options(): the caller may load other models with them. They are copied before the session is created:
    # copying begins a profile, whose name is that of one that begins within the same second.
    session_options = hook.constructor_arguments(session)[1]
    with reading(session_options):
        reported_options = private_options(session_options)
    memory_before = None
    if prepared.report.shared_bytes:
        with fork_lock:
            from ort_qdq_plugin.load.sharing import OwnMemory, check_shared
        memory_before = OwnMemory.now()
    create = functools.partial(hook.create_stock, session, call)
    in_float = sum(entry.bytes_added for entry in prepared.report.unfused)
    leaves_heap = in_float >= _TRIM_HEAP_BYTES or prepared.report.unchanged is not None
    unused_before = _unused_bytes() if leaves_heap else 0
    try:
        with hook.substituted(session, prepared.model, prepared.session_options), journal.stage("create session"):
            if prepared.lent_entries is not None:
                by_path(prepared.session_options, prepared.lent_entries, create)
            else:
                with trimming(prepared.mappings, prepared.report.shared_bytes):
                    create()
    finally:
        for buffer in prepared.packed:
            buffer.unlink()
    if not prepared.is_used_up:
        keep_until_destroyed(hook.native_session(session), (*prepared.buffers.values(), prepared.holder))
    elif left := tuple(buffer for buffer in prepared.packed if buffer.path is not None):
        keep_until_destroyed(hook.native_session(session), left)
    for buffer in prepared.packed:
        # By now ONNX Runtime has read all that was packed.
        buffer.seal()
    if leaves_heap:
        _trim_heap(unused_before)
    hook.set_reported_options(session, reported_options)
    report = prepared.report if memory_before is None else check_shared(prepared, memory_before)
    return replace(report, seconds=journal.finished(report.route).seconds)


def _unused_bytes() -> int:
    """Bytes in RAM that are not in use in the heap: what is free there, and what is not the heap's. Below zero if the system
    does not tell, or if what is in use was hardly touched."""
    return host.anonymous_bytes() - host.heap_bytes()


def _trim_heap(unused_before: int) -> None:
    """Give back what ONNX Runtime has freed: weights of convolutions are copied into the order of the kernels, then once
    more, and of the first copies the C library keeps the memory.

    Not if most of the free heap was so before, and little has come. A program that has run models uses that again and again;
    it takes 0.1 to 0.2 ms a MB to give it back, and more to touch it anew. What was given back once counts as free in the
    heap ever after, but is not in RAM.
    """
    unused = _unused_bytes()
    free = min(host.free_heap_bytes(), unused)
    if free <= 0 or unused - unused_before >= min(free // 2, _TRIM_HEAP_BYTES):
        host.trim_heap()


def create_stock_with(session: Any, entries: Mapping[str, str], call: CreateCall) -> None:
    """Create the native session of an InferenceSession as ONNX Runtime does, but with these config entries.

    It gets a copy of the caller's options if that lacks nothing. Else the options themselves have the entries for a while.
    """
    model, session_options = hook.constructor_arguments(session)
    create = functools.partial(hook.create_stock, session, call)
    copy = reported_options = None
    # Some options forbid that anything is loaded with them, for which ONNX Runtime has an error.
    with suppress(Exception), reading(session_options), copied_once(session_options):
        reported_options = private_options(session_options)
        if session_options is None or not _copy_may_lack_something(session_options, model):
            copy = private_options(session_options, entries)
    if copy is None:
        with_entries(session_options, entries, create)
    else:
        with hook.substituted(session, model, copy):
            create()
    if reported_options is None or options_are_in_models():
        reported_options = hook.native_session(session).session_options
    hook.set_reported_options(session, reported_options)


def _copy_may_lack_something(session_options: Any, model: str | bytes) -> bool:
    # Whether options have a library of operators cannot be seen; but a model needs none whose domain it does not import.
    domains = imported_domains(model)
    return domains is None or EXTENSIONS_DOMAIN in domains or copy_loses_something(session_options, foreign_domains(domains))
