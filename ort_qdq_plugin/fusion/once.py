"""Weights that no fused operator takes, dequantized once: their values take the place of the DequantizeLinear's output.

Stock ONNX Runtime computes these values on every run: it folds no DequantizeLinear of a constant, which might belong to an
operator that it has in integers. What does belong to one is left alone here too.
"""

from __future__ import annotations

from collections.abc import Iterable

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.fusion.dequantize import Dequantized
from ort_qdq_plugin.fusion.view import View
from ort_qdq_plugin.model.elements import ELEMENTS
from ort_qdq_plugin.model.graph import NodeRef
from ort_qdq_plugin.model.messages import int_attribute
from ort_qdq_plugin.model.operands import Operand, as_stored
from ort_qdq_plugin.system.forks import fork_lock
from ort_qdq_plugin.values import NamedTuple

__all__ = ["DequantizedOnce", "choose", "dequantized_once", "fits_reader"]

_CONV_RANK = 3  # at least, of its input and its weight


class DequantizedOnce(NamedTuple):
    """A DequantizeLinear of a constant weight whose output becomes a constant."""

    node_ref: NodeRef
    operand: Operand  # the values

    @property
    def output(self) -> str:
        """The name of the values."""
        scope, index = self.node_ref
        output: str = scope.nodes[index].output[0]
        return output


def dequantized_once(node_ref: NodeRef, weight: Dequantized) -> DequantizedOnce | None:
    """The values of a DequantizeLinear; None where ONNX Runtime has no kernel for it."""
    with fork_lock:
        from ort_qdq_plugin.folding.computed import as_expression, as_tensor
        from ort_qdq_plugin.fusion.computing import dequantized
    zero_points = weight.zero_points
    if zero_points is not None and weight.centred and ELEMENTS[weight.weight.data_type].weight != "unsigned":
        zero_points = None  # all are 0
    try:
        values = dequantized(
            as_expression(weight.weight),
            as_expression(weight.scales),
            None if zero_points is None else as_expression(zero_points),
            weight.axis or 0,
            weight.block,
            weight.output_type,
        )
    except ModelError:
        return None
    return DequantizedOnce(node_ref, as_stored(as_tensor(values, weight.weight.name), values.shape))


def fits_reader(node_ref: NodeRef, name: str, view: View) -> bool:
    """Whether a node can have the weight, as far as that is known, which it reads under this name and sees as `view`.

    Only of Conv this is asked: where its weight is a constant, ONNX Runtime's optimized kernel does not ask any more.
    """
    scope, index = node_ref
    node = scope.nodes[index]
    if node.op_type != "Conv" or list(node.input[1:2]) != [name] or len(view.shape) < _CONV_RANK:
        return True
    shape = scope.known_shape(node.input[0]) or ()
    channels = shape[1] if len(shape) >= _CONV_RANK else None
    return channels is None or channels == view.shape[1] * int_attribute(node, "group", 1)


def choose(candidates: Iterable[DequantizedOnce], most_bytes: int) -> list[DequantizedOnce]:
    """Those that together take at most this many bytes, the smallest first. What several of them share counts once."""
    chosen: list[DequantizedOnce] = []
    paid: set[tuple[object, ...]] = set()
    left = most_bytes
    for candidate in sorted(candidates, key=lambda candidate: candidate.operand.nbytes):
        key = candidate.operand.key
        cost = 0 if key in paid else candidate.operand.nbytes
        if cost > left or not most_bytes:
            break
        left -= cost
        paid.add(key)
        chosen.append(candidate)
    return chosen
