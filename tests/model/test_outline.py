"""The outline of a model, against ONNX's own parser."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.outline import Graph, Node, Outline, Tensor
from tests.support import field

NAMES = st.sampled_from(["", "x", "a name", "n" * 130, "n" * 20_000])  # lengths of one, two and three bytes
SHAPES = st.lists(st.sampled_from([0, 1, 3, 200]), max_size=4).filter(lambda shape: np.prod(shape) <= 1000)


@st.composite
def tensors(draw: st.DrawFn) -> TensorProto:
    kind = draw(st.sampled_from([np.float32, np.int8, np.uint8, np.int64]))
    values = np.zeros(draw(SHAPES), kind)
    if draw(st.booleans()):
        return numpy_helper.from_array(values, draw(NAMES))
    # As ONNX Runtime's quantizers write scales, zero points and shapes.
    code = helper.np_dtype_to_tensor_dtype(values.dtype)
    return helper.make_tensor(draw(NAMES), code, values.shape, values.ravel().tolist())


@st.composite
def nodes(draw: st.DrawFn, depth: int) -> NodeProto:
    values: list[object] = [1, 0.5, "*2Z", [3, 4], draw(tensors())]
    if depth:
        values.append(draw(graphs(depth - 1)))
    given = draw(st.lists(st.sampled_from(values), max_size=3))
    inputs, outputs = draw(st.lists(NAMES, max_size=3)), draw(st.lists(NAMES, max_size=2))
    node = helper.make_node(draw(NAMES), inputs, outputs, domain=draw(NAMES))
    node.attribute.extend(helper.make_attribute(f"a{at}", value) for at, value in enumerate(given))
    return node


@st.composite
def graphs(draw: st.DrawFn, depth: int = 2) -> GraphProto:
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in draw(st.lists(NAMES, max_size=2))]
    return helper.make_graph(
        draw(st.lists(nodes(depth), max_size=3)), "graph", [], outputs, draw(st.lists(tensors(), max_size=3))
    )


def shown_graph(graph: Graph) -> object:
    return graph.initializers, [shown_node(node) for node in graph.nodes], graph.outputs


def shown_node(node: Node) -> object:
    held = node.attributes, node.tensors, [shown_graph(graph) for graph in node.graphs]
    return node.op_type, node.domain, node.inputs, node.outputs, *held


def parsed_graph(graph: GraphProto) -> object:
    outputs = [output.name.encode() for output in graph.output]
    return [parsed_tensor(tensor) for tensor in graph.initializer], [parsed_node(node) for node in graph.node], outputs


def parsed_tensor(tensor: TensorProto) -> Tensor:
    return tensor.name.encode(), tensor.data_type, len(tensor.dims) >= 2


def parsed_node(node: NodeProto) -> object:
    held = [attribute for attribute in node.attribute if attribute.type in (AttributeProto.TENSOR, AttributeProto.GRAPH)]
    return (
        node.op_type.encode(),
        node.domain.encode(),
        [name.encode() for name in node.input],
        [name.encode() for name in node.output],
        [attribute.SerializeToString() for attribute in node.attribute],
        [parsed_tensor(attribute.t) for attribute in held if attribute.type == AttributeProto.TENSOR],
        [parsed_graph(attribute.g) for attribute in held if attribute.type == AttributeProto.GRAPH],
    )


def model_of(graph: GraphProto) -> bytes:
    return bytes(helper.make_model(graph).SerializeToString())


@given(graphs())
@settings(max_examples=200, deadline=None)
def test_is_what_parsing_gives(graph: GraphProto) -> None:
    outline = Outline(model_of(graph))
    assert [shown_graph(graph) for graph in outline.graphs] == [parsed_graph(graph)]
    assert not outline.has_functions


def test_dimensions_that_are_packed_count_too() -> None:
    packed = field(1, b"\x80\x02\x03") + b"\x10\x03" + field(8, b"w")
    assert Outline(field(7, field(5, packed))).graphs[0].initializers == [(b"w", TensorProto.INT8, True)]


def test_fields_in_any_order() -> None:
    mixed = field(8, b"w") + b"\x08\x03" + b"\x10\x03" + b"\x08\x05"
    assert Outline(field(7, field(5, mixed))).graphs[0].initializers == [(b"w", TensorProto.INT8, True)]


def test_several_messages_of_a_graph_and_functions() -> None:
    data = field(7, b"") + field(7, field(1, field(4, b"Add"))) + field(25, b"")
    assert [[node.op_type for node in graph.nodes] for graph in Outline(data).graphs] == [[], [b"Add"]]
    assert Outline(data).has_functions


def test_graphs_that_are_nested_too_deeply() -> None:
    nested = b""
    for _ in range(200):
        nested = field(1, field(5, field(6, nested)))
    with pytest.raises(ModelError):
        _ = Outline(field(7, nested)).graphs


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_damaged_models_give_one_error(data: st.DataObject) -> None:
    node = helper.make_node("Add", ["x", "y"], ["z"], value=numpy_helper.from_array(np.zeros((2, 3), np.int8)))
    image = bytearray(model_of(helper.make_graph([node], "graph", [], [], [])))
    for _ in range(data.draw(st.integers(1, 4))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    for damaged in (bytes(image), bytes(image)[: data.draw(st.integers(0, len(image)))]):
        try:
            graphs = Outline(damaged).graphs
        except ModelError:
            continue
        assert all(isinstance(graph, Graph) for graph in graphs)


def test_is_read_once() -> None:
    outline = Outline(model_of(onnx.GraphProto()))
    assert outline.graphs is outline.graphs
