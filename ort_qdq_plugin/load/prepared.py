"""A prepared model: what ONNX Runtime gets, whether it was just packed or comes from the cache."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ort_qdq_plugin.memory.buffer import PackedBuffer
from ort_qdq_plugin.report import Report

__all__ = ["PreparedModel"]


class PreparedModel(NamedTuple):
    """Everything that a session needs."""

    model: bytes | str  # the rewritten model, serialized, or its path
    session_options: Any  # those that the session is created with: a private copy, or, by path, the caller's own
    by_path: bool  # whether ONNX Runtime opens the packed files itself
    # Location in the model -> the buffer that ONNX Runtime borrows. They must live as long as the native session.
    buffers: Mapping[str, mmap.mmap | bytes]
    mappings: Sequence[mmap.mmap]  # the buffers that are shared mappings of files, whose pages may be dropped at any moment
    # Buffers that were packed for this session. By path, their files have names until it exists.
    packed: tuple[PackedBuffer, ...]
    report: Report
    holder: object = None  # another object that must live as long as the native session
