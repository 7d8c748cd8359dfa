"""Where the creation of a session starts, and what is kept for it."""

import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, QdqPluginError, Report, StockReason, create_session, report_of, warm
from ort_qdq_plugin import session as session_module
from ort_qdq_plugin.load import first_look, journey
from ort_qdq_plugin.model import skeleton
from tests.model.test_glance import product
from tests.support import CPU, linear, made_report, python, quiet, raised, result, save, stock, unquantized


def refuse(*_arguments: Any, **_keywords: Any) -> Any:
    raise AssertionError


@pytest.mark.parametrize("session_options", [None, quiet()], ids=["plain", "options"])
@pytest.mark.parametrize("form", ["file", "bytes"])
def test_a_model_without_weights_goes_no_further(
    form: Any, session_options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journey, "create_after_first_look", refuse)
    model = save(unquantized(), tmp_path, form)
    session = create_session(model, session_options)
    report = made_report(session)
    assert (report.route, report.stock_reason, list(report.seconds)) == ("stock", StockReason.NOT_QUANTIZED, ["open"])
    assert report == report_of(session)
    session.set_providers(CPU)
    assert made_report(session).stock_reason is StockReason.NOT_QUANTIZED
    np.testing.assert_array_equal(result(session), result(stock(model)))


def test_weights_that_stay_are_listed_when_somebody_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journey, "create_after_first_look", refuse)
    session = create_session(save(product(), tmp_path, "file"))
    report = made_report(session)
    assert (report.stock_reason, len(report.unfused)) == (StockReason.NOT_FUSIBLE, 1)
    assert report.stored_bytes == report.unfused[0].stored_bytes > 0


def test_threads_that_ask_at_once_see_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asking, look = Barrier(2), session_module._with_unfused

    def look_together(report: Report, request: Any) -> Report:
        asking.wait(60)
        return look(report, request)

    monkeypatch.setattr(session_module, "_with_unfused", look_together)
    session = create_session(save(product(), tmp_path, "file"))
    with ThreadPoolExecutor(2) as pool:
        assert [len(report.unfused) for report in pool.map(made_report, [session, session])] == [1, 1]
    assert len(made_report(session).unfused) == 1


def test_a_small_quantized_model_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = str(save(linear(Weight()), tmp_path, "file"))
    os.utime(model, (0, 0))
    monkeypatch.setattr(skeleton, "without_large_tensors", refuse)
    assert len(made_report(create_session(model, options=Options(strict=True))).fused) == 1


def test_a_model_in_the_cache_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, options = str(save(linear(Weight()), tmp_path, "file")), Options(strict=True, cache_dir=tmp_path / "cache")
    assert warm(model, options=options).cache == "made"
    for module in (first_look, skeleton):
        monkeypatch.setattr(module, "without_large_tensors", refuse)
    assert made_report(create_session(model, options=options)).cache == "used"


def test_another_first_look_for_other_providers(tmp_path: Path) -> None:
    """The first one may have come to another end, and its file may be another one by now."""
    model = str(save(unquantized(), tmp_path, "file"))
    session = create_session(model)
    save(linear(Weight()), tmp_path, "file")
    session.set_providers(CPU)
    assert len(made_report(session).fused) == 1
    save(unquantized(), tmp_path, "file")
    assert len(made_report(session).fused) == 1


@pytest.mark.parametrize("form", ["file", "bytes"])
@pytest.mark.parametrize(
    ("module", "quantized", "session_options", "reason"),
    [
        ("load.journey", True, None, StockReason.ERROR),
        ("model.places", False, None, StockReason.ERROR),
        ("ort.options_lock", False, quiet(), StockReason.ERROR),
        ("load.journal", False, None, StockReason.ERROR),
        ("load.bar", False, None, StockReason.NOT_QUANTIZED),
    ],
)
def test_stock_loads_a_model_where_something_cannot_be_imported(
    module: str,
    quantized: bool,
    session_options: Any,
    reason: StockReason,
    form: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An import may fail long after the first one: where descriptors or the memory are used up, or a folder was moved."""
    model = save(linear(Weight()) if quantized else unquantized(), tmp_path, form)
    monkeypatch.setattr(first_look, "UNCHANGED_BYTES", 0 if module == "model.places" else first_look.UNCHANGED_BYTES)
    monkeypatch.setitem(sys.modules, f"ort_qdq_plugin.{module}", None)
    session = create_session(model, session_options, options=Options(progress="bar"))
    np.testing.assert_array_equal(result(session), result(stock(model)))
    report = made_report(session)
    assert report.stock_reason is reason
    said = [record.getMessage() for record in caplog.records]
    if reason is StockReason.ERROR:
        assert said == [f"loading with stock ONNX Runtime, without ort-qdq-plugin: {report.stock_detail}"]
        with pytest.raises(QdqPluginError, match=module):
            create_session(model, session_options, options=Options(progress="bar", strict=True))
    else:
        assert not said


@pytest.mark.parametrize("module", ["load.unloadable", "load.request", "model.external"])
def test_an_error_of_stock_is_raised_where_its_note_cannot_be_imported(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model at all")
    model = str(tmp_path / "model.onnx")
    expected = raised(partial(ort.InferenceSession, model))
    monkeypatch.setitem(sys.modules, f"ort_qdq_plugin.{module}", None)
    assert raised(partial(create_session, model)) == expected is not None


DESCRIPTORS_USED_UP = """
import os, resource, sys
import onnxruntime
from ort_qdq_plugin import Options, create_session
model, options = open(sys.argv[1], "rb").read(), onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
for given in (None, Options(progress="bar")):
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    try:
        session = create_session(model, options, options=given)
    finally:
        for descriptor in held:
            os.close(descriptor)
    assert session.get_inputs()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no such limit")
@pytest.mark.parametrize("quantized", [False, True])
def test_stock_loads_a_model_where_no_descriptor_is_left(quantized: bool, tmp_path: Path) -> None:
    model = save(linear(Weight()) if quantized else unquantized(), tmp_path, "file")
    done = python(DESCRIPTORS_USED_UP, model)
    assert done.returncode == 0, done.stderr


def test_options_that_are_none(tmp_path: Path) -> None:
    model = save(unquantized(), tmp_path, "file")
    errors = [raised(partial(make, model, "no options")) for make in (create_session, ort.InferenceSession)]
    assert errors[0] == errors[1]
    assert errors[0] is not None


def test_one_line_for_each_session_where_somebody_reads_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for level, count in ((logging.WARNING, 0), (logging.INFO, 1)):
        caplog.clear()
        with caplog.at_level(level, "ort_qdq_plugin"):
            create_session(save(unquantized(), tmp_path, "file"))
        assert [record.getMessage().partition(": ")[2][:20] for record in caplog.records] == ["stock ONNX Runtime: "] * count
