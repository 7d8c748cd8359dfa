"""create_session gives an ordinary InferenceSession: everything works as with stock, and the caller's things stay his."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from conformance.drawing.draft import Draft
from conformance.drawing.weight import PER_CHANNEL, Weight
from conformance.tables.decoder import ensure_pair, spec_of
from ort_qdq_plugin import Options, QdqPluginError, SourceChangedError, create_session, inspect
from ort_qdq_plugin import session as session_module
from ort_qdq_plugin.options import config_entry
from ort_qdq_plugin.packing import pack as pack_module
from tests.support import (
    CPU,
    Form,
    added_provider,
    descriptors,
    external_tensor,
    linear,
    made_report,
    mapped,
    python,
    quiet,
    result,
    save,
    settled_descriptors,
    stack,
    stock,
    x_of,
)

FORMS: tuple[Form, ...] = ("bytes", "file", "external")
LEVEL_KEY = "session.qdq_matmulnbits_accuracy_level"
BLOCK_KEY = "session.qdq_matmulnbits_block_size"
OUR_KEYS = (
    "session.use_external_initializer_file_buffers_directly",
    "session.model_external_initializers_file_folder_path",
    "session.prepack.enable_parallel",
)


def fused_nodes(path: Path) -> dict[str, list[onnx.NodeProto]]:
    """The nodes of a saved model, by type."""
    nodes: dict[str, list[onnx.NodeProto]] = {}
    for node in onnx.load(path, load_external_data=False).graph.node:
        nodes.setdefault(node.op_type, []).append(node)
    return nodes


def level_of(options: ort.SessionOptions | None, ours: Options | None, folder: Path) -> tuple[int, int]:
    """(accuracy_level, block_size) of the node that really runs, for a weight without blocks."""
    options = options or quiet()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    create_session(save(linear(Weight(k=512, block=PER_CHANNEL)), folder, "bytes"), options, CPU, options=ours)
    (node,) = fused_nodes(folder / "optimized.onnx")["MatMulNBits"]
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    return attributes["accuracy_level"], attributes["block_size"]


# An ordinary session


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
    assert len(made_report(session).fused) == (1 if make is quiet else 0), "added providers cannot be told apart unseen"
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
    monkeypatch.setattr(session_module, "_PROVIDERS", {"CPUExecutionProvider"})
    session = create_session(save(stack(2, 128), tmp_path, "external"), quiet(), CPU)
    wanted = result(session)
    session.set_providers(["AzureExecutionProvider", "CPUExecutionProvider"])
    report = made_report(session)
    assert (report.route, report.fused) == ("stock", ())
    assert "AzureExecutionProvider" in str(report.passed_through)
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
    assert "Identity" not in fused_nodes(tmp_path / "optimized.onnx")
    create_session(stored, options, CPU, disabled_optimizers=["EliminateIdentity"], enable_fallback=0)
    assert "Identity" in fused_nodes(tmp_path / "optimized.onnx")


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


# The caller's options


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", [quiet, added_provider])
def test_the_callers_options_stay_as_they_are(tmp_path: Path, form: Form, make: Any) -> None:
    options = make()
    session = create_session(save(stack(2, 128, n_major=True), tmp_path, form), options)
    assert len(made_report(session).fused) == 2
    for key in OUR_KEYS:
        assert not config_entry(options, key), key
    other = tmp_path / "other"
    other.mkdir()
    unrelated = save(linear(Weight(element="int8", block=-1, k=64), seed="other"), other, "external")
    np.testing.assert_array_equal(result(ort.InferenceSession(unrelated, options)), result(stock(unrelated)))
    (other / "model.data").unlink()
    with pytest.raises(Exception, match=r"does not exist.*model\.data"):
        ort.InferenceSession(unrelated, options)


@pytest.mark.parametrize("make", [quiet, added_provider])
def test_options_with_a_folder_of_their_own(tmp_path: Path, make: Any) -> None:
    """A model as bytes whose data lies where the options say."""
    key = "session.model_external_initializers_file_folder_path"
    path = Path(str(save(stack(2, 128, n_major=True), tmp_path, "external")))
    options = make()
    options.add_session_config_entry(key, str(tmp_path))
    session = create_session(path.read_bytes(), options)
    assert len(made_report(session).fused) == 2
    np.testing.assert_array_equal(result(session), result(create_session(path)))
    assert config_entry(options, key) == str(tmp_path)


@pytest.mark.parametrize("make", [quiet, added_provider])
def test_threads_may_share_options(tmp_path: Path, make: Any) -> None:
    options = make()
    options.intra_op_num_threads = 1
    models = []
    for number in range(4):
        (tmp_path / str(number)).mkdir()
        models.append(save(stack(2, 128, seed=str(number)), tmp_path / str(number), "external"))
    wanted = [result(stock(model)) for model in models]

    def load(number: int) -> bool:
        session = create_session(models[number % 4], options)
        return len(made_report(session).fused) == 2 and np.array_equal(result(session), wanted[number % 4])

    with ThreadPoolExecutor(4) as executor:
        assert all(executor.map(load, range(24)))


@pytest.mark.parametrize("name", ["w", "w_s", "w_z"])
@pytest.mark.parametrize("call", ["add_initializer", "add_external_initializers"])
def test_initializers_that_the_options_replace(tmp_path: Path, name: str, call: str) -> None:
    """What a caller puts in place of a weight is what counts."""
    weight = Weight(element="uint8", block=-1, scale="float")
    stored = save(linear(weight), tmp_path, "external")
    mine = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in linear(weight, "other").graph.initializer}
    value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(mine[name]) if mine[name].shape else mine[name])
    made = []
    for create in (ort.InferenceSession, create_session):
        options = quiet()
        if call == "add_initializer":
            options.add_initializer(name, value)
        else:
            options.add_external_initializers([name], [value])
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        made.append(create(stored, options, CPU))
    theirs, ours = result(made[0]), result(made[1])
    assert np.abs(ours - theirs).max() <= 2e-2 * np.abs(theirs).max()


def test_files_in_memory_that_the_options_hold(tmp_path: Path) -> None:
    stored = save(linear(Weight()), tmp_path, "external")
    other = tmp_path / "other"
    other.mkdir()
    save(linear(Weight(), "other"), other, "external")
    data = (other / "model.data").read_bytes()
    made = []
    for create in (ort.InferenceSession, create_session):
        options = quiet()
        options.add_external_initializers_from_files_in_memory(["model.data"], [data], [len(data)])
        made.append(create(stored, options, CPU))
    np.testing.assert_allclose(result(made[1]), result(made[0]), rtol=1e-3, atol=1e-3)


def test_accuracy_level_and_block_size(tmp_path: Path) -> None:
    assert level_of(None, None, tmp_path) == (4, 32)
    options = quiet()
    options.add_session_config_entry(LEVEL_KEY, "1")
    options.add_session_config_entry(BLOCK_KEY, "128")
    assert level_of(options, None, tmp_path) == (1, 128)
    assert level_of(options, Options(accuracy_level=0, block_size=64), tmp_path) == (0, 64)
    options.add_session_config_entry(BLOCK_KEY, "-1")
    assert level_of(options, None, tmp_path) == (1, 256)


@pytest.mark.parametrize(("key", "value"), [(LEVEL_KEY, "9"), (LEVEL_KEY, "x"), (BLOCK_KEY, "48"), (BLOCK_KEY, "big")])
def test_entries_that_make_no_sense_are_stocks_business(key: str, value: str) -> None:
    stored = save(linear(Weight(block=PER_CHANNEL)), Path(), "bytes")
    outcomes = []
    for create in (ort.InferenceSession, create_session):
        options = quiet()
        options.add_session_config_entry(key, value)
        try:
            outcomes.append(result(create(stored, options, CPU)).tobytes())
        except Exception as error:
            outcomes.append(f"{type(error)} {error}".encode())
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC"])
def test_lower_optimization_levels_fuse_nothing(level: str) -> None:
    options = quiet()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    stored = save(linear(Weight()), Path(), "bytes")
    session = create_session(stored, options, CPU)
    assert (made_report(session).route, made_report(session).fused) == ("stock", ())
    np.testing.assert_array_equal(result(session), result(stock(stored, options)))


def test_qdq_switched_off_fuses_nothing(tmp_path: Path) -> None:
    options = quiet()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = create_session(save(linear(Weight()), tmp_path, "bytes"), options, CPU)
    assert made_report(session).route == "stock"
    assert "MatMulNBits" not in fused_nodes(tmp_path / "optimized.onnx")


def test_the_optimizer_switched_off_fuses_nothing(tmp_path: Path) -> None:
    stored = save(linear(Weight()), tmp_path, "bytes")
    off = ["QDQSelectorActionTransformer"]
    session = create_session(stored, quiet(), CPU, disabled_optimizers=off)
    np.testing.assert_array_equal(
        result(session), result(ort.InferenceSession(stored, quiet(), CPU, disabled_optimizers=off))
    )
    assert not made_report(session).fused


@pytest.mark.parametrize("n_major", [False, True])
@pytest.mark.parametrize("make", [quiet, added_provider])
def test_the_optimized_model_is_whole(tmp_path: Path, make: Any, n_major: bool) -> None:
    """It loads, beside the original's data, as one that stock has saved."""
    options = make()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = create_session(save(stack(2, 128, n_major=n_major), tmp_path, "external"), options)
    if make is quiet:
        assert len(fused_nodes(tmp_path / "optimized.onnx")["MatMulNBits"]) == 2
    np.testing.assert_array_equal(result(stock(str(tmp_path / "optimized.onnx"))), result(session))


# What passes through


@pytest.mark.parametrize("as_bytes", [False, True])
def test_ort_format(tmp_path: Path, as_bytes: bool) -> None:
    options = quiet()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.save_model_format", "ORT")
    stored = save(linear(Weight(element="uint8")), tmp_path, "bytes")  # the format knows no 4-bit types
    stock(stored, options)
    path = tmp_path / "model.ort"
    model: str | bytes = path.read_bytes() if as_bytes else str(path)
    session = create_session(model, quiet(), CPU, options=Options(strict=True))
    assert made_report(session).route == "stock"
    np.testing.assert_array_equal(result(session), result(stock(model)))


def test_a_float_model_passes_through(tmp_path: Path) -> None:
    draft = Draft("float")
    draft.input("x", ["m", 64])
    draft.output("y", ["m", 64])
    draft.node("MatMul", ["x", draft.floats("w", [64, 64])], "y")
    stored = save(draft.model(), tmp_path, "external")
    session = create_session(stored, quiet(), CPU, options=Options(strict=True))
    assert made_report(session).route == "stock"
    assert "quantized" in str(made_report(session).passed_through)
    np.testing.assert_array_equal(result(session), result(stock(stored)))


def test_the_qoperator_model_gets_the_hand_over(tmp_path: Path) -> None:
    pair = ensure_pair(spec_of("uint4", layers=1, hidden=64, ffn=64, vocab=64), tmp_path)
    session = create_session(pair.qop, quiet(), CPU, options=Options(strict=True))
    report = made_report(session)
    assert (report.route, report.fused, report.packed_bytes, report.passed_through) == ("borrowed", (), 0, None)
    assert mapped(tmp_path)
    np.testing.assert_array_equal(result(session), result(stock(str(pair.qop))))


@pytest.mark.parametrize("variant", ["uint4", "int4", "uint4-nmajor", "int8-nmajor", "uint2-nozp", "uint8-fp16"])
def test_a_decoder_and_its_qoperator_twin(tmp_path: Path, variant: str) -> None:
    pair = ensure_pair(spec_of(variant, layers=1, hidden=64, ffn=96, vocab=40), tmp_path)
    session = create_session(pair.qdq, quiet(), CPU, options=Options(strict=True))
    assert len(made_report(session).fused) == 5
    np.testing.assert_array_equal(result(session), result(stock(str(pair.qop))))


def test_n_major_unsigned_weights_are_not_moved(tmp_path: Path) -> None:
    stored = save(stack(3, 256, n_major=True), tmp_path, "external")
    spill = tmp_path / "spill"
    spill.mkdir()
    session = create_session(stored, quiet(), CPU, options=Options(strict=True, buffer="file", spill_dir=spill))
    report = made_report(session)
    assert (len(report.fused), report.packed_bytes) == (3, 0)
    assert report.borrowed_bytes > 3 * 256 * 256 // 2
    assert mapped(tmp_path)
    assert not mapped(spill)


# Going wrong


def breaking(*_: object, **__: object) -> None:
    raise RuntimeError("packing broke")


@pytest.mark.parametrize("make", [quiet, added_provider])
@pytest.mark.parametrize("form", FORMS)
def test_the_fallback_warns_once_and_works(
    tmp_path: Path, form: Form, make: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stored = save(stack(2, 128), tmp_path, form)
    spill = tmp_path / "spill"
    spill.mkdir()
    monkeypatch.setattr(pack_module, "pack", breaking)
    before = settled_descriptors()
    with caplog.at_level(logging.DEBUG, "ort_qdq_plugin"):
        session = create_session(stored, make(), options=Options(buffer="file", spill_dir=spill))
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "packing broke" in caplog.text
    report = made_report(session)
    assert (report.route, report.fused) == ("stock", ())
    assert "packing broke" in str(report.passed_through)
    np.testing.assert_array_equal(result(session), result(stock(stored)))
    assert not list(spill.iterdir())
    assert not mapped(spill)
    del session
    assert descriptors() == before


@pytest.mark.parametrize("make", [quiet, added_provider])
def test_strict_raises(tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_module, "pack", breaking)
    options = Options(strict=True, buffer="file", spill_dir=tmp_path)
    with pytest.raises(QdqPluginError, match="packing broke") as caught:
        create_session(save(linear(Weight()), tmp_path, "bytes"), make(), options=options)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert not list(tmp_path.iterdir())


def test_strict_raises_once_and_without_stocks_retry(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """InferenceSession takes a ValueError or RuntimeError for a provider's failure, prints so, and tries again."""
    calls: list[int] = []

    def counting(*_: object, **__: object) -> None:
        calls.append(1)
        breaking()

    monkeypatch.setattr(pack_module, "pack", counting)
    with pytest.raises(QdqPluginError, match="packing broke"):
        create_session(save(linear(Weight()), Path(), "bytes"), quiet(), CPU, options=Options(strict=True))
    assert len(calls) == 1
    assert "EP Error" not in capsys.readouterr().out


def touch(path: Path) -> None:
    os.utime(path, ns=(5, 5))


def extend(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.fixture
def change_while_packing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], None], Path], None]:
    """Has `how(path)` happen when everything has been packed, and nothing is mapped yet."""

    def arrange(how: Callable[[Path], None], path: Path) -> None:
        real = pack_module.pack

        def packing(*args: Any) -> None:
            real(*args)
            how(path)

        monkeypatch.setattr(pack_module, "pack", packing)

    return arrange


@pytest.mark.parametrize("make", [quiet, added_provider])
@pytest.mark.parametrize("how", [touch, extend, shrink, empty])
@pytest.mark.parametrize("name", ["model.onnx", "model.data"])
def test_a_file_that_changes_while_it_is_packed(
    tmp_path: Path,
    name: str,
    how: Callable[[Path], None],
    make: Callable[[], ort.SessionOptions],
    change_while_packing: Callable[[Callable[[Path], None], Path], None],
) -> None:
    """Its N-major weight is used in place, its K-major one is packed: neither may be of another file than the other."""
    draft = Draft("two layouts")
    value = draft.node("MatMul", [draft.input("x", ["m", 64]), draft.weight(Weight(k=64, n=64), "k_major")], "h")
    transposed = draft.node("Transpose", [draft.weight(Weight(k=64, n=64, n_major=True), "n_major")], "t", perm=[1, 0])
    draft.node("MatMul", [value, transposed], "y")
    draft.output("y", ["m", 64])
    stored = save(draft.model(), tmp_path, "external")
    assert {entry.packed_bytes > 0 for entry in inspect(stored).fused} == {True, False}
    change_while_packing(how, tmp_path / name)
    with pytest.raises(SourceChangedError, match=re.escape(name)):
        create_session(stored, make(), options=Options(strict=True))


def test_a_changed_file_is_loaded_by_stock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stored = save(stack(2, 128), tmp_path, "external")
    options = Options(progress=lambda done, total: touch(tmp_path / "model.data"))
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
        session = create_session(stored, quiet(), options=options)
    assert len(caplog.records) == 1
    assert "SourceChangedError" in caplog.text
    assert made_report(session).route == "stock"


def test_tensors_that_overlap_do_not_multiply(tmp_path: Path) -> None:
    """Many weights in the same few bytes would become many times these bytes when packed."""
    draft, weights = Draft("overlap"), 90
    value = draft.input("x", ["m", 512])
    for number in range(weights):
        dequantized = draft.weight(Weight(k=512, n=4096, block=PER_CHANNEL), f"w{number}")
        draft.node("MatMul", [value, dequantized], f"y{number}")
        draft.output(f"y{number}", ["m", 4096])
    model = draft.model()
    stored = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) == 512 * 4096 // 2]
    assert len(stored) == weights
    (tmp_path / "model.data").write_bytes(stored[0].raw_data + bytes(weights))
    for offset, tensor in enumerate(stored):
        external_tensor(model, tensor.name, location="model.data", offset=str(offset), length=str(len(tensor.raw_data)))
        tensor.ClearField("raw_data")
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path)
    report = inspect(path)
    assert report.packed_bytes > 16 * sum(file.stat().st_size for file in tmp_path.iterdir())
    assert report.passed_through is not None
    assert "when packed" in report.passed_through


@pytest.mark.parametrize("make", [quiet, added_provider])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_interrupt_ends_it_and_leaves_nothing(tmp_path: Path, make: Any, threads: int) -> None:
    stored = save(stack(3, 128), tmp_path, "external")
    spill = tmp_path / "spill"
    spill.mkdir()

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    before, running = settled_descriptors(), threading.active_count()
    options = Options(progress=interrupt, buffer="file", spill_dir=spill, threads=threads)
    with pytest.raises(KeyboardInterrupt) as caught:
        create_session(stored, make(), options=options)
    del caught
    assert not list(spill.iterdir())
    assert not mapped(spill)
    assert threading.active_count() == running
    assert descriptors() == before


@pytest.mark.parametrize("make", [quiet, added_provider])
@pytest.mark.parametrize("buffer", ["auto", "file", "memory"])
def test_progress_and_where_packed_bytes_go(tmp_path: Path, buffer: str, make: Any) -> None:
    seen: list[tuple[int, int]] = []
    spill = tmp_path / "spill"
    spill.mkdir()
    options = Options(buffer=buffer, spill_dir=spill, progress=lambda done, total: seen.append((done, total)))
    stored = save(stack(3, 128), tmp_path, "file")
    session = create_session(stored, make(), options=options)
    assert seen[-1][0] == seen[-1][1] > 0
    assert not list(spill.iterdir()), "no file keeps its name"
    report = made_report(session)
    if report.route == "borrowed":
        assert bool(mapped(spill)) == (buffer == "file")
    np.testing.assert_array_equal(result(session), result(stock(stored)))


def test_a_full_disk_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    spill = tmp_path / "spill"
    spill.mkdir()
    stored = save(stack(4, 128), tmp_path, "external")
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
        session = create_session(stored, quiet(), CPU, options=Options(buffer="file", spill_dir=spill, threads=3))
    assert len(caplog.records) == 1
    assert made_report(session).route == "borrowed"
    assert not list(spill.iterdir())
    np.testing.assert_array_equal(result(session), result(stock(stored)))


@pytest.mark.parametrize("make", [quiet, added_provider])
def test_empty_external_tensors(tmp_path: Path, make: Any) -> None:
    """A tensor without elements has no bytes to borrow; its file may be empty."""
    model = linear(Weight())
    for number, location in enumerate(["empty.data", "model.data"]):
        tensor = TensorProto(name=f"nothing{number}", data_type=TensorProto.FLOAT, dims=[0])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        model.graph.initializer.append(tensor)
        model.graph.node.append(helper.make_node("Identity", [tensor.name], [f"out{number}"]))
        model.graph.output.append(helper.make_tensor_value_info(f"out{number}", TensorProto.FLOAT, [0]))
    (tmp_path / "empty.data").write_bytes(b"")
    (tmp_path / "model.data").write_bytes(b"something")
    stored = save(model, tmp_path, "file")
    theirs = stock(stored)
    session = create_session(stored, make(), options=Options(strict=True))
    for one, other in zip(session.run(None, x_of(session)), theirs.run(None, x_of(theirs)), strict=True):
        np.testing.assert_array_equal(one, other)


# inspect


SPARSE = """
import re, resource, sys
from pathlib import Path
from ort_qdq_plugin import inspect
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
report = inspect(sys.argv[1])
assert len(report.fused) == 1, report
assert report.packed_bytes > 10 << 30, report
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def test_inspect_reads_no_weight(tmp_path: Path) -> None:
    """A weight of 20 GB, in a file that is only said to be so large."""
    k, n = 1 << 18, 160_000
    model = linear(Weight())
    shapes = {"w": (k, n), "w_s": (k // 32, n), "w_z": (k // 32, n)}
    offset = 0
    for tensor in model.graph.initializer:
        del tensor.dims[:]
        tensor.dims.extend(shapes[tensor.name])
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        nbytes = shapes[tensor.name][0] * n * (4 if tensor.name == "w_s" else 1) // (1 if tensor.name == "w_s" else 2)
        for key, value in (("location", "huge.data"), ("offset", str(offset)), ("length", str(nbytes))):
            tensor.external_data.add(key=key, value=value)
        offset += nbytes
    with (tmp_path / "huge.data").open("wb") as file:
        file.truncate(offset)
    assert offset > 20 << 30
    stored = save(model, tmp_path, "file")
    done = python(SPARSE, stored)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300_000
    assert (tmp_path / "huge.data").stat().st_blocks == 0
    assert inspect(stored).fused[0].k == k
