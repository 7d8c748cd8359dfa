"""`inspect`: the same as the report, in a table; fast, and as wide as the terminal."""

import json
import re
import sys
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from conformance.drawing.draft import Draft
from conformance.drawing.elements import raw_tensor
from conformance.drawing.weight import Weight
from ort_qdq_plugin import Reason, StockReason, create_session, inspect, report_of
from tests.cli.support import Here, apart, on_terminal
from tests.model.test_glance import product
from tests.support import huge, linear, made_report, mixed, save, stack, unquantized


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "mixed.onnx").write_bytes(mixed())
    return tmp_path / "mixed.onnx"


def test_a_row_for_each_kind_of_weight(model: Path, here: Here) -> None:
    said = here.said("inspect", model)
    lines = [line.split() for line in said.splitlines()]
    assert lines[0] == ["#", "kind", "K", "x", "N", "bits", "block", "layout", "stored", "outcome", "per", "run"]
    assert lines[2] == ["1", "-", "1", "x", "64", "8", "-", "-", "69", "B", "once", "(1)", "-"]
    assert lines[1] == ["1", "MatMul", "128", "x", "64", "4", "32", "K-major", "5.2", "kB", "packed", "-"]
    note = "Loading dequantizes 64 values of each, to 256 B in all.\n    It is int8 [1, 64], per tensor.\n"
    assert f"(1) {Reason.CONSUMER}\n    {note}" in said
    assert said.endswith("Verdict: 1 of 2 quantized weights fused, 1 dequantized once\n")


def test_weights_that_are_alike_share_a_row(tmp_path: Path, here: Here) -> None:
    said = here.said("inspect", save(stack(5, 128, n_major=True), tmp_path, "external"))
    assert re.search(r"^5 +MatMul +128 x 128 +4 +32 +N-major +\S+ kB +in place +-$", said, re.MULTILINE)
    assert said.endswith("Verdict: all fused, 5 quantized weights\n")


def test_weights_that_get_more_bits(tmp_path: Path, here: Here) -> None:
    """Under bits, what the model has."""
    said = here.said("inspect", save(linear(Weight("int2")), tmp_path, "file"))
    assert re.search(r"^1 +MatMul +128 x 64 +2 +32 +K-major +\S+ kB +packed, 4 bits +-$", said, re.MULTILINE)


def test_a_weight_with_two_readers_counts_once(tmp_path: Path, here: Here) -> None:
    draft = Draft("twice")
    operands = [draft.input("x", ["m", 128]), draft.weight(Weight())]
    for name in "yz":
        draft.output(draft.node("MatMul", operands, name), ["m", 64])
    assert "1 quantized weight, 5.2 kB" in here.said("inspect", save(draft.model(), tmp_path, "file"))


def test_tied_embeddings_count_once(tmp_path: Path, here: Here) -> None:
    """A table that a lookup and a product read, through a DequantizeLinear each: 4 bits, scales and zero points for 32."""
    draft = Draft("tied")
    draft.input("i", ["m"], "int64")
    draft.weight(Weight(n=192, n_major=True))
    draft.write("e = Gather(w_d, i)  v_d = DequantizeLinear <axis = 1, block_size = 32> (w, w_s, w_z)")
    draft.write("t = Transpose(v_d)  y = MatMul(e, t)")
    draft.output("y", ["m", 192])
    said = here.said("inspect", save(draft.model(), tmp_path, "file"))
    assert re.search(r"^1 +MatMul +128 x 192 .* 15\.7 kB .*^1 +- +192 x 128 .* 15\.7 kB ", said, re.MULTILINE | re.DOTALL)
    assert "\n1 quantized weight, 15.7 kB with scales and zero points.\n" in said
    assert (str(Reason.SMALL_TABLE) in " ".join(said.split()), max(map(len, said.splitlines())) <= 80) == (True, True)
    report = made_report(create_session(draft.model().SerializeToString()))
    assert (report.stored_bytes, report.float_bytes) == (15744, 4 * 128 * 192)
    assert "instead of 0.1 MB in float" in report.summary()


def test_what_stays_is_a_finding(model: Path, tmp_path: Path, here: Here) -> None:
    """But for what is dequantized once, and for what goes to integer kernels."""
    said = here.said("inspect", "--unfused", model)
    assert ("    b_d_node\n" in said, "MatMul " in said, "of float" in said) == (True, False, False)
    draft = Draft("returned")
    draft.output(draft.weight(Weight(k=1, n=64, block=-1, element="int8")), [1, 64])
    said = here.said("inspect", "--unfused", save(draft.model(), tmp_path, "file"), code=1)
    assert (
        "    w_d_node\n" in said,
        "Each run dequantizes 64 values of each, for every reader, to 256 B in all.\n" in said,
    ) == (True, True)
    assert "; 256 B of float are written on each run. " in said
    here.said("inspect", "--unfused", save(linear(Weight()), tmp_path, "file"))
    said = here.said("inspect", "--unfused", save(product(), tmp_path, "file"))
    assert (str(Reason.INTEGER_KERNEL) in said, "of float" in said) == (True, False)


def test_a_model_without_weights_of_that_kind(tmp_path: Path, here: Here) -> None:
    said = here.said("inspect", save(unquantized(), tmp_path, "file"))
    assert said == f"Verdict: left to stock ONNX Runtime as it is. {StockReason.NOT_QUANTIZED}\n"


def test_what_weights_are_behind_is_told(tmp_path: Path, here: Here) -> None:
    """Of those that are fused, too; and what would help those that are not."""
    scaled = {(64,): ("outcome", ", per channel of axis 1"), (128, 64): ("What would help: Quantize per tensor", "")}
    for shape, (told, scales) in scaled.items():
        draft = Draft("written out")
        draft.input("x", ["m", 128])
        operands = [draft.node("Cast", [draft.quantized("w", "int8", (128, 64))], to=TensorProto.FLOAT)]
        operands.append(draft.floats("s", shape))
        draft.output(draft.node("MatMul", ["x", draft.node("Mul", operands, "w_d")], "y"), ["m", 64])
        said = here.said("inspect", save(draft.model(), tmp_path, "file"))
        assert f"int8 [128, 64]{scales}, written out as Cast, Mul" in said
        assert told in said
        assert ("ONNX Runtime dequantizes it once, at load, to 32.8 kB in all.\n" in said) == (shape != (64,))
        assert "of float" not in said


def test_models_that_are_quantized_in_another_way(tmp_path: Path, here: Here) -> None:
    draft = Draft("dynamic")
    draft.input("x", ["m", 128], "uint8")
    draft.output(draft.node("MatMulInteger", ["x", draft.quantized("w", "int8", (128, 64))], "y"), ["m", 64], "int32")
    said = here.said("inspect", save(draft.model(), tmp_path, "file"))
    told = "dynamically quantized (MatMulInteger): runs on integer kernels"
    assert said == f"Verdict: left to stock ONNX Runtime as it is. {str(StockReason.OTHER_FORM)[:-1]}: {told}\n"


def test_json_is_the_report(model: Path) -> None:
    done = apart("inspect", "--json", model)
    assert done.code == 0, done.err
    plain = json.loads(done.out)
    assert sum(plain["seconds"].values()) < 5
    expected = json.loads(json.dumps(inspect(model).to_dict()))
    assert plain == {**expected, "model": str(model), "seconds": plain["seconds"]}


def test_a_huge_model_takes_no_time(tmp_path: Path, here: Here) -> None:
    plain = json.loads(here.said("inspect", "--json", huge(tmp_path)))
    assert plain["fused"][0]["stored_bytes"] > 20e9
    assert sum(plain["seconds"].values()) < 0.5


@pytest.mark.parametrize("columns", [80, 200])
def test_it_fits_the_terminal(columns: int, model: Path) -> None:
    pytest.importorskip("rich")
    done = on_terminal("inspect", model, columns=columns)
    shown = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in done.out.splitlines()]
    assert max(map(len, shown)) <= columns
    assert "\x1b[33m" in done.out
    assert "\x1b[33m" not in on_terminal("inspect", model, columns=columns, NO_COLOR="1").out


def test_plain_text_without_rich(model: Path, monkeypatch: pytest.MonkeyPatch, here: Here) -> None:
    redirected = here("inspect", model)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert here("inspect", model) == redirected


def test_all_models_of_a_folder(tmp_path: Path, here: Here) -> None:
    (tmp_path / "m.onnx").write_bytes(mixed())
    names = {"decoder": {"filename": "m.onnx"}, "encoder": {"filename": "e.onnx"}}
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": names}))
    save(linear(Weight()), tmp_path, "file", "e")
    first, second = here.said("inspect", tmp_path).split(f"\n{tmp_path / 'e.onnx'}:\n")
    assert first.startswith(f"{tmp_path / 'm.onnx'}:\n")
    assert ("1 of 2 quantized weights fused" in first, "all fused, 1 quantized weight" in second) == (True, True)
    here.said("inspect", "--unfused", tmp_path)
    plain = json.loads(here.said("inspect", "--json", tmp_path))
    assert [len(report["fused"]) for report in plain] == [1, 1]


def test_models_that_are_quantized_in_two_ways(tmp_path: Path, here: Here) -> None:
    model = linear(Weight())
    tensor = raw_tensor("v", TensorProto.INT8, (128, 64), bytes(128 * 64))
    model.graph.initializer.append(tensor)
    scaled = [helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"])]
    scaled.append(helper.make_node("MatMulInteger", ["q", "v", "qz"], ["i"]))
    model.graph.node.extend(scaled)
    model.graph.output.append(helper.make_tensor_value_info("i", TensorProto.INT32, None))
    said = here.said("inspect", save(model, tmp_path, "file"))
    other = "dynamically quantized (DynamicQuantizeLinear, MatMulInteger): runs on integer kernels"
    assert f"\nIt is also {other}.\nVerdict: all fused, 1 quantized weight\n" in said
    session = create_session(model.SerializeToString())
    report = report_of(session)
    assert report is not None
    assert (report.also, f"\n  also    {other}" in str(report)) == (other, True)
