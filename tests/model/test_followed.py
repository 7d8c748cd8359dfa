"""Shapes that are followed, against ONNX's own inference: whole models, subgraphs, and what nobody knows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.parser import parse_graph, parse_model

from conformance.patterns.catalogue import PATTERNS
from conformance.patterns.pattern import Pattern
from ort_qdq_plugin.model.shapes import UNKNOWN
from tests.model.drawing import Dims
from tests.model.inferring import check, followed


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
@settings(max_examples=200, deadline=None)
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
@settings(max_examples=200, deadline=None)
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


# Subgraphs

BRANCH = "{name} () => ({dims} {name}_y) {{ {name}_a = {node} {name}_y = Neg ({name}_a) }}"


@pytest.mark.parametrize("then", ["Relu (x)", "Transpose (x)", "MatMul (x, w)", "Flatten <axis = 0> (x)", "local.Own (x)"])
@pytest.mark.parametrize("other", ["Relu (x)", "Transpose (x)", "Unsqueeze (x, zero)", "ReduceSum (x)", "local.Own (x)"])
@pytest.mark.parametrize("stated", ["float[]", "float[n, 4]", "float[4, 4]"])
def test_branches(then: str, other: str, stated: str) -> None:
    branches = [
        BRANCH.format(name=name, dims=dims, node=node) for name, dims, node in (("t", stated, then), ("e", "float[]", other))
    ]
    model = parse_model(f"""<ir_version: 10, opset_import: ["": 21, "local": 1]>
    g (bool c, float[n, 4] x, float[4, 4] w) => (float[] z) <int64[1] zero = {{0}}> {{
        y = If (c) <then_branch = {branches[0]}, else_branch = {branches[1]}>
        z = Relu (y)
    }}""")
    assert check(model) > 0


@pytest.mark.parametrize("opset", [10, 11, 13, 16, 21])
@pytest.mark.parametrize("state", ["float[]", "float[n, 4]"])
def test_loops(opset: int, state: str) -> None:
    """A state may change its shape on the way; what every turn gives is collected."""
    model = parse_model(f"""<ir_version: 8, opset_import: ["": {opset}]>
    g (int64 turns, bool on, float[n, 4] x) => (float[] z) <float[4, 4] w> {{
        last, all = Loop (turns, on, x) <
            body = body (int64 i, bool go, {state} s) => (bool stay, float[] next, float[] given) {{
                stay = Identity (go) next = Relu (s) given = MatMul (x, w)
            }}
        >
        z = Relu (last) y = Neg (all)
    }}""")
    assert check(model) >= 4


@pytest.mark.parametrize("opset", [10, 11, 16, 21])
@pytest.mark.parametrize(
    "attributes", ["", ", scan_input_axes = [1]", ", scan_output_axes = [-1]", ", scan_input_axes = [-1]"]
)
@pytest.mark.parametrize("stated", ["float[]", "float[n]"])
def test_scans(opset: int, attributes: str, stated: str) -> None:
    model = parse_model(f"""<ir_version: 8, opset_import: ["": {opset}]>
    g (float[k, k] x, float[k] start) => (float[] z) {{
        last, all = Scan (start, x) <num_scan_inputs = 1{attributes},
            body = body ({stated} s, float[] e) => (float[] next, float[] given) {{ next = Add (s, e) given = Relu (e) }}
        >
        z = Relu (last) y = Neg (all)
    }}""")
    assert check(model) >= 2


def test_a_constant_of_an_outer_graph_is_a_value_like_others() -> None:
    """ONNX's inference does not look at the numbers that it has, only how many they are."""
    branch = "{name} () => (float[] {name}_y) {{ {name}_y = Reshape (x, target) }}"
    model = parse_model(f"""<ir_version: 10, opset_import: ["": 21]>
    g (bool c, float[n, 4] x) => (float[] y) <int64[2] target = {{4, -1}}> {{
        y = If (c) <then_branch = {branch.format(name="t")}, else_branch = {branch.format(name="e")}>
    }}""")
    assert check(model) == 3
    assert followed(model)[0]["y"] == (None, None)


# What nobody knows


def test_behind_operators_that_are_unknown_there_is_nothing_to_infer() -> None:
    model = parse_model("""<ir_version: 10, opset_import: ["": 21, "local": 1]>
    g (float[n, 4] x, float[] open) => (float[] z) <float[4, 4] w, int64[2] target = {0, -1}> {
        a = local.Own (x) b = Relu (a) c = MatMul (b, w) d, e = Split <num_outputs = 2> (c) f = Concat <axis = 0> (x, d)
        g = Relu (open) h = Reshape (a, target) z = Add (h, x)
    }""")
    check(model)
    known = followed(model)[0]
    assert [known[name] for name in "abcdefg"] == [None] * 7
    assert known["h"] == (UNKNOWN, UNKNOWN)


def test_functions_of_the_model_may_tell() -> None:
    model = parse_model("""<ir_version: 10, opset_import: ["": 21, "local": 1]>
    g (float[n, 4] x) => (float[] z) { a = local.Own (x) z = Relu (a) }
    <domain: "local", opset_import: ["": 21]> Own (v) => (w) { w = Neg (v) }""")
    assert check(model) == 0


def test_other_opsets_of_onnx_itself_may_tell() -> None:
    model = parse_model("""<ir_version: 10, opset_import: ["": 21, "ai.onnx.ml": 3]>
    g (float[n, 4] x) => (float[] z) { a = ai.onnx.ml.Normalizer (x) z = Relu (a) }""")
    assert check(model) == 0


def test_early_opsets_are_left_to_the_inference() -> None:
    model = parse_model("""<ir_version: 8, opset_import: ["": 7]>
    g (float[n, 4] x) => (float[] z) { a = Relu (x) z = Max (x, a) }""")
    assert check(model) == 0


def test_shapes_that_no_tensor_can_have() -> None:
    """Ranks double with every lookup in a value by itself, and so do the digits of dimensions with every product."""
    nodes = ["i0 = Cast <to = 7> (x)  f0 = Flatten <axis = 1> (x)"]
    for at in range(60):
        nodes.append(f"i{at + 1} = Gather (i{at}, i{at})")
        nodes.append(f'e{at} = Einsum <equation = "ij,kl->ijkl"> (f{at}, f{at})  f{at + 1} = Flatten <axis = 2> (e{at})')
    model = parse_model(f"""<ir_version: 10, opset_import: ["": 21]>
    g (float[99, 99] x) => (float[] z) {{ {"  ".join(nodes)} z = Relu (f60) }}""")
    (known,) = followed(model)
    assert known["i3"] == (99,) * 9
    assert known["f1"] == (99**2, 99**2)
    assert not known.keys() & {"i10", "f10"}
