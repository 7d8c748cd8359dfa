"""Whether what was planned for a model would become a session: ONNX Runtime is asked, without any weights."""

from __future__ import annotations

from ort_qdq_plugin.errors import LeaveToStock, ModelError
from ort_qdq_plugin.fusion.emit import FreshNames
from ort_qdq_plugin.fusion.rewrite import lift_from_subgraphs
from ort_qdq_plugin.load.assemble import assemble
from ort_qdq_plugin.load.journal import Journal
from ort_qdq_plugin.load.plan import Plan
from ort_qdq_plugin.model.encoding import bytes_field
from ort_qdq_plugin.model.graph import domains, domains_once_inlined, model_scope
from ort_qdq_plugin.model.messages import ModelProto, TensorProto, refer
from ort_qdq_plugin.model.parsed import ParsedModel
from ort_qdq_plugin.model.tensors import StoredTensor
from ort_qdq_plugin.ort.copies import foreign_domains
from ort_qdq_plugin.ort.keys import EXTENSIONS_DOMAIN
from ort_qdq_plugin.ort.refusal import refusal_of
from ort_qdq_plugin.report import Report, StockReason
from ort_qdq_plugin.values import replace

__all__ = ["check_taken"]


def check_taken(parsed: ParsedModel, plan: Plan | None, journal: Journal) -> None:
    """Ask ONNX Runtime whether it takes the model that was planned, else the model as it is. `parsed` is changed.

    It is not asked about operators of a custom-op library: the caller's sessions may have that library.

    Raises:
        LeaveToStock: It does not take the first, or neither. Nothing is fused then, and the journal has it so.
    """
    stored = bytes(parsed.proto.SerializeToString())
    used = domains_once_inlined(parsed.proto, domains(model_scope(parsed.proto))) if plan is None else plan.domains
    foreign = foreign_domains(used)
    if foreign and foreign <= {opset.domain for opset in parsed.proto.opset_import}:
        return
    problem = None if plan is None else _problem_of(plan)
    if plan is not None and problem is None:
        return
    refusal = refusal_of(_without_weights(ModelProto.FromString(stored)))
    if refusal is not None:
        unfused = journal.finished("inspect").unfused
        journal.planned(Report("inspect", unfused=tuple(replace(left, bytes_per_run=0) for left in unfused)))
        raise LeaveToStock(StockReason.REFUSED, " ".join(refusal.split()))
    if problem is not None:
        # As the report of a load that failed has it.
        journal.planned(Report("inspect"))
        raise LeaveToStock(StockReason.ERROR, problem)


class _Nowhere:
    """Where tensors have no bytes (`assemble.Places`): all refer to a file that does not exist."""

    def put(self, tensor: TensorProto, stored: StoredTensor) -> None:
        refer(tensor, "", 0, stored.nbytes)

    def put_packed(self, tensor: TensorProto, segment: int, offset: int, nbytes: int) -> None:
        refer(tensor, "", offset, nbytes)


def _problem_of(plan: Plan) -> str | None:
    """Why a fused model would become no session."""
    try:
        model = assemble(plan.parsed, plan.scope, plan.matches, plan.layout, _Nowhere())
    except ModelError as error:
        return f"ModelError: {error}"
    return refusal_of(_without_weights(ModelProto.FromString(model)), extensions=EXTENSIONS_DOMAIN in plan.domains)


def _without_weights(model: ModelProto) -> bytes:
    """The model, serialized, with inputs in place of the tensors whose bytes are elsewhere. `model` is changed."""
    graph = model.graph
    lift_from_subgraphs(graph, FreshNames(model_scope(model)))
    inputs = {value.name for value in graph.input}
    for at in reversed(range(len(graph.initializer))):
        tensor = graph.initializer[at]
        if tensor.data_location != tensor.EXTERNAL:
            continue
        if tensor.name not in inputs:
            name = tensor.name if isinstance(tensor.name, bytes) else tensor.name.encode()
            value = graph.input.add()
            value.MergeFromString(bytes_field(1, name))
            value.type.tensor_type.elem_type = tensor.data_type
            value.type.tensor_type.shape.SetInParent()
            for size in tensor.dims:
                value.type.tensor_type.shape.dim.add(dim_value=size)
        del graph.initializer[at]
    return bytes(model.SerializeToString())
