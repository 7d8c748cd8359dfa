"""A look at a serialized model's nodes, without parsing it: is there anything in it that could be fused?

Many models are quantized throughout, activations too. They have hundreds of DequantizeLinear nodes, none of which can be
fused, and need not wait for what parsing and matching import.

Format facts: ModelProto, GraphProto, NodeProto and TensorProto in onnx.proto, in protobuf's wire format.
"""

from __future__ import annotations

from typing import NamedTuple

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.elements import ELEMENTS, INT8, UINT8, WEIGHT_TYPES
from ort_qdq_plugin.model.operators import OPERATORS
from ort_qdq_plugin.model.sources import MemorySource
from ort_qdq_plugin.model.wire import LENGTH, VARINT, Field, WireReader

__all__ = ["is_quantized_throughout"]

_GRAPH, _FUNCTION = 7 << 3 | LENGTH, 25 << 3 | LENGTH
_NODE, _INITIALIZER = 1 << 3 | LENGTH, 5 << 3 | LENGTH
_INPUT, _OUTPUT, _OP_TYPE, _ATTRIBUTE, _DOMAIN = (number << 3 | LENGTH for number in (1, 2, 4, 5, 7))
_DATA_TYPE, _TENSOR_NAME = 2 << 3 | VARINT, 8 << 3 | LENGTH

_BELOW_A_BYTE = {code for code in WEIGHT_TYPES if ELEMENTS[code].bits < 8}
_VIEWS = {row.op_type.encode() for row in OPERATORS if row.role == "view"}
_READERS = {row.op_type.encode() for row in OPERATORS if row.fused_by}
# Those of which ONNX Runtime has integer kernels.
_PRODUCTS = {row.op_type.encode() for row in OPERATORS if row.fused_by == "matmul"}
_SHORTEST_READER = min(map(len, _READERS))
_DEQUANTIZE_DOMAINS = {row.domain.encode() for row in OPERATORS if row.role == "dequantize"} | {b"ai.onnx"}
_QUANTIZE = b"\x0eQuantizeLinear"  # with its length, which tells it from DequantizeLinear


def is_quantized_throughout(data: bytes) -> bool:
    """Whether no DequantizeLinear of this model can be fused, because every product of one has quantized activations too.

    `data` is a serialized ModelProto without large tensors. True is certain, False says nothing.
    """
    # Blocks and elements of less than a byte are fused whatever the activations are.
    if b"block_size" in data or _QUANTIZE not in data:
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


def _is_quantized_throughout(data: bytes) -> bool:
    reader = WireReader(MemorySource(data))
    found = [field for field in reader.fields(0, len(data)) if field[1] in (_GRAPH, _FUNCTION)]
    if [key for _, key, _, _ in found] != [_GRAPH]:
        raise _TooUnusual
    parts = list(reader.fields(*found[0][2:]))
    types = dict(_initializer(data, reader, field) for field in parts if field[1] == _INITIALIZER)
    if not _BELOW_A_BYTE.isdisjoint(types.values()):
        return False
    nodes = [_node(data, reader, field) for field in parts if field[1] == _NODE]
    computed = {name for node in nodes if node.op_type != b"Constant" for name in node.outputs}
    # What DequantizeLinear makes of 8-bit integers, and all that it makes.
    from_bytes: set[bytes] = set()
    dequantized: set[bytes] = set()
    for node in nodes:
        if node.op_type == b"DequantizeLinear":
            if node.inputs[0] not in types and node.inputs[0] not in computed:
                return False  # a Constant node's value, of which nothing is known here
            dequantized.update(node.outputs)
            zero_point = node.inputs[2] if len(node.inputs) > 2 else b""
            if not zero_point or types.get(zero_point) in (UINT8, INT8):
                from_bytes.update(node.outputs)
    views = [node for node in nodes if node.op_type in _VIEWS]
    while any(not dequantized.isdisjoint(view.inputs) and not dequantized.issuperset(view.outputs) for view in views):
        for view in views:
            if not dequantized.isdisjoint(view.inputs):
                dequantized.update(view.outputs)
    readers = [node for node in nodes if node.op_type in _READERS and not dequantized.isdisjoint(node.inputs)]
    return all(node.op_type in _PRODUCTS and from_bytes.issuperset(node.inputs[:2]) for node in readers)


def _node(data: bytes, reader: WireReader, node: Field) -> _Node:
    op_type, domain = b"", b""
    inputs: list[bytes] = []
    outputs: list[bytes] = []
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
    if at != end or (op_type == b"DequantizeLinear" and (not inputs or domain not in _DEQUANTIZE_DOMAINS)):
        raise _TooUnusual
    return _Node(op_type, inputs, outputs)


def _initializer(data: bytes, reader: WireReader, tensor: Field) -> tuple[bytes, int]:
    """The name and the element type of an initializer. Serializers write both before its bytes."""
    name, data_type = None, 0
    for _, key, start, after in reader.fields(*tensor[2:]):
        if key == _DATA_TYPE:
            data_type = reader.varint(start, after)[0]
        elif key == _TENSOR_NAME:
            name = data[start:after]
        if name is not None and data_type:
            return name, data_type
    raise _TooUnusual
