"""A look at a serialized model's nodes, without parsing it: is there anything in it that could be fused or dequantized once?

Many models are quantized throughout, activations too. They have hundreds of DequantizeLinear nodes, all of which have to
stay, or, quantized dynamically, one behind each lookup. They need not wait for what parsing and matching import.
"""

from __future__ import annotations

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.outline import Graph, Node, Outline

__all__ = ["is_quantized_throughout"]

# Said again, for `elements` and `operators` take 0.7 ms to import; a test compares them.
_FLOAT, _UINT8, _INT8, _INT32 = 1, 2, 3, 6
_BELOW_A_BYTE = {21, 22, 25, 26}
_VIEWS = {b"Cast", b"Flatten", b"Identity", b"Reshape", b"Squeeze", b"Transpose", b"Unsqueeze"}
# Those of which ONNX Runtime has integer kernels.
_PRODUCTS = {b"FusedMatMul", b"Gemm", b"MatMul"}
# Of a Conv only weights below a byte are fused.
_READERS = _PRODUCTS | {b"Einsum", b"Gather", b"MoE"}
_DEQUANTIZE_DOMAINS = {b"", b"ai.onnx", b"com.microsoft"}
# What an attribute that is a factor of 1 contains, as field `f`, whatever it is called.
_FACTORS, _ONE = (b"alpha", b"beta"), b"\x15\x00\x00\x80\x3f"
# What stands behind a product without changing which integer kernel takes it, it seems; only matching can tell.
_UNSURE = _VIEWS | {b"Add", b"Clip", b"MaxPool", b"Relu", b"Slice"}


def is_quantized_throughout(outline: Outline) -> bool:
    """Whether every DequantizeLinear of this model has to stay, because all that reads one has quantized activations too.

    It has weights of whole bytes and without blocks: others are fused whatever the activations are. True is certain of what
    is fused, False says nothing. A Conv between a dequantized input and a quantized result is taken to be computed in
    integers, as it nearly always is: where it is not, for what a Clip leaves or a bias's scale, its weight could have been
    dequantized once.
    """
    try:
        return not outline.has_functions and _is_quantized_throughout(outline.graphs)
    except (ModelError, _TooUnusual):
        return False


class _TooUnusual(Exception):
    """Only parsing can tell."""


class _Uses:
    """Who makes and who reads the values of a graph.

    Attributes:
        types: The element types of the initializers.
        nodes: The nodes of each type.
        outputs: The graph's own.
        producers: The node that makes each value.
        readers: The nodes that read each value, once for each input.
    """

    def __init__(self, graph: Graph, types: dict[bytes, int]) -> None:
        self.types, self.outputs = types, set(graph.outputs)
        self.nodes: dict[bytes, list[Node]] = {}
        self.producers: dict[bytes, Node] = {}
        self.readers: dict[bytes, list[Node]] = {}
        for node in graph.nodes:
            self.nodes.setdefault(node.op_type, []).append(node)
            for name in node.outputs:
                self.producers[name] = node
            for name in node.inputs:
                if name in self.readers:
                    self.readers[name].append(node)
                else:
                    self.readers[name] = [node]


def _is_quantized_throughout(graphs: list[Graph]) -> bool:
    if len(graphs) != 1:
        raise _TooUnusual
    (graph,) = graphs
    types = {name: data_type for name, data_type, _ in graph.initializers}
    if b"" in types or 0 in types.values():
        raise _TooUnusual
    if not _BELOW_A_BYTE.isdisjoint(types.values()):
        return False
    vectors = {name for name, _, is_matrix in graph.initializers if not is_matrix}
    uses = _Uses(graph, types)
    # What is computed from nothing but constants; an operand that is left out does not matter.
    constants = {b"", *types}
    for node in uses.nodes.get(b"Constant", ()):
        constants.update(node.outputs)  # which ONNX Runtime takes behind their readers, too
    # All that DequantizeLinear makes; and what it makes of the model's own matrices.
    dequantized: list[bytes] = []
    weights: list[bytes] = []
    for node in graph.nodes:
        if node.graphs or not node.outputs:
            raise _TooUnusual
        if node.inputs and constants.issuperset(node.inputs):
            constants.update(node.outputs)
    for node in uses.nodes.get(b"DequantizeLinear", ()):
        if not node.inputs or not node.inputs[0] or node.domain not in _DEQUANTIZE_DOMAINS:
            raise _TooUnusual
        source = uses.producers.get(node.inputs[0])
        if node.inputs[0] not in types and (source is None or source.op_type == b"Constant"):
            return False  # a Constant node's value, of which nothing is known here
        dequantized += node.outputs
        if node.inputs[0] in constants and node.inputs[0] not in vectors:
            weights += node.outputs
    products = [node for node in _readers_of(uses, dequantized) if node.op_type in _READERS]
    others = [node for node in _readers_of(uses, weights) if node.op_type not in _READERS]
    return all(node.op_type in _PRODUCTS and _is_computed_on_integers(uses, node) for node in products) and all(
        node.op_type == b"Conv" and _reads_integers(uses, node) and _is_quantized(uses, node) for node in others
    )


def _readers_of(uses: _Uses, names: list[bytes]) -> list[Node]:
    """The nodes that read values of these names, or what views make of them, but those views."""
    found: dict[int, Node] = {}
    seen = set(names)
    values = [*seen]
    for name in values:  # which grows meanwhile
        for node in uses.readers.get(name, ()):
            if node.op_type not in _VIEWS:
                found[id(node)] = node
            elif not seen.issuperset(node.outputs):
                values += node.outputs
                seen.update(node.outputs)
    return [*found.values()]


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
    is_alone = left == _UINT8 or _is_alone(uses, quantizing[0])
    is_only = len(readers) == 1 and product.outputs[0] not in uses.outputs
    return is_only and is_alone and len(quantizing[0].inputs) == 3 and uses.types.get(quantizing[0].inputs[2]) == left


def _reads_integers(uses: _Uses, product: Node) -> int:
    """The type of the left operand, if an integer kernel takes the operands of a product beyond doubt; else 0."""
    if len(product.inputs) < 2:
        raise _TooUnusual
    sources = [uses.producers.get(name) for name in product.inputs]
    left, right = (_dequantized_type(uses, source) for source in sources[:2])
    if left not in (_UINT8, _INT8) or right not in (_UINT8, _INT8) or _is_scaled(product) or b"" in product.inputs:
        return 0
    if left == _INT8 and (right != _INT8 or not _is_alone(uses, _producer(uses, sources[0]))):
        return 0
    return left if len(sources) < 3 or _dequantized_type(uses, sources[2]) == _INT32 else 0


def _is_scaled(product: Node) -> bool:
    """Whether a product has a factor other than 1."""
    return any(_ONE not in attribute and any(factor in attribute for factor in _FACTORS) for attribute in product.attributes)


def _dequantized_type(uses: _Uses, node: Node | None) -> int:
    """The type of the integers that a DequantizeLinear with a scale of float and a zero point takes; 0 for other nodes."""
    if node is None or node.op_type != b"DequantizeLinear" or len(node.inputs) != 3:
        return 0
    return uses.types.get(node.inputs[2], 0) if uses.types.get(node.inputs[1]) == _FLOAT else 0


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
