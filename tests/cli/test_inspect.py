"""`inspect`: the same as the report, in a table; fast, and as wide as the terminal."""

import json
import re
import sys
from pathlib import Path

import pytest

from conformance.drawing.draft import Draft
from conformance.drawing.weight import Weight
from ort_qdq_plugin import Reason, StockReason, inspect
from tests.cli.support import apart, here, on_terminal
from tests.model.test_glance import product
from tests.support import huge, linear, mixed, save, stack, unquantized


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "mixed.onnx"
    path.write_bytes(mixed())
    return path


def test_a_row_for_each_kind_of_weight(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = here(capsys, "inspect", model)
    assert done.code == 0, done.err
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[0] == ["#", "kind", "K", "x", "N", "bits", "block", "layout", "stored", "outcome", "per", "run"]
    assert lines[1] == ["1", "-", "1", "x", "64", "8", "-", "-", "69", "B", "unfused", "(1)", "256", "B"]
    assert lines[2] == ["1", "MatMul", "128", "x", "64", "4", "32", "K-major", "5.2", "kB", "packed", "-"]
    assert f"(1) {Reason.CONSUMER}\n    Each run dequantizes 64 values of each, which is 256 B.\n" in done.out
    assert done.out.endswith("Verdict: 1 of 2 quantized weights fused; 256 B of float are written on each run\n")


def test_weights_that_are_alike_share_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = here(capsys, "inspect", save(stack(5, 128, n_major=True), tmp_path, "external"))
    assert re.search(r"^5 +MatMul +128 x 128 +4 +32 +N-major +\S+ kB +in place +-$", done.out, re.MULTILINE)
    assert done.out.endswith("Verdict: all fused, 5 quantized weights\n")


def test_a_weight_with_two_readers_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draft = Draft("twice")
    operands = [draft.input("x", ["m", 128]), draft.weight(Weight())]
    for name in "yz":
        draft.output(draft.node("MatMul", operands, name), ["m", 64])
    assert "1 quantized weight, 5.2 kB" in here(capsys, "inspect", save(draft.model(), tmp_path, "file")).out


def test_what_stays_is_a_finding(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """But for what goes to integer kernels."""
    done = here(capsys, "inspect", "--unfused", model)
    assert (done.code, "    b_d_node\n" in done.out, "MatMul " in done.out) == (1, True, False)
    assert here(capsys, "inspect", "--unfused", save(linear(Weight()), tmp_path, "file")).code == 0
    done = here(capsys, "inspect", "--unfused", save(product(), tmp_path, "file"))
    assert done.code == 0, done.out
    assert str(Reason.INTEGER_KERNEL) in done.out
    assert "of float" not in done.out


def test_a_model_without_weights_of_that_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = here(capsys, "inspect", save(unquantized(), tmp_path, "file"))
    assert done == (0, f"Verdict: stock ONNX Runtime loads it as it is. {StockReason.NOT_QUANTIZED}\n", "")


def test_json_is_the_report(model: Path) -> None:
    done = apart("inspect", "--json", model)
    assert done.code == 0, done.err
    plain, report = json.loads(done.out), inspect(model)
    assert plain.pop("model") == str(model)
    seconds = plain.pop("seconds")
    assert sum(seconds.values()) < 5
    expected = json.loads(json.dumps(report.to_dict()))
    del expected["seconds"]
    assert plain == expected


def test_a_huge_model_takes_no_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = here(capsys, "inspect", "--json", huge(tmp_path))
    assert done.code == 0, done.err
    plain = json.loads(done.out)
    assert plain["fused"][0]["stored_bytes"] > 20e9
    assert sum(plain["seconds"].values()) < 0.5


@pytest.mark.parametrize("columns", [80, 200])
def test_it_fits_the_terminal(columns: int, model: Path) -> None:
    pytest.importorskip("rich")
    done = on_terminal("inspect", model, columns=columns)
    table = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in done.out.splitlines()][:3]
    assert [len(line) <= columns for line in table] == [True] * 3
    assert "\x1b[33m" in done.out
    assert "\x1b[33m" not in on_terminal("inspect", model, columns=columns, NO_COLOR="1").out


def test_plain_text_without_rich(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    redirected = here(capsys, "inspect", model)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert here(capsys, "inspect", model) == redirected


def test_all_models_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.onnx").write_bytes(mixed())
    (tmp_path / "genai_config.json").write_text(
        json.dumps({"model": {"decoder": {"filename": "m.onnx"}, "encoder": {"filename": "e.onnx"}}})
    )
    save(linear(Weight()), tmp_path, "file", "e")
    done = here(capsys, "inspect", tmp_path)
    assert done.code == 0, done.err
    first, second = done.out.split(f"\n{tmp_path / 'e.onnx'}:\n")
    assert first.startswith(f"{tmp_path / 'm.onnx'}:\n")
    assert ("1 of 2 quantized weights fused" in first, "all fused, 1 quantized weight" in second) == (True, True)
    assert here(capsys, "inspect", "--unfused", tmp_path).code == 1
    plain = json.loads(here(capsys, "inspect", "--json", tmp_path).out)
    assert [len(report["fused"]) for report in plain] == [1, 1]
