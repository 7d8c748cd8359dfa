"""A look at a serialized model's nodes, without parsing it: is there anything in it that could be fused?

Many models are quantized throughout, activations too. They have hundreds of DequantizeLinear nodes, none of which can be
fused, and need not wait for what parsing and matching import.

Format facts: ModelProto, GraphProto, NodeProto and TensorProto in onnx.proto, in protobuf's wire format.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ort_qdq_plugin.model.elements import ELEMENTS, INT8, UINT8, WEIGHT_TYPES
from ort_qdq_plugin.model.operators import OPERATORS

__all__ = ["is_quantized_throughout"]

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # wire types, the low three bits of a field's key
_GRAPH, _FUNCTION = 7 << 3 | _LENGTH, 25 << 3 | _LENGTH
_NODE, _INITIALIZER = 1 << 3 | _LENGTH, 5 << 3 | _LENGTH
_INPUT, _OUTPUT, _OP_TYPE, _ATTRIBUTE, _DOMAIN = (number << 3 | _LENGTH for number in (1, 2, 4, 5, 7))
_DATA_TYPE, _TENSOR_NAME = 2 << 3 | _VARINT, 8 << 3 | _LENGTH

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

    Args:
        data: A serialized ModelProto without large tensors.

    Returns:
        True if that is certain. False says nothing.
    """
    # Blocks and elements of less than a byte are fused whatever the activations are.
    if b"block_size" in data or _QUANTIZE not in data:
        return False
    try:
        return _is_quantized_throughout(data)
    except (IndexError, _TooUnusual):
        return False


class _TooUnusual(Exception):
    """Only parsing can tell."""


class _Field(NamedTuple):
    key: int
    start: int
    end: int
    value: int  # of a varint


class _Node(NamedTuple):
    op_type: bytes
    inputs: list[bytes]
    outputs: list[bytes]


def _is_quantized_throughout(data: bytes) -> bool:
    parts = list(_graph(data))
    types = dict(_initializer(data, field) for field in parts if field.key == _INITIALIZER)
    if not _BELOW_A_BYTE.isdisjoint(types.values()):
        return False
    nodes = [_node(data, field) for field in parts if field.key == _NODE]
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


def _graph(data: bytes) -> Iterator[_Field]:
    """The fields of the main graph."""
    found = [field for field in _fields(data, 0, len(data)) if field.key in (_GRAPH, _FUNCTION)]
    if [field.key for field in found] != [_GRAPH]:
        raise _TooUnusual
    return _fields(data, found[0].start, found[0].end)


def _node(data: bytes, node: _Field) -> _Node:
    op_type, domain = b"", b""
    inputs: list[bytes] = []
    outputs: list[bytes] = []
    at, end = node.start, node.end
    while at < end:
        key, length = data[at], data[at + 1]
        start = at + 2
        if length > 0x7F or key > 0x7F or key & 7 != _LENGTH:
            # Few fields have a longer key or length, or are of another wire type.
            field = next(_fields(data, at, end))
            key, start, length = field.key, field.start, field.end - field.start
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


def _initializer(data: bytes, tensor: _Field) -> tuple[bytes, int]:
    """The name and the element type of an initializer. Serializers write both before its bytes."""
    name, data_type = None, 0
    for field in _fields(data, tensor.start, tensor.end):
        if field.key == _DATA_TYPE:
            data_type = field.value
        elif field.key == _TENSOR_NAME:
            name = data[field.start : field.end]
        if name is not None and data_type:
            return name, data_type
    raise _TooUnusual


def _fields(data: bytes, at: int, end: int) -> Iterator[_Field]:
    while at < end:
        key, at = _varint(data, at)
        wire_type = key & 7
        if wire_type == _LENGTH:
            length, at = _varint(data, at)
            yield _Field(key, at, at + length, 0)
            at += length
        elif wire_type == _VARINT:
            start = at
            value, at = _varint(data, at)
            yield _Field(key, start, at, value)
        else:
            start, at = at, at + {_FIXED64: 8, _FIXED32: 4}.get(wire_type, len(data))
            yield _Field(key, start, at, 0)
    if at != end:
        raise _TooUnusual


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at byte `at`, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
