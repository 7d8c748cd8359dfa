"""Nodes that may dequantize a weight in several steps (`written_out`), found by what they are alone.

Format facts: Cast, Sub and Mul of the ONNX specification.
"""

from __future__ import annotations

import math

from ort_qdq_plugin.fusion.constants import Constants
from ort_qdq_plugin.model.elements import WEIGHT_TYPES
from ort_qdq_plugin.model.graph import Scope
from ort_qdq_plugin.model.messages import NodeProto, TensorProto, is_standard
from ort_qdq_plugin.model.operators import operator_of, role_of
from ort_qdq_plugin.model.tensors import MAX_RANK
from ort_qdq_plugin.values import NamedTuple

__all__ = ["MAX_STEPS", "Readers", "elements_in", "integers_at", "may_end_steps", "stored_integers", "what_reads"]

MAX_STEPS = 32
"""From the last step up to the stored integers, and down to a product: real ones have less than ten nodes."""

# The last of the steps, and how many operands each has. Div and Add make nothing that a DequantizeLinear makes.
_LAST_STEPS = {"Cast": 1, "Sub": 2, "Mul": 2, "Div": 2, "Add": 2}

_WEIGHT_RANK = 2
_MAX_ELEMENTS = 1 << 60  # reported of a shape that no tensor can have

# What takes weights in float beside the operators that are fused, and what hands parts of one on.
_OTHER_READERS = {"Conv", "ConvTranspose", "Einsum", "GRU", "LSTM", "RNN"}
_PARTS = {"Concat", "Slice", "Split"}


class Readers(NamedTuple):
    """What reads a value."""

    take_weights: bool  # whether one of them takes weights
    after: list[tuple[Scope, str]]  # if not: the values that some of them make of it


def may_end_steps(scope: Scope, node: NodeProto, constants: Constants) -> bool:
    """Whether a node may be the last one of those that dequantize a weight in its place (`written_out`).

    Other nodes cost next to nothing: their inputs are made at run time, or of no stored integers.
    """
    is_step = _LAST_STEPS.get(node.op_type) == len(node.input) and is_standard(node)
    if not is_step or any(constants.is_made_at_run_time(scope, name) for name in node.input):
        return False
    return integers_at(scope, node) is not None


def elements_in(tensor: TensorProto) -> int:
    """The number of elements of a stored tensor, up to a limit that none exceeds."""
    return int(min(max(0, math.prod(tensor.dims)), _MAX_ELEMENTS))


def integers_at(scope: Scope, node: NodeProto) -> int | None:
    """Which input of a last step comes from integers by a Cast, as far as nodes tell; of two the larger one."""
    found = [stored_integers(scope, name, node) for name in node.input]
    sizes = [0 if tensor is None else elements_in(tensor) for tensor in found]
    return sizes.index(max(sizes)) if any(sizes) else None


def stored_integers(scope: Scope, name: str, reader: NodeProto) -> TensorProto | None:
    """The stored matrix of integers that a value, which a node reads, comes from by a Cast and what can be folded.

    None if it does not come from one. The node itself may be the Cast.
    """
    is_cast = reader.op_type == "Cast"
    for _ in range(MAX_STEPS):
        stored = scope.constant(name)
        if stored is not None:
            is_weight = is_cast and len(stored.dims) >= _WEIGHT_RANK and stored.data_type in WEIGHT_TYPES
            return stored if is_weight and len(stored.dims) <= MAX_RANK else None
        found = scope.producer(name)
        if found is None or role_of(found[2]) not in ("view", "folded") or not found[2].input:
            return None
        scope, _, node = found
        is_cast |= node.op_type == "Cast"
        name = node.input[0]
    return None


def what_reads(scope: Scope, name: str) -> Readers:
    """Whether a value goes into a product, a lookup or the like, and what it is in views and in parts, if not."""
    after: list[tuple[Scope, str]] = []
    for inner, index in dict.fromkeys(scope.uses(name)):
        node = inner.nodes[index]
        operator = operator_of(node)
        if (operator is not None and operator.fused_by) or node.op_type in _OTHER_READERS:
            return Readers(True, [])
        if role_of(node) == "view" or node.op_type in _PARTS:
            after += [(inner, output) for output in node.output if output]
    return Readers(False, after[-MAX_STEPS:])
