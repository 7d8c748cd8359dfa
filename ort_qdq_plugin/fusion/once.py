"""Weights that no fused operator takes, dequantized once: their values take the place of the DequantizeLinear's output.

Stock ONNX Runtime computes these values on every run: it folds no DequantizeLinear of a constant, which might belong to an
operator that it has in integers. What does belong to one is left alone here too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from ort_qdq_plugin.fusion.dequantize import Dequantized
from ort_qdq_plugin.fusion.view import View
from ort_qdq_plugin.model.elements import ELEMENTS, FLOAT, FLOAT16
from ort_qdq_plugin.model.graph import NodeRef
from ort_qdq_plugin.model.messages import int_attribute
from ort_qdq_plugin.model.operands import Dequantization, Operand, dequantized

__all__ = ["DequantizedOnce", "choose", "dequantized_once", "fits_reader"]

# ONNX Runtime's kernel wants these to have no zero point but 0.
_WIDE_BITS = 32

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
    element = ELEMENTS[weight.weight.data_type]
    if not {weight.scales.data_type, weight.output_type} <= {FLOAT, FLOAT16}:
        return None
    if weight.block and weight.scales.shape == (1,):
        # For its kernel this is a single scale, to which blocks do not belong.
        return None
    zero_points = weight.zero_points
    if zero_points is not None and weight.centred and element.weight != "unsigned":
        zero_points = None
    if zero_points is not None and element.bits == _WIDE_BITS:
        return None
    shape, axis = weight.weight.shape, weight.axis
    if axis is None:
        how = Dequantization(1, weight.weight.elements, 0, weight.scales, zero_points)
    else:
        how = Dequantization(shape[axis], math.prod(shape[axis + 1 :]), weight.block, weight.scales, zero_points)
    return DequantizedOnce(node_ref, dequantized(weight.weight, weight.output_type, how))


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
