"""troubleshooting.md: why single weights stay, a model for each reason."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from conformance.drawing.draft import Draft
from conformance.drawing.elements import raw_tensor
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR, Weight
from ort_qdq_plugin import Options, Reason, StockReason, create_session, export, inspect
from tests.claims.pages import rows_below
from tests.claims.registry import claim
from tests.cli.support import Here
from tests.genai import small_model
from tests.model.test_glance import product
from tests.support import (
    CPU,
    IN_PLACE,
    linear,
    made_report,
    mixed,
    quiet,
    raised,
    save,
    saved_nodes,
    stock,
    unquantized,
    with_entries,
)  # fmt: skip

PAGE = "docs/troubleshooting.md"
TABLE = "| reason | what to do |"


def drawn(
    text: str, *, weight: str = "uint4", block: int = 32, k: int = 128, n: int = 64, **more: object
) -> onnx.ModelProto:
    """A model in which nodes read the dequantized weight `w_d` and the input `x`, and make `y`."""
    draft = Draft("reason", opset=21)
    draft.input("x", ["m", k])
    draft.dequantize("w", (k, n), axis=0, block=block, element=weight, **more)  # type: ignore[arg-type]
    draft.ints("columns", [40])
    draft.ints("two", [2])
    draft.ints("zero", [0])
    draft.ints("one", [1])
    draft.floats("many", (k, n))
    draft.floats("scale", [])
    draft.constant(raw_tensor("point", TensorProto.UINT8, [], b"\x80"))
    draft.write(text)
    draft.output("y", None)
    return draft.model()


def overridable() -> onnx.ModelProto:
    model = linear(Weight())
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", TensorProto.UINT4, [128, 64]))
    return model


def computed_scales() -> onnx.ModelProto:
    model = linear(Weight())
    model.graph.input.append(onnx.helper.make_tensor_value_info("w_s", TensorProto.FLOAT, [4, 64]))
    (scales,) = [tensor for tensor in model.graph.initializer if tensor.name == "w_s"]
    model.graph.initializer.remove(scales)
    return model


def small_table() -> onnx.ModelProto:
    draft = Draft("table")
    draft.dequantize("t", (32, 64), axis=1)
    draft.output(draft.node("Gather", ["t_d", draft.input("i", ["n"], "int64")], "y"), ["n", 64])
    return draft.model()


def left_operand() -> onnx.ModelProto:
    draft = Draft("left")
    draft.input("x", None)
    draft.dequantize("w", (64, 128), axis=1)
    draft.output(draft.node("MatMul", ["w_d", "x"], "y"), None)
    return draft.model()


def unused() -> onnx.ModelProto:
    model = linear(Weight())
    draft = Draft("unused")
    draft.dequantize("u", (128, 64), axis=0)
    model.graph.node.extend(draft.nodes)
    model.graph.initializer.extend(draft.initializers)
    return model


# The row, and a model in which a weight stays for that.
ROWS: dict[str, tuple[Reason, Callable[[], onnx.ModelProto]]] = {
    "an operand is also a graph input": (Reason.OVERRIDABLE, overridable),
    "scales or zero points are computed at run time": (Reason.NOT_CONSTANT, computed_scales),
    "the result feeds something other than a matrix product or a `Gather`": (
        Reason.CONSUMER, lambda: onnx.ModelProto.FromString(mixed()),
    ),
    "the table has so few rows": (Reason.SMALL_TABLE, small_table),
    "blocks lie along N, or scales vary along K index by index": (
        Reason.BLOCKS_ALONG_N, lambda: drawn("y = MatMul(x, w_d)", weight="uint8", block=PER_CHANNEL),
    ),
    "only a part is read, which is not made of whole blocks": (
        Reason.PART, lambda: drawn("p = Slice(w_d, two, columns, zero)  c = Slice(x, two, columns, one)  y = MatMul(c, p)"),
    ),
    "it is joined with what is stored or scaled in another way": (
        Reason.JOINED, lambda: drawn("j = Concat <axis = 1> (w_d, many)  y = MatMul(x, j)"),
    ),
    "a `Mul` or a `Div` has neither one number for each row nor one for each column": (
        Reason.FACTOR, lambda: drawn("f = Mul(w_d, many)  y = MatMul(x, f)"),
    ),
    "the rank of the other operand is not known": (Reason.LEFT_OPERAND, left_operand),
    "the activations are quantized too": (Reason.INTEGER_KERNEL, product),
    "the result is quantized again": (
        Reason.FOLDED, lambda: drawn("t = Tanh(w_d)  y = QuantizeLinear(t, scale, point)", weight="uint8"),
    ),
    "nothing reads the result": (Reason.UNUSED, unused),
}  # fmt: skip


@claim(PAGE, *ROWS)
@claim(PAGE, TABLE)
@pytest.mark.parametrize("row", ROWS)
def test_reasons(row: str) -> None:
    reason, made = ROWS[row]
    assert row in [cells[0] for cells in rows_below(PAGE, TABLE)]
    assert reason in [entry.reason for entry in inspect(made().SerializeToString(), check=False).unfused]


@claim(PAGE, "the fused operator dequantizes 8-bit weights in every run, and more slowly; or ONNX Runtime does it once")
@claim(PAGE, "use accuracy level 4, or 4 bits")
def test_weights_of_8_bits_at_low_levels() -> None:
    found = {}
    for element, level in (("uint8", 0), ("uint8", 4), ("uint4", 0)):
        report = inspect(linear(Weight(element, n_major=True)).SerializeToString(), options=Options(accuracy_level=level))
        found[element, level] = [entry.reason for entry in report.unfused]
    assert found == {("uint8", 0): [Reason.SLOWER], ("uint8", 4): [], ("uint4", 0): []}


@claim(PAGE, "no power of two from 16 to 256 divides the block size, or smaller blocks would more than double the")
@claim(PAGE, "quantize with a block size of 16, 32, 64, 128 or 256")
def test_blocks_of_other_sizes() -> None:
    for block, fuses in ((8, False), (24, False), (16, True), (32, True), (64, True), (128, True), (256, True)):
        report = inspect(linear(Weight(k=3 * 256 if block != 24 else 240, block=block)).SerializeToString())
        assert [entry.reason for entry in report.unfused] == [] if fuses else [Reason.BLOCK_SIZE]
        assert len(report.fused) == fuses


@claim(PAGE, "the values in float would take more memory than allowed")
@claim(PAGE, '| `Options(dequantize_once="always")` |')
def test_values_that_take_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    from ort_qdq_plugin.load import plan

    monkeypatch.setattr(plan, "_ONCE_BYTES", 10)
    draft = Draft("memory")
    draft.input("x", [1, 64, 8])
    draft.dequantize("w", (64, 64, 3), axis=0, block=PER_TENSOR, element="int8", zero="none")
    draft.output(draft.node("Conv", ["x", "w_d"], "y"), None)
    model = draft.model().SerializeToString()
    (entry,) = inspect(model).unfused
    assert (entry.reason, entry.hint) == (Reason.MEMORY, 'Options(dequantize_once="always").')
    assert inspect(model, options=Options(dequantize_once="always")).unfused[0].bytes_added == 4 * 64 * 64 * 3


# ---- more of what stays, and where


@claim("docs/options.md", "[Convolutions](how-it-works.md#convolutions-as-products) stay at 0.")
@claim("docs/how-it-works.md", "It is computed in float, whatever the accuracy level: that is the level of products,")
def test_convolutions_are_computed_in_float(tmp_path: Path) -> None:
    draft = Draft("conv")
    draft.input("x", [1, 256, 1])
    draft.dequantize("w", (256, 256, 1), axis=0, block=PER_CHANNEL, element="int4", zero="none")
    draft.output(draft.node("Conv", ["x", "w_d"], "y"), None)
    export(str(save(draft.model(), tmp_path, "file")), tmp_path / "fused.onnx", options=Options(accuracy_level=4))
    (node,) = saved_nodes(tmp_path / "fused.onnx")["MatMulNBits"]
    assert {attribute.name: attribute.i for attribute in node.attribute}.get("accuracy_level", 0) == 0


@claim(PAGE, "| `NOT_COMPUTED` | look for scales that are 0 or no number; the detail names the operator |")
@claim("docs/how-it-works.md", "as no number or an integer out of range, it loads the whole model (`NOT_COMPUTED`).")
def test_what_is_not_computed() -> None:
    draft = Draft("not computed")
    draft.input("x", ["m", 64])
    draft.floats("f", (64, 64))
    draft.constant(raw_tensor("s", TensorProto.FLOAT, [], np.float32(0).tobytes()))
    draft.constant(raw_tensor("z", TensorProto.UINT8, [], b"\x80"))
    draft.write("q = QuantizeLinear(f, s, z)  d = DequantizeLinear(q, s, z)  y = MatMul(x, d)")
    draft.output("y", None)
    report = made_report(create_session(draft.model().SerializeToString(), quiet(), CPU))
    assert (report.stock_reason, "QuantizeLinear" in report.stock_detail) == (StockReason.NOT_COMPUTED, True)


@claim(PAGE, "`session.disable_quant_qdq` is set, or `QDQSelectorActionTransformer` is disabled")
@claim(PAGE, "| `NOT_QUANTIZED` | the model has no quantized operator and")
@claim(PAGE, "| `REFUSED` | of `inspect` alone: no session takes the model.")
def test_reasons_for_stock() -> None:
    settings = with_entries({"session.disable_quant_qdq": "1"})
    found = [
        made_report(create_session(linear(Weight()).SerializeToString(), settings, CPU)).stock_reason,
        made_report(create_session(unquantized().SerializeToString(), quiet(), CPU)).stock_reason,
    ]
    model = linear(Weight())
    model.opset_import[0].version = 20
    refused = inspect(model.SerializeToString())
    assert [*found, refused.stock_reason] == [StockReason.FUSION_DISABLED, StockReason.NOT_QUANTIZED, StockReason.REFUSED]
    assert refused.stock_detail
    assert raised(partial(create_session, model.SerializeToString(), quiet(), CPU)) == raised(
        partial(stock, model.SerializeToString())
    )


@claim("docs/how-it-works.md", "A `Cast` has to be to a float type of 16 bits or more.")
@claim("docs/how-it-works.md", "where its values are an output of the graph, and where the CPU provider has no")
def test_casts_and_outputs() -> None:
    for to, fused in (("10", 1), ("16", 1), ("17", 0), ("6", 0)):
        model = drawn(f"c = Cast <to = {to}> (w_d)  f = Cast <to = 1> (c)  y = MatMul(x, f)")
        assert len(inspect(model.SerializeToString(), check=False).fused) == fused
    draft = Draft("output")
    draft.output(draft.weight(Weight("int8", block=PER_TENSOR)), [128, 64])
    (entry,) = inspect(draft.model().SerializeToString()).unfused
    assert (entry.reason, entry.bytes_added) == (Reason.GRAPH_OUTPUT, 0)


@IN_PLACE
@claim("docs/how-it-works.md", "large tensors are in attributes (`Constant` nodes) or in subgraphs")
@claim("docs/how-it-works.md", "it has sparse initializers, training information or functions, or a node that names a")
def test_models_that_still_go_to_stock(tmp_path: Path) -> None:
    def reason(change: Callable[[onnx.ModelProto], object]) -> StockReason | None:
        draft = Draft("float")
        draft.initializers.append(raw_tensor("w", TensorProto.FLOAT, [4200, 1024], bytes(4 * 4200 * 1024)))
        draft.output(draft.node("MatMul", [draft.input("x", [1, 4200]), "w"], "y"), [1, 1024])
        model = draft.model()
        change(model)
        return made_report(create_session(save(model, tmp_path, "file"), quiet(), CPU)).stock_reason

    def constant(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer.pop()
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=tensor))

    def function(model: onnx.ModelProto) -> None:
        identity = onnx.helper.make_node("Identity", ["a"], ["b"])
        opsets = [onnx.helper.make_opsetid("", 21)]
        model.functions.append(onnx.helper.make_function("mine", "F", ["a"], ["b"], [identity], opsets))
        model.opset_import.add(domain="mine", version=1)
        model.graph.node[-1].output[0] = "h"
        model.graph.node.append(onnx.helper.make_node("F", ["h"], ["y"], domain="mine"))

    assert reason(lambda _: None) is None
    assert reason(constant) is reason(function) is StockReason.NOT_QUANTIZED


@claim("docs/cache.md", "**Folders of onnxruntime-genai** are shipped as [`ort-qdq export`](command-line.md#export)")
def test_folders_are_not_prepared(tmp_path: Path, here: Here) -> None:
    folder = small_model.write_model(tmp_path / "llama")
    assert "ort-qdq export" in here.refused("prepare", folder, tmp_path / "prepared")
