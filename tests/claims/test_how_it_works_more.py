"""how-it-works.md: its numbers, forms and limits, and the call stack."""

import pickle
import re
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import onnxruntime.capi.onnxruntime_inference_collection as collection
import pytest
from onnx import TensorProto

from conformance.drawing.draft import Draft
from conformance.drawing.elements import raw_tensor
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR, Weight
from ort_qdq_plugin import Options, Reason, Report, StockReason, create_session, export, inspect
from ort_qdq_plugin.fusion import bias, chosen, conv, experts, lookups
from ort_qdq_plugin.load import first_look
from ort_qdq_plugin.memory.buffer import SMALL_BYTES
from ort_qdq_plugin.model.releases import LARGE_BLOCKS, LENT_FILES, has
from ort_qdq_plugin.ort import buffers
from ort_qdq_plugin.packing import pack
from tests.claims.pages import all_blocks, rows_below
from tests.claims.registry import claim
from tests.support import (
    CPU,
    IN_PLACE,
    ROOT,
    added_provider,
    linear,
    made_report,
    opened,
    quiet,
    save,
    saved_nodes,
    stack,
    stock,
)

PAGE = "docs/how-it-works.md"


def planned(model: onnx.ModelProto, **options: Any) -> Report:
    return inspect(model.SerializeToString(), options=Options(**options))


def only(report: Report) -> tuple[str, int, int]:
    """Kind, bits and block size of the only fusion."""
    (fused,) = report.fused
    return fused.kind, fused.bits, fused.block_size


# ---- the journey


@claim(PAGE, "Tensors of 4 KB and more stay where they are;")
def test_large_tensors() -> None:
    for nbytes, stays in ((4092, False), (4096, True)):
        draft = Draft("tensor")
        draft.output(draft.node("Identity", [draft.floats("c", [nbytes // 4])], "y"), [nbytes // 4])
        (tensor,) = onnx.ModelProto.FromString(opened(draft.model().SerializeToString()).data).graph.initializer
        assert (tensor.data_location == TensorProto.EXTERNAL) == stays


@claim(PAGE, "a small bias (up to 4 KB) that has to be multiplied by `beta` or repeated along N")
def test_small_biases() -> None:
    assert bias._MAX_NEW_BIAS_BYTES == 4 << 10
    for n, has_bias in ((1024, True), (1056, False)):
        draft = Draft("beta")
        draft.input("x", ["m", 64])
        draft.floats("c", [n])
        draft.write(f"y = Gemm <beta = 0.5> (x, {draft.weight(Weight(k=64, n=n))}, c)")
        draft.output("y", ["m", n])
        (fused,) = planned(draft.model()).fused
        assert fused.has_bias == has_bias


@claim(PAGE, "together they use less than 256 MB of scratch memory, whatever the size of the model.")
def test_scratch() -> None:
    assert pack._SCRATCH_BYTES < 256e6


@claim(
    PAGE,
    "the pages that it has read are dropped from the process every 10 ms (once, at the end, if they are less than 64",
)
def test_how_often_pages_are_dropped() -> None:
    assert (buffers._TRIM_INTERVAL, buffers._TRIM_BYTES) == (0.01, 64 << 20)


@IN_PLACE
@claim(PAGE, "Python's call stack, outermost call first:")
def test_the_call_stack(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    native, stacks = collection.C.InferenceSession, list[list[str]]()

    def seen(*arguments: object) -> object:
        frames = traceback.extract_stack()[:-1]
        stacks.append([f"{frame.name} {Path(frame.filename).parent.name}/{Path(frame.filename).name}" for frame in frames])
        return native(*arguments)

    monkeypatch.setattr(collection.C, "InferenceSession", seen)
    create_session(small, providers=CPU)
    calls = [
        call.partition(" ")
        for call in stacks[-1][next(at for at, call in enumerate(stacks[-1]) if "create_session" in call) :]
    ]
    (drawn,) = [block.code for block in all_blocks(PAGE) if block.code.startswith("create_session(path)")]
    names = re.findall(r"^(?:[│ ]*└─ )?(?:\w+\.)*(\w+)(?:\(path\))?  +(\S+)", drawn, re.MULTILINE)
    named = [(name, where.rstrip(":")) for name, where in names if name != "substituted"]
    made = [name for name, _, _ in calls]
    at = 0
    for name, where in named[:-1]:
        at = made.index(name, at)
        if where.endswith(".py"):
            assert calls[at][2].endswith(where), name
        at += 1
    assert named[-1][0] == "InferenceSession"


# ---- what is fused


@claim(
    PAGE,
    "of the largest power of two from 16 to 256 that divides its own, unless the operands would then take more than",
)
@claim(PAGE, "Since ONNX Runtime 1.32, powers of two above 256 are taken as they are for 4 and 8 bits.")
def test_block_sizes() -> None:
    large = 512 if has(LARGE_BLOCKS) else 256
    for block, k, fused in ((48, 96, 16), (96, 192, 32), (768, 1536, 256), (512, 1024, large)):
        assert only(planned(linear(Weight(k=k, block=block)))) == ("MatMul", 4, fused)
    # In blocks of 8 there is no power of two that is large enough.
    (left,) = planned(linear(Weight(block=8))).unfused
    assert left.reason is Reason.BLOCK_SIZE


@claim(PAGE, "becomes a `MatMulNBits` for each of at most 256 experts")
def test_products_of_all_experts() -> None:
    assert experts._MAX_MATRICES == 256
    for count, fused in ((2, 1), (256, 1), (257, 0)):
        draft = Draft("experts")
        draft.input("x", [count, "m", 32])
        draft.dequantize("w", (count, 32, 16), axis=1, block=16)
        draft.output(draft.node("MatMul", ["x", "w_d"], "y"), [count, "m", 16])
        report = planned(draft.model())
        assert len(report.fused) == fused
        assert report.packed_bytes >= fused * count * 32 * 16 // 2


@claim(PAGE, "ONNX Runtime's own **`com.microsoft.DequantizeLinear`**, which models below opset 21 have.")
def test_the_contributed_operator() -> None:
    draft = Draft("contrib", opset=17)
    weight = draft.weight(Weight("int8", block=PER_CHANNEL), domain="com.microsoft")
    draft.output(draft.node("MatMul", [draft.input("x", ["m", 128]), weight], "y"), ["m", 64])
    model = draft.model()
    model.opset_import.extend([] if len(model.opset_import) > 1 else [onnx.helper.make_opsetid("com.microsoft", 1)])
    assert only(planned(model))[:2] == ("MatMul", 8)


# ---- lookups


def table(rows: int, element: str, block: int, axis: int, indices: Any = "n", columns: int = 768) -> Report:
    """What becomes of lookups in a table."""
    draft = Draft("table", opset=21)
    draft.dequantize("t", (rows, columns), axis=axis, block=block, element=element)
    draft.output(draft.node("Gather", ["t_d", draft.input("i", [indices], "int64")], "y"), [indices, columns])
    return planned(draft.model())


@claim(
    PAGE,
    "Of rows of 768 elements, say, a table with 4 bits in blocks must have some 1,300, and one of bytes",
)
@claim(PAGE, "Where the model does not say how many there are, 4096 are assumed.")
def test_small_tables() -> None:
    for element, block, axis, few, many in (("uint4", 32, 1, 1250, 1350), ("uint8", PER_CHANNEL, 0, 6000, 6200)):
        for rows, fused in ((few, 0), (many, 1)):
            assert len(table(rows, element, block, axis).fused) == fused
            assert len(table(rows, element, block, axis, 4096).fused) == fused
    assert lookups.MANY == 4096
    assert len(table(few, element, block, axis, 4).fused) == 1


@claim(PAGE, "Where that is more than 64 MiB and another form takes the table, that one is used.")
@claim(PAGE, "Where the model does not say how many indices there are, 8 are assumed.")
@claim(PAGE, "**One matrix of at most 64** (an expert, say) that goes into one product")
def test_numbers_of_lookups() -> None:
    assert (lookups.MAX_COPY, lookups._MANY_MATRICES, chosen._MAX_MATRICES) == (64 << 20, 8, 64)


@claim(PAGE, "at one position, as behind a pooling of everything; K x N at least 65,536")
@claim(PAGE, "next to one such `Transpose`; K at least 512 and K x N at least 65,536")
@claim(PAGE, "become products up to 400 positions in all, if the model says how many there are")
def test_convolutions_as_products() -> None:
    def becomes(k: int, n: int, positions: int, **options: Any) -> bool:
        draft = Draft("conv")
        draft.input("x", [1, k, positions])
        draft.dequantize("w", (n, k, 1), axis=0, block=PER_CHANNEL, element="int4", zero="none")
        draft.output(draft.node("Conv", ["x", "w_d"], "y"), None)
        return bool(planned(draft.model(), **options).fused)

    assert [becomes(256, n, 1) for n in (255, 256)] == [False, True]
    assert [becomes(256, 256, positions) for positions in (2, 400)] == [False, False]
    assert [becomes(256, 256, positions, dequantize_once="never") for positions in (400, 401)] == [True, False]
    sided = [rule for rule in conv.RULES if rule.least_transposes]
    assert [(rule.least_transposes, rule.least_k, rule.least_elements) for rule in sided] == [(2, 0, 65536), (1, 512, 65536)]


# ---- models of which nothing is fused, and limits


@IN_PLACE
@claim(PAGE, "This is done for models with 16 MiB of large tensors (4 KB and more) or more.")
def test_models_that_are_handed_over_unchanged(tmp_path: Path) -> None:
    assert first_look.UNCHANGED_BYTES == 16 << 20
    for rows, reason in ((4095, StockReason.NOT_QUANTIZED), (4096, None)):
        draft = Draft("float")
        draft.initializers.append(raw_tensor("w", TensorProto.FLOAT, [rows, 1024], bytes(4 * 1024 * rows)))
        draft.output(draft.node("MatMul", [draft.input("x", [1, rows]), "w"], "y"), [1, 1024])
        path = save(draft.model(), tmp_path, "external", str(rows))
        report = made_report(create_session(path, quiet(), CPU))
        assert (report.stock_reason, report.unchanged) == (reason, None if reason else StockReason.NOT_QUANTIZED)


@claim(PAGE, "Less than 1 MiB of packed weights is put into the model instead of a file.")
def test_what_is_put_into_the_model() -> None:
    assert SMALL_BYTES == 1 << 20


@claim(PAGE, "models with names of more than 1024 characters")
def test_long_names() -> None:
    for length, fused in ((1024, 1), (1025, 0)):
        model = linear(Weight())
        model.graph.node[-1].name = "n" * length
        assert len(made_report(create_session(model.SerializeToString(), quiet(), CPU)).fused) == fused


@claim(PAGE, "Each known difference is in `tests/surface/differences.py`, with its reason and a program that shows it.")
@claim(PAGE, "The rule is a table of measured costs in one module, `ort_qdq_plugin/fusion/lookups.py`.")
@claim(PAGE, "The rules are data in `ort_qdq_plugin/fusion/choice.py`, each with its reason.")
@claim(PAGE, "the rules are data in `ort_qdq_plugin/fusion/conv.py`")
def test_where_things_are() -> None:
    from tests.surface import differences

    assert len(lookups.CHOICES) > 10
    assert len(conv.RULES) > 3
    assert all(path.exists() for path in (ROOT / "tests/surface/differences.py", ROOT / "ort_qdq_plugin/fusion/choice.py"))
    assert differences.__doc__


@claim(PAGE, "An entry that was not set has its default afterwards, which means the same to ONNX Runtime.")
@claim(PAGE, "The weights then go **by path**")
def test_by_path(large: str) -> None:
    settings = added_provider()
    report = made_report(create_session(large, settings, options=Options(strict=True, accuracy_level=0)))
    assert report.route == "by path"
    assert settings.get_session_config_entry("session.qdq_matmulnbits_accuracy_level") == "4"


@claim(PAGE, "`create_session` returns a subclass of `InferenceSession`; sessions cannot be pickled in either case")
@claim(PAGE, "`set_providers` works when the model's file is gone.")
def test_what_differs(tmp_path: Path) -> None:
    path = Path(str(save(stack(2, 128), tmp_path, "file")))
    session = create_session(path, quiet(), CPU)
    assert type(session) is not ort.InferenceSession
    assert issubclass(type(session), ort.InferenceSession)
    for either in (session, stock(str(path))):
        with pytest.raises((TypeError, pickle.PicklingError)):
            pickle.dumps(either)
    if has(LENT_FILES):
        path.unlink()
    session.set_providers(CPU)
    assert len(made_report(session).fused) == 2


@claim(PAGE, "| elements | scales | what the lookup becomes |")
@claim(PAGE, "results are the same to the last bit. Indices out of range raise the error that `Gather` raises.")
@pytest.mark.parametrize(("row", "element", "block", "axis", "operators"), [
    (0, "uint4", 32, 1, {"GatherBlockQuantized"}),
    (0, "uint4", PER_CHANNEL, 0, {"GatherBlockQuantized"}),
    (0, "uint2", PER_TENSOR, 0, {"GatherBlockQuantized"}),
    (1, "uint8", PER_TENSOR, 0, {"Gather", "DequantizeLinear"}),
    (2, "int8", PER_CHANNEL, 0, {"Gather", "DequantizeLinear"}),
    (3, "uint8", PER_CHANNEL, 1, {"Gather", "Cast", "Sub", "Mul"}),
    (4, "uint8", 32, 1, {"GatherBlockQuantized"}),
])  # fmt: skip
def test_what_lookups_become(row: int, element: str, block: int, axis: int, operators: set[str], tmp_path: Path) -> None:
    draft = Draft("lookups", opset=25)
    draft.dequantize("t", (512, 64), axis=axis, block=block, element=element)
    draft.output(draft.node("Gather", ["t_d", draft.input("i", [4], "int64")], "y"), [4, 64])
    path = str(save(draft.model(), tmp_path, "file"))
    export(path, tmp_path / "fused.onnx")
    made = {*saved_nodes(tmp_path / "fused.onnx")}  # and what looks whether indices are in range
    assert operators <= made
    assert ("GatherBlockQuantized" in made) == ("GatherBlockQuantized" in operators)
    told = rows_below(PAGE, "| elements | scales | what the lookup becomes |")[row][2]
    assert all(f"`{operator}`" in told or "the same" in told for operator in operators)
    indices = np.array([0, 511, -512, 7])
    ours, theirs = create_session(path, quiet(), CPU), stock(path)
    np.testing.assert_array_equal(ours.run(None, {"i": indices})[0], theirs.run(None, {"i": indices})[0])
    outside = {"i": np.array([0, 512, 1, 2])}
    for session in (ours, theirs):
        with pytest.raises(Exception, match="out of data bounds"):
            session.run(None, outside)
