"""Releases of ONNX Runtime that are too old, and those that are too new to be known: each process is told once."""

import logging
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from conformance.drawing.weight import Weight
from ort_qdq_plugin import StockReason, create_session, inspect
from ort_qdq_plugin.errors import LeaveToStock
from ort_qdq_plugin.model.releases import LENT_FILES, has
from ort_qdq_plugin.ort import release, trial
from ort_qdq_plugin.ort.release import check_release, lends_files
from tests.support import CPU, linear, made_report, quiet, result, save, stock, unquantized

OLD, NEW = "1.27.4", "1.99.0"


@pytest.fixture(autouse=True)
def _asked_anew() -> None:
    release._problem_of.cache_clear()
    release._lends_when_tried.cache_clear()


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_the_installed_one_can_be_used() -> None:
    check_release()
    assert lends_files() == has(LENT_FILES)


def test_an_old_one_steps_aside_with_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", OLD)
    assert made_report(create_session(unquantized().SerializeToString(), quiet(), CPU)).stock_reason != StockReason.RELEASE
    assert not warnings_in(caplog)
    path = str(save(linear(Weight()), tmp_path, "external"))
    for _ in range(3):
        session = create_session(path, quiet(), CPU)
        report = made_report(session)
        assert (report.route, report.stock_reason) == ("stock", StockReason.RELEASE)
        assert report.stock_detail == f"onnxruntime {OLD} is older than 1.28: pip install --upgrade 'onnxruntime>=1.28'"
        assert (result(session) == result(stock(path))).all()
    assert inspect(path).stock_reason is StockReason.RELEASE
    assert warnings_in(caplog) == [
        f"models are loaded with stock ONNX Runtime, without ort-qdq-plugin: {report.stock_detail}"
    ]


def test_a_new_one_is_tried_out_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", NEW)
    tried = []

    def lends() -> bool:
        tried.append(trial.lends_files_when_tried.__name__)
        return False

    monkeypatch.setattr(trial, "lends_files_when_tried", lends)
    for _ in range(2):
        report = made_report(create_session(linear(Weight()).SerializeToString(), quiet(), CPU))
        assert (report.route, len(report.fused)) == ("by path", 1)
    assert len(tried) == 1
    assert not warnings_in(caplog)


def test_a_new_one_that_does_what_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", NEW)
    check_release()
    assert lends_files() == trial.lends_files_when_tried()


def fails() -> Any:
    raise RuntimeError("no\nsuch operator")


@pytest.mark.parametrize(("found", "why"), [
    (fails, "RuntimeError: no such operator"), (lambda: None, "a fused product has other results"),
])  # fmt: skip
def test_a_new_one_that_does_something_else(
    found: Any, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", NEW)
    monkeypatch.setattr(trial, "lends_files_when_tried", found)
    for _ in range(2):
        with pytest.raises(LeaveToStock, match=why):
            check_release()
    assert len(warnings_in(caplog)) == 1
