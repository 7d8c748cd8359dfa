"""A look at a serialized model's nodes, without parsing it: is there anything in it that could be fused or dequantized once?

Many models are quantized throughout, activations too. They have hundreds of DequantizeLinear nodes, all of which have to
stay, or, quantized dynamically, one behind each lookup. They need not wait for what parsing and matching import.
"""

from __future__ import annotations

from typing import NamedTuple

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.elements import CODES, ELEMENTS, FLOAT, INT8, UINT8, WEIGHT_TYPES
from ort_qdq_plugin.model.operators import OPERATORS
from ort_qdq_plugin.model.outline import Graph, Node, Outline

__all__ = ["is_quantized_throughout"]

_BELOW_A_BYTE = {code for code in WEIGHT_TYPES if ELEMENTS[code].bits < 8}
_VIEWS = {row.op_type.encode() for row in OPERATORS if row.role == "view"}
# Of a Conv only weights below a byte are fused.
_READERS = {row.op_type.encode() for row in OPERATORS if row.fused_by not in ("", "conv")}
# Those of which ONNX Runtime has integer kernels.
_PRODUCTS = {row.op_type.encode() for row in OPERATORS if row.fused_by == "matmul"}
_DEQUANTIZE_DOMAINS = {row.domain.encode() for row in OPERATORS if row.role == "dequantize"} | {b"ai.onnx"}
_WEIGHT_RANK = 2
# What an attribute that is a factor of 1 contains, as field `f`, whatever it is called.
_FACTORS, _ONE = (b"alpha", b"beta"), b"\x15\x00\x00\x80\x3f"
# What stands behind a product without changing which integer kernel takes it, it seems; only matching can tell.
_UNSURE = _VIEWS | {b"Add", b"Clip", b"MaxPool", b"Relu", b"Slice"}


def is_quantized_throughout(outline: Outline) -> bool:
    """Whether every DequantizeLinear of this model has to stay, because all that reads one has quantized activations too.

    It has weights of whole bytes and without blocks: others are fused whatever the activations are. True is certain of what
    is fused, False says nothing. A Conv between a dequantized input and a quantized result is taken
    to be computed in integers, as it nearly always is: where it is not, for what a Clip leaves or a bias's scale, its weight
    could have been dequantized once.
    """
    try:
        return not outline.has_functions and _is_quantized_throughout(outline.graphs)
    except (ModelError, _TooUnusual):
        return False


class _TooUnusual(Exception):
    """Only parsing can tell."""


class _Uses(NamedTuple):
    types: dict[bytes, int]  # of the initializers
    outputs: set[bytes]
    producers: dict[bytes, Node]
    readers: dict[bytes, list[Node]]  # once for each input that reads


def _is_quantized_throughout(graphs: list[Graph]) -> bool:
    if len(graphs) != 1:
        raise _TooUnusual
    (graph,) = graphs
    nodes = graph.nodes
    if any(map(_is_unusual, nodes)) or not all(tensor.name and tensor.data_type for tensor in graph.initializers):
        raise _TooUnusual
    types = {tensor.name: tensor.data_type for tensor in graph.initializers}
    vectors = {tensor.name for tensor in graph.initializers if tensor.rank < _WEIGHT_RANK}
    if not _BELOW_A_BYTE.isdisjoint(types.values()):
        return False
    computed = {name for node in nodes if node.op_type != b"Constant" for name in node.outputs}
    # What is computed from nothing but constants.
    constants = set(types).union(*(node.outputs for node in nodes if node.op_type == b"Constant"))
    for node in nodes:
        if node.inputs and constants.issuperset(filter(None, node.inputs)):
            constants.update(node.outputs)
    # All that DequantizeLinear makes; and what it makes of the model's own matrices.
    dequantized: set[bytes] = set()
    weights: set[bytes] = set()
    for node in nodes:
        if node.op_type == b"DequantizeLinear":
            if node.inputs[0] not in types and node.inputs[0] not in computed:
                return False  # a Constant node's value, of which nothing is known here
            dequantized.update(node.outputs)
            if node.inputs[0] in constants and node.inputs[0] not in vectors:
                weights.update(node.outputs)
    views = [node for node in nodes if node.op_type in _VIEWS]
    for values in (dequantized, weights):
        while any(not values.isdisjoint(view.inputs) and not values.issuperset(view.outputs) for view in views):
            for view in views:
                if not values.isdisjoint(view.inputs):
                    values.update(view.outputs)
    readers = [node for node in nodes if node.op_type in _READERS and not dequantized.isdisjoint(node.inputs)]
    if any(node.op_type not in _PRODUCTS for node in readers):
        return False
    uses = _Uses(types, set(graph.outputs), {name: node for node in nodes for name in node.outputs}, {})
    for node in nodes:
        for name in node.inputs:
            uses.readers.setdefault(name, []).append(node)
    others = [node for node in nodes if node.op_type not in _READERS | _VIEWS and not weights.isdisjoint(node.inputs)]
    return all(_is_computed_on_integers(uses, node) for node in readers) and all(
        node.op_type == b"Conv" and _reads_integers(uses, node) and _is_quantized(uses, node) for node in others
    )


def _is_unusual(node: Node) -> bool:
    """Whether a node is one of which too little is known here."""
    if node.op_type == b"DequantizeLinear" and (not node.inputs or node.domain not in _DEQUANTIZE_DOMAINS):
        return True
    return bool(node.graphs) or not node.outputs


def _is_quantized(uses: _Uses, node: Node) -> bool:
    """Whether a node's result is quantized, maybe after a Clip or a Relu."""
    readers = [reader for name in node.outputs for reader in uses.readers.get(name, [])]
    if len(readers) == 1 and readers[0].op_type in (b"Clip", b"Relu"):
        readers = [reader for name in readers[0].outputs for reader in uses.readers.get(name, [])]
    return any(reader.op_type == b"QuantizeLinear" for reader in readers)


def _is_computed_on_integers(uses: _Uses, product: Node) -> bool:
    """Whether an integer kernel takes a product beyond doubt (`fusion.integer_kernels`)."""
    left = _reads_integers(uses, product)
    if not left:
        return False
    readers = uses.readers.get(product.outputs[0], [])
    if any(node.op_type in _UNSURE for node in readers):
        return False
    quantizing = [node for node in readers if node.op_type == b"QuantizeLinear"]
    if not quantizing:
        return True
    is_alone = left == UINT8 or _is_alone(uses, quantizing[0])
    is_only = len(readers) == 1 and product.outputs[0] not in uses.outputs
    return is_only and is_alone and len(quantizing[0].inputs) == 3 and uses.types.get(quantizing[0].inputs[2]) == left


def _reads_integers(uses: _Uses, product: Node) -> int:
    """The type of the left operand, if an integer kernel takes the operands of a product beyond doubt; else 0."""
    if len(product.inputs) < 2:
        raise _TooUnusual
    sources = [uses.producers.get(name) for name in product.inputs]
    left, right = (_dequantized_type(uses, source) for source in sources[:2])
    if left not in (UINT8, INT8) or right not in (UINT8, INT8) or _is_scaled(product) or b"" in product.inputs:
        return 0
    if left == INT8 and (right != INT8 or not _is_alone(uses, _producer(uses, sources[0]))):
        return 0
    return left if len(sources) < 3 or _dequantized_type(uses, sources[2]) == CODES["int32"] else 0


def _is_scaled(product: Node) -> bool:
    """Whether a product has a factor other than 1."""
    return any(_ONE not in attribute and any(factor in attribute for factor in _FACTORS) for attribute in product.attributes)


def _dequantized_type(uses: _Uses, node: Node | None) -> int:
    """The type of the integers that a DequantizeLinear with a scale of float and a zero point takes; 0 for other nodes."""
    if node is None or node.op_type != b"DequantizeLinear" or len(node.inputs) != 3:
        return 0
    return uses.types.get(node.inputs[2], 0) if uses.types.get(node.inputs[1]) == FLOAT else 0


def _producer(uses: _Uses, node: Node | None) -> Node | None:
    """The node that produces another one's first input."""
    return None if node is None or not node.inputs else uses.producers.get(node.inputs[0])


def _is_alone(uses: _Uses, quantize: Node | None) -> bool:
    """Whether a QuantizeLinear is the only one of its input, and has one DequantizeLinear with one reader."""
    if quantize is None or quantize.op_type != b"QuantizeLinear" or len(quantize.inputs) != 3:
        return False
    dequantizing = uses.readers.get(quantize.outputs[0], [])
    others = [node for node in uses.readers[quantize.inputs[0]] if node.op_type == b"QuantizeLinear"]
    if len(others) != 1 or len(dequantizing) != 1 or quantize.outputs[0] in uses.outputs:
        return False
    dequantize = dequantizing[0]
    if dequantize.op_type != b"DequantizeLinear" or dequantize.inputs[1:] != quantize.inputs[1:]:
        return False
    return all(len(uses.readers.get(name, [])) + (name in uses.outputs) <= 1 for name in dequantize.outputs)
