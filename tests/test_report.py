"""Reports: what they say and in which form."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime as ort
import pytest

from conformance.drawing.draft import Draft
from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, Reason, create_session, inspect, report_of
from tests.support import linear, made_report, save, stack, stock

STAGES = ["open", "match", "plan", "pack", "hand over"]


def mixed() -> bytes:
    """One product that is fused, and one weight whose dequantized values are needed."""
    draft = Draft("mixed")
    draft.input("x", ["m", 128])
    draft.output("y", ["m", 64])
    product = draft.node("MatMul", ["x", draft.weight(Weight())], "p")
    bias = draft.weight(Weight(k=1, n=64, block=-1, element="int8"), "b")
    draft.node("Mul", [product, bias], "y")
    return bytes(draft.model().SerializeToString())


def test_what_was_fused_and_what_was_not() -> None:
    report = made_report(create_session(mixed()))
    (fusion,) = report.fused
    assert (fusion.node, fusion.dequantize, fusion.kind) == ("p_node", "w_d_node", "MatMul")
    assert (fusion.k, fusion.n, fusion.bits, fusion.block_size, fusion.layout) == (128, 64, 4, 32, "K-major")
    assert fusion.packed_bytes == 128 * 64 // 2 + 4 * 64 * 4 + 4 * 64 // 2
    assert (fusion.borrowed_bytes, fusion.has_bias) == (0, False)
    assert (report.packed_bytes, report.borrowed_bytes) == (fusion.packed_bytes, 0)
    (unfused,) = report.unfused
    assert (unfused.dequantize, unfused.weight, unfused.reason) == ("b_d_node", "b", Reason.CONSUMER)
    assert unfused.bytes_per_run == 64 * 4
    assert (report.route, report.passed_through) == ("borrowed", None)
    assert sorted(report.seconds) == sorted(STAGES)
    assert all(seconds >= 0 for seconds in report.seconds.values())


def test_borrowed_bytes_are_counted() -> None:
    report = made_report(create_session(save(linear(Weight(n_major=True)), Path(), "bytes")))
    assert report.packed_bytes == 0
    assert report.borrowed_bytes == 128 * 64 // 2 + 4 * 64 * 4 + 4 * 64 // 2
    assert report.fused[0].layout == "N-major"


def test_unnamed_nodes_go_by_their_output() -> None:
    model = linear(Weight())
    for node in model.graph.node:
        node.name = ""
    (fusion,) = made_report(create_session(model.SerializeToString())).fused
    assert (fusion.node, fusion.dequantize) == ("y", "w_d")


def test_in_every_form() -> None:
    report = made_report(create_session(mixed()))
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["fused"][0]["node"] == "p_node"
    assert plain["unfused"][0]["reason"] == str(Reason.CONSUMER)
    assert plain["seconds"].keys() == report.seconds.keys()
    text = str(report)
    assert "p_node" in text
    assert "b_d_node" in text
    assert str(Reason.CONSUMER) in text
    assert len(text.splitlines()) == 3


def test_reasons_are_sentences() -> None:
    for reason in Reason:
        assert str(reason).endswith(".")
        assert str(reason)[0].isupper()
    assert len({str(reason) for reason in Reason}) == len(Reason)


def test_sessions_that_are_not_ours_have_none() -> None:
    assert report_of(stock(mixed())) is None


@pytest.mark.parametrize("n_major", [False, True])
def test_inspect_says_the_same(tmp_path: Path, n_major: bool) -> None:
    stored = save(stack(3, 128, n_major=n_major), tmp_path, "external")
    made, seen = made_report(create_session(stored)), inspect(stored)
    assert (seen.fused, seen.unfused) == (made.fused, made.unfused)
    assert (seen.packed_bytes, seen.borrowed_bytes) == (made.packed_bytes, made.borrowed_bytes)
    assert (seen.route, seen.passed_through) == ("inspect", None)
    assert "pack" not in seen.seconds


def test_inspect_takes_options() -> None:
    stored = save(linear(Weight(block=0, k=512)), Path(), "bytes")
    assert inspect(stored, options=Options(block_size=128)).fused[0].block_size == 128


def test_inspect_without_anything_to_do(tmp_path: Path) -> None:
    draft = Draft("float")
    draft.input("x", ["m", 8])
    draft.output("y", ["m", 8])
    draft.node("Relu", ["x"], "y")
    report = inspect(Path(str(save(draft.model(), tmp_path, "file"))))
    assert report.passed_through is not None
    assert "quantized" in report.passed_through
    assert not report.fused
    assert "stock" in str(report)


@pytest.mark.parametrize("what", ["missing", "directory", "garbage"])
def test_inspect_of_what_is_no_model(tmp_path: Path, what: str) -> None:
    path = tmp_path / "m.onnx"
    if what == "directory":
        path.mkdir()
    elif what == "garbage":
        path.write_bytes(b"\xff" * 10_000)
    from ort_qdq_plugin import ModelError

    with pytest.raises((ModelError, OSError), match=r"m\.onnx"):
        inspect(path)


def test_inspect_makes_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime.capi import _pybind_state

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a session was made")

    monkeypatch.setattr(_pybind_state, "InferenceSession", refuse)
    monkeypatch.setattr(ort.InferenceSession, "__init__", refuse)
    assert len(inspect(mixed()).fused) == 1
