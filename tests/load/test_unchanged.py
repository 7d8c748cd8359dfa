"""Models of which nothing is fused, handed over unchanged: the same results, from tensors that stay where they are."""

import errno
import gc
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ort_qdq_plugin import Options, StockReason, create_session, inspect, report_of, warm
from ort_qdq_plugin.errors import LeaveToStock, SourceChangedError
from ort_qdq_plugin.load import first_look, journey, unchanged
from ort_qdq_plugin.load import open as opening
from ort_qdq_plugin.load.journal import Journal
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.load.unchanged import prepare_unchanged
from ort_qdq_plugin.ort import buffers, hook
from ort_qdq_plugin.ort.keys import PARALLEL_KEY, config_entry
from ort_qdq_plugin.report import Report
from ort_qdq_plugin.system.platform import files
from tests.model import test_glance
from tests.support import (
    CPU,
    IN_PLACE,
    added_provider,
    descriptors,
    made_report,
    mapped,
    opened,
    quiet,
    refuse,
    settled_descriptors,
    stock,
    with_initializer,
)

pytestmark = IN_PLACE

STRICT = Options(strict=True)
NOT_QUANTIZED = LeaveToStock(StockReason.NOT_QUANTIZED)


@pytest.fixture(autouse=True)
def few_bytes_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (first_look, opening, unchanged):
        monkeypatch.setattr(module, "UNCHANGED_BYTES", 1 << 14)


def network(dtype: str = "float32", shift: int = 0, seed: int = 0) -> onnx.ModelProto:
    """A lookup, products, a convolution and an addition, whose weights begin `shift` bytes further on."""
    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array((rng.standard_normal(shape) / 8).astype(dtype), name)

    float_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w0"], ["wide"]),
        helper.make_node("Gemm", ["wide", "w1", "bias"], ["narrow"], transB=1),
        helper.make_node("Reshape", ["narrow", "shape"], ["image"]),
        helper.make_node("Conv", ["image", "kernel"], ["filtered"], pads=[1] * 4),
        helper.make_node("Add", ["filtered", "constant"], ["y"]),
    ]
    initializers = [
        weight("table", 100, 64), weight("w0", 64, 96), weight("w1", 64, 96), weight("bias", 64),
        numpy_helper.from_array(np.array([-1, 64, 1, 1]), "shape"), weight("kernel", 64, 64, 3, 3),
        weight("constant", 64, 1, 1),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g" * (shift + 1), [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", float_type, None)], initializers,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def answer(session: ort.InferenceSession) -> np.ndarray:
    return np.asarray(session.run(None, {"ids": np.arange(0, 100, 7)})[0])


def stored(model: onnx.ModelProto, folder: Path, form: str = "inline") -> str:
    path = str(folder / "model.onnx")
    is_external = form == "external"
    onnx.save_model(model, path, save_as_external_data=is_external, location="model.data", size_threshold=4096)
    return path


def prepared_from(model: str | bytes, session_options: Any = None, **options: Any) -> Any:
    with closing(opened(model)) as skeleton:
        return prepare_unchanged(
            skeleton,
            LoadRequest(model, session_options, Options(**options)),
            Journal(options.get("progress")),
            NOT_QUANTIZED,
        )


@pytest.mark.parametrize("form", ["inline", "external", "bytes"])
@pytest.mark.parametrize("buffer", ["auto", "file", "memory"])
@pytest.mark.parametrize("shift", range(4))
def test_results_are_those_of_stock(tmp_path: Path, form: str, buffer: Any, shift: int) -> None:
    model: Any = stored(network(shift=shift), tmp_path, form)
    model = Path(model).read_bytes() if form == "bytes" else model
    session = create_session(model, quiet(), CPU, options=Options(strict=True, buffer=buffer))
    report = made_report(session)
    assert (report.route, report.stock_reason, report.unchanged) == ("borrowed", None, StockReason.NOT_QUANTIZED)
    nbytes = 4 * (100 * 64 + 2 * 64 * 96 + 64 * 64 * 9)
    assert report.packed_bytes + report.borrowed_bytes == nbytes
    assert report.borrowed_bytes == {"inline": report.borrowed_bytes, "external": nbytes, "bytes": 0}[form]
    assert np.array_equal(answer(session), answer(stock(model)))


@settings(max_examples=25, deadline=None)
@given(dtype=st.sampled_from(["float32", "float16"]), seed=st.integers(0, 99), shift=st.integers(0, 7))
def test_what_is_moved_is_what_was_stored(dtype: str, seed: int, shift: int) -> None:
    model = network(dtype, shift, seed)
    data = model.SerializeToString()
    prepared = prepared_from(data)
    (buffer,) = prepared.buffers.values()
    new = onnx.ModelProto.FromString(prepared.model)
    for before, after in zip(model.graph.initializer, new.graph.initializer, strict=True):
        entries = {entry.key: entry.value for entry in after.external_data}
        if entries:
            at, nbytes = int(entries["offset"]), int(entries["length"])
            assert at % 64 == 0
            assert buffer[at : at + nbytes] == before.raw_data
        else:
            assert after == before
    del new.graph.initializer[:], model.graph.initializer[:]
    assert new == model


def test_the_models_own_bytes_are_not_kept(tmp_path: Path) -> None:
    data = network().SerializeToString()
    prepared = prepared_from(data)
    assert data not in [buffer for buffer in prepared.buffers.values() if isinstance(buffer, bytes)]
    assert (prepared.report.borrowed_bytes, len(prepared.buffers)) == (0, 1)


def reason_to_leave(model: str | bytes, session_options: Any = None, options: Options = STRICT) -> Report:
    providers = None if session_options is not None and session_options.has_providers() else CPU
    session = create_session(model, session_options or quiet(), providers, options=options)
    assert answer(session).size
    report = report_of(session)
    assert report is not None
    assert (report.route, report.unchanged) == ("stock", None)
    return report


def foreign() -> onnx.ModelProto:
    model = network()
    model.opset_import.append(helper.make_opsetid("somebody.else", 1))
    return model


def with_attribute() -> onnx.ModelProto:
    model = network()
    node = helper.make_node("Constant", [], ["constant"], value=model.graph.initializer.pop())
    node.attribute[0].t.CopyFrom(numpy_helper.from_array(np.ones((64, 32, 1), np.float32)))
    model.graph.node.insert(0, node)
    model.graph.node.insert(1, helper.make_node("ReduceMean", ["constant"], ["mean"], axes=[1, 2]))
    model.graph.node[-1].input[1] = "mean"
    return model


def test_an_added_provider(tmp_path: Path) -> None:
    assert reason_to_leave(stored(network(), tmp_path), added_provider()).stock_reason is StockReason.NOT_QUANTIZED


@pytest.mark.parametrize(("model", "session_options"), [(foreign, quiet), (network, with_initializer)])
def test_options_that_a_copy_would_not_carry(tmp_path: Path, model: Any, session_options: Any) -> None:
    path = stored(model(), tmp_path)
    with closing(opened(path)) as skeleton, pytest.raises(LeaveToStock):
        prepare_unchanged(skeleton, LoadRequest(path, session_options(), Options()), Journal(), NOT_QUANTIZED)


def test_tensors_in_attributes(tmp_path: Path) -> None:
    assert reason_to_leave(stored(with_attribute(), tmp_path)).stock_reason is StockReason.NOT_QUANTIZED


def test_a_model_with_few_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (first_look, opening, unchanged):
        monkeypatch.setattr(module, "UNCHANGED_BYTES", 1 << 20)
    assert reason_to_leave(stored(network(), tmp_path)).stock_reason is StockReason.NOT_QUANTIZED


def test_other_providers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one take what the cache has for the CPU's."""
    path, cached = stored(network(), tmp_path), Options(strict=True, cache_dir=str(tmp_path / "cache"))
    assert warm(path, options=cached).cache == "made"
    monkeypatch.setattr(journey, "provider_names", lambda *_: ("CUDAExecutionProvider", CPU[0]))
    for options in (STRICT, cached):
        assert reason_to_leave(path, options=options).stock_reason is StockReason.NOT_QUANTIZED


@pytest.mark.parametrize("reason", [StockReason.PROVIDER, StockReason.OPTIONS_IN_MODEL, StockReason.REFUSED])
def test_reasons_that_forbid_it(tmp_path: Path, reason: StockReason) -> None:
    path = stored(network(), tmp_path)
    with closing(opened(path)) as skeleton, pytest.raises(LeaveToStock) as left:
        prepare_unchanged(skeleton, LoadRequest(path, None, Options()), Journal(), LeaveToStock(reason, "why"))
    assert (left.value.reason, left.value.detail) == (reason, "why")


def test_a_tensor_that_ends_behind_its_file(tmp_path: Path) -> None:
    path = stored(network(), tmp_path, "external")
    os.truncate(tmp_path / "model.data", 4096)
    with closing(opened(path)) as skeleton, pytest.raises(LeaveToStock):
        prepare_unchanged(skeleton, LoadRequest(path, None, Options()), Journal(), NOT_QUANTIZED)
    with pytest.raises(Exception, match="out of bounds"):
        create_session(path, quiet(), CPU)


def test_a_model_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored(network(), tmp_path)

    def copied(*arguments: Any) -> Any:
        os.utime(path, ns=(1, 1))
        return ort.SessionOptions()

    monkeypatch.setattr(unchanged, "private_options", copied)
    before = settled_descriptors()
    with pytest.raises(SourceChangedError):
        prepared_from(path)
    gc.collect()
    assert descriptors() == before


def test_no_room_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    refuse(monkeypatch, files, "open_unnamed", errno.ENOSPC)
    path = stored(network(shift=1), tmp_path)
    session = create_session(path, quiet(), CPU, options=Options(strict=True, buffer="file"))
    assert made_report(session).unchanged is not None
    assert np.array_equal(answer(session), answer(stock(path)))
    assert len(caplog.records) == 1


def test_what_is_given_back(tmp_path: Path) -> None:
    path = stored(network(), tmp_path)
    options = Options(strict=True, buffer="file", spill_dir=str(tmp_path))
    answer(create_session(path, quiet(), CPU, options=options))
    gc.collect()
    before = settled_descriptors()
    session = create_session(path, quiet(), CPU, options=options)
    assert descriptors() == before
    assert mapped(tmp_path)
    expected = answer(session)
    os.unlink(path)
    session.set_providers(CPU)
    assert np.array_equal(answer(session), expected)
    del session
    gc.collect()
    assert not mapped(tmp_path)


@pytest.mark.parametrize("form", ["inline", "external"])
@pytest.mark.parametrize("share", [False, True])
def test_from_the_cache(tmp_path: Path, form: str, share: bool) -> None:
    path = stored(network(), tmp_path, form)
    options = Options(strict=True, cache_dir=str(tmp_path / "cache"), share_weights=share)
    expected = answer(stock(path))
    for use in ("made", "used", "used"):
        session = create_session(path, quiet(), CPU, options=options)
        report = made_report(session)
        assert (report.cache, report.unchanged) == (use, StockReason.NOT_QUANTIZED)
        assert (report.route, report.shared_bytes > 0) == (("shared", True) if share else ("borrowed", False))
        assert np.array_equal(answer(session), expected)
    os.utime(path)
    assert made_report(create_session(path, quiet(), CPU, options=options)).cache == "made"


@pytest.mark.parametrize("enough", [False, True])
def test_only_weights_count_for_pre_packing_in_parallel(
    enough: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the whole model file that some of them are in, be it loaded from the cache or not."""
    path, created, real = stored(network(), tmp_path), list[bool](), hook.create_stock
    planned = inspect(path)
    assert planned.packed_bytes > 0 < planned.borrowed_bytes
    limit = planned.packed_bytes + planned.borrowed_bytes + (not enough)
    monkeypatch.setattr(buffers, "_PARALLEL_BYTES", limit)

    def create(session: Any, call: Any) -> None:
        created.append(config_entry(hook.constructor_arguments(session)[1], PARALLEL_KEY) == "1")
        real(session, call)

    monkeypatch.setattr(hook, "create_stock", create)
    uses = [
        made_report(create_session(path, options=Options(strict=True, cache_dir=str(tmp_path / "c")))).cache for _ in "ab"
    ]
    assert (uses, created) == (["made", "used"], [enough] * 2)


def test_what_the_cache_knows_of_models_that_stay_with_stock(tmp_path: Path) -> None:
    """Those are looked at in every load, as before."""
    path, cache = stored(with_attribute(), tmp_path), tmp_path / "cache"
    for _ in range(2):
        report = reason_to_leave(path, options=Options(strict=True, cache_dir=str(cache)))
        assert report.stock_reason is StockReason.NOT_QUANTIZED
    assert not cache.exists() or not [name for name in os.listdir(cache) if (cache / name).is_dir()]


def test_warm(tmp_path: Path) -> None:
    path, options = stored(network(), tmp_path), Options(strict=True, cache_dir=str(tmp_path / "cache"))
    assert [warm(path, options=options).cache for _ in range(2)] == ["made", "used"]
    assert made_report(create_session(path, quiet(), CPU, options=options)).cache == "used"


def test_inspect(tmp_path: Path) -> None:
    report, made = inspect(stored(network(), tmp_path)), prepared_from(str(tmp_path / "model.onnx")).report
    assert (report.route, report.unchanged) == ("inspect", StockReason.NOT_QUANTIZED)
    assert (report.packed_bytes, report.borrowed_bytes) == (made.packed_bytes, made.borrowed_bytes)
    assert inspect(stored(with_attribute(), tmp_path)).stock_reason is StockReason.NOT_QUANTIZED


def test_weights_that_stay_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a glance suffices for the load, too."""
    monkeypatch.setattr(test_glance, "WIDTH", 160)
    session = create_session(stored(test_glance.product(), tmp_path), quiet(), CPU, options=STRICT)
    report = made_report(session)
    assert (report.route, report.unchanged) == ("borrowed", StockReason.NOT_FUSIBLE)
    matched = inspect(tmp_path / "model.onnx")
    assert (report.unfused, report.stored_bytes) == (matched.unfused, matched.stored_bytes) != ((), 0)


def test_progress(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    prepared = prepared_from(network().SerializeToString(), progress=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (prepared.report.packed_bytes,) * 2
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})


def test_the_report_says_so(tmp_path: Path) -> None:
    report = made_report(create_session(stored(network(), tmp_path), quiet(), CPU, options=STRICT))
    assert "0.2 MB of tensors handed over, the graph as it is" in report.summary()
    assert str(StockReason.NOT_QUANTIZED) in report.summary()
    assert report.to_dict()["unchanged"] == str(StockReason.NOT_QUANTIZED)
