"""A prepared model: what ONNX Runtime gets, whether it was just packed or comes from the cache."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ort_qdq_plugin.memory.buffer import PackedBuffer
from ort_qdq_plugin.report import Report
from ort_qdq_plugin.values import NamedTuple

if TYPE_CHECKING:
    from ort_qdq_plugin.cache.entry import Entry

__all__ = ["PreparedModel"]


class PreparedModel(NamedTuple):
    """Everything that a session needs."""

    model: bytes | str  # the rewritten model, serialized, or its path
    session_options: Any  # those that the session is created with: a private copy, or, by path, the caller's own
    by_path: bool  # whether ONNX Runtime opens the packed files itself, which have names until the session exists
    # Location in the model -> the buffer that ONNX Runtime borrows. They must live as long as the native session.
    buffers: Mapping[str, mmap.mmap | bytes]
    mappings: Sequence[mmap.mmap]  # the buffers that are shared mappings of files, whose pages may be dropped at any moment
    # Buffers that were packed for this session.
    packed: tuple[PackedBuffer, ...]
    report: Report
    # The options are the caller's own, and get these config entries for as long as the session is created. None: they are a
    # private copy, which has them already.
    lent_entries: Mapping[str, str] | None = None
    holder: object = None  # another object that must live as long as the native session
    # The entry of the cache that ONNX Runtime opens files of by path; None: it opens none.
    entry: Entry | None = None
    # The same model, to be borrowed from what was just packed, should that entry be gone before ONNX Runtime has opened it.
    spare: PreparedModel | None = None

    @property
    def is_used_up(self) -> bool:
        """Whether nothing of it is good for another session, or needed by one that exists."""
        return self.by_path or self.report.route == "copied"

    def is_current(self) -> bool:
        """Whether what ONNX Runtime has opened by path until now is what was prepared."""
        return self.entry is None or self.entry.is_current()
