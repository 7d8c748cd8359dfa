"""how-it-works.md."""

from functools import partial
from pathlib import Path

import onnx

from conformance.drawing.draft import Draft
from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, create_session, inspect
from ort_qdq_plugin.fusion import constants
from tests import support
from tests.claims.registry import claim
from tests.support import (
    CPU,
    linear,
    made_report,
    quiet,
    raised,
    save,
    stock,
)


@claim("docs/how-it-works.md", "64 nodes deep, take 256 steps for an element, and have 16 times")
def test_expressions_are_bounded() -> None:
    bounds = (constants._MAX_DEPTH, constants._MAX_STEPS, constants._GROWTH, constants._GROWTH_BYTES)
    assert bounds == (64, 256, 16, 64 << 20)


@claim("docs/how-it-works.md", "is refused here too, with its own error", "There are two exceptions")
def test_two_exceptions(tmp_path: Path) -> None:
    draft = Draft("output_dtype", opset=23)
    weight = draft.weight(Weight(scale="float16"), output_dtype=onnx.TensorProto.FLOAT)
    draft.output(draft.node("MatMul", [draft.input("x", ["m", 128]), weight], "y"), ["m", 64])
    for number, model in enumerate((linear(Weight(scale="bfloat16")), draft.model())):
        path = save(model, tmp_path, "file", str(number))
        assert raised(partial(stock, path)) is not None
        assert len(made_report(create_session(path, quiet(), CPU)).fused) == 1
    broken = linear(Weight())
    broken.graph.node[-1].input[0] = "nothing"
    outside = linear(Weight())
    support.external_tensor(outside, "w", location="../outside.data")
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside.data").write_bytes(bytes(128 * 64))
    for stem, model in (("broken", broken), ("outside", outside)):
        path = save(model, tmp_path / "inside", "file", stem)
        theirs = raised(partial(stock, path))
        assert theirs is not None
        assert raised(partial(create_session, path, quiet(), CPU)) == theirs


def by_hand(element: str) -> onnx.ModelProto:
    """A product with a weight that is written out."""
    draft = Draft("by hand")
    draft.input("x", ["m", 128])
    draft.quantized("w", element, (128, 64))
    draft.floats("s", (64,))
    draft.write("c = Cast <to = 1> (w)  w_d = Mul(c, s)  y = MatMul(x, w_d)")
    draft.output("y", ["m", 64])
    return draft.model()


@claim("docs/how-it-works.md", "makes floats of such a weight when it loads the model")
def test_written_out_is_folded_by_stock(tmp_path: Path) -> None:
    options = quiet()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    stock(by_hand("int8").SerializeToString(), options)
    optimized = onnx.load(tmp_path / "optimized.onnx")
    assert [node.op_type for node in optimized.graph.node] == ["MatMul"]
    assert {tensor.data_type for tensor in optimized.graph.initializer} == {onnx.TensorProto.FLOAT}


@claim("docs/how-it-works.md", "products with weights of 8 bits are left to ONNX Runtime, whose")
def test_written_out_at_low_levels() -> None:
    for element, level, fused in (("int8", 4, 1), ("int8", 0, 0), ("int4", 4, 1), ("int4", 0, 1)):
        report = inspect(by_hand(element).SerializeToString(), options=Options(accuracy_level=level))
        assert len(report.fused) == fused
        for entry in report.unfused:
            assert (entry.bytes_per_run, entry.bytes_added, entry.bytes_folded) == (0, 0, 4 * 128 * 64)


@claim("docs/how-it-works.md", "at least as long as K, it counts as one scale for each column")
def test_one_block_is_one_scale() -> None:
    for element in ("uint4", "int8"):
        for block in (256, 4096, 65536):
            (entry,) = inspect(linear(Weight(element, k=64, n=256, block=block)).SerializeToString()).fused
            assert entry.packed_bytes < 2.1 * entry.stored_bytes
