"""Shapes that are followed here, against ONNX's own inference."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, shape_inference
from onnx.parser import parse_graph

from conformance.patterns.catalogue import PATTERNS
from conformance.patterns.pattern import Pattern
from ort_qdq_plugin.model.graph import model_scope
from ort_qdq_plugin.model.shapes import followed_shapes, stated_shapes

Dims = list[int | str | None]


def check(model: onnx.ModelProto) -> int:
    """Compare every shape that is followed; how many values of the model's nodes those are."""
    followed = followed_shapes(model.graph, model_scope(model).constant)
    inferred = stated_shapes(shape_inference.infer_shapes(model).graph)
    produced = {name for node in model.graph.node for name in node.output} & followed.keys()
    assert {name: followed[name] for name in produced} == {name: inferred[name] for name in produced}
    return len(produced)


def graph(nodes: Sequence[onnx.NodeProto], inputs: dict[str, Dims], constants: dict[str, Any]) -> onnx.ModelProto:
    """A model that gives the first output of its last node."""
    proto = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in inputs.items()],
        [helper.make_empty_tensor_value_info(nodes[-1].output[0])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("pattern", [pytest.param(pattern, id=pattern.name) for pattern in PATTERNS])
def test_patterns(pattern: Pattern) -> None:
    check(pattern.build())


dims = st.lists(st.sampled_from([1, 2, 3, "a", "b", None]), min_size=1, max_size=4)


@given(left=dims, right=dims, op=st.sampled_from(["Add", "Mul", "Where"]))
@settings(max_examples=300, deadline=None)
def test_broadcasting(left: Dims, right: Dims, op: str) -> None:
    names = ["c", "x", "z"] if op == "Where" else ["x", "z"]
    model = graph([helper.make_node(op, names, ["y"])], {"x": left, "z": right, "c": [1]}, {})
    model.graph.input[-1].type.tensor_type.elem_type = TensorProto.BOOL
    if compatible(left, right):
        check(model)


def compatible(left: Dims, right: Dims) -> bool:
    """Whether known dimensions fit: ONNX's inference says nothing of others."""
    pairs = zip(reversed(left), reversed(right), strict=False)
    return all(not isinstance(a, int) or not isinstance(b, int) or a == b or 1 in (a, b) for a, b in pairs)


@given(shape=dims, data=st.data())
@settings(max_examples=300, deadline=None)
def test_chains_of_views(shape: Dims, data: st.DataObject) -> None:
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Any] = {}
    rank, value = len(shape), "x"
    for step in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["Transpose", "Unsqueeze", "Reshape", "Relu", "Slice", "Concat", "Softmax"]))
        constant, inputs = f"c{step}", [value]
        attributes: dict[str, Any] = {}
        if kind == "Transpose":
            attributes["perm"] = data.draw(st.permutations(range(rank)))
        elif kind == "Unsqueeze":
            constants[constant] = [data.draw(st.integers(-rank - 1, rank))]
            inputs.append(constant)
            rank += 1
        elif kind == "Reshape":
            constants[constant] = [0] * rank
            inputs.append(constant)
            if data.draw(st.booleans()):
                constants[constant][data.draw(st.integers(0, rank - 1))] = -1
        elif kind == "Slice":
            nodes.append(helper.make_node("Shape", ["x"], [f"ends{step}"], start=0, end=1))
            constants[constant] = [0]
            inputs += [constant, f"ends{step}", constant]
        elif kind == "Concat":
            inputs.append(value)
            attributes["axis"] = data.draw(st.integers(-rank, rank - 1))
        elif kind == "Softmax":
            attributes["axis"] = -1
        value = f"v{step}"
        nodes.append(helper.make_node(kind, inputs, [value], **attributes))
    check(graph(nodes, {"x": shape}, constants))


@given(
    batch=st.lists(st.sampled_from([1, 2, "a", None]), max_size=2),
    m=st.sampled_from([1, 5, "m", None]),
    k=st.sampled_from([4, 8]),
    n=st.sampled_from([1, 3, 16]),
)
@settings(max_examples=100, deadline=None)
def test_products_and_gathers(batch: Dims, m: int | str | None, k: int, n: int) -> None:
    drawn = parse_graph("""g () => () {
        product = MatMul (x, w)  normal = LayerNormalization (product, scale)  rank = Shape (normal)
        rows = Gather <axis = 0> (w, indices)  columns = Gather <axis = -1> (w, indices)  gemm = Gemm <transA = 1> (w, w)
    }""")
    constants = {"w": np.zeros((k, n), np.float32), "scale": np.ones(n, np.float32), "indices": np.zeros((2, 1), np.int64)}
    assert check(graph(drawn.node, {"x": [*batch, m, k]}, constants)) == len(drawn.node)


def test_what_an_input_says_counts_where_it_is_an_output_too() -> None:
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape) for shape in ([4, None, 128], [100, 4])]
    assert stated_shapes(helper.make_graph([], "g", values[:1], values[1:])) == {"x": (4, None, 128)}
