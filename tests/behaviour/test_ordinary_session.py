"""create_session gives an ordinary InferenceSession: everything works as with stock."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper

from benchmarks.big_models import write_pair
from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, StockReason, create_session
from ort_qdq_plugin.cli.demo_model import Decoder
from ort_qdq_plugin.ort import providers as providers_module
from tests.support import (
    CPU,
    FORMS,
    Form,
    added_provider,
    linear,
    made_report,
    quiet,
    result,
    save,
    saved_nodes,
    stack,
    stock,
    x_of,
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n_major", [False, True])
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


def test_paths_of_all_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Path(str(save(linear(Weight()), tmp_path, "external")))
    wanted = result(create_session(str(stored)))
    np.testing.assert_array_equal(result(create_session(stored)), wanted)
    monkeypatch.chdir(tmp_path)
    for path in ("model.onnx", "./model.onnx", f"../{tmp_path.name}/model.onnx"):
        session = create_session(path)
        assert len(made_report(session).fused) == 1
        np.testing.assert_array_equal(result(session), wanted)


@pytest.mark.parametrize("model", [None, 3, bytearray(b"x"), memoryview(b"x")])
def test_other_types_get_what_stock_says(model: Any) -> None:
    with pytest.raises(TypeError) as theirs:
        ort.InferenceSession(model)
    with pytest.raises(TypeError) as ours:
        create_session(model)
    assert str(ours.value) == str(theirs.value)


def test_all_ways_to_run() -> None:
    stored = save(stack(2, 128), Path(), "bytes")
    session = create_session(stored, quiet(), CPU)
    fed = x_of(session)
    wanted = session.run(["y"], fed)[0]
    values = session.run_with_ort_values(["y"], {"x": ort.OrtValue.ortvalue_from_numpy(fed["x"])})
    np.testing.assert_array_equal(values[0].numpy(), wanted)
    binding = session.io_binding()
    binding.bind_cpu_input("x", fed["x"])
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], wanted)
    done = threading.Event()
    got: list[Any] = []

    def finished(results: Any, _: Any, error: str) -> None:
        got.extend([results, error])
        done.set()

    session.run_async(["y"], fed, finished, None)
    assert done.wait(30)
    np.testing.assert_array_equal(got[0][0], wanted)
    with pytest.raises(ValueError, match="Required inputs"):
        session.run(None, {})


def test_what_it_says_of_itself() -> None:
    model = stack(2, 128)
    model.producer_name, model.doc_string, model.graph.doc_string, model.model_version = "someone", "model", "graph", 7
    model.domain = "some.domain"
    helper.set_model_props(model, {"key": "value", "large": "v" * 10_000})
    stored = save(model, Path(), "bytes")
    ours, theirs = create_session(stored, quiet(), CPU), stock(stored)
    for one, other in zip(
        [*ours.get_inputs(), *ours.get_outputs()], [*theirs.get_inputs(), *theirs.get_outputs()], strict=True
    ):
        assert (one.name, one.type, one.shape) == (other.name, other.type, other.shape)
    assert ours.get_overridable_initializers() == theirs.get_overridable_initializers() == []
    mine, their = ours.get_modelmeta(), theirs.get_modelmeta()
    names = ("producer_name", "description", "graph_description", "graph_name", "version", "domain", "custom_metadata_map")
    for name in names:
        assert getattr(mine, name) == getattr(their, name), name
    assert ours.get_providers() == theirs.get_providers() == CPU


def test_functions_are_kept() -> None:
    model = linear(Weight())
    body = [helper.make_node("Mul", ["a", "a"], ["b"])]
    opset = helper.make_opsetid("", 21)
    model.functions.append(helper.make_function("test.local", "Square", ["a"], ["b"], body, [opset]))
    model.opset_import.append(helper.make_opsetid("test.local", 1))
    model.graph.node[-1].output[0] = "p"
    model.graph.node.append(helper.make_node("Square", ["p"], ["y"], domain="test.local"))
    stored = save(model, Path(), "bytes")
    session = create_session(stored, quiet(), CPU)
    assert made_report(session).route == "borrowed"
    assert len(made_report(session).fused) == 1
    np.testing.assert_array_equal(result(session), result(stock(stored)))


@pytest.mark.parametrize("make", [quiet, added_provider])
def test_one_profile_and_no_stray_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    monkeypatch.chdir(tmp_path)
    options = make()
    options.enable_profiling = True
    options.profile_file_prefix = "mine"
    session = create_session(save(linear(Weight()), tmp_path, "bytes"), options)
    report = made_report(session)
    assert (len(report.fused), report.stock_reason) == ((1, None) if make is quiet else (0, StockReason.UNKNOWN_PROVIDER))
    result(session)
    profile = session.end_profiling()
    assert profile.startswith("mine")
    assert "MatMulNBits" in (tmp_path / profile).read_text()
    assert [path.name for path in tmp_path.iterdir()] == [profile]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", [quiet, added_provider])
def test_set_providers_afterwards(tmp_path: Path, form: Form, make: Any) -> None:
    session = create_session(save(stack(2, 128), tmp_path, form), make())
    wanted, route = result(session), made_report(session).route
    lists: list[Any] = [CPU, ["AzureExecutionProvider", "CPUExecutionProvider"], [("CPUExecutionProvider", {})]]
    for providers in lists:
        session.set_providers(providers)
        np.testing.assert_array_equal(result(session), wanted)
        assert len(made_report(session).fused) == 2
        assert made_report(session).route == route


def test_set_providers_to_one_that_is_not_ours_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers_module, "_TAKES_FUSED", {"CPUExecutionProvider"})
    session = create_session(save(stack(2, 128), tmp_path, "external"), quiet(), CPU)
    wanted = result(session)
    session.set_providers(["AzureExecutionProvider", "CPUExecutionProvider"])
    report = made_report(session)
    assert (report.route, report.fused) == ("stock", ())
    assert (report.stock_reason, report.stock_detail) == (StockReason.PROVIDER, "AzureExecutionProvider")
    np.testing.assert_array_equal(result(session), wanted)
    session.set_providers(CPU)
    assert made_report(session).route == "borrowed"
    np.testing.assert_array_equal(result(session), wanted)


def test_set_providers_after_the_spill_file_and_the_model_are_gone(tmp_path: Path) -> None:
    """What is borrowed is in the process; by path the model is read again, as stock does."""
    stored = str(save(stack(2, 128), tmp_path, "external"))
    session = create_session(stored, quiet(), CPU)
    wanted = result(session)
    for path in tmp_path.iterdir():
        path.unlink()
    session.set_providers(CPU)
    np.testing.assert_array_equal(result(session), wanted)


def test_keywords_are_handed_on(tmp_path: Path) -> None:
    options = quiet()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    model = linear(Weight())
    model.graph.node.insert(0, helper.make_node("Identity", ["x"], ["same"]))
    model.graph.node[-1].input[0] = "same"
    stored = save(model, tmp_path, "bytes")
    create_session(stored, options, CPU)
    assert "Identity" not in saved_nodes(tmp_path / "optimized.onnx")
    create_session(stored, options, CPU, disabled_optimizers=["EliminateIdentity"], enable_fallback=0)
    assert "Identity" in saved_nodes(tmp_path / "optimized.onnx")


def test_provider_options_are_handed_on() -> None:
    stored = save(linear(Weight()), Path(), "bytes")
    session = create_session(stored, quiet(), CPU, [{}])
    assert len(made_report(session).fused) == 1
    with pytest.raises(ValueError, match="provider_options"):
        create_session(stored, quiet(), CPU, [{}, {}], enable_fallback=0)


def test_an_unknown_provider_is_stocks_business() -> None:
    stored = save(linear(Weight()), Path(), "bytes")
    with pytest.warns(UserWarning, match="NoSuchExecutionProvider"):
        session = create_session(stored, quiet(), ["NoSuchExecutionProvider", "CPUExecutionProvider"])
    assert session.get_providers() == CPU
    np.testing.assert_array_equal(result(session), result(stock(stored)))


@pytest.mark.parametrize("variant", ["uint4", "int4", "uint4-nmajor", "int8-nmajor", "uint2-nozp", "uint8-fp16"])
def test_a_decoder_and_its_qoperator_twin(tmp_path: Path, variant: str) -> None:
    pair = write_pair(tmp_path, variant, Decoder(1, 64, 96, 40))
    session = create_session(pair.qdq, quiet(), CPU, options=Options(strict=True))
    assert len(made_report(session).fused) == 5
    np.testing.assert_array_equal(result(session), result(stock(str(pair.qop))))
