"""Messages: what they are asked for and how they are made, against the onnx package's own helpers."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.parser import parse_graph

from ort_qdq_plugin.model import messages


@pytest.mark.parametrize(
    ("domain", "standard"), [("", True), ("ai.onnx", True), ("com.microsoft", False), ("ai.onnx.ml", False)]
)
def test_the_standard_domain_has_two_names(domain: str, standard: bool) -> None:
    assert messages.is_standard(NodeProto(op_type="Add", domain=domain)) == standard


def test_attributes_by_name() -> None:
    made = helper.make_node("Gemm", [], [], alpha=0.5, transB=1)
    found = messages.attribute(made, "alpha")
    assert isinstance(found, AttributeProto)
    assert found.f == 0.5
    assert messages.attribute(made, "beta") is None
    assert sorted(messages.attributes(made)) == ["alpha", "transB"]


def test_subgraphs_come_in_the_order_of_attributes() -> None:
    node = NodeProto(op_type="Custom")
    node.attribute.add(name="one", type=AttributeProto.GRAPH, g=GraphProto(name="a"))
    node.attribute.add(name="number", type=AttributeProto.INT, i=1)
    node.attribute.add(name="many", type=AttributeProto.GRAPHS, graphs=[GraphProto(name="b"), GraphProto(name="c")])
    assert [inner.name for inner in messages.subgraphs(node)] == ["a", "b", "c"]
    assert messages.subgraphs(messages.made_node("Neg", ["x"], ["y"])) == []


def test_external_tensors_are_found_in_all_graphs() -> None:
    graph = parse_graph("""main () => () <float[1] own = {1}, float[1] a = ["location": "w"]> {
        y = If (k) <then_branch = branch () => () <float[1] b = ["location": "w"]> {
            i = If (k) <then_branch = inner () => () <float[1] c = ["location": "w"], float[1] mine = {1}> {}>
        }, else_branch = none () => () <float[1] n = {1}> {}>
    }""")
    assert [tensor.name for tensor in messages.external_tensors(graph)] == ["a", "b", "c"]


def test_a_reference_takes_the_place_of_bytes_and_of_another_reference() -> None:
    tensor = numpy_helper.from_array(np.arange(3, dtype=np.float32), "w")
    for location, offset in (("one", 0), ("two", 4096)):
        messages.refer(tensor, location, offset, 12)
        entries = [(entry.key, entry.value) for entry in tensor.external_data]
        assert sorted(entries) == [("length", "12"), ("location", location), ("offset", str(offset))]
    assert tensor.data_location == TensorProto.EXTERNAL
    assert not tensor.HasField("raw_data")
    assert (tensor.name, list(tensor.dims)) == ("w", [3])


@pytest.mark.parametrize("numbers", [{}, {"axis": -1}, {"perm": [1, 0, -2]}, {"K": 3, "ints": (4, 5)}])
def test_nodes_are_as_onnx_makes_them(numbers: dict[str, Any]) -> None:
    made = messages.made_node("Op", ["a", "", "b"], ["c"], name="n", domain="d", **numbers)
    wanted = helper.make_node("Op", ["a", "", "b"], ["c"], name="n", domain="d", **numbers)
    assert messages.attributes(made) == messages.attributes(wanted)
    del made.attribute[:], wanted.attribute[:]
    assert made == wanted


@pytest.mark.parametrize(
    "array", [np.arange(6, dtype=np.int64).reshape(2, 3), np.float32(2.5), np.zeros((0, 4), np.float16)]
)
def test_tensors_are_as_onnx_makes_them(array: np.ndarray) -> None:
    wanted = numpy_helper.from_array(np.asarray(array), "t")
    assert messages.made_tensor(wanted.data_type, array.shape, array.tobytes(), "t") == wanted


def test_modules_of_onnx_are_those_of_the_package() -> None:
    assert messages.onnx_library("onnx.defs") is onnx.defs
