"""A look at a serialized model's nodes, without parsing it: is there anything in it that could be fused or dequantized once?

Many models are quantized throughout, activations too. They have hundreds of DequantizeLinear nodes, all of which have to
stay, or, quantized dynamically, one behind each lookup. They need not wait for what parsing and matching import.

Format facts: ModelProto, GraphProto, NodeProto and TensorProto in onnx.proto, in protobuf's wire format.
"""

from __future__ import annotations

from typing import NamedTuple

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.elements import CODES, ELEMENTS, FLOAT, INT8, UINT8, WEIGHT_TYPES
from ort_qdq_plugin.model.operators import OPERATORS
from ort_qdq_plugin.model.wire import LENGTH, VARINT, Field, WireReader

__all__ = ["is_quantized_throughout"]

_GRAPH, _FUNCTION = 7 << 3 | LENGTH, 25 << 3 | LENGTH
_NODE, _INITIALIZER, _GRAPH_OUTPUT = 1 << 3 | LENGTH, 5 << 3 | LENGTH, 12 << 3 | LENGTH
_INPUT, _OUTPUT, _OP_TYPE, _ATTRIBUTE, _DOMAIN = (number << 3 | LENGTH for number in (1, 2, 4, 5, 7))
_DIM, _PACKED_DIMS = 1 << 3 | VARINT, 1 << 3 | LENGTH
_DATA_TYPE, _TENSOR_NAME = 2 << 3 | VARINT, 8 << 3 | LENGTH

_BELOW_A_BYTE = {code for code in WEIGHT_TYPES if ELEMENTS[code].bits < 8}
_VIEWS = {row.op_type.encode() for row in OPERATORS if row.role == "view"}
# Of a Conv only weights below a byte are fused.
_READERS = {row.op_type.encode() for row in OPERATORS if row.fused_by not in ("", "conv")}
# Those of which ONNX Runtime has integer kernels.
_PRODUCTS = {row.op_type.encode() for row in OPERATORS if row.fused_by == "matmul"}
_SHORTEST_READER = min(map(len, _READERS))
_DEQUANTIZE_DOMAINS = {row.domain.encode() for row in OPERATORS if row.role == "dequantize"} | {b"ai.onnx"}
_WEIGHT_RANK = 2
_WITH_GRAPHS = {b"If", b"Loop", b"Scan", b"SequenceMap"}
_QUANTIZE = b"\x0eQuantizeLinear"  # with its length, which tells it from DequantizeLinear
_QUANTIZE_DYNAMICALLY = b"DynamicQuantize"  # how such types begin: ...Linear, ...LSTM, ...MatMul
# What an attribute that is a factor of 1 contains, as field `f`, whatever it is called.
_FACTORS, _ONE = (b"alpha", b"beta"), b"\x15\x00\x00\x80\x3f"
# What stands behind a product without changing which integer kernel takes it, it seems; only matching can tell.
_UNSURE = _VIEWS | {b"Add", b"Clip", b"MaxPool", b"Relu", b"Slice"}


def is_quantized_throughout(data: bytes) -> bool:
    """Whether every DequantizeLinear of this model has to stay, because all that reads one has quantized activations too.

    `data` is a serialized ModelProto without large tensors. True is certain of what is fused, False says nothing. A Conv
    between a dequantized input and a quantized result is taken to be computed in integers, as it nearly always is: where it
    is not, for what a Clip leaves or a bias's scale, its weight could have been dequantized once.
    """
    # Blocks and elements of less than a byte are fused whatever the activations are.
    if b"block_size" in data or (_QUANTIZE not in data and _QUANTIZE_DYNAMICALLY not in data):
        return False
    try:
        return _is_quantized_throughout(data)
    except (IndexError, ModelError, _TooUnusual):
        return False


class _TooUnusual(Exception):
    """Only parsing can tell."""


class _Node(NamedTuple):
    op_type: bytes
    inputs: list[bytes]
    outputs: list[bytes]
    is_scaled: bool = False  # by a factor other than 1


class _Graph(NamedTuple):
    types: dict[bytes, int]  # of the initializers
    outputs: set[bytes]
    producers: dict[bytes, _Node]
    readers: dict[bytes, list[_Node]]  # once for each input that reads


def _is_quantized_throughout(data: bytes) -> bool:
    reader = WireReader(data)
    found = [field for field in reader.fields(0, len(data)) if field[1] in (_GRAPH, _FUNCTION)]
    if [key for _, key, _, _ in found] != [_GRAPH]:
        raise _TooUnusual
    parts = list(reader.fields(*found[0][2:]))
    initializers = [_initializer(data, reader, field) for field in parts if field[1] == _INITIALIZER]
    types = {name: data_type for name, data_type, _ in initializers}
    vectors = {name for name, _, rank in initializers if rank < _WEIGHT_RANK}
    if not _BELOW_A_BYTE.isdisjoint(types.values()):
        return False
    nodes = [_node(data, reader, field) for field in parts if field[1] == _NODE]
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
    outputs = {_name_of(data, reader, field) for field in parts if field[1] == _GRAPH_OUTPUT}
    graph = _Graph(types, outputs, {name: node for node in nodes for name in node.outputs}, {})
    for node in nodes:
        for name in node.inputs:
            graph.readers.setdefault(name, []).append(node)
    others = [node for node in nodes if node.op_type not in _READERS | _VIEWS and not weights.isdisjoint(node.inputs)]
    return all(_is_computed_on_integers(graph, node) for node in readers) and all(
        node.op_type == b"Conv" and _reads_integers(graph, node) and _is_quantized(graph, node) for node in others
    )


def _is_quantized(graph: _Graph, node: _Node) -> bool:
    """Whether a node's result is quantized, maybe after a Clip or a Relu."""
    readers = [reader for name in node.outputs for reader in graph.readers.get(name, [])]
    if len(readers) == 1 and readers[0].op_type in (b"Clip", b"Relu"):
        readers = [reader for name in readers[0].outputs for reader in graph.readers.get(name, [])]
    return any(reader.op_type == b"QuantizeLinear" for reader in readers)


def _is_computed_on_integers(graph: _Graph, product: _Node) -> bool:
    """Whether an integer kernel takes a product beyond doubt (`fusion.integer_kernels`)."""
    left = _reads_integers(graph, product)
    if not left:
        return False
    readers = graph.readers.get(product.outputs[0], [])
    if any(node.op_type in _UNSURE for node in readers):
        return False
    quantizing = [node for node in readers if node.op_type == b"QuantizeLinear"]
    if not quantizing:
        return True
    is_alone = left == UINT8 or _is_alone(graph, quantizing[0])
    is_only = len(readers) == 1 and product.outputs[0] not in graph.outputs
    return is_only and is_alone and len(quantizing[0].inputs) == 3 and graph.types.get(quantizing[0].inputs[2]) == left


def _reads_integers(graph: _Graph, product: _Node) -> int:
    """The type of the left operand, if an integer kernel takes the operands of a product beyond doubt; else 0."""
    if len(product.inputs) < 2:
        raise _TooUnusual
    sources = [graph.producers.get(name) for name in product.inputs]
    left, right = (_dequantized_type(graph, source) for source in sources[:2])
    if left not in (UINT8, INT8) or right not in (UINT8, INT8) or product.is_scaled or b"" in product.inputs:
        return 0
    if left == INT8 and (right != INT8 or not _is_alone(graph, _producer(graph, sources[0]))):
        return 0
    return left if len(sources) < 3 or _dequantized_type(graph, sources[2]) == CODES["int32"] else 0


def _dequantized_type(graph: _Graph, node: _Node | None) -> int:
    """The type of the integers that a DequantizeLinear with a scale of float and a zero point takes; 0 for other nodes."""
    if node is None or node.op_type != b"DequantizeLinear" or len(node.inputs) != 3:
        return 0
    return graph.types.get(node.inputs[2], 0) if graph.types.get(node.inputs[1]) == FLOAT else 0


def _producer(graph: _Graph, node: _Node | None) -> _Node | None:
    """The node that produces another one's first input."""
    return None if node is None or not node.inputs else graph.producers.get(node.inputs[0])


def _is_alone(graph: _Graph, quantize: _Node | None) -> bool:
    """Whether a QuantizeLinear is the only one of its input, and has one DequantizeLinear with one reader."""
    if quantize is None or quantize.op_type != b"QuantizeLinear" or len(quantize.inputs) != 3:
        return False
    dequantizing = graph.readers.get(quantize.outputs[0], [])
    others = [node for node in graph.readers[quantize.inputs[0]] if node.op_type == b"QuantizeLinear"]
    if len(others) != 1 or len(dequantizing) != 1 or quantize.outputs[0] in graph.outputs:
        return False
    dequantize = dequantizing[0]
    if dequantize.op_type != b"DequantizeLinear" or dequantize.inputs[1:] != quantize.inputs[1:]:
        return False
    return all(len(graph.readers.get(name, [])) + (name in graph.outputs) <= 1 for name in dequantize.outputs)


def _node(data: bytes, reader: WireReader, node: Field) -> _Node:
    op_type, domain = b"", b""
    inputs: list[bytes] = []
    outputs: list[bytes] = []
    is_scaled = False
    at, end = node[2:]
    while at < end:
        key, length = data[at], data[at + 1]
        start = at + 2
        if length > 0x7F or key > 0x7F or key & 7 != LENGTH:
            # Few fields have a longer key or length, or are of another wire type.
            _, key, start, after = next(reader.fields(at, end))
            length = after - start
        at = start + length
        if key == _INPUT:
            inputs.append(data[start:at])
        elif key == _OUTPUT:
            outputs.append(data[start:at])
        elif key == _OP_TYPE:
            op_type = data[start:at]
        elif key == _DOMAIN:
            domain = data[start:at]
        elif key == _ATTRIBUTE and length > _SHORTEST_READER:
            attribute = data[start:at]
            if any(reader in attribute for reader in _READERS):
                raise _TooUnusual  # it has a graph
            is_scaled |= any(factor in attribute for factor in _FACTORS) and _ONE not in attribute
    if at != end or op_type in _WITH_GRAPHS:
        raise _TooUnusual
    if op_type == b"DequantizeLinear" and (not inputs or domain not in _DEQUANTIZE_DOMAINS):
        raise _TooUnusual
    return _Node(op_type, inputs, outputs, is_scaled)


def _name_of(data: bytes, reader: WireReader, value: Field) -> bytes:
    """The name of a ValueInfoProto, its first field."""
    for _, key, start, after in reader.fields(*value[2:]):
        if key == _INPUT:
            return data[start:after]
    raise _TooUnusual


def _initializer(data: bytes, reader: WireReader, tensor: Field) -> tuple[bytes, int, int]:
    """The name, the element type and the rank of an initializer. Serializers write all of them before its bytes."""
    name, data_type, rank = None, 0, 0
    for _, key, start, after in reader.fields(*tensor[2:]):
        if key == _DIM:
            rank += 1
        elif key == _PACKED_DIMS:
            rank += sum(byte < 0x80 for byte in data[start:after])  # the last byte of each number
        elif key == _DATA_TYPE:
            data_type = reader.varint(start, after)[0]
        elif key == _TENSOR_NAME:
            name = data[start:after]
        if name is not None and data_type and rank:
            break
    if name is None or not data_type:
        raise _TooUnusual
    return name, data_type, rank
