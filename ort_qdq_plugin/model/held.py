"""What quantized a serialized model holds beside DequantizeLinear, seen without parsing it.

Only models that hold small integers (`Skeleton.may_hold_small_integers`) are looked at.

Format facts: ModelProto, GraphProto, NodeProto, AttributeProto and TensorProto in onnx.proto, in protobuf's wire format.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.elements import WEIGHT_TYPES
from ort_qdq_plugin.model.operators import OPERATORS
from ort_qdq_plugin.model.wire import LENGTH, VARINT, WireReader

__all__ = ["dequantizes_by_hand", "forms_among", "other_forms"]

_GRAPH, _NODE, _INITIALIZER = 7 << 3 | LENGTH, 1 << 3 | LENGTH, 5 << 3 | LENGTH
_INPUT, _OUTPUT, _OP_TYPE, _ATTRIBUTE = (number << 3 | LENGTH for number in (1, 2, 4, 5))
_TENSOR_OF, _GRAPH_OF, _GRAPHS_OF = 5 << 3 | LENGTH, 6 << 3 | LENGTH, 11 << 3 | LENGTH  # of an attribute
_DIM, _PACKED_DIMS, _DATA_TYPE, _TENSOR_NAME = 1 << 3 | VARINT, 1 << 3 | LENGTH, 2 << 3 | VARINT, 8 << 3 | LENGTH

_WEIGHT_RANK = 2
_MAX_DEPTH = 20  # of graphs in nodes of graphs

_READERS = {b"Mul", b"Div", *(row.op_type.encode() for row in OPERATORS if row.role == "reader")}
_VIEWS = {row.op_type.encode() for row in OPERATORS if row.role in ("view", "folded")}

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


def dequantizes_by_hand(data: bytes) -> bool:
    """Whether a Mul, a Div or what takes weights reads what a Cast makes of a stored matrix of small integers.

    Between them may be what can be folded.
    `data` is a serialized ModelProto without large tensors. Functions of the model are not looked into.
    """
    integers: set[bytes] = set()
    floats: set[bytes] = set()
    for item in _walked(data):
        if isinstance(item, bytes):
            integers.add(item)
        elif item.op_type in _READERS and not floats.isdisjoint(item.inputs):
            return True
        elif item.op_type in _VIEWS and item.inputs:
            # Initializers come before the nodes that read them, wherever they are in the message.
            is_float = item.inputs[0] in floats or (item.op_type == b"Cast" and item.inputs[0] in integers)
            if is_float or not integers.isdisjoint(item.inputs):
                (floats if is_float else integers).update(item.outputs)
    return False


def other_forms(data: bytes) -> str:
    """In which other ways than by DequantizeLinear a model is quantized, in words; "" if in none. `data`: as above."""
    return forms_among(item.op_type.decode("ascii", "replace") for item in _walked(data) if isinstance(item, _Node))


def forms_among(op_types: Iterable[str]) -> str:
    """The same for operators of these types."""
    found, said = sorted(set(op_types)), []
    for sentence, prefixes in _FORMS:
        types = [op_type for op_type in found if op_type.startswith(prefixes)]
        if types:
            said.append(sentence.format(", ".join(types)))
    return "; ".join(said)


class _Node(NamedTuple):
    op_type: bytes
    inputs: list[bytes]
    outputs: list[bytes]


def _walked(data: bytes) -> Iterator[bytes | _Node]:
    """The names of a model's stored matrices of small integers, and its nodes, of each graph after its matrices.

    It ends where the bytes are no model.
    """
    reader = WireReader(data)
    try:
        for _, key, start, end in reader.fields(0, len(data)):
            if key == _GRAPH:
                yield from _walked_graph(data, reader, start, end, 0)
    except (IndexError, ModelError):
        return


def _walked_graph(data: bytes, reader: WireReader, start: int, end: int, depth: int) -> Iterator[bytes | _Node]:
    fields = list(reader.fields(start, end))
    for _, key, first, last in fields:
        if key == _INITIALIZER and (name := _matrix(data, reader, first, last)) is not None:
            yield name
    for _, key, first, last in fields:
        if key != _NODE:
            continue
        node = _Node(b"", [], [])
        for _, part, at, after in reader.fields(first, last):
            if part == _OP_TYPE:
                node = node._replace(op_type=data[at:after])
            elif part in (_INPUT, _OUTPUT):
                (node.inputs if part == _INPUT else node.outputs).append(data[at:after])
            elif part == _ATTRIBUTE and depth < _MAX_DEPTH:
                for _, inner, here, there in reader.fields(at, after):
                    if inner in (_GRAPH_OF, _GRAPHS_OF):
                        yield from _walked_graph(data, reader, here, there, depth + 1)
                    elif inner == _TENSOR_OF and _matrix(data, reader, here, there) is not None:
                        yield from node.outputs  # a Constant's
        yield node


def _matrix(data: bytes, reader: WireReader, start: int, end: int) -> bytes | None:
    """The name of a tensor of small integers that has two axes or more; None for others."""
    name, data_type, rank = b"", 0, 0
    for _, key, at, after in reader.fields(start, end):
        if key == _DIM:
            rank += 1
        elif key == _PACKED_DIMS:
            rank += sum(byte < 0x80 for byte in data[at:after])  # the last byte of each number
        elif key == _DATA_TYPE:
            data_type = reader.varint(at, after)[0]
            if data_type not in WEIGHT_TYPES:
                return None
        elif key == _TENSOR_NAME:
            name = data[at:after]
            break
    return name if data_type in WEIGHT_TYPES and rank >= _WEIGHT_RANK else None
