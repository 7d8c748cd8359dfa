"""Models that there is nothing to fuse in: what goes to stock as it is, and what is handed over all the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from benchmarks.big_models import write_pair
from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, StockReason, create_session
from ort_qdq_plugin.cli.demo_model import Decoder
from tests.support import CPU, floating, linear, made_report, mapped, quiet, result, save, stock


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
    stored = save(floating(), tmp_path, "external")
    session = create_session(stored, quiet(), CPU, options=Options(strict=True))
    assert made_report(session).route == "stock"
    assert made_report(session).stock_reason is StockReason.NOT_QUANTIZED
    np.testing.assert_array_equal(result(session), result(stock(stored)))


def test_the_qoperator_model_gets_the_hand_over(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, "uint4", Decoder(1, 64, 64, 64))
    session = create_session(pair.qop, quiet(), CPU, options=Options(strict=True))
    report = made_report(session)
    assert (report.route, report.fused, report.packed_bytes, report.stock_reason) == ("borrowed", (), 0, None)
    assert mapped(tmp_path)
    np.testing.assert_array_equal(result(session), result(stock(str(pair.qop))))
