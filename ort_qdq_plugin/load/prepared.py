"""A prepared model: what ONNX Runtime gets, whether it was just packed or comes from the cache."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from ort_qdq_plugin.memory.buffer import PackedBuffer
from ort_qdq_plugin.report import Report

if TYPE_CHECKING:
    from ort_qdq_plugin.cache.entry import Entry

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
    # Config entries that the options get for as long as the session is created, by path. A private copy has them already.
    entries: Mapping[str, str] = MappingProxyType({})
    holder: object = None  # another object that must live as long as the native session
    # The entry of the cache that ONNX Runtime opens files of by path; None: it opens none.
    entry: Entry | None = None
    # The same model, to be borrowed from what was just packed, should that entry be gone before ONNX Runtime has opened it.
    spare: PreparedModel | None = None

    def is_current(self) -> bool:
        """Whether what ONNX Runtime has opened by path until now is what was prepared."""
        return self.entry is None or self.entry.is_current()
