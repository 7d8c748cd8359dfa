"""Parsing a skeleton: what is refused, which functions are inlined, and where references in attributes go."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from conformance.drawing.weight import Weight
from ort_qdq_plugin.model.encoding import bytes_field
from ort_qdq_plugin.model.parsed import ParsedModel, parse
from ort_qdq_plugin.model.wire import LARGE_TENSOR_BYTES
from tests.support import linear, opened, refusing, save

MAX_ATTRIBUTES, MAX_GRAPHS = 1000, 10_000
OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
LARGE = np.arange(LARGE_TENSOR_BYTES // 4, dtype=np.float32)


def parsed_from(model: ModelProto | str) -> ParsedModel:
    return parse(opened(model if isinstance(model, str) else model.SerializeToString()))


def model_of(*nodes: NodeProto, functions: list[onnx.FunctionProto] | None = None) -> ModelProto:
    graph = helper.make_graph(list(nodes), "g", [], [])
    made: ModelProto = helper.make_model(graph, functions=functions, opset_imports=OPSETS, ir_version=10)
    return made


def large(name: str = "value") -> TensorProto:
    made: TensorProto = numpy_helper.from_array(LARGE, name)
    return made


# Parsing


def call(name: str, source: str, target: str, domain: str = "local") -> NodeProto:
    made: NodeProto = helper.make_node(name, source.split(), [target], domain=domain)
    return made


def branching(inside: NodeProto) -> NodeProto:
    branch: GraphProto = helper.make_graph([inside], "branch", [], [])
    made: NodeProto = helper.make_node("If", ["c"], ["y"], then_branch=branch)
    return made


RECURSIVE = helper.make_function("local", "f", ["a"], ["b"], [call("f", "a", "b")], OPSETS)
REFUSED: dict[str, tuple[ModelProto, str]] = {
    "no opset": (ModelProto(ir_version=10, graph=linear(Weight()).graph), "no opset_import"),
    "a function that calls itself": (model_of(call("f", "x", "y"), functions=[RECURSIVE]), "calls itself"),
    "a node without an operator": (model_of(NodeProto()), "no operator type"),
    "one in a branch": (model_of(branching(NodeProto())), "no operator type"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    model, problem = REFUSED[name]
    with refusing(problem):
        parsed_from(model)


def test_what_protobuf_refuses_is_no_readable_model() -> None:
    opset_import = 8  # of ModelProto, in which no large tensor is looked for
    skeleton = opened(bytes_field(opset_import, b"\xff") + model_of().SerializeToString())
    with refusing("not a readable ONNX model: DecodeError"):
        parse(skeleton)


def with_attributes(count: int) -> ModelProto:
    return model_of(NodeProto(op_type="Op", attribute=[AttributeProto(name=str(at)) for at in range(count)]))


def with_graphs(count: int) -> ModelProto:
    """A number of graphs: the main one, one of an attribute, and the others in a list."""
    graphs = [AttributeProto(name="g", g=GraphProto()), AttributeProto(name="gs", graphs=[GraphProto()] * (count - 2))]
    return model_of(NodeProto(op_type="Op", attribute=graphs))


@pytest.mark.parametrize(("made", "limit"), [(with_attributes, MAX_ATTRIBUTES), (with_graphs, MAX_GRAPHS)])
def test_as_many_as_no_real_model_has_are_taken_and_no_more(made: Callable[[int], ModelProto], limit: int) -> None:
    parsed_from(made(limit))
    with refusing(f"{limit + 1} attributes|more than {limit} graphs"):
        parsed_from(made(limit + 1))


@pytest.mark.parametrize(("operator", "source", "taken", "inlined"), [
    ("DequantizeLinear", "a s", "w", True), ("Neg", "a", "x", False), ("Neg", "a", "d", True),
], ids=["dequantizes", "does something else", "takes what is dequantized"])  # fmt: skip
def test_functions_that_take_part_in_dequantizing_are_inlined(operator: str, source: str, taken: str, inlined: bool) -> None:
    body = call(operator, source, "b", domain="")
    function = helper.make_function("local", "f", ["a", "s"], ["b"], [body], OPSETS)
    model = model_of(call("DequantizeLinear", "w s", "d", domain=""), call("f", f"{taken} s", "y"), functions=[function])
    parsed = parsed_from(model).proto
    assert bool(parsed.functions) != inlined
    assert (parsed.graph.node[1].op_type == operator) == inlined


# Finding tensors


@pytest.mark.needs("free names")
def test_a_tensor_is_located_once_and_refused_where_its_file_is_not_there(tmp_path: Path) -> None:
    model = parsed_from(str(save(linear(Weight()), tmp_path, "external")))
    tensor = model.proto.graph.initializer[0]
    first = model.locate(tensor)
    assert first.read().tobytes() == (tmp_path / "model.data").read_bytes()[first.offset :][: first.nbytes]
    tensor.external_data[0].value = "gone.data"
    assert model.locate(tensor) is first
    (tmp_path / "model.data").unlink()
    broken = parsed_from(str(tmp_path / "model.onnx"))
    with refusing(r"model\.data"):
        broken.locate(broken.proto.graph.initializer[0])


def test_that_a_tensor_is_not_there_is_found_once() -> None:
    model = parsed_from(model_of())
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], raw_data=b"1234")
    for _ in range(2):
        with refusing("4 bytes stored"):
            model.locate(tensor)
        tensor.raw_data = b"12345678"


def test_large_tensors_of_the_model_are_where_they_were_given() -> None:
    model = model_of()
    model.graph.initializer.append(large("w"))
    parsed = parsed_from(model)
    stored = parsed.locate(parsed.proto.graph.initializer[0])
    assert stored.source is parsed.skeleton.source
    np.testing.assert_array_equal(stored.read().view(np.float32), LARGE)


# References in attributes


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_a_large_constant_becomes_an_initializer(inside: bool, domain: str) -> None:
    constant = helper.make_node("Constant", [], ["w"], domain=domain, value=large())
    other = helper.make_node("Constant", [], ["small"], value=numpy_helper.from_array(np.array(1, np.float32)))
    parsed = parsed_from(model_of(branching(constant) if inside else constant, other))
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
    parsed = parsed_from(model_of(node)).proto.graph
    assert list(parsed.node) == [node]
    assert not parsed.initializer


def test_a_constant_in_a_file_becomes_an_initializer(tmp_path: Path) -> None:
    """ONNX Runtime does not find it there once it is given other files in memory."""
    node = helper.make_node("Constant", [], ["w"], value=large())
    path = tmp_path / "model.onnx"
    onnx.save(model_of(node), path, save_as_external_data=True, location="w.data", size_threshold=0, convert_attribute=True)
    parsed = parsed_from(str(path))
    (tensor,) = parsed.proto.graph.initializer
    assert (tensor.name, list(parsed.proto.graph.node)) == ("w", [])
    np.testing.assert_array_equal(parsed.locate(tensor).read().view(np.float32), LARGE)


def test_constants_that_are_not_where_they_should_be_stay_as_they_are() -> None:
    """ONNX Runtime decides what to say of a Constant node that names a file."""
    elsewhere = TensorProto(name="value", data_type=1, dims=[2], data_location=TensorProto.EXTERNAL)
    elsewhere.external_data.add(key="location", value="w.data")
    node = helper.make_node("Constant", [], ["w"], value=elsewhere)
    assert list(parsed_from(model_of(node)).proto.graph.node) == [node]
