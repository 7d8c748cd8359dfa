"""What quantized a model holds, seen without parsing it."""

from itertools import product

import onnx
import pytest
from onnx import TensorProto, helper

from conformance.drawing.draft import Draft
from conformance.drawing.elements import MS
from conformance.drawing.weight import Weight
from ort_qdq_plugin import StockReason, inspect
from ort_qdq_plugin.model.held import dequantizes_by_hand, other_forms
from ort_qdq_plugin.model.outline import Outline
from ort_qdq_plugin.model.wire import may_hold_small_integers
from ort_qdq_plugin.ort.keys import LOW_BIT_OPERATORS
from tests.support import field, floating, linear, opened, unquantized


def written_out(shape: tuple[int, ...] = (64, 48), op: str = "Cast", last: str = "Mul", constant: bool = False) -> Draft:
    draft = Draft("held")
    draft.input("x", ["m", 64])
    draft.constant_nodes = constant
    value = draft.quantized("w", "int8", shape)
    draft.constant_nodes = False
    value = draft.node("Reshape", [value, draft.ints("to", [64, -1])])
    value = draft.node(op, [value], "c", to=TensorProto.FLOAT)
    value = draft.node("Sub", [value, draft.scalar("z", 1)])
    draft.node("MatMul", ["x", draft.node(last, [value, draft.scalar("s", 1)])], "y")
    return draft


def test_sees_what_is_written_out() -> None:
    for constant in (False, True):
        assert dequantizes_by_hand(Outline(written_out(constant=constant).model().SerializeToString()))
    for draft in (written_out((64 * 48,)), written_out(op="Identity"), written_out(last="Add")):
        assert not dequantizes_by_hand(Outline(draft.model().SerializeToString()))


@pytest.mark.parametrize("nodes", [
    "y = MatMul(x, c)", "m = Sub(c, z)  y = MatMul(x, m)", "y = Gemm <transB = 1> (x, c)", "y = Gather(c, x)",
    "t = Transpose <perm = [1, 0]> (c)  y = MatMul(x, t)", "y = Conv(x, c)",
])  # fmt: skip
def test_sees_what_is_read_without_a_scale(nodes: str) -> None:
    for element, shape, is_seen in (("int8", (64, 48), True), ("int8", (64,), False), ("int32", (64, 48), False)):
        draft = Draft("held")
        draft.quantized("w", element, shape)
        draft.scalar("z", 1)
        draft.write(f"c = Cast <to = 1> (w)  {nodes}")
        assert dequantizes_by_hand(Outline(draft.model().SerializeToString())) == is_seen


def test_sees_it_in_subgraphs() -> None:
    draft = Draft("held")
    draft.input("c", [], "bool")
    branch = written_out()
    branch.inputs.clear()
    branch.output("y", None)
    draft.quantized("x", "int8", (3, 64))
    draft.output(draft.node("If", ["c"], "z", then_branch=branch.graph("one"), else_branch=branch.graph("two")), None)
    assert dequantizes_by_hand(Outline(draft.model().SerializeToString()))


def test_bytes_that_are_no_model() -> None:
    data = written_out().model().SerializeToString()
    for end, way in product(range(0, len(data), 7), (dequantizes_by_hand, other_forms)):
        way(Outline(data[:end]))
        way(Outline(data[end:]))
    nested = b""
    for _ in range(200):
        nested = field(1, field(5, field(6, nested)))
    assert not dequantizes_by_hand(Outline(field(7, nested)))


@pytest.mark.parametrize(
    ("op", "domain", "said"),
    [
        ("MatMulInteger", "", "dynamically quantized (MatMulInteger)"),
        ("ConvInteger", "", "dynamically quantized (ConvInteger)"),
        ("DynamicQuantizeLSTM", MS, "dynamically quantized (DynamicQuantizeLSTM)"),
        ("QLinearConv", "", "QOperator form (QLinearConv)"),
        ("QGemm", MS, "QOperator form (QGemm)"),
        ("MatMulBnb4", MS, "(MatMulBnb4)"),
        ("QMoE", MS, "(QMoE)"),
        ("GatherBlockQuantized", MS, "(GatherBlockQuantized)"),
        ("MatMul", "", ""),
    ],
)
def test_other_ways_to_be_quantized(op: str, domain: str, said: str) -> None:
    draft = Draft("held")
    draft.quantized("w", "uint8", (64, 48))
    draft.output(draft.node(op, [draft.input("x", None), "w"], "y", domain=domain), None)
    data = draft.model().SerializeToString()
    form = other_forms(Outline(data))
    assert said in form
    assert bool(form) == bool(said)
    seen = inspect(data, check=False)
    # Models that hold low-bit operators are parsed, since they may be handed over without a copy.
    other = StockReason.NOT_FUSIBLE if op in LOW_BIT_OPERATORS else StockReason.OTHER_FORM
    assert seen.stock_reason is (other if said else StockReason.NOT_QUANTIZED)
    assert seen.stock_detail == form


def test_names_count_for_nothing() -> None:
    """Only operators do: a value may be called as one."""
    draft = Draft("held")
    draft.quantized("w", "int8", (64, 48))
    draft.output(draft.node("MatMul", [draft.input("MatMulInteger", None), "w"], "QLinearConv"), None)
    assert other_forms(Outline(draft.model().SerializeToString())) == ""


def test_several_ways_at_once() -> None:
    draft = Draft("held")
    draft.quantized("w", "int8", (64, 48))
    for op in ("MatMulInteger", "DynamicQuantizeLinear", "QLinearAdd"):
        draft.output(draft.node(op, ["w", "w"]), None)
    said = other_forms(Outline(draft.model().SerializeToString()))
    assert said == (
        "dynamically quantized (DynamicQuantizeLinear, MatMulInteger): runs on integer kernels; "
        "statically quantized in QOperator form (QLinearAdd): runs on integer kernels"
    )


@pytest.mark.parametrize("element", ["int2", "uint2", "int4", "uint4", "int8", "uint8"])
@pytest.mark.parametrize("form", ["named", "unnamed", "typed", "external"])
def test_small_integers_are_found(element: str, form: str) -> None:
    model = linear(Weight(element, zero="none"))
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "w")
    tensor.dims[:] = [16, 16]
    raw = bytes(256 * int(element.lstrip("uint")) // 8)
    del tensor.external_data[:]
    tensor.ClearField("raw_data")
    if form == "typed":
        tensor.int32_data.extend(raw)
    elif form == "external":
        tensor.data_location = tensor.EXTERNAL
        tensor.external_data.add(key="location", value="w.data")
    else:
        tensor.raw_data = raw
    if form != "named":
        tensor.ClearField("name")
    assert may_hold_small_integers(opened(model.SerializeToString()).data)


@pytest.mark.parametrize("model", [unquantized(), floating()], ids=["small", "large"])
def test_models_in_float_are_seen_at_once(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Cast", ["x"], ["more"], to=TensorProto.DOUBLE))
    assert not may_hold_small_integers(opened(model.SerializeToString()).data)
