"""What quantized a serialized model holds beside DequantizeLinear, seen without parsing it.

Only models that hold small integers (`wire.may_hold_small_integers`) are looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ort_qdq_plugin.errors import ModelError

if TYPE_CHECKING:
    from ort_qdq_plugin.model.outline import Graph, Outline, Tensor

__all__ = ["dequantizes_by_hand", "forms_among", "other_forms"]

# Said again, for `elements` and `operators` take 0.7 ms to import; a test compares them.
_WEIGHT_TYPES = {2, 3, 21, 22, 25, 26}
_READERS = frozenset((b"Conv", b"Div", b"Einsum", b"FusedMatMul", b"Gather", b"Gemm", b"MatMul", b"MoE", b"Mul"))
_VIEWS = frozenset(
    b"Abs BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil Clip Concat ConstantOfShape Div Expand Flatten "
    b"Floor Identity Max Min Mod Mul Neg Pow QuantizeLinear Reciprocal Reshape Round Slice Split Sqrt Squeeze Sub Tile "
    b"Transpose Unsqueeze".split()
)

# Beginnings of operators' types -> what a model that has them is. The types themselves are named, too.
_FORMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "dynamically quantized ({}): runs on integer kernels",
        ("MatMulInteger", "ConvInteger", "DynamicQuantize"),
    ),
    (
        "statically quantized in QOperator form ({}): runs on integer kernels",
        ("QLinear", "QGemm", "QAttention", "QEmbedLayerNormalization", "QOrdered"),
    ),
    ("weights of 4-bit floating point ({}): its kernel dequantizes them in every run", ("MatMulBnb4",)),
    ("fused already ({}): low-bit operators of ONNX Runtime", ("MatMulNBits", "QMoE", "GatherBlockQuantized")),
)


def dequantizes_by_hand(outline: Outline) -> bool:
    """Whether a Mul, a Div or what takes weights reads what a Cast makes of a stored matrix of small integers.

    Between them may be what can be folded. Functions of the model are not looked into; False if it is no model.
    """
    integers: set[bytes] = set()
    floats: set[bytes] = set()
    try:
        return any(_dequantizes_by_hand(graph, integers, floats) for graph in outline.graphs)
    except ModelError:
        return False


def _dequantizes_by_hand(graph: Graph, integers: set[bytes], floats: set[bytes]) -> bool:
    """The same for a graph, and those in its nodes, where values with these names are integers and floats made of such."""
    # Initializers come before the nodes that read them, wherever they are in the message.
    integers.update(tensor[0] for tensor in graph.initializers if _is_matrix(tensor))
    for node in graph.nodes:
        if node.tensors and any(map(_is_matrix, node.tensors)):
            integers.update(node.outputs)  # a Constant's
        if any(_dequantizes_by_hand(inner, integers, floats) for inner in node.graphs):
            return True
        if node.op_type in _READERS and not floats.isdisjoint(node.inputs):
            return True
        if node.op_type in _VIEWS and node.inputs:
            is_float = node.inputs[0] in floats or (node.op_type == b"Cast" and node.inputs[0] in integers)
            if is_float or not integers.isdisjoint(node.inputs):
                (floats if is_float else integers).update(node.outputs)
    return False


def _is_matrix(tensor: Tensor) -> bool:
    """Whether a tensor is of small integers, and has two axes or more."""
    _, data_type, is_matrix = tensor
    return is_matrix and data_type in _WEIGHT_TYPES


def other_forms(outline: Outline) -> str:
    """In which other ways than by DequantizeLinear a model is quantized, in words; "" if in none, or if it is no model."""
    try:
        return forms_among(op_type.decode("ascii", "replace") for graph in outline.graphs for op_type in _op_types(graph))
    except ModelError:
        return ""


def _op_types(graph: Graph) -> Iterator[bytes]:
    for node in graph.nodes:
        yield node.op_type
        for inner in node.graphs:
            yield from _op_types(inner)


def forms_among(op_types: Iterable[str]) -> str:
    """The same for operators of these types."""
    found, said = sorted(set(op_types)), []
    for sentence, prefixes in _FORMS:
        types = [op_type for op_type in found if op_type.startswith(prefixes)]
        if types:
            said.append(sentence.format(", ".join(types)))
    return "; ".join(said)
