"""inspect against sessions: what it says of each weight is what becomes of it, and where there is no session, nothing is."""

from collections.abc import Callable
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from conformance.drawing.draft import Draft
from conformance.drawing.elements import MS, TYPES, raw_tensor
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR
from ort_qdq_plugin import Report, StockReason, create_session, inspect
from tests.support import CPU, made_report, quiet, refusing

K, N = 64, 32
Change = Callable[[onnx.ModelProto], object]


def judged(model: onnx.ModelProto) -> Report:
    """What inspect says, compared with what becomes of the model."""
    stored = bytes(model.SerializeToString())
    seen = inspect(stored)
    try:
        session = create_session(stored, quiet(), CPU)
    except Exception:
        assert seen.stock_reason is not None, "there is no session"
        assert not seen.fused
        assert not any(left.bytes_per_run for left in seen.unfused) or seen.stock_reason is not StockReason.REFUSED
        return seen
    made = made_report(session)
    assert (seen.fused, seen.unfused, seen.stock_reason) == (made.fused, made.unfused, made.stock_reason)
    assert (seen.packed_bytes, seen.borrowed_bytes) == (made.packed_bytes, made.borrowed_bytes)
    return seen


def drawn(opset: int = 21, **weight: Any) -> Draft:
    """y = x @ W with W per channel, which all opsets have."""
    draft = Draft("verdicts", opset=opset)
    stored: dict[str, Any] = {"axis": 1, "block": PER_CHANNEL, "element": "int8", "zero": "none", **weight}
    draft.node("MatMul", [draft.input("x", ("m", K)), draft.dequantize("w", (K, N), **stored)], "y")
    draft.output("y", ("m", N))
    return draft


def then(*nodes: tuple[Any, ...], kind: str = "float") -> Change:
    """Other nodes behind the product: operator, inputs, output, attributes. The last one's output is one of the model's."""

    def change(model: onnx.ModelProto) -> None:
        for op, inputs, output, *rest in nodes:
            model.graph.node.append(helper.make_node(op, inputs.split(), [output], **dict(*rest)))
        model.graph.output.append(helper.make_tensor_value_info(model.graph.node[-1].output[0], TYPES[kind], None))

    return change


def imports(domain: str, version: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        del model.opset_import[:]
        model.opset_import.append(helper.make_opsetid(domain, version))

    return change


def size(of: str, value: int) -> Change:
    """Another number of columns for the input or the output."""
    return lambda model: setattr(getattr(model.graph, of)[0].type.tensor_type.shape.dim[1], "dim_value", value)


def large_weight(rows: int) -> Change:
    """A product with a large weight of floats behind the other one."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(raw_tensor("v", TensorProto.FLOAT, [rows, 64], bytes(rows * 64 * 4)))
        then(("MatMul", "y v", "z"))(model)

    return change


def branch(model: onnx.ModelProto) -> None:
    """An operator that does not exist, in a branch."""
    names = {"then_branch": "Nonsense", "else_branch": "Relu"}
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, ["y"], [op])], name, [], [helper.make_tensor_value_info(op, TensorProto.FLOAT, None)]
        )
        for name, op in names.items()
    }
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    then(("If", "c", "z", branches))(model)


def no_file(model: onnx.ModelProto) -> None:
    large_weight(N)(model)
    tensor = model.graph.initializer[-1]
    tensor.ClearField("raw_data")
    tensor.data_location = tensor.EXTERNAL
    tensor.external_data.add(key="location", value="missing.data")


def too_short(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(raw_tensor("v", TensorProto.FLOAT, [N], b"ab"))
    then(("Add", "y v", "z"))(model)


# What is done to a model whose weight is fused, so that no session takes it.
REFUSED: dict[str, Change] = {
    "an operator that does not exist": then(("Nonsense", "y", "z")),
    "one in ONNX Runtime's domain": then(("Nonsense", "y", "z", {"domain": MS})),
    "one in a domain that is not imported": then(("Nonsense", "y", "z", {"domain": "local"})),
    "one in a branch": branch,
    "an attribute of another type": then(("Softmax", "y", "z", {"axis": "x"})),
    "an attribute that is not there": then(("Softmax", "y", "z", {"nonsense": 1})),
    "an input that is not there": then(("Add", "y nothing", "z")),
    "too few inputs": then(("Add", "y", "z")),
    "types that do not fit": then(("Cast", "y", "i", {"to": TensorProto.INT32}), ("Add", "y i", "z")),
    "a cycle": then(("Add", "y q", "z"), ("Relu", "z", "q")),
    "an output of another type": lambda model: setattr(
        model.graph.output[0].type.tensor_type, "elem_type", TensorProto.DOUBLE
    ),
    "columns that do not fit": size("input", K + 16),
    "a large weight that does not fit": large_weight(N + 16),
    "no kernel": then(("Cast", "y", "b", {"to": TensorProto.BFLOAT16}), ("Relu", "b", "z"), kind="bfloat16"),
    "an opset to come": imports("", 99),
    "an opset to come, by the long name": imports("ai.onnx", 99),
    "a constant that is too short": too_short,
    "a kernel that cannot be made": then(("MaxPool", "y", "z", {"kernel_shape": [1], "auto_pad": "NONSENSE"})),
    "an IR version to come": lambda model: setattr(model, "ir_version", 99),
}


@pytest.mark.parametrize("name", REFUSED)
def test_of_what_no_session_takes_nothing_is_fused(name: str) -> None:
    model = drawn().model()
    assert len(inspect(model.SerializeToString()).fused) == 1
    REFUSED[name](model)
    seen = judged(model)
    assert (seen.stock_reason, seen.fused, seen.packed_bytes, seen.borrowed_bytes) == (StockReason.REFUSED, (), 0, 0)
    assert "ONNXRuntimeError" in seen.stock_detail
    assert "\n" not in seen.stock_detail


TAKEN: dict[str, Change] = {
    "a large weight": large_weight(N),
    "an output of another size": size("output", N + 16),
    "the standard domain by its long name": imports("ai.onnx", 21),
    "an old IR version": lambda model: setattr(model, "ir_version", 8),
    "a node before those that it reads": lambda model: model.graph.node.insert(0, helper.make_node("Relu", ["y"], ["z"])),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_sessions_take_is_fused(name: str) -> None:
    model = drawn().model()
    TAKEN[name](model)
    seen = judged(model)
    assert (len(seen.fused), seen.stock_reason) == (1, None)


def test_operators_of_custom_libraries_are_taken_to_be_there() -> None:
    model = drawn().model()
    then(("Custom", "y", "z", {"domain": "local"}))(model)
    model.opset_import.append(helper.make_opsetid("local", 1))
    assert len(inspect(model.SerializeToString()).fused) == 1


# What this package refuses when it puts the fused model together; whether stock ONNX Runtime does is another matter.
FAILING: dict[str, tuple[Change, str]] = {
    "two opsets": (lambda model: model.opset_import.append(helper.make_opsetid("", 19)), "opsets"),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_load_that_fails_is_seen(name: str) -> None:
    change, detail = FAILING[name]
    draft = drawn()
    draft.output("w_d", (K, N))  # which stays, besides
    model = draft.model()
    change(model)
    seen = judged(model)
    assert (seen.stock_reason, len(seen.fused)) == (StockReason.ERROR, 0)
    assert detail in seen.stock_detail


def test_external_data_that_is_missing_is_an_error() -> None:
    draft = drawn()
    draft.output("w_d", (K, N))
    model = draft.model()
    no_file(model)
    with refusing("external data 'missing.data'"):
        inspect(model.SerializeToString())


@pytest.mark.parametrize("opset", [13, 17, 19, 21, 23])
@pytest.mark.parametrize("weight", [{"element": "int4"}, {"element": "uint4"}, {"axis": 0, "block": 32}])
def test_one_weight_below_its_opset_is_enough(opset: int, weight: dict[str, Any]) -> None:
    """Below opset 21 there are neither blocks nor elements of 4 bits, be other weights as they should."""
    draft = drawn(opset)
    draft.node("MatMul", ["x", draft.dequantize("v", (K, N), **{"axis": 1, "block": PER_CHANNEL, **weight})], "z")
    draft.output("z", ("m", N))
    seen = judged(draft.model())
    assert (len(seen.fused), seen.stock_reason) == ((2, None) if opset >= 21 else (0, StockReason.REFUSED))


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_inspect_says_of_small_models_what_becomes_of_them(data: st.DataObject) -> None:
    """Of every type, opset and shape, most of them right, in which one thing or another may be wrong."""
    pick = data.draw
    draft = Draft("random", opset=pick(st.sampled_from([10, 13, 17, 19, 21, 23, 25])))
    kinds = st.sampled_from(["float", "float", "float16", "bfloat16"])
    for number in range(pick(st.integers(1, 3))):
        element = pick(st.sampled_from(["int8", "uint8", "int4", "uint4", "int16", "uint2"]))
        block, scale = pick(st.sampled_from([PER_TENSOR, PER_CHANNEL, 16, 32, 48])), pick(kinds)
        axis, wanted = pick(st.sampled_from([0, 1, -1])), pick(st.sampled_from(["", "", "float", "float16", "int32"]))
        stored: dict[str, Any] = {"output_dtype": TYPES[wanted]} if wanted and draft.opset >= 23 else {}
        stored["domain"] = pick(st.sampled_from(["", "", "", MS]))
        if pick(st.booleans()) and block == PER_TENSOR:
            stored["scale_shape"] = pick(st.sampled_from([[], [1], [N]]))
        opset = draft.opset
        weight = draft.dequantize(
            f"w{number}", (K, N), axis=axis, block=block, element=element, scale=scale,
            zero=pick(st.sampled_from(["none", "random", "default"])), **stored,
        )  # fmt: skip
        draft.opset = opset  # whatever the element wants
        final = wanted if wanted and draft.opset >= 23 else scale
        for cast in pick(st.sampled_from([[], [], ["float"], ["float16"], ["int32", "float"]])):
            weight, final = draft.node("Cast", [weight], to=TYPES[cast]), cast
        x = draft.input(
            f"x{number}", ("m", pick(st.sampled_from([K, K, K, K + 1]))), pick(st.sampled_from([final] * 5 + ["float"]))
        )
        op = pick(st.sampled_from(["MatMul", "MatMul", "Gemm", "FusedMatMul", "Add"]))
        attributes = {"alpha": 0.3} if op in ("Gemm", "FusedMatMul") else {}
        result = draft.node(op, [x, weight], f"y{number}", domain=MS if op == "FusedMatMul" else "", **attributes)
        draft.output(result, None, pick(st.sampled_from([final] * 5 + ["float16"])))
    model = draft.model()
    if pick(st.integers(0, 3)) == 0:
        tensor = model.graph.initializer[pick(st.integers(0, len(model.graph.initializer) - 1))]
        tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]
    judged(model)
