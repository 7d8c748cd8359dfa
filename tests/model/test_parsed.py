"""Parsing a skeleton: what is refused, which functions are inlined, and where references in attributes go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from conformance.drawing.weight import Weight
from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.encoding import bytes_field
from ort_qdq_plugin.model.parsed import ParsedModel, parse
from ort_qdq_plugin.model.skeleton import open_skeleton
from ort_qdq_plugin.model.wire import LARGE_TENSOR_BYTES
from tests.support import linear, save

MAX_ATTRIBUTES, MAX_GRAPHS = 1000, 10_000
OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
LARGE = np.arange(LARGE_TENSOR_BYTES // 4, dtype=np.float32)


def opened(model: ModelProto | str) -> ParsedModel:
    skeleton = open_skeleton(model if isinstance(model, str) else model.SerializeToString(), None)
    assert skeleton is not None
    return parse(skeleton)


def model_of(*nodes: NodeProto, functions: list[onnx.FunctionProto] | None = None) -> ModelProto:
    graph = helper.make_graph(list(nodes), "g", [], [])
    made: ModelProto = helper.make_model(graph, functions=functions, opset_imports=OPSETS, ir_version=10)
    return made


def large(name: str = "value") -> TensorProto:
    made: TensorProto = numpy_helper.from_array(LARGE, name)
    return made


# Parsing


def test_without_an_opset_nothing_is_a_model() -> None:
    model = linear(Weight())
    del model.opset_import[:]
    with pytest.raises(ModelError, match="no opset_import"):
        opened(model)


def test_what_protobuf_refuses_is_no_readable_model() -> None:
    opset_import = 8  # of ModelProto, in which no large tensor is looked for
    skeleton = open_skeleton(bytes_field(opset_import, b"\xff"), None)
    assert skeleton is not None
    with pytest.raises(ModelError, match="no readable model: DecodeError"):
        parse(skeleton)


def test_functions_are_checked() -> None:
    recursive = helper.make_function("local", "f", ["a"], ["b"], [call("f", "a", "b")], OPSETS)
    with pytest.raises(ModelError, match="calls itself"):
        opened(model_of(call("f", "x", "y"), functions=[recursive]))


def call(name: str, source: str, target: str, domain: str = "local") -> NodeProto:
    made: NodeProto = helper.make_node(name, source.split(), [target], domain=domain)
    return made


@pytest.mark.parametrize(
    ("body", "taken", "inlined"),
    [
        (call("DequantizeLinear", "a s", "b", domain=""), "w", True),
        (call("Neg", "a", "b", domain=""), "x", False),
        (call("Neg", "a", "b", domain=""), "d", True),
    ],
    ids=["dequantizes", "does something else", "takes what is dequantized"],
)
def test_functions_that_take_part_in_dequantizing_are_inlined(body: NodeProto, taken: str, inlined: bool) -> None:
    function = helper.make_function("local", "f", ["a", "s"], ["b"], [body], OPSETS)
    model = model_of(call("DequantizeLinear", "w s", "d", domain=""), call("f", f"{taken} s", "y"), functions=[function])
    parsed = opened(model).proto
    assert bool(parsed.functions) != inlined
    assert (parsed.graph.node[1].op_type == body.op_type) == inlined


# Finding tensors


def test_a_tensor_is_located_once(tmp_path: Path) -> None:
    path = save(linear(Weight()), tmp_path, "external")
    assert isinstance(path, str)
    model = opened(path)
    tensor = model.proto.graph.initializer[0]
    first = model.locate(tensor)
    assert first.read().tobytes() == (tmp_path / "model.data").read_bytes()[first.offset :][: first.nbytes]
    tensor.external_data[0].value = "gone.data"
    assert model.locate(tensor) is first


def test_that_a_tensor_is_not_there_is_found_once() -> None:
    model = opened(model_of())
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], raw_data=b"1234")
    for _ in range(2):
        with pytest.raises(ModelError, match="4 bytes stored"):
            model.locate(tensor)
        tensor.raw_data = b"12345678"


def test_a_file_that_is_not_there_is_a_broken_model(tmp_path: Path) -> None:
    path = save(linear(Weight()), tmp_path, "external")
    assert isinstance(path, str)
    (tmp_path / "model.data").unlink()
    model = opened(path)
    with pytest.raises(ModelError, match=r"model\.data"):
        model.locate(model.proto.graph.initializer[0])


def test_large_tensors_of_the_model_are_where_they_were_given() -> None:
    model = model_of()
    model.graph.initializer.append(large("w"))
    parsed = opened(model)
    stored = parsed.locate(parsed.proto.graph.initializer[0])
    assert stored.source is parsed.skeleton.source
    np.testing.assert_array_equal(stored.read().view(np.float32), LARGE)


# References in attributes


def branching(inside: NodeProto) -> NodeProto:
    branch: GraphProto = helper.make_graph([inside], "branch", [], [])
    made: NodeProto = helper.make_node("If", ["c"], ["y"], then_branch=branch)
    return made


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_a_large_constant_becomes_an_initializer(inside: bool, domain: str) -> None:
    constant = helper.make_node("Constant", [], ["w"], domain=domain, value=large())
    other = helper.make_node("Constant", [], ["small"], value=numpy_helper.from_array(np.array(1, np.float32)))
    parsed = opened(model_of(branching(constant) if inside else constant, other))
    graph = parsed.proto.graph
    graph = graph.node[0].attribute[0].g if inside else graph
    assert [node.output[0] for node in graph.node] == ([] if inside else ["small"])
    (tensor,) = graph.initializer
    assert (tensor.name, tensor.data_location) == ("w", TensorProto.EXTERNAL)
    np.testing.assert_array_equal(parsed.locate(tensor).read().view(np.float32), LARGE)


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Constant", [], ["w"], other=large()),
        helper.make_node("Constant", [], [], value=large()),
        helper.make_node("Constant", [], ["w"], domain="local", value=large()),
        helper.make_node("ConstantOfShape", ["s"], ["w"], value=large()),
    ],
    ids=["attribute of another name", "without an output", "of another domain", "another operator"],
)
def test_other_attributes_get_their_bytes_back(node: NodeProto) -> None:
    parsed = opened(model_of(node)).proto.graph
    assert list(parsed.node) == [node]
    assert not parsed.initializer


def test_constants_of_the_model_that_are_elsewhere_stay_as_they_are() -> None:
    """ONNX Runtime decides what to say of a Constant node that names a file."""
    elsewhere = TensorProto(name="value", data_type=1, dims=[2], data_location=TensorProto.EXTERNAL)
    elsewhere.external_data.add(key="location", value="w.data")
    node = helper.make_node("Constant", [], ["w"], value=elsewhere)
    assert list(opened(model_of(node)).proto.graph.node) == [node]


def with_attributes(count: int) -> ModelProto:
    node = NodeProto(op_type="Op", attribute=[AttributeProto(name=str(at)) for at in range(count)])
    return model_of(node)


def with_graphs(count: int) -> ModelProto:
    """As many graphs as that, the main one among them; half of the others in a list."""
    of_list = (count - 1) // 2
    nodes = [
        NodeProto(op_type="Op", attribute=[AttributeProto(name="g", g=GraphProto())]) for _ in range(count - 1 - of_list)
    ]
    nodes.append(NodeProto(op_type="Op", attribute=[AttributeProto(name="gs", graphs=[GraphProto()] * of_list)]))
    return model_of(*nodes)


@pytest.mark.parametrize(("made", "limit"), [(with_attributes, MAX_ATTRIBUTES), (with_graphs, MAX_GRAPHS)])
def test_as_many_as_no_real_model_has_are_taken_and_no_more(made: Callable[[int], ModelProto], limit: int) -> None:
    opened(made(limit))
    with pytest.raises(ModelError, match=f"{limit + 1} attributes|more than {limit} graphs"):
        opened(made(limit + 1))


@pytest.mark.parametrize("inside", [False, True])
def test_a_node_without_an_operator_is_refused(inside: bool) -> None:
    with pytest.raises(ModelError, match="no operator type"):
        opened(model_of(branching(NodeProto()) if inside else NodeProto()))
