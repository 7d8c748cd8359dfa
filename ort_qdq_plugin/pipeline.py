"""The journey of a model: parse -> match -> plan -> pack -> assemble -> ready to be handed over.

One way through: each stage takes the previous one's values and returns new ones. `opening.py` comes before, and
`session.py`, which creates the session, behind.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, NamedTuple

from ort_qdq_plugin.assemble import assemble
from ort_qdq_plugin.errors import LeaveToStock, ModelError, NothingToDo, readable
from ort_qdq_plugin.fusion.kind import Wishes
from ort_qdq_plugin.fusion.match import Matches, match
from ort_qdq_plugin.memory.buffer import make_buffers
from ort_qdq_plugin.memory.places import Places
from ort_qdq_plugin.model.graph import Scope, check_imports, domains, domains_once_inlined, model_scope
from ort_qdq_plugin.model.messages import external_tensors
from ort_qdq_plugin.model.opened import OpenedModel, parse
from ort_qdq_plugin.model.operands import Operand, as_stored, borrowed_bytes, packed_bytes
from ort_qdq_plugin.model.skeleton import Skeleton
from ort_qdq_plugin.model.wire import LARGE_TENSOR_BYTES
from ort_qdq_plugin.opening import what_cannot_be_opened_goes_to_stock
from ort_qdq_plugin.ort.copies import (
    copy_loses_something,
    foreign_domains,
    private_options,
    settle_process,
    supplies_initializers,
)
from ort_qdq_plugin.ort.extensions import EXTENSIONS_DOMAIN, register_extensions
from ort_qdq_plugin.ort.handover import borrow
from ort_qdq_plugin.packing.layout import Layout, plan_layout
from ort_qdq_plugin.packing.pack import pack
from ort_qdq_plugin.prepared import PreparedModel
from ort_qdq_plugin.process import collecting_no_garbage
from ort_qdq_plugin.report import Journal
from ort_qdq_plugin.request import LoadRequest

if TYPE_CHECKING:
    from ort_qdq_plugin.cache.writer import EntryWriter

__all__ = ["Plan", "plan_model", "prepare"]

# Packed weights take about as many bytes as the model's files, some dozen times that where blocks are mostly padding. Only
# hundreds of tensors that overlap each other, as no exporter writes them, go beyond both of these.
_GROWTH, _GROWTH_BYTES = 16, 64 << 20


class Plan(NamedTuple):
    """What is going to be done with a model.

    Attributes:
        opened: The model.
        scope: Of its main graph.
        domains: Of all its operators, but for those of its own functions.
        matches: What is fused, and what is not.
        layout: Where the operands of fused nodes go.
    """

    opened: OpenedModel
    scope: Scope
    domains: frozenset[str]
    matches: Matches
    layout: Layout


def prepare(skeleton: Skeleton, request: LoadRequest, journal: Journal, writer: EntryWriter | None) -> PreparedModel:
    """Make everything that a session needs.

    Args:
        skeleton: The model.
        request: What is asked for.
        journal: Of this load.
        writer: Of the entry of the cache that the packed buffers are to be in; None for no cache.

    Raises:
        LeaveToStock: There is nothing to do for this model, or ONNX Runtime has to see it as it is.
        Exception: Anything that can go wrong on the way.
    """
    with collecting_no_garbage():
        with what_cannot_be_opened_goes_to_stock(), journal.stage("open"):
            opened = parse(skeleton)
        plan = plan_model(opened, request, journal)
    settle_process()
    by_path = _goes_by_path(plan, request)
    writer = None if by_path else writer
    spill_dir = None if request.options.spill_dir is None else os.fspath(request.options.spill_dir)
    with ExitStack() as undo:
        with journal.stage("pack"):
            if writer is not None:
                packed = writer.make_buffers(plan.layout.sizes)
            else:
                packed = make_buffers(plan.layout.sizes, request.options.buffer, spill_dir, linkable=by_path)
            for buffer in packed:
                undo.callback(buffer.discard)
            if packed:
                pack(plan.layout, packed, request.threads, request.options.progress)
            if by_path:
                for buffer in packed:
                    buffer.link()
        with journal.stage("assemble"), collecting_no_garbage():
            places = Places(by_path, packed)
            model = assemble(opened, plan.scope, plan.matches.fusions, plan.layout, places)
            session_options = request.session_options
            if not by_path:
                session_options = private_options(session_options)
                if EXTENSIONS_DOMAIN in plan.domains:
                    register_extensions(session_options)
                borrow(session_options, places.buffers)
        if writer is not None:
            with journal.stage("share" if request.options.share_weights else "cache"):
                writer.commit(
                    model,
                    skeleton.file_sources,
                    places.locations,
                    report=journal.finished("borrowed"),
                    extensions=EXTENSIONS_DOMAIN in plan.domains,
                    foreign=sorted(foreign_domains(plan.domains)),
                )
        undo.pop_all()
    return PreparedModel(
        model=model,
        session_options=session_options,
        by_path=by_path,
        buffers=places.buffers,
        mappings=places.mappings,
        packed=tuple(packed),
        report=journal.finished("by path" if by_path else "borrowed"),
    )


def plan_model(opened: OpenedModel, request: LoadRequest, journal: Journal) -> Plan:
    """Decide what is fused and where everything goes. The journal's report says so, also if nothing is to be done.

    Raises:
        LeaveToStock: There is nothing to do for this model.
        ModelError: The model is not as its format has it.
    """
    with journal.stage("match"), readable():
        scope, matches = model_scope(opened.proto), Matches()
        if request.may_fuse:
            matches = match(scope, opened.locate, Wishes(request.block_size, request.accuracy_level))
    with journal.stage("plan"):
        groups = [tuple(fusion.operands.values()) for fusion in matches.fusions]
        operands = {operand.key: operand for group in groups for operand in group}.values()
        layout = plan_layout([*groups, _to_be_aligned(opened, operands)], request.threads)
        journal.planned(
            fused=[fusion.entry() for fusion in matches.fusions],
            unfused=matches.unfused,
            packed_bytes=packed_bytes(operands),
            borrowed_bytes=borrowed_bytes(operands),
        )
    used = domains(scope)
    check_imports(opened.proto, used)
    # A model with fused nodes of its own gains by the hand-over alone; one with operators of the extensions needs it.
    borrows = opened.skeleton.mentions("MatMulNBits") and any(external_tensors(opened.proto.graph))
    if not matches.fusions and not borrows and EXTENSIONS_DOMAIN not in used:
        raise NothingToDo("nothing in it can be fused")
    stored, packed = opened.skeleton.stored_bytes, sum(layout.sizes)
    if packed > max(_GROWTH_BYTES, _GROWTH * stored):
        raise NothingToDo(f"its {stored} bytes would be {packed} when packed")
    return Plan(opened, scope, frozenset(domains_once_inlined(opened.proto, used)), matches, layout)


def _goes_by_path(plan: Plan, request: LoadRequest) -> bool:
    """Whether ONNX Runtime has to open the packed files itself; raises LeaveToStock where it cannot be given them at all."""
    session_options = request.session_options
    if supplies_initializers(session_options):
        raise LeaveToStock("initializers were added to its session options")
    by_path = copy_loses_something(session_options, foreign_domains(plan.domains))
    if session_options is not None and by_path and session_options.optimized_model_filepath:
        # It would be saved with references to files that are about to go.
        raise LeaveToStock("its optimized model is to be saved")
    return by_path


def _to_be_aligned(opened: OpenedModel, fused: Iterable[Operand]) -> list[Operand]:
    """Large tensors that ONNX Runtime would copy into memory of its own, because they are not aligned where they are stored.

    Copied into a packed buffer instead, they are pages of a file. Tensors that only fused nodes read are left out.
    """
    gone = {operand.source.storage for operand in fused if operand.source is not None}
    copies = []
    for tensor in external_tensors(opened.proto.graph):
        with suppress(ModelError):
            stored = opened.locate(tensor)
            if not stored.is_aligned and stored.storage not in gone and stored.nbytes >= LARGE_TENSOR_BYTES:
                copies.append(as_stored(stored, stored.shape))
    return copies
