"""The second stage of a load: decide what is fused, by which way ONNX Runtime gets it, and where every operand goes."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

from ort_qdq_plugin.errors import LeaveToStock, ModelError, NothingToDo, readable
from ort_qdq_plugin.fusion.constants import stored_in
from ort_qdq_plugin.fusion.kind import FusionSettings
from ort_qdq_plugin.fusion.match import Matches, match
from ort_qdq_plugin.load.journal import Journal
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.load.way import Way, way_of
from ort_qdq_plugin.model.graph import Scope, check_imports, domains, domains_once_inlined, model_scope, scopes
from ort_qdq_plugin.model.held import forms_among
from ort_qdq_plugin.model.messages import external_tensors
from ort_qdq_plugin.model.operands import Operand, as_stored, borrowed_bytes, packed_bytes
from ort_qdq_plugin.model.parsed import ParsedModel
from ort_qdq_plugin.model.sources import MemorySource
from ort_qdq_plugin.model.tensors import StoredTensor
from ort_qdq_plugin.model.wire import LARGE_TENSOR_BYTES
from ort_qdq_plugin.ort.keys import EXTENSIONS_DOMAIN, LOW_BIT_OPERATORS
from ort_qdq_plugin.packing.layout import Layout, plan_layout
from ort_qdq_plugin.report import Report, StockReason
from ort_qdq_plugin.system.platform import host
from ort_qdq_plugin.values import NamedTuple, replace

__all__ = ["Plan", "plan_model"]

# Packed weights have about the size of the model's files, or a dozen times that if blocks are mostly padding. Only hundreds
# of tensors that overlap each other, which no exporter writes, exceed both of these.
_GROWTH, _GROWTH_BYTES = 16, 64 << 20


# Weights that are dequantized once may add as many bytes as the model stores, or this many if that is more: a small model
# may have all of its weights in float, a large one at most doubles.
_ONCE_BYTES = 128 << 20


class Plan(NamedTuple):
    """What was decided for a model."""

    parsed: ParsedModel
    scope: Scope  # of its main graph
    domains: frozenset[str]  # of all its operators, except those of its own functions
    matches: Matches
    way: Way
    layout: Layout  # where the operands of fused nodes go


def plan_model(parsed: ParsedModel, request: LoadRequest, journal: Journal) -> Plan:
    """Decide what is fused and where everything goes. The journal has it even if there is nothing to do.

    Raises:
        LeaveToStock: There is nothing to do for this model.
        ModelError: The model is not as its format has it.
    """
    with journal.stage("match"), readable():
        scope, matches = model_scope(parsed.proto), Matches()
        if request.may_fuse:
            once_bytes = partial(_once_bytes, request, parsed)
            settings = FusionSettings(
                request.block_size,
                request.accuracy_level,
                request.int8_activations,
                arm=host.is_arm(),
                float16=request.float16,
                once_bytes=once_bytes,
            )
            matches = match(scope, parsed.locate, settings)
    with journal.stage("plan"):
        groups = [tuple(fusion.operands.values()) for fusion in matches.fusions]
        groups += [(once.operand,) for once in matches.once]
        operands = {operand.key: operand for group in groups for operand in group}.values()
        fused = tuple(fusion.entry() for fusion in matches.fusions)
        packed, borrowed = packed_bytes(operands), borrowed_bytes(operands)
        also = forms_among(str(node.op_type) for inner in scopes(scope) for node in inner.nodes)
        report = Report("stock", None, "", fused, matches.unfused, packed, borrowed, also=also)
        report = replace(report, stored_bytes=matches.stored_bytes, float_bytes=matches.float_bytes)
        journal.planned(report)
    used = domains(scope)
    check_imports(parsed.proto, used)
    # A model with fused nodes of its own gains by the hand-over alone; one with operators of the extensions needs it. Where
    # another library opens the entry there is none, and copies of all weights would be made for nothing.
    hands_over = not request.self_contained or request.options.share_weights
    borrows = any(map(parsed.skeleton.mentions, LOW_BIT_OPERATORS)) and any(external_tensors(parsed.proto.graph))
    if not groups and not (hands_over and (borrows or EXTENSIONS_DOMAIN in used)):
        if not request.may_fuse:
            raise LeaveToStock(StockReason.FUSION_DISABLED, request.fusion_disabled_by)
        raise NothingToDo(StockReason.NOT_FUSIBLE, also)
    all_domains = frozenset(domains_once_inlined(parsed.proto, used))
    with journal.stage("plan"):
        way = way_of(request, all_domains)
        layout = plan_layout([*groups, _moved(parsed, operands, way)], request.threads, partial(_stays, way))
        moved = borrowed - sum(operand.nbytes for operand in operands if _stays(way, operand))
        journal.planned(replace(report, packed_bytes=packed + moved, borrowed_bytes=borrowed - moved))
    stored, packed = parsed.skeleton.stored_bytes, sum(layout.sizes)
    if packed > max(_GROWTH_BYTES, _GROWTH * stored):
        raise NothingToDo(StockReason.PACKED_SIZE, f"{packed} bytes instead of {stored}")
    return Plan(parsed, scope, all_domains, matches, way, layout)


def _once_bytes(request: LoadRequest, parsed: ParsedModel) -> int:
    """The most bytes that the values of weights which are dequantized once may take together."""
    chosen = request.options.dequantize_once
    if chosen != "auto":
        return sys.maxsize if chosen == "always" else 0
    for tensor in external_tensors(parsed.proto.graph):
        with suppress(ModelError):
            # It opens the file that the tensor is in: all files of the model count.
            parsed.locate(tensor)
    return max(_ONCE_BYTES, parsed.skeleton.stored_bytes)


def _stays(way: Way, operand: Operand) -> bool:
    """Whether an operand is used where the model stores it."""
    return operand.in_place is not None and not _is_out_of_reach(operand.in_place, way)


def _is_out_of_reach(stored: StoredTensor, way: Way) -> bool:
    """Whether ONNX Runtime cannot open what a tensor is in, and would get a copy of it inside the new model."""
    return way.by_path and isinstance(stored.source, MemorySource) and stored.nbytes >= LARGE_TENSOR_BYTES


def _moved(parsed: ParsedModel, fused: Iterable[Operand], way: Way) -> list[Operand]:
    """Large tensors that go into a packed buffer as they are, where they are pages of a file.

    ONNX Runtime would copy those that are not aligned where they are stored into memory of its own. Tensors that fused nodes
    replace are left out.
    """
    replaced = {tensor.storage for one in fused if one.source is not None for tensor in stored_in(one.source)}
    moved = []
    for tensor in external_tensors(parsed.proto.graph):
        with suppress(ModelError):
            stored = parsed.locate(tensor)
            is_large = stored.nbytes >= LARGE_TENSOR_BYTES and stored.storage not in replaced
            if is_large and not (stored.is_aligned and not _is_out_of_reach(stored, way)):
                moved.append(as_stored(stored, stored.shape))
    return moved
