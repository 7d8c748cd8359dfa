"""Loads and runs a model one way, and measures what it takes."""

import ctypes
import gc
import re
import time
import zlib
from pathlib import Path

import numpy as np
import onnxruntime

from conformance.drawing.elements import Array
from conformance.fuzz.worker import Failure, Outcome, Way
from conformance.sessions import CPU, quiet_options
from ort_qdq_plugin import create_session, inspect, report_of
from ort_qdq_plugin.system.platform import host

__all__ = ["outcome_of"]

_MAX_INPUT_ELEMENTS = 1 << 20
_SYMBOLIC = 5  # what a dimension without a size gets
_NUMPY_TYPES = {
    "float": np.float32, "float16": np.float16, "double": np.float64, "bool": np.bool_, "int8": np.int8, "uint8": np.uint8,
    "int16": np.int16, "uint16": np.uint16, "int32": np.int32, "uint32": np.uint32, "int64": np.int64, "uint64": np.uint64,
}  # fmt: skip


def outcome_of(way: Way, model: str | bytes) -> Outcome:
    """What comes of the model in this process."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before, start = host.sizes_of()["VmRSS"], time.process_time()
    stage, error, values, session, fused = "load", None, None, None, 0
    try:
        if way == "inspect":
            report = inspect(model)
            assert report.to_dict()
            assert str(report)
            fused = len(report.fused)
        else:
            session = _session(way, model)
            stage, made = "run", report_of(session)
            fused = 0 if made is None or made.stock_reason else len(made.fused)
            inputs = _inputs(session)
            if inputs is not None:
                values = tuple(session.run(None, inputs))
    except UnicodeDecodeError as problem:
        # ONNX Runtime's error quotes a name that is not UTF-8, and so lost its class on its way into Python.
        text = problem.object.decode("utf-8", "replace")
        error = Failure("NotImplemented" if ": NOT_IMPLEMENTED :" in text else type(problem).__name__, text)
    except Exception as problem:
        error = Failure(type(problem).__name__, re.sub(r"0x[0-9a-f]+", "0x", str(problem)))
    seconds, nbytes = time.process_time() - start, host.sizes_of()["VmHWM"] - before
    return Outcome(stage, error, values, fused=fused, seconds=seconds, nbytes=nbytes)


def _session(way: Way, model: str | bytes) -> onnxruntime.InferenceSession:
    options = quiet_options()
    # Activations stay as they are: then right numbers are close ones, whatever the weights.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    if way == "unoptimized":
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    create = create_session if way == "ours" else onnxruntime.InferenceSession
    return create(model, options, providers=CPU)


def _inputs(session: onnxruntime.InferenceSession) -> dict[str, Array] | None:
    """Inputs that depend on nothing but their names and shapes; None where they would be large or of an odd type."""
    inputs: dict[str, Array] = {}
    for value in session.get_inputs():
        kind = _NUMPY_TYPES.get(value.type.removeprefix("tensor(").removesuffix(")"))
        shape = [size if isinstance(size, int) and size >= 0 else _SYMBOLIC for size in value.shape]
        if kind is None or np.prod(shape, dtype=object) > _MAX_INPUT_ELEMENTS:
            return None
        rng = np.random.default_rng(zlib.crc32(value.name.encode(errors="replace")))
        drawn = rng.standard_normal(shape) if np.issubdtype(kind, np.floating) else rng.integers(0, 2, shape)
        inputs[value.name] = np.asarray(drawn).astype(kind)
    return inputs
