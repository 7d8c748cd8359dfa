"""The caller's SessionOptions: they mean what they mean to stock, and stay as they are."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from conformance.drawing.weight import PER_CHANNEL, Weight
from ort_qdq_plugin import Options, create_session, warm
from ort_qdq_plugin.ort.keys import config_entry
from tests.support import (
    CPU,
    ROUTE_IN_MEMORY,
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
    with_entries,
)  # fmt: skip

ACCURACY_KEY = "session.qdq_matmulnbits_accuracy_level"
BLOCK_SIZE_KEY = "session.qdq_matmulnbits_block_size"
DISABLED_KEY = "optimization.disable_specified_optimizers"
DIRECT_KEY = "session.use_external_initializer_file_buffers_directly"
FOLDER_KEY = "session.model_external_initializers_file_folder_path"
PARALLEL_KEY = "session.prepack.enable_parallel"
SAVED_DATA_KEY = "session.optimized_model_external_initializers_file_name"
SAVED_SIZE_KEY = "session.optimized_model_external_initializers_min_size_in_bytes"


def by_both(stored: str | bytes, change: Callable[[ort.SessionOptions], object]) -> list[Any]:
    """What stock and this package make of options that were changed alike: results, or class and text of an error."""
    made: list[Any] = []
    for create in (ort.InferenceSession, create_session):
        options = quiet()
        change(options)
        try:
            made.append(result(create(stored, options, CPU)))
        except Exception as error:
            made.append((type(error), str(error)))
    return made


def level_of(options: ort.SessionOptions, ours: Options | None, folder: Path) -> tuple[int, int]:
    """(accuracy_level, block_size) of the node that really runs, for a weight without blocks."""
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    create_session(save(linear(Weight(k=512, block=PER_CHANNEL)), folder, "bytes"), options, CPU, options=ours)
    (node,) = saved_nodes(folder / "optimized.onnx")["MatMulNBits"]
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    return attributes["accuracy_level"], attributes["block_size"]


def test_the_callers_options_stay_as_they_are(tmp_path: Path, empty: Path, form: Form, make: Any) -> None:
    options = make()
    session = create_session(save(stack(2, 128, n_major=True), tmp_path, form), options)
    assert len(made_report(session).fused) == 2
    for key in (DIRECT_KEY, FOLDER_KEY, PARALLEL_KEY):
        assert not config_entry(options, key), key
    unrelated = save(linear(Weight(element="int8", block=-1, k=64), seed="other"), empty, "external")
    np.testing.assert_array_equal(result(ort.InferenceSession(unrelated, options)), result(stock(unrelated)))
    (empty / "model.data").unlink()
    with pytest.raises(Exception, match=r"does not exist.*model\.data"):
        ort.InferenceSession(unrelated, options)


def test_options_with_a_folder_of_their_own(tmp_path: Path, make: Any) -> None:
    """A model as bytes whose data lies where the options say."""
    path = Path(str(save(stack(2, 128, n_major=True), tmp_path, "external")))
    options = make()
    options.add_session_config_entry(FOLDER_KEY, str(tmp_path))
    session = create_session(path.read_bytes(), options)
    assert len(made_report(session).fused) == 2
    np.testing.assert_array_equal(result(session), result(create_session(path)))
    assert config_entry(options, FOLDER_KEY) == str(tmp_path)


def test_threads_may_share_options(tmp_path: Path, make: Any) -> None:
    options = make()
    options.intra_op_num_threads = 1
    models = [save(stack(2, 128, seed=str(number)), tmp_path, "external", str(number)) for number in range(4)]
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
    value = ort.OrtValue.ortvalue_from_numpy(np.array(mine[name], order="C"))
    given = (name, value) if call == "add_initializer" else ([name], [value])
    theirs, ours = by_both(stored, lambda options: getattr(options, call)(*given))
    assert np.abs(ours - theirs).max() <= 2e-2 * np.abs(theirs).max()


def test_files_in_memory_that_the_options_hold(tmp_path: Path, empty: Path) -> None:
    stored = save(linear(Weight()), tmp_path, "external")
    save(linear(Weight(), "other"), empty, "external")
    given = (["model.data"], [data := (empty / "model.data").read_bytes()], [len(data)])
    theirs, ours = by_both(stored, lambda options: options.add_external_initializers_from_files_in_memory(*given))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_accuracy_level_and_block_size(tmp_path: Path) -> None:
    assert level_of(quiet(), None, tmp_path) == (4, 32)
    options = with_entries({ACCURACY_KEY: "1", BLOCK_SIZE_KEY: "128"})
    assert level_of(options, None, tmp_path) == (1, 128)
    assert level_of(options, Options(accuracy_level=0, block_size=64), tmp_path) == (0, 64)
    options.add_session_config_entry(BLOCK_SIZE_KEY, "-1")
    assert level_of(options, None, tmp_path) == (1, 256)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (ACCURACY_KEY, "9"),
        (ACCURACY_KEY, "x"),
        (ACCURACY_KEY, ""),
        (ACCURACY_KEY, " 1"),
        (BLOCK_SIZE_KEY, "48"),
        (BLOCK_SIZE_KEY, "big"),
    ],
)
def test_entries_that_make_no_sense_are_stocks_business(key: str, value: str) -> None:
    stored = save(linear(Weight(block=PER_CHANNEL)), Path(), "bytes")
    theirs, ours = by_both(stored, lambda options: options.add_session_config_entry(key, value))
    assert np.array_equal(ours, theirs) if isinstance(theirs, np.ndarray) else ours == theirs


@pytest.mark.parametrize(
    ("level", "entries", "disabled"),
    [
        ("ORT_DISABLE_ALL", {}, None),
        ("ORT_ENABLE_BASIC", {}, None),
        ("ORT_ENABLE_ALL", {"session.disable_quant_qdq": "1"}, None),
        ("ORT_ENABLE_ALL", {}, ["QDQSelectorActionTransformer"]),
        ("ORT_ENABLE_ALL", {DISABLED_KEY: "ConstantFolding;QDQSelectorActionTransformer"}, None),
    ],
)
def test_nothing_is_fused_where_the_caller_forbids_it(
    tmp_path: Path, level: str, entries: dict[str, str], disabled: Any
) -> None:
    options, stored = with_entries(entries), save(linear(Weight()), tmp_path, "bytes")
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = create_session(stored, options, CPU, disabled_optimizers=disabled)
    assert (made_report(session).route, made_report(session).fused) == ("stock", ())
    assert "MatMulNBits" not in saved_nodes(tmp_path / "optimized.onnx")
    theirs = ort.InferenceSession(stored, options, CPU, disabled_optimizers=disabled)
    np.testing.assert_array_equal(result(session), result(theirs))


@pytest.mark.parametrize(
    "entries",
    [
        {},
        pytest.param({SAVED_DATA_KEY: "saved.data"}, marks=pytest.mark.slow),
        {SAVED_DATA_KEY: "saved.data", SAVED_SIZE_KEY: "0"},
    ],
)
@pytest.mark.parametrize(
    ("route", "share"),
    [
        ("borrowed", False), ("by path", False), ("made", False), ("used", False), ("prepared", False), ("made", True),
        pytest.param("used", True, marks=pytest.mark.slow), pytest.param("prepared", True, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_the_optimized_model_needs_nothing_of_ours(
    tmp_path: Path, empty: Path, route: str, share: bool, entries: dict[str, str], n_major: bool, form: Form
) -> None:
    """It loads elsewhere, when the cache and the model are gone, wherever that of stock does."""

    def saving(options: ort.SessionOptions, name: str) -> ort.SessionOptions:
        (empty / name).mkdir()
        options.optimized_model_filepath = str(empty / name / "saved.onnx")
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        return options

    if form == "bytes" and route not in ("borrowed", "by path"):
        return
    here = tmp_path / "here"
    here.mkdir()
    stored = save(stack(2, 128, n_major=n_major), here, form)
    cache: dict[str, Any] = (
        {"prepared" if route == "prepared" else "cache_dir": here / "cache"} if route in ("made", "used", "prepared") else {}
    )
    given = Options(**cache, share_weights=share)
    if route in ("used", "prepared"):
        warm(str(stored), options=Options(cache_dir=here / "cache", share_weights=share), portable=route == "prepared")
    stock(stored, saving(quiet(), "theirs"))
    session = create_session(stored, saving(added_provider() if route == "by path" else quiet(), "ours"), CPU, options=given)
    assert made_report(session).route == ("stock" if route == "by path" else ROUTE_IN_MEMORY)
    assert made_report(session).cache == (route if cache else "")
    assert made_report(session).shared_bytes == 0
    wanted = result(session)
    here.rename(tmp_path / "gone")
    (tmp_path / "elsewhere").mkdir()
    moved = empty.rename(tmp_path / "elsewhere" / "moved")
    theirs, ours = (str(moved / name / "saved.onnx") for name in ("theirs", "ours"))
    # That of stock refers to the original's data where it needs that as it is.
    with (
        pytest.raises(Exception, match="External data")
        if (n_major, form, entries) == (True, "external", {})
        else nullcontext()
    ):
        stock(theirs)
        if route == "by path":
            np.testing.assert_array_equal(result(stock(ours)), wanted)
    if route != "by path":
        np.testing.assert_array_equal(result(stock(ours)), wanted)


def test_the_optimized_model_is_whole(tmp_path: Path, make: Any, n_major: bool) -> None:
    """It loads, beside the original's data, as one that stock has saved."""
    options = make()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = create_session(save(stack(2, 128, n_major=n_major), tmp_path, "external"), options)
    if make is quiet:
        assert len(saved_nodes(tmp_path / "optimized.onnx")["MatMulNBits"]) == 2
    np.testing.assert_array_equal(result(stock(str(tmp_path / "optimized.onnx"))), result(session))
