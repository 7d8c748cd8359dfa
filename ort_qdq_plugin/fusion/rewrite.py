"""Fusions become nodes and initializers: the graph that ONNX Runtime is given.

Format fact: ``com.microsoft.MatMulNBits`` version 1, its inputs A, B, scales, zero_points, g_idx, bias and its attributes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx import NodeProto, helper

from ort_qdq_plugin.fusion.matmul import Location, MatMulFusion
from ort_qdq_plugin.model.graph import Scope, scopes

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

__all__ = ["FusedOperands", "rewrite"]

_CONTRIB_DOMAIN, _CONTRIB_VERSION = "com.microsoft", 1

# Nodes that only exist to bring a weight to its product.
_WEIGHT_CHAIN = {"DequantizeLinear", "Transpose", "Constant"}


@dataclass(frozen=True)
class FusedOperands:
    """Names of a fused node's constant inputs; "" for none."""

    b: str
    scales: str
    zero_points: str


def rewrite(
    model: ModelProto,
    scope: Scope,
    fusions: Sequence[tuple[MatMulFusion, FusedOperands]],
    initializers: Iterable[TensorProto],
    accuracy_level: int,
) -> None:
    """Put every fusion in place, drop what nothing reads any more, and add `initializers` to the main graph.

    `scope` is the model's, unchanged since the fusions were found; it is stale afterwards.
    """
    edits = _Edits()
    for fusion, operands in fusions:
        edits.replace(fusion, _fused_node(fusion, operands, accuracy_level))
    for fusion, _ in fusions:
        where, node = fusion.product[0], fusion.node
        for name in node.input[1:]:
            edits.drop_unread(where, name)
    edits.apply(scope)
    model.graph.initializer.extend(initializers)
    if fusions and all(opset.domain != _CONTRIB_DOMAIN for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_CONTRIB_DOMAIN, _CONTRIB_VERSION))


def _fused_node(fusion: MatMulFusion, operands: FusedOperands, accuracy_level: int) -> NodeProto:
    inputs = [fusion.activation, operands.b, operands.scales, operands.zero_points, "", fusion.bias or ""]
    while not inputs[-1]:
        inputs.pop()
    return helper.make_node(
        "MatMulNBits",
        inputs,
        [fusion.output],
        name=fusion.node.name,
        domain=_CONTRIB_DOMAIN,
        K=fusion.matrix.k,
        N=fusion.matrix.n,
        bits=fusion.matrix.bits,
        block_size=fusion.block_size,
        accuracy_level=accuracy_level,
    )


class _Edits:
    """Nodes to replace and to remove, by scope and index, and names whose initializers go."""

    def __init__(self) -> None:
        self._replaced: dict[Location, NodeProto] = {}
        self._removed: set[Location] = set()
        self._dropped: dict[Scope, set[str]] = {}

    def replace(self, fusion: MatMulFusion, node: NodeProto) -> None:
        if fusion.bias_add is None:
            self._replaced[fusion.product] = node
        else:
            # The later of the two: there the bias, too, has been produced.
            self._replaced[fusion.bias_add] = node
            self._removed.add(fusion.product)

    def _reads(self, location: Location, name: str) -> bool:
        replacement = self._replaced.get(location)
        if replacement is not None:
            return name in replacement.input
        return location not in self._removed

    def drop_unread(self, scope: Scope, name: str) -> None:
        """Remove what produces `name`, and so on upwards, if nothing reads it any more."""
        if not name or scope.is_input(name) or scope.is_output(name):
            return
        if any(self._reads(use, name) for use in scope.uses(name)):
            return
        found = scope.producer(name)
        if found is None:
            self._dropped.setdefault(scope.definer(name), set()).add(name)
            return
        where, index, node = found
        if node.op_type in _WEIGHT_CHAIN and (where, index) not in self._removed:
            self._removed.add((where, index))
            for above in node.input:
                self.drop_unread(where, above)

    def apply(self, scope: Scope) -> None:
        for location, node in self._replaced.items():
            location[0].nodes[location[1]].CopyFrom(node)
        for inner in scopes(scope):
            removed = {index for where, index in self._removed if where is inner}
            dropped = self._dropped.get(inner, set())
            gone = {name for index in removed for name in inner.nodes[index].output}
            for index in sorted(removed, reverse=True):
                del inner.graph.node[index]
            for field, names in ((inner.graph.initializer, dropped), (inner.graph.value_info, dropped | gone)):
                for at in reversed([at for at, item in enumerate(field) if item.name in names]):
                    del field[at]
