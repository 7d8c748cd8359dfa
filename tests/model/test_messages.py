"""Messages: what they are asked for and how they are made, against the onnx package's own helpers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from ort_qdq_plugin.model.messages import (
    attribute,
    attributes,
    external_tensors,
    is_standard,
    made_node,
    made_tensor,
    onnx_library,
    refer,
    subgraphs,
)


def graph(name: str, *nodes: NodeProto, external: str = "") -> GraphProto:
    """A graph of these nodes, with an initializer of its own and perhaps one whose bytes are elsewhere."""
    own = numpy_helper.from_array(np.array(1, np.float32), "own")
    made: GraphProto = helper.make_graph(list(nodes), name, [], [], [own])
    if external:
        made.initializer.append(TensorProto(name=external, data_location=TensorProto.EXTERNAL))
    return made


@pytest.mark.parametrize(
    ("domain", "standard"), [("", True), ("ai.onnx", True), ("com.microsoft", False), ("ai.onnx.ml", False)]
)
def test_the_standard_domain_has_two_names(domain: str, standard: bool) -> None:
    assert is_standard(NodeProto(op_type="Add", domain=domain)) == standard


def test_attributes_by_name() -> None:
    made = helper.make_node("Gemm", [], [], alpha=0.5, transB=1)
    found = attribute(made, "alpha")
    assert isinstance(found, AttributeProto)
    assert found.f == 0.5
    assert attribute(made, "beta") is None
    assert sorted(attributes(made)) == ["alpha", "transB"]


def test_subgraphs_come_in_the_order_of_attributes() -> None:
    node = NodeProto(op_type="Custom")
    node.attribute.add(name="one", type=AttributeProto.GRAPH, g=graph("a"))
    node.attribute.add(name="number", type=AttributeProto.INT, i=1)
    node.attribute.add(name="many", type=AttributeProto.GRAPHS, graphs=[graph("b"), graph("c")])
    assert [inner.name for inner in subgraphs(node)] == ["a", "b", "c"]
    assert subgraphs(made_node("Neg", ["x"], ["y"])) == []


def test_external_tensors_are_found_in_all_graphs() -> None:
    inner = graph("inner", external="c")
    branch = graph(
        "branch", helper.make_node("If", ["k"], ["i"], then_branch=inner, else_branch=graph("none")), external="b"
    )
    main = graph("main", helper.make_node("If", ["k"], ["y"], then_branch=branch, else_branch=graph("none")), external="a")
    assert [tensor.name for tensor in external_tensors(main)] == ["a", "b", "c"]


def test_a_reference_takes_the_place_of_bytes_and_of_another_reference() -> None:
    tensor = numpy_helper.from_array(np.arange(3, dtype=np.float32), "w")
    for location, offset in (("one", 0), ("two", 4096)):
        refer(tensor, location, offset, 12)
        assert {entry.key: entry.value for entry in tensor.external_data} == {
            "location": location,
            "offset": str(offset),
            "length": "12",
        }
        assert len(tensor.external_data) == 3
    assert tensor.data_location == TensorProto.EXTERNAL
    assert not tensor.HasField("raw_data")
    assert (tensor.name, list(tensor.dims)) == ("w", [3])


@pytest.mark.parametrize("numbers", [{}, {"axis": -1}, {"perm": [1, 0, -2]}, {"K": 3, "ints": (4, 5)}])
def test_nodes_are_as_onnx_makes_them(numbers: dict[str, Any]) -> None:
    made = made_node("Op", ["a", "", "b"], ["c"], name="n", domain="d", **numbers)
    wanted = helper.make_node("Op", ["a", "", "b"], ["c"], name="n", domain="d", **numbers)
    assert attributes(made) == attributes(wanted)
    del made.attribute[:], wanted.attribute[:]
    assert made == wanted


@pytest.mark.parametrize(
    "array", [np.arange(6, dtype=np.int64).reshape(2, 3), np.float32(2.5), np.zeros((0, 4), np.float16)]
)
def test_tensors_are_as_onnx_makes_them(array: np.ndarray) -> None:
    wanted = numpy_helper.from_array(np.asarray(array), "t")
    assert made_tensor(wanted.data_type, array.shape, array.tobytes(), "t") == wanted


def test_modules_of_onnx_are_those_of_the_package() -> None:
    assert onnx_library("onnx.defs") is onnx.defs
