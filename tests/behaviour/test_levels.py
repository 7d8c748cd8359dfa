"""Accuracy level and block size: what Options says holds for all products of a session, those of ONNX Runtime included."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from conformance.drawing.draft import Draft
from conformance.drawing.weight import PER_CHANNEL, Weight
from ort_qdq_plugin import Options, StockReason, create_session
from ort_qdq_plugin.load import hand_over
from ort_qdq_plugin.load import request as load_request
from ort_qdq_plugin.ort import hook
from ort_qdq_plugin.ort.keys import config_entry
from tests.support import (
    CPU,
    ROUTE,
    added_provider,
    floating,
    made_report,
    quiet,
    result,
    save,
    stock,
    with_entries,
    x_of,
)  # fmt: skip

ACCURACY_KEY = "session.qdq_matmulnbits_accuracy_level"
BLOCK_SIZE_KEY = "session.qdq_matmulnbits_block_size"
DIRECT_KEY = "session.use_external_initializer_file_buffers_directly"
FOLDER_KEY = "session.model_external_initializers_file_folder_path"
PARALLEL_KEY = "session.prepack.enable_parallel"


def half_fused() -> onnx.ModelProto:
    """Two products: this package fuses one of them, and ONNX Runtime, which folds the Clip, the other one too."""
    draft = Draft("half fused")
    hidden = draft.node("MatMul", [draft.input("x", ["m", 128]), draft.weight(Weight(n=128, block=PER_CHANNEL))])
    draft.quantized("v", "int8", [128, 64])
    for name, value in (("low", -90), ("high", 90)):
        draft.constant(onnx.numpy_helper.from_array(np.array(value, np.int8), name))
    clipped = draft.node("Clip", ["v", "low", "high"])
    dequantized = draft.node("DequantizeLinear", [clipped, draft.floats("s", [64])], axis=1)
    draft.output(draft.node("MatMul", [hidden, dequantized], "y"), ["m", 64])
    return draft.model()


@pytest.mark.parametrize("ours", [{"accuracy_level": 0}, {"accuracy_level": 1, "block_size": 64}, {"block_size": 128}])
@pytest.mark.parametrize(
    ("route", "has_options"),
    [*product(["borrowed", "stock", "made", "used", "shared", "failed"], [True, False]), ("by path", True)],
)
def test_the_options_hold_for_what_onnx_runtime_fuses(
    tmp_path: Path, route: str, ours: dict[str, Any], has_options: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = save(half_fused(), tmp_path, "external")
    wanted = with_entries({ACCURACY_KEY: str(ours.get("accuracy_level", 4)), BLOCK_SIZE_KEY: str(ours.get("block_size", 0))})
    cache: dict[str, Any] = {"cache_dir": tmp_path / "cache"} if route in ("made", "used", "shared") else {}
    given = Options(**ours, **cache, share_weights=route == "shared")
    session_options = added_provider() if route == "by path" else quiet() if has_options else None
    if route == "failed":
        monkeypatch.setattr(hand_over, "hand_over", lambda *_: 1 / 0)
    elif route == "stock":
        monkeypatch.setattr(load_request.LoadRequest, "may_fuse", False)
    elif route == "used":
        create_session(stored, session_options, options=given)
    before = {} if session_options is None else described(session_options)
    session = create_session(stored, session_options, CPU, options=given)
    report = made_report(session)
    wanted_route = ROUTE if route == "borrowed" else route
    assert wanted_route in (report.route, report.cache) or (route == "failed" and report.stock_reason is StockReason.ERROR)
    expected, usual = result(ort.InferenceSession(stored, wanted, CPU)), result(stock(stored))
    np.testing.assert_array_equal(result(session), expected)
    session.set_providers(CPU)
    np.testing.assert_array_equal(result(session), expected)
    for options in filter(None, (session_options, session.get_session_options())):
        assert described(options) == (before or described(quiet()))
        # What is loaded with them next has none of ours.
        np.testing.assert_array_equal(result(ort.InferenceSession(stored, options, CPU)), usual)


def described(options: ort.SessionOptions) -> dict[str, str]:
    """What ONNX Runtime makes of these entries."""
    defaults = {ACCURACY_KEY: "4", BLOCK_SIZE_KEY: "0", FOLDER_KEY: "", DIRECT_KEY: "", PARALLEL_KEY: ""}
    return {key: config_entry(options, key) or default for key, default in defaults.items()}


@pytest.fixture
def not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are left to ONNX Runtime."""
    monkeypatch.setattr(load_request.LoadRequest, "may_fuse", False)


def test_an_interrupt_does_not_lose_the_callers_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        assert config_entry(options, ACCURACY_KEY) == "0"
        raise KeyboardInterrupt

    options = added_provider()
    options.add_session_config_entry(ACCURACY_KEY, "2")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    monkeypatch.setattr(hook, "_stock_method", interrupted)
    with pytest.raises(KeyboardInterrupt):
        create_session(save(half_fused(), tmp_path, "bytes"), options, CPU, options=Options(accuracy_level=0))
    assert config_entry(options, ACCURACY_KEY) == "2"


@pytest.mark.parametrize("entry", [None, "2"])
def test_a_library_of_operators_is_not_lost_for_an_accuracy_level(
    entry: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the options would not have it. The load fails, so that stock needs it."""
    extensions = pytest.importorskip("onnxruntime_extensions")
    monkeypatch.setattr(hand_over, "hand_over", lambda *_: 1 / 0)
    model = half_fused()
    model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.contrib", 1))
    model.graph.node.append(onnx.helper.make_node("NegPos", ["y"], ["below", "above"], domain="ai.onnx.contrib"))
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, ["m", 64]) for name in ("below", "above"))
    entries = {} if entry is None else {ACCURACY_KEY: entry}
    results = []
    for create, level in ((ort.InferenceSession, "0"), (partial(create_session, options=Options(accuracy_level=0)), entry)):
        options = with_entries({} if level is None else {ACCURACY_KEY: level})
        options.register_custom_ops_library(extensions.get_library_path())
        session = create(model.SerializeToString(), options, CPU)
        results.append(session.run(None, x_of(session)))
    assert made_report(session).stock_reason is StockReason.ERROR
    assert len(results[0]) == 3
    for theirs, ours in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert described(options) == described(with_entries(entries))


@pytest.mark.parametrize("make", [quiet, added_provider])
@pytest.mark.usefixtures("not_fused")
def test_threads_share_options_that_change_for_a_while(tmp_path: Path, make: Callable[[], ort.SessionOptions]) -> None:
    """Each load has the levels that it asked for; those of the options count where none was."""
    stored, options = save(half_fused(), tmp_path, "bytes"), make()
    options.add_session_config_entry(ACCURACY_KEY, "2")
    levels = [None, 0, 4]
    wanted = [
        result(ort.InferenceSession(stored, with_entries({ACCURACY_KEY: str(level or (2 if level is None else 0))}), CPU))
        for level in levels
    ]
    assert not np.array_equal(wanted[0], wanted[2])

    def load(number: int) -> bool:
        session = create_session(stored, options, CPU, options=Options(accuracy_level=levels[number % 3]))
        reported = config_entry(session.get_session_options(), ACCURACY_KEY)
        return np.array_equal(result(session), wanted[number % 3]) and reported == "2"

    with ThreadPoolExecutor(6) as executor:
        assert all(executor.map(load, range(48)))
    assert config_entry(options, ACCURACY_KEY) == "2"


@pytest.mark.parametrize("value", ["9", "x", "", " 1"])
@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("make", [quiet, added_provider])
def test_what_onnx_runtime_refuses_is_refused(
    value: str, is_fused: bool, make: Callable[[], ort.SessionOptions], request: pytest.FixtureRequest
) -> None:
    if not is_fused:
        request.getfixturevalue("not_fused")
    options, model = make(), half_fused().SerializeToString()
    options.add_session_config_entry(ACCURACY_KEY, value)
    errors = []
    for create in (ort.InferenceSession, partial(create_session, options=Options(accuracy_level=0))):
        with pytest.raises(Exception, match=r".") as raised:
            create(model, options, CPU)
        errors.append((raised.type, str(raised.value)))
    assert errors[0] == errors[1]
    assert config_entry(options, ACCURACY_KEY) == value


def test_options_with_which_nothing_is_loaded(tmp_path: Path) -> None:
    """ONNX Runtime says why."""
    options = quiet()
    options.set_load_cancellation_flag(True)
    for create in (stock, partial(create_session, providers=CPU, options=Options(accuracy_level=0))):
        with pytest.raises(Exception, match="MODEL_LOAD_CANCELED"):
            create(save(half_fused(), tmp_path, "bytes"), options)


def test_models_that_are_not_quantized_leave_the_options_alone(tmp_path: Path) -> None:
    options = quiet()
    create_session(save(floating(), tmp_path, "bytes"), options, CPU, options=Options(accuracy_level=0))
    assert config_entry(options, ACCURACY_KEY) is None
