"""The cheap look at a model, against what matching finds in it."""

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from conformance.patterns.catalogue import PATTERNS
from conformance.patterns.pattern import Pattern
from ort_qdq_plugin import inspect
from ort_qdq_plugin.model.glance import is_quantized_throughout

WIDTH = 32


def says(model: onnx.ModelProto) -> bool:
    return is_quantized_throughout(model.SerializeToString())


def product(
    kind: str = "MatMul",
    activation: str = "uint8",
    weight: str = "int8",
    view: str = "",
    constant_node: bool = False,
    zero_points: bool = True,
    quantized: bool = True,
) -> onnx.ModelProto:
    """x -> [QuantizeLinear -> DequantizeLinear] -> product with a dequantized weight -> [Relu]."""
    types = {"int8": np.int8, "uint8": np.uint8, "uint16": np.uint16, "int16": np.int16}
    tensors = [
        numpy_helper.from_array(np.array(0.1, np.float32), "scale"),
        numpy_helper.from_array(np.array(3, types[activation]), "zero"),
        numpy_helper.from_array(np.full(WIDTH, 0.01, np.float32), "weight_scales"),
        numpy_helper.from_array(np.zeros(WIDTH, types[weight]), "weight_zeros"),
    ]
    stored = numpy_helper.from_array(np.ones((WIDTH, WIDTH), types[weight]), "weight")
    nodes = []
    if constant_node:
        nodes.append(helper.make_node("Constant", [], ["weight"], value=stored))
    else:
        tensors.append(stored)
    x = "x"
    if quantized:
        nodes.append(helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]))
        nodes.append(helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]))
        x = "d"
    operands = ["weight", "weight_scales", *(["weight_zeros"] if zero_points else [])]
    nodes.append(helper.make_node("DequantizeLinear", operands, ["w"], axis=1))
    right = "w"
    if view:
        attributes: dict[str, Any] = {"perm": [1, 0]} if view == "Transpose" else {}
        nodes.append(helper.make_node(view, ["w"], ["seen"], **attributes))
        right = "seen"
    nodes.append(helper.make_node(kind, [x, right], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", WIDTH])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("kind", ["MatMul", "Gemm", "Add"])
def test_sees_models_that_are_quantized_throughout(kind: str) -> None:
    model = product(kind)
    assert says(model)
    assert not inspect(model.SerializeToString()).fused


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(product(quantized=False), id="no quantized activations"),
        pytest.param(product(activation="uint16"), id="activations of 16 bits"),
        pytest.param(product(view="Transpose"), id="weight behind a Transpose"),
        pytest.param(product(constant_node=True), id="weight in a Constant node"),
    ],
)
def test_leaves_others_to_matching(model: onnx.ModelProto) -> None:
    assert not says(model)


@given(
    kind=st.sampled_from(["MatMul", "Gemm", "Add", "Conv"]),
    activation=st.sampled_from(["uint8", "int8", "uint16", "int16"]),
    weight=st.sampled_from(["uint8", "int8", "int16"]),
    view=st.sampled_from(["", "Transpose", "Identity", "Relu"]),
    constant_node=st.booleans(),
    zero_points=st.booleans(),
    quantized=st.booleans(),
    shuffle=st.randoms(),
)
@settings(max_examples=300, deadline=None)
def test_never_hides_a_fusion(kind: str, shuffle: object, **how: object) -> None:
    model = product(kind, **how)  # type: ignore[arg-type]
    data = model.SerializeToString()
    if is_quantized_throughout(data):
        assert not inspect(data).fused


@pytest.mark.parametrize("pattern", [pytest.param(pattern, id=pattern.name) for pattern in PATTERNS])
def test_never_hides_a_pattern(pattern: Pattern) -> None:
    model = pattern.build()
    if says(model):
        assert not inspect(model.SerializeToString()).fused


def test_nodes_in_any_order() -> None:
    """ONNX wants them sorted; where they are not, a fusion must not be hidden either."""
    model = product(view="Transpose")
    nodes = list(reversed(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert not says(model)


@given(st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
def test_any_bytes_end_well(data: bytes) -> None:
    assert is_quantized_throughout(data + b"\x0eQuantizeLinear") in (True, False)


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_damaged_models_end_well(data: st.DataObject) -> None:
    image = bytearray(product().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    assert is_quantized_throughout(bytes(image)) in (True, False)
