"""A model of which nothing is fused, handed over all the same: the graph as it is, and large tensors used where they are.

Stock ONNX Runtime parses the weights of a model into messages, copies them into tensors, and keeps what both leave in the
heap. Here it gets the model without its large tensors, which it finds in mappings of files: nothing is parsed but the nodes,
and pages that no kernel reads any more leave the process.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

from ort_qdq_plugin.errors import LeaveToStock, ModelError
from ort_qdq_plugin.load.first_look import UNCHANGED_BYTES
from ort_qdq_plugin.load.journal import Journal
from ort_qdq_plugin.load.prepared import PreparedModel
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.memory.buffer import PackedBuffer, make_buffers
from ort_qdq_plugin.model.encoding import OFFSET_DIGITS
from ort_qdq_plugin.model.imports import imported_domains
from ort_qdq_plugin.model.places import Place, places
from ort_qdq_plugin.model.skeleton import Skeleton
from ort_qdq_plugin.model.sources import ByteSource, FileSource, MemorySource
from ort_qdq_plugin.options import Progress
from ort_qdq_plugin.ort.buffers import borrow
from ort_qdq_plugin.ort.copies import copy_loses_something, foreign_domains, private_options, supplies_initializers
from ort_qdq_plugin.ort.keys import EXTENSIONS_DOMAIN
from ort_qdq_plugin.packing.layout import aligned
from ort_qdq_plugin.report import StockReason
from ort_qdq_plugin.values import NamedTuple, replace

if TYPE_CHECKING:
    from ort_qdq_plugin.cache.writer import EntryWriter

__all__ = ["plan_unchanged", "prepare_unchanged"]

# Reasons to fuse nothing that say nothing against handing a model over.
_REASONS = {
    StockReason.NOT_QUANTIZED,
    StockReason.OTHER_FORM,
    StockReason.FUSION_DISABLED,
    StockReason.NOT_FUSIBLE,
    StockReason.NOT_COMPUTED,
}

_CHUNK_BYTES = 1 << 20
_MOVED = "packed-0.bin"  # the name of the packed buffer's file in an entry of the cache


def prepare_unchanged(
    skeleton: Skeleton, request: LoadRequest, journal: Journal, stock: LeaveToStock, writer: EntryWriter | None = None
) -> PreparedModel:
    """Prepare an opened model of which nothing is fused, for the reason that is given; in an entry of the cache if there is
    a writer for one.

    Raises:
        LeaveToStock: It gains nothing by being handed over, or cannot be: the same reason.
        SourceChangedError, SourceUnreadableError, OSError: The model's files cannot be read, or there is no room.
    """
    with journal.stage("plan"):
        plan = _planned(skeleton, request, journal, stock)
    if writer is not None:
        writer.check_age(skeleton.file_sources)
    with ExitStack() as undo:
        with journal.stage("pack"):
            packed = _packed(plan, skeleton.source, request, writer, undo, journal.progress)
        with journal.stage("assemble"):
            buffers, model = _assembled(plan, skeleton, packed)
            entries = {} if stock.reason is StockReason.NOT_QUANTIZED else request.entries
            session_options = private_options(request.session_options, entries)
            borrow(session_options, buffers, request.session_options, plan.nbytes)
            # Last: what was moved and what is mapped must be of the same model.
            skeleton.check_unchanged()
        if writer is not None:
            with journal.stage("share" if request.options.share_weights else "cache"):
                locations = {source.name: location for location, source in plan.sources.items()}
                locations |= {skeleton.source.name: skeleton.inline_location} if skeleton.inline_location in buffers else {}
                writer.commit(
                    model, skeleton.file_sources, locations,
                    report=journal.finished("borrowed"), extensions=False, foreign=(), progress=journal.progress,
                )  # fmt: skip
        undo.pop_all()
    plain = [buffer.mapping for buffer in packed if not buffer.in_file]
    mappings = [buffer for buffer in buffers.values() if isinstance(buffer, mmap.mmap) and buffer not in plain]
    return PreparedModel(model, session_options, False, buffers, mappings, tuple(packed), journal.finished("borrowed"))


class _Move(NamedTuple):
    """A tensor whose bytes ONNX Runtime cannot use where they are, and where in the packed buffer they go."""

    place: Place
    to: int


class _Plan(NamedTuple):
    places: Sequence[Place]  # of all large tensors
    moves: list[_Move]
    sources: Mapping[str, FileSource]  # the external data files, by location
    size: int  # of the packed buffer

    @property
    def nbytes(self) -> int:
        return sum(place.nbytes for place in self.places)


def plan_unchanged(skeleton: Skeleton, request: LoadRequest, journal: Journal, stock: LeaveToStock) -> None:
    """Record in the journal what `prepare_unchanged` would do. Raises LeaveToStock as that does."""
    _planned(skeleton, request, journal, stock)


def _planned(skeleton: Skeleton, request: LoadRequest, journal: Journal, stock: LeaveToStock) -> _Plan:
    """What goes where, which the journal has then; the reason that is given if that would not help or cannot be done."""
    if stock.reason not in _REASONS or not _has_all_by_itself(skeleton, request):
        raise stock
    try:
        plan = _plan_of(skeleton, _places(skeleton, request))
    except (ModelError, OSError, UnicodeDecodeError):
        # ONNX Runtime may have an error for it.
        raise stock from None
    if plan.nbytes < UNCHANGED_BYTES or supplies_initializers(request.session_options):
        raise stock
    report = replace(journal.finished("stock"), unchanged=stock.reason, stock_detail=stock.detail)
    moved = sum(move.place.nbytes for move in plan.moves)
    journal.planned(replace(report, packed_bytes=moved, borrowed_bytes=plan.nbytes - moved))
    return plan


def _has_all_by_itself(skeleton: Skeleton, request: LoadRequest) -> bool:
    """Whether a session needs nothing but the model's bytes: no others' operators, and no files that nodes name."""
    domains = imported_domains(skeleton.data)
    return not (
        domains is None
        or EXTENSIONS_DOMAIN in domains
        or copy_loses_something(request.session_options, foreign_domains(domains))
        or skeleton.mentions("EPContext")
    )


def _places(skeleton: Skeleton, request: LoadRequest) -> Sequence[Place]:
    """Where the large tensors are: what a first look has found, if this is what it looked at. Raises as `places`."""
    copied = request.copied
    if copied is not None and copied.data is skeleton.data and copied.places is not None:
        return copied.places
    return places(skeleton.data)


def _plan_of(skeleton: Skeleton, found: Sequence[Place]) -> _Plan:
    """What goes where.

    Raises:
        ModelError, OSError, UnicodeDecodeError: The model has references that are better left to ONNX Runtime.
    """
    sources: dict[str, FileSource] = {}
    moves, size = [], 0
    for place in found:
        if place.location != skeleton.inline_location:
            source = sources[place.location] = skeleton.files.open(place.location)
            if place.offset + place.nbytes > source.size:
                raise ModelError(f"{source.name}: a tensor ends behind it")
        elif isinstance(skeleton.source, MemorySource) or not place.is_aligned:
            # ONNX Runtime would copy what is not aligned. The caller's own bytes would stay as long as the session.
            moves.append(_Move(place, aligned(size, place.nbytes)))
            size = moves[-1].to + place.nbytes
    if _MOVED in sources or len(set(sources.values())) < len(sources):
        raise ModelError("external data files with unusual names")
    return _Plan(found, moves, sources, size)


def _packed(
    plan: _Plan,
    source: ByteSource,
    request: LoadRequest,
    writer: EntryWriter | None,
    undo: ExitStack,
    progress: Progress | None,
) -> list[PackedBuffer]:
    """The packed buffer with the tensors that are moved into it, if there are any. `undo` discards it."""
    sizes = [plan.size] if plan.moves else []
    if writer is not None:
        packed = writer.make_buffers(sizes)
    else:
        packed = make_buffers(sizes, request.options.buffer, request.spill_dir)
    for buffer in packed:
        undo.callback(buffer.discard)
    done, total = 0, sum(move.place.nbytes for move in plan.moves)
    chunk = np.empty(_CHUNK_BYTES, np.uint8)
    for place, to in plan.moves:
        for at in range(0, place.nbytes, _CHUNK_BYTES):
            part = chunk[: min(_CHUNK_BYTES, place.nbytes - at)]
            source.read_into(place.offset + at, part.data)
            packed[0].write(to + at, part)
        done += place.nbytes
        if progress is not None:
            progress(done, total)
    for buffer in packed:
        buffer.finish()
    return packed


def _assembled(
    plan: _Plan, skeleton: Skeleton, packed: Sequence[PackedBuffer]
) -> tuple[dict[str, mmap.mmap | bytes], bytes]:
    """The buffers, by location, and the model with references into them."""
    buffers: dict[str, mmap.mmap | bytes] = {location: source.buffer() for location, source in plan.sources.items()}
    if len(plan.moves) + sum(place.location in buffers for place in plan.places) < len(plan.places):
        buffers[skeleton.inline_location] = skeleton.source.buffer()
    if not packed:
        return buffers, skeleton.data
    buffers[_MOVED] = packed[0].mapping
    model = bytearray(skeleton.data)
    for place, to in plan.moves:
        # Both texts are as long as those that they replace (`Skeleton.inline_location`).
        model[place.location_at : place.location_at + len(_MOVED)] = _MOVED.encode()
        model[place.offset_at : place.offset_at + OFFSET_DIGITS] = f"{to:0{OFFSET_DIGITS}}".encode()
    return buffers, bytes(model)
