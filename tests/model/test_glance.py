"""The cheap look at a model, against what matching finds in it."""

from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from conformance.claims import write_model
from conformance.drawing.draft import Draft
from conformance.patterns.catalogue import PATTERNS
from conformance.patterns.pattern import Pattern
from ort_qdq_plugin import inspect
from ort_qdq_plugin.model.glance import is_quantized_throughout
from ort_qdq_plugin.model.held import dequantizes_by_hand
from ort_qdq_plugin.model.outline import Outline
from tests.fusion.test_integer_kernels import hows
from tests.fusion.test_integer_kernels import product as product_between

WIDTH = 32


def says(model: onnx.ModelProto) -> bool:
    return is_quantized_throughout(Outline(model.SerializeToString()))


def is_helped(data: bytes) -> bool:
    """Whether anything is fused or dequantized once, as matching decides."""
    report = inspect(data)
    return bool(report.fused) or any(entry.bytes_added for entry in report.unfused)


def product(
    kind: str = "MatMul", activation: str = "uint8", weight: str = "int8", view: str = "", constant_node: bool = False,
    zero_points: bool = True, quantized: bool = True, second: str = "",
) -> onnx.ModelProto:  # fmt: skip
    """x -> [QuantizeLinear -> DequantizeLinear] -> product with a dequantized weight."""
    draft = Draft("glance")
    x = draft.input("x", ["m", WIDTH])
    draft.output("y", ["m", WIDTH])
    if quantized:
        scale, zero_point = draft.scalar("scale", 0.1), draft.quantized("zero", activation, [])
        x = draft.node("DequantizeLinear", [draft.node("QuantizeLinear", [x, scale, zero_point]), scale, zero_point])
    draft.constant_nodes = constant_node
    operands = [draft.quantized("weight", weight, [WIDTH, WIDTH])]
    draft.constant_nodes = False
    operands += [draft.floats("scales", [WIDTH]), *([draft.quantized("zeros", weight, [WIDTH])] if zero_points else [])]
    right = draft.node("DequantizeLinear", operands, axis=1)
    if view:
        right = draft.node(view, [right])
    draft.node(kind, [x, right], "y")
    if second:
        draft.output(draft.node(second, [draft.input("z", ["m", WIDTH]), right], "v"), ["m", WIDTH])
    return draft.model()


@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_sees_models_that_are_quantized_throughout(kind: str) -> None:
    model = product(kind)
    assert says(model)
    assert not is_helped(model.SerializeToString())


@pytest.mark.parametrize(
    "how",
    [
        {"quantized": False},
        {"activation": "uint16"},
        {"view": "Transpose"},
        {"constant_node": True},
        {"kind": "Add", "quantized": False},
        {"second": "Add"},
        {"kind": "Conv", "second": "Add"},
    ],
    ids=str,
)
def test_leaves_others_to_matching(how: dict[str, Any]) -> None:
    assert not says(product(**how))


def test_a_constant_may_stand_behind_its_reader() -> None:
    """ONNX Runtime takes nodes in any order."""
    model = product(second="Add", constant_node=True)
    (constant,) = (node for node in model.graph.node if node.op_type == "Constant")
    others = [node for node in model.graph.node if node is not constant]
    (weight,) = constant.output
    constant.output[0] = "stored"
    nodes = [helper.make_node("Identity", ["stored"], [weight]), constant, *others]
    for order in (nodes, [nodes[0], *others, constant], [constant, nodes[0], *others]):
        ordered = onnx.ModelProto()
        ordered.CopyFrom(model)
        del ordered.graph.node[:]
        ordered.graph.node.extend(order)
        assert not says(ordered)


def dynamic(then: str = "") -> onnx.ModelProto:
    """tokens -> Gather of bytes -> DequantizeLinear -> a product on integers, as ONNX Runtime's quantizer writes it.

    `then`: an operator that reads its result and a dequantized weight.
    """
    draft = Draft("dynamic")
    draft.input("tokens", ["m"], "int64")
    for name in ("table", "weight", *(["other"] if then else [])):
        draft.quantized(name, "uint8", [WIDTH, WIDTH])
    draft.scalar("scale", 0.1)
    draft.quantized("zero", "uint8", [])
    draft.write(
        """
        gathered = Gather (table, tokens)
        row = DequantizeLinear (gathered, scale, zero)
        rounded, row_scale, row_zero = DynamicQuantizeLinear (row)
        whole = MatMulInteger (rounded, weight, row_zero, zero)
        real = Cast <to = 1> (whole)
        scales = Mul (row_scale, scale)
        y = Mul (real, scales)
        """
    )
    if then:
        draft.write(f"d = DequantizeLinear (other, scale, zero)  z = {then} (y, d)")
    draft.output("z" if then else "y", ["m", WIDTH])
    return draft.model()


def test_sees_models_that_are_quantized_dynamically() -> None:
    model = dynamic()
    onnx.checker.check_model(model)
    assert says(model)
    assert not is_helped(model.SerializeToString())


def test_leaves_weights_beside_dynamic_quantization_to_matching() -> None:
    model = dynamic("MatMul")
    assert is_helped(model.SerializeToString())
    assert not says(model)


@given(
    kind=st.sampled_from(["MatMul", "Gemm", "Add", "Conv", "Gather"]),
    activation=st.sampled_from(["uint8", "int8", "uint16", "int16"]),
    weight=st.sampled_from(["uint8", "int8", "int16"]),
    view=st.sampled_from(["", "Transpose", "Identity", "Relu"]),
    constant_node=st.booleans(),
    zero_points=st.booleans(),
    quantized=st.booleans(),
    second=st.sampled_from(["", "", "Add", "MatMul"]),
)
@settings(max_examples=300, deadline=None)
def test_never_hides_a_fusion(kind: str, **how: Any) -> None:
    data = product(kind, **how).SerializeToString()
    if is_quantized_throughout(Outline(data)):
        assert not is_helped(data)


@given(hows())
@settings(max_examples=500, deadline=None)
def test_never_hides_a_product_that_no_integer_kernel_takes(how: dict[str, Any]) -> None:
    data = product_between(**how).SerializeToString()
    if is_quantized_throughout(Outline(data)):
        assert not inspect(data).fused


@pytest.mark.parametrize("how", ["u8s8 per channel", "s8s8"])
@pytest.mark.parametrize("of", ["mlp", "convolutions"])
def test_sees_what_a_quantizer_writes(of: str, how: str, tmp_path: Path) -> None:
    """But for the ConvTranspose among the convolutions, of which ONNX Runtime has none in integers."""
    write_model(f"{of}, {how}", tmp_path / "model.onnx")
    data = (tmp_path / "model.onnx").read_bytes()
    assert is_quantized_throughout(Outline(data)) != is_helped(data)
    assert is_helped(data) == (of == "convolutions")


@pytest.mark.parametrize("pattern", [pytest.param(pattern, id=pattern.name) for pattern in PATTERNS])
@pytest.mark.parametrize("also", ["", "DynamicQuantizeLinear"])
def test_never_hides_a_pattern(pattern: Pattern, also: str) -> None:
    """Also beside an operator that has the model looked at more closely."""
    model = pattern.build()
    model.doc_string = also
    data = model.SerializeToString()
    if is_quantized_throughout(Outline(data)) and not dequantizes_by_hand(Outline(data)):
        assert not is_helped(data)


@pytest.mark.parametrize("constant_nodes", [False, True])
def test_never_hides_what_is_computed_from_constants(constant_nodes: bool) -> None:
    model = product()
    draft = Draft("computed")
    draft.constant_nodes = constant_nodes
    draft.quantized("u", "uint8", [WIDTH, WIDTH])
    draft.floats("r", [WIDTH])
    draft.node("DequantizeLinear", [draft.node("Identity", ["u"]), "r"], "d", axis=1)
    draft.node("MatMul", ["x", draft.node("Mul", ["d", draft.scalar("f", 2.0)])], "z")
    draft.output("z", ["m", WIDTH])
    drawn = draft.graph("computed")
    for field in ("node", "initializer", "output"):
        getattr(model.graph, field).extend(getattr(drawn, field))
    assert is_helped(model.SerializeToString())
    assert not says(model)


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
    assert is_quantized_throughout(Outline(data + b"\x0eQuantizeLinear")) in (True, False)


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_damaged_models_end_well(data: st.DataObject) -> None:
    image = bytearray(product().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    assert is_quantized_throughout(Outline(bytes(image))) in (True, False)
