"""create_session gives an ordinary InferenceSession. Each call of the class is compared with stock's in tests/surface."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from benchmarks.big_models import write_pair
from conformance.drawing.draft import Draft
from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, StockReason, create_session
from ort_qdq_plugin.cli.demo_model import Decoder
from ort_qdq_plugin.ort import providers as providers_module
from tests.support import (
    CPU,
    IN_PLACE,
    ROUTE,
    Form,
    floating,
    linear,
    made_report,
    mapped,
    quiet,
    result,
    save,
    stack,
    stock,
    with_entries,
)

AZURE = ["AzureExecutionProvider", *CPU]


def test_it_is_an_inference_session_and_agrees_with_stock(tmp_path: Path, form: Form, n_major: bool) -> None:
    stored = save(stack(3, 256, n_major=n_major), tmp_path, form)
    session = create_session(stored, quiet(), CPU)
    assert isinstance(session, ort.InferenceSession)
    assert len(made_report(session).fused) == 3
    plain = quiet()
    plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    wanted = result(stock(stored, plain))
    assert np.abs(result(session) - wanted).max() <= 0.1 * np.abs(wanted).max()
    if not n_major:
        np.testing.assert_array_equal(result(session), result(stock(stored)))
    exact = create_session(stored, quiet(), CPU, options=Options(accuracy_level=0))
    assert np.abs(result(exact) - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_functions_are_kept() -> None:
    draft = Draft("function")
    body, opset = [helper.make_node("Mul", ["a", "a"], ["b"])], helper.make_opsetid("", 21)
    draft.functions.append(helper.make_function("test.local", "Square", ["a"], ["b"], body, [opset]))
    product = draft.node("MatMul", [draft.input("x", ["m", 128]), draft.weight(Weight())])
    draft.output(draft.node("Square", [product], "y", domain="test.local"), ["m", 64])
    stored = save(draft.model(), Path(), "bytes")
    session = create_session(stored, quiet(), CPU)
    assert (made_report(session).route, len(made_report(session).fused)) == (ROUTE, 1)
    np.testing.assert_array_equal(result(session), result(stock(stored)))


def test_one_profile_and_no_stray_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    monkeypatch.chdir(tmp_path)
    options = make()
    options.enable_profiling, options.profile_file_prefix = True, "mine"
    session = create_session(save(linear(Weight()), tmp_path, "bytes"), options)
    assert len(made_report(session).fused) == 1
    result(session)
    profile = session.end_profiling()
    assert profile.startswith("mine")
    assert "MatMulNBits" in (tmp_path / profile).read_text()
    assert [path.name for path in tmp_path.iterdir()] == [profile]


def test_set_providers_afterwards(tmp_path: Path, form: Form, make: Any) -> None:
    session = create_session(save(stack(2, 128), tmp_path, form), make())
    wanted, route = result(session), made_report(session).route
    lists: list[Any] = [CPU, AZURE, [("CPUExecutionProvider", {})]]
    for providers in lists:
        session.set_providers(providers)
        np.testing.assert_array_equal(result(session), wanted)
        assert (made_report(session).route, len(made_report(session).fused)) == (route, 2)


def test_set_providers_to_one_that_is_not_ours_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers_module, "TAKES_FUSED", {"CPUExecutionProvider"})
    session = create_session(save(stack(2, 128), tmp_path, "external"), quiet(), CPU)
    wanted = result(session)
    session.set_providers(AZURE)
    report = made_report(session)
    assert (report.route, report.fused) == ("stock", ())
    assert (report.stock_reason, report.stock_detail) == (StockReason.PROVIDER, "AzureExecutionProvider")
    np.testing.assert_array_equal(result(session), wanted)
    session.set_providers(CPU)
    assert made_report(session).route == ROUTE
    np.testing.assert_array_equal(result(session), wanted)


def test_products_are_fused_with_provider_options_too() -> None:
    session = create_session(save(linear(Weight()), Path(), "bytes"), quiet(), CPU, [{}])
    assert len(made_report(session).fused) == 1


@pytest.mark.parametrize("variant", ["uint4", "int4", "uint4-nmajor", "int8-nmajor", "uint4-nozp", "uint8-fp16"])
def test_a_decoder_and_its_qoperator_twin(tmp_path: Path, variant: str) -> None:
    pair = write_pair(tmp_path, variant, Decoder(1, 64, 96, 40))
    session = create_session(pair.qdq, quiet(), CPU, options=Options(strict=True))
    assert len(made_report(session).fused) == 5
    np.testing.assert_array_equal(result(session), result(stock(str(pair.qop))))


# Models that there is nothing to fuse in: what goes to stock as it is, and what is handed over all the same


def passed_through(model: str | bytes) -> ort.InferenceSession:
    """A session that gives what stock gives, for a model in which nothing is fused."""
    session = create_session(model, quiet(), CPU, options=Options(strict=True))
    np.testing.assert_array_equal(result(session), result(stock(model)))
    assert not made_report(session).fused
    return session


@pytest.mark.parametrize("as_bytes", [False, True])
def test_ort_format(tmp_path: Path, as_bytes: bool) -> None:
    options, path = with_entries({"session.save_model_format": "ORT"}), tmp_path / "model.ort"
    options.optimized_model_filepath = str(path)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    stock(save(linear(Weight(element="uint8")), tmp_path, "bytes"), options)  # the format knows no 4-bit types
    assert made_report(passed_through(path.read_bytes() if as_bytes else str(path))).route == "stock"


def test_a_float_model_passes_through(tmp_path: Path) -> None:
    report = made_report(passed_through(save(floating(), tmp_path, "external")))
    assert (report.route, report.stock_reason) == ("stock", StockReason.NOT_QUANTIZED)


@IN_PLACE
def test_the_qoperator_model_gets_the_hand_over(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, "uint4", Decoder(1, 64, 64, 64))
    session = passed_through(str(pair.qop))
    assert mapped(tmp_path)
    report = made_report(session)
    assert (report.route, report.fused, report.packed_bytes, report.stock_reason) == (ROUTE, (), 0, None)


def mixture() -> Draft:
    """A mixture of experts that is quantized already."""
    draft = Draft("mixture")
    x = draft.input("x", ["m", 64])
    probabilities = draft.node("MatMul", [x, draft.floats("router", [64, 4], low=-1, high=1)])
    weights = [draft.quantized(name, "uint8", [4, 64, 32]) for name in ("w", "v")]
    scales = [draft.floats(f"{name}_s", [4, 64, 2]) for name in ("w", "v")]
    draft.node(
        "QMoE", [x, probabilities, weights[0], scales[0], "", weights[1], scales[1]], "y", domain="com.microsoft", k=2,
        block_size=32, weights_prepacked=0,
    )  # fmt: skip
    draft.output("y", ["m", 64])
    return draft


def lookup() -> Draft:
    """A lookup in a table that is quantized already."""
    draft = Draft("lookup")
    indices = draft.node("Cast", [draft.input("x", ["m", 2])], "i", to=TensorProto.INT64)
    operands = [draft.quantized("w", "uint8", [500, 32]), indices, draft.floats("s", [500, 2])]
    draft.node("GatherBlockQuantized", operands, "y", domain="com.microsoft", block_size=32, bits=4, quantize_axis=1)
    draft.output("y", ["m", 2, 64])
    return draft


@pytest.mark.parametrize("draft", [mixture(), lookup()], ids=["QMoE", "GatherBlockQuantized"])
def test_so_do_other_models_that_are_quantized_already(tmp_path: Path, form: Form, draft: Draft) -> None:
    report = made_report(passed_through(save(draft.model(), tmp_path, form)))
    assert (report.route, report.fused, report.packed_bytes, report.stock_reason) == (ROUTE, (), 0, None)
