"""The caller's SessionOptions: they mean what they mean to stock, and stay as they are."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from conformance.drawing.weight import PER_CHANNEL, Weight
from ort_qdq_plugin import Options, create_session
from ort_qdq_plugin.ort.keys import config_entry
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
)

LEVEL_KEY = "session.qdq_matmulnbits_accuracy_level"
BLOCK_KEY = "session.qdq_matmulnbits_block_size"

OUR_KEYS = (
    "session.use_external_initializer_file_buffers_directly",
    "session.model_external_initializers_file_folder_path",
    "session.prepack.enable_parallel",
)


def level_of(options: ort.SessionOptions | None, ours: Options | None, folder: Path) -> tuple[int, int]:
    """(accuracy_level, block_size) of the node that really runs, for a weight without blocks."""
    options = options or quiet()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    create_session(save(linear(Weight(k=512, block=PER_CHANNEL)), folder, "bytes"), options, CPU, options=ours)
    (node,) = saved_nodes(folder / "optimized.onnx")["MatMulNBits"]
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    return attributes["accuracy_level"], attributes["block_size"]


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
    assert "MatMulNBits" not in saved_nodes(tmp_path / "optimized.onnx")


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
        assert len(saved_nodes(tmp_path / "optimized.onnx")["MatMulNBits"]) == 2
    np.testing.assert_array_equal(result(stock(str(tmp_path / "optimized.onnx"))), result(session))
