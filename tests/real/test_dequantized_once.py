"""Small networks that packages ship, their convolutions and recurrent layers in int8: the numbers of ONNX Runtime itself.

How fast they run is in `benchmarks/weight_only.py`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from real_support import needs, stock_session

from benchmarks.weight_only import NETWORKS, feeds_of, network, prepared, quantized
from ort_qdq_plugin import Options, create_session, report_of

_LEAST_WEIGHTS = 18  # that each of them has


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs(package)) for name, (package, _, _) in NETWORKS.items()]
)  # fmt: skip
def test_the_same_numbers(name: str, tmp_path: Path) -> None:
    shipped = network(name)
    assert shipped is not None
    feeds = feeds_of(shipped, NETWORKS[name][2])
    model = quantized(prepared(shipped))
    path = tmp_path / "int8.onnx"
    path.write_bytes(model.SerializeToString())
    session = create_session(path, options=Options(strict=True))
    report = report_of(session)
    assert report is not None
    assert (len(report.fused), report.packed_bytes) == (0, sum(entry.bytes_added for entry in report.unfused))
    assert all(entry.bytes_added for entry in report.unfused)
    assert len(report.unfused) >= _LEAST_WEIGHTS
    # The voice detector's LSTM has another kernel for weights that are constant; and it stands in a branch.
    tolerance = 1e-6 if name == "voice detector" else 0
    folding = ort.SessionOptions()
    folding.add_session_config_entry("session.disable_quant_qdq", "1")
    _check_same(session, ort.InferenceSession(path, folding), feeds, tolerance)
    # All optimizations together reorder sums.
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = create_session(path, options, options=Options(strict=True))
    _check_same(session, stock_session(path, level="ORT_DISABLE_ALL"), feeds, tolerance)


def _check_same(session: ort.InferenceSession, other: ort.InferenceSession, feeds: dict[str, Any], tolerance: float) -> None:
    for one, two in zip(session.run(None, feeds), other.run(None, feeds), strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=tolerance)
