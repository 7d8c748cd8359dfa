"""Packing: operands of fused nodes are written to buffers of their own, in the order that MatMulNBits wants."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.load.way import Way
from ort_qdq_plugin.memory.buffer import SMALL_BYTES, PackedBuffer, make_buffers
from ort_qdq_plugin.options import Progress
from ort_qdq_plugin.packing.layout import Layout
from ort_qdq_plugin.packing.pack import pack

if TYPE_CHECKING:
    from ort_qdq_plugin.cache.writer import EntryWriter

__all__ = ["packed_buffers"]


def packed_buffers(
    layout: Layout,
    request: LoadRequest,
    *,
    way: Way,
    writer: EntryWriter | None,
    undo: ExitStack,
    progress: Progress | None = None,
) -> list[PackedBuffer]:
    """Make the buffers of a layout, in the writer's entry of the cache if there is a writer, and fill them.

    If ONNX Runtime opens files, they have names afterwards; but a few bytes are put into the model, if there is a choice.
    `undo` discards the buffers.

    Raises:
        SourceChangedError, SourceUnreadableError, OSError: A weight cannot be read, or a buffer cannot be written.
    """
    is_small = request.options.buffer == "auto" and sum(layout.sizes) < SMALL_BYTES
    named = way.by_path and not (way is Way.BY_PATH and is_small)
    if writer is not None:
        packed = writer.make_buffers(layout.sizes)
    else:
        packed = make_buffers(layout.sizes, request.options.buffer, request.spill_dir, linkable=named)
    for buffer in packed:
        undo.callback(buffer.discard)
    if packed:
        pack(layout, packed, request.threads, progress)
    for buffer in packed:
        buffer.finish()
    if named:
        for buffer in packed:
            buffer.link()
    return packed
