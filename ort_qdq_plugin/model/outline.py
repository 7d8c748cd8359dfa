"""The outline of a serialized model: its nodes, and the types of its initializers, read without parsing it.

Format facts: ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto and ValueInfoProto in onnx.proto, in protobuf's
wire format.
"""

from __future__ import annotations

from functools import cached_property
from typing import TypeAlias

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.wire import LENGTH, VARINT, WireReader

__all__ = ["Graph", "Node", "Outline", "Tensor"]

_GRAPH, _FUNCTION = 7 << 3 | LENGTH, 25 << 3 | LENGTH  # of a model
_NODE, _INITIALIZER, _GRAPH_OUTPUT = 1 << 3 | LENGTH, 5 << 3 | LENGTH, 12 << 3 | LENGTH  # of a graph
_INPUT, _OUTPUT, _OP_TYPE, _ATTRIBUTE, _DOMAIN = (number << 3 | LENGTH for number in (1, 2, 4, 5, 7))  # of a node
_TENSOR_OF, _GRAPH_OF, _GRAPHS_OF = 5 << 3 | LENGTH, 6 << 3 | LENGTH, 11 << 3 | LENGTH  # of an attribute
_VALUE_NAME = 1 << 3 | LENGTH  # of a graph's output
_DIM, _PACKED_DIMS = 1 << 3 | VARINT, 1 << 3 | LENGTH  # of a tensor
_DATA_TYPE, _TENSOR_NAME = 2 << 3 | VARINT, 8 << 3 | LENGTH

_VALUES = bytes(number << 3 | LENGTH for number in (4, 5, 7))  # float_data, int32_data, int64_data
_MATRIX_RANK = 2
_MAX_DEPTH = 20  # of graphs in nodes of graphs

# These are no named tuples, each of which takes a fifth of a millisecond to make.
Tensor: TypeAlias = tuple[bytes, int, bool]
"""What an initializer, or a tensor of an attribute, says before its bytes: its name, its data_type (0: it is not said), and
whether it has two axes or more."""


class Node:
    """A node, and what its attributes hold."""

    __slots__ = ("attributes", "domain", "graphs", "inputs", "op_type", "outputs", "tensors")

    def __init__(self) -> None:
        self.op_type = self.domain = b""
        self.inputs: list[bytes] = []
        self.outputs: list[bytes] = []
        # Lists: a node of a hostile model has tens of thousands.
        self.attributes: list[bytes] = []  # serialized
        self.tensors: list[Tensor] = []
        self.graphs: list[Graph] = []


class Graph:
    """A graph: a model's own, or one in an attribute."""

    __slots__ = ("initializers", "nodes", "outputs")

    def __init__(self) -> None:
        self.initializers: list[Tensor] = []
        self.nodes: list[Node] = []
        self.outputs: list[bytes] = []


class Outline:
    """The outline of a model. It is read when it is first asked for."""

    def __init__(self, data: bytes) -> None:
        """`data` is a serialized ModelProto without large tensors (`wire.without_large_tensors`)."""
        self.data = data

    @cached_property
    def graphs(self) -> list[Graph]:
        """The model's graph; models whose writers have put several together have as many. Functions are not looked into.

        Raises:
            ModelError: The bytes are no model.
        """
        reader = WireReader(self.data)
        try:
            fields = reader.fields(0, len(self.data))
            return [_graph(self.data, reader, start, end, 0) for _, key, start, end in fields if key == _GRAPH]
        except IndexError:
            raise ModelError("a node or a tensor ends behind the model") from None

    @property
    def has_functions(self) -> bool:
        """Whether the model has functions of its own. Raises ModelError as `graphs`."""
        return any(key == _FUNCTION for _, key, _, _ in WireReader(self.data).fields(0, len(self.data)))


def _graph(data: bytes, reader: WireReader, start: int, end: int, depth: int) -> Graph:
    graph = Graph()
    for _, key, first, last in reader.fields(start, end):
        if key == _NODE:
            graph.nodes.append(_node(data, reader, first, last, depth))
        elif key == _INITIALIZER:
            graph.initializers.append(_tensor(data, reader, first, last))
        elif key == _GRAPH_OUTPUT:
            fields = reader.fields(first, last)
            graph.outputs.extend(data[at:after] for _, part, at, after in fields if part == _VALUE_NAME)
    return graph


def _node(data: bytes, reader: WireReader, at: int, end: int, depth: int) -> Node:
    node = Node()
    while at < end:
        key, length = data[at], data[at + 1]
        start = at + 2
        if length > 0x7F or key & 0x87 != LENGTH:
            # Few fields have a longer key or length, or are of another wire type.
            _, key, start, after = next(reader.fields(at, end))
            length = after - start
        at = start + length
        if key == _INPUT:
            node.inputs.append(data[start:at])
        elif key == _OUTPUT:
            node.outputs.append(data[start:at])
        elif key == _OP_TYPE:
            node.op_type = data[start:at]
        elif key == _DOMAIN:
            node.domain = data[start:at]
        elif key == _ATTRIBUTE:
            attribute = data[start:at]
            node.attributes.append(attribute)
            if _TENSOR_OF in attribute or _GRAPH_OF in attribute or _GRAPHS_OF in attribute:
                for _, part, first, last in reader.fields(start, at):
                    if part == _TENSOR_OF:
                        node.tensors.append(_tensor(data, reader, first, last))
                    elif part in (_GRAPH_OF, _GRAPHS_OF):
                        if depth == _MAX_DEPTH:
                            raise ModelError(f"graphs nested deeper than {_MAX_DEPTH}")
                        node.graphs.append(_graph(data, reader, first, last, depth + 1))
    if at != end:
        raise ModelError("a node's field ends behind it")
    return node


def _tensor(data: bytes, reader: WireReader, at: int, end: int) -> Tensor:
    """Serializers write what is asked for here before a tensor's bytes, in the order of the fields' numbers."""
    name, data_type, rank = b"", 0, 0
    while at < end and data[at] == _DIM:
        at += 2
        while data[at - 1] > 0x7F:
            at += 1
        rank += 1
    # Nearly all have these next: models have hundreds.
    start = at + 4
    if start < end and data[at] == _DATA_TYPE and (data_type := data[at + 1]) < 0x80:
        if data[at + 2] in _VALUES and data[at + 3] < 0x80:
            start += 2 + data[at + 3]  # the few values of a scale, a zero point or a shape
        if start < end and data[start - 2] == _TENSOR_NAME and data[start - 1] < 0x80:
            after = start + data[start - 1]
            if after <= end:
                return data[start:after], data_type, rank >= _MATRIX_RANK
    data_type = 0
    for _, key, start, after in reader.fields(at, end):
        if key == _DIM:
            rank += 1
        elif key == _PACKED_DIMS:
            rank += sum(byte < 0x80 for byte in data[start:after])  # the last byte of each number
        elif key == _DATA_TYPE:
            data_type = reader.varint(start, after)[0]
        elif key == _TENSOR_NAME:
            name = data[start:after]
            if data_type:
                break
    return name, data_type, rank >= _MATRIX_RANK
