"""What tests of fusion share: tensors and weights as matching reads them, decisions, and nodes run the obvious way."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from conformance.drawing.canvas import Canvas
from conformance.drawing.draft import Draft
from ort_qdq_plugin.errors import ModelError, NotFusable
from ort_qdq_plugin.fusion.centred import Centred
from ort_qdq_plugin.fusion.constants import Constants
from ort_qdq_plugin.fusion.dequantize import Dequantized, is_dequantize, read_dequantize
from ort_qdq_plugin.fusion.emit import FreshNames, NodeEmitter
from ort_qdq_plugin.fusion.kind import Fusion, FusionSettings, Site
from ort_qdq_plugin.model.graph import Scope, model_scope
from ort_qdq_plugin.model.sources import ExternalFiles, MemorySource
from ort_qdq_plugin.model.tensors import StoredTensor, stored_tensor
from ort_qdq_plugin.report.weights import Reason
from tests.support import Array

__all__ = [
    "SETTINGS", "drawn", "emitted", "evaluated", "integers_of", "locate", "missing", "read", "refused", "scope_and_site",
]  # fmt: skip

SETTINGS = FusionSettings(block_size=0, accuracy_level=4)


def locate(tensor: TensorProto) -> StoredTensor:
    """Where the tensor's bytes are: in itself."""
    return stored_tensor(tensor, ExternalFiles.none(), MemorySource(b""), "")


def missing(_: TensorProto) -> StoredTensor:
    """Says of every tensor that its bytes are not there."""
    raise ModelError("not there")


@contextmanager
def refused(reason: Reason | None) -> Iterator[None]:
    """The block says that something cannot be fused, and why; None: it does not say so."""
    if reason is None:
        yield
        return
    with pytest.raises(NotFusable) as caught:
        yield
    assert caught.value.reason is reason


def drawn(draft: Draft, *nodes: tuple[Any, ...]) -> Draft:
    """With these nodes: operator, names of inputs, output, and perhaps attributes.

    Or "ints", numbers and a name for a constant of these numbers; "floats", a size and a name for one of that size; and
    "output", a shape and a name for an output of the graph.
    """
    for op, inputs, output, *attributes in nodes:
        if op in ("ints", "floats", "output"):
            getattr(draft, op)(output, [int(number) for number in inputs.split()], **dict(*attributes))
        else:
            draft.node(op, inputs.split(), output, **dict(*attributes))
    return draft


def read(scope: Scope) -> Dequantized:
    """The first DequantizeLinear of a graph."""
    node = next(node for node in scope.nodes if is_dequantize(node))
    return read_dequantize(scope, node, Constants(locate), Centred())


def scope_and_site(draft: Draft, weight: str = "w_d") -> tuple[Scope, Site]:
    """The scope of what was drawn, and the site of its last node, which reads a weight under that name."""
    scope = model_scope(draft.model())
    node = scope.nodes[-1]
    output = node.output[0] if node.output else ""
    return scope, Site("w_d_node", node.op_type, node.name, weight, output, ((scope, len(scope.nodes) - 1),))


def emitted(fusion: Fusion, opset: int = 21) -> tuple[list[NodeProto], list[TensorProto]]:
    """The nodes and constants of a fusion. Its operands are called as the operator's specification calls them."""
    scope = fusion.site.replaced[0][0]
    emitter = NodeEmitter(fusion.site.output, fusion.site.name, FreshNames(scope), opset)
    fusion.emit(emitter, {name: name for name in fusion.operands})
    return emitter.finished(), emitter.constants


def integers_of(node: NodeProto) -> dict[str, int]:
    """The attributes of a node that has whole numbers only."""
    return {attr.name: attr.i for attr in node.attribute}


def evaluated(
    nodes: Sequence[NodeProto], constants: Sequence[TensorProto], values: Mapping[str, Array], output: str, opset: int = 21
) -> Array:
    """What nodes give, by NumPy. Weights among `values` are dequantized: MatMulNBits is a plain product, its B is [K, N]."""
    known: dict[str, Any] = {**values, **{tensor.name: numpy_helper.to_array(tensor) for tensor in constants}}
    for node in nodes:
        if node.op_type == "MatMulNBits":
            bias = known[node.input[5]] if len(node.input) > 5 else 0
            known[node.output[0]] = known[node.input[0]] @ known[node.input[1]] + bias
        else:
            canvas = Canvas(opset)
            canvas.nodes.append(node)
            feeds = {name: np.asarray(known[canvas.input(name, None)]) for name in dict.fromkeys(node.input)}
            for name in node.output:
                canvas.output(name, None)
            known.update(zip(node.output, ReferenceEvaluator(canvas.model()).run(None, feeds), strict=True))
    result: Array = known[output]
    return result
