"""A process that loads models which may crash it, and tells what came of each, and what that cost."""

import ctypes
import gc
import logging
import os
import re
import sys
import time
import zlib
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime

from conformance import worker
from conformance.drawing.elements import Array
from conformance.fuzz.drawn import IDS
from conformance.fuzz.seeds import seed_models
from conformance.handing_over import handing_all_over
from conformance.sessions import CPU, quiet_options

__all__ = ["MAX_BYTES", "MAX_SECONDS", "Failure", "Outcome", "Way", "Worker"]

_WORKER_BYTES = 8 << 30  # of address space
_MAX_INPUT_ELEMENTS = 1 << 20
_SYMBOLIC = 5  # what a dimension without a size gets
_NUMPY_TYPES = {
    "float": np.float32, "float16": np.float16, "double": np.float64, "bool": np.bool_, "int8": np.int8, "uint8": np.uint8,
    "int16": np.int16, "uint16": np.uint16, "int32": np.int32, "uint32": np.uint32, "int64": np.int64, "uint64": np.uint64,
}  # fmt: skip
# What a model may cost beyond what stock ONNX Runtime takes for it.
MAX_SECONDS = 2  # of processor time
MAX_BYTES = 256 << 20
Way = str
"""How a model is loaded: "ours", "stock", "unoptimized" (by stock), "unchanged" (by ours, unoptimized, tensors of 16 bytes
or more handed over), or "inspect" for its report alone."""


class Failure(NamedTuple):
    """An exception: its class, and its text without addresses, which are never the same."""

    kind: str
    text: str


@dataclass(frozen=True)
class Outcome:
    """What came of a model: `values` of its outputs, or the `error` of `stage` "load" or "run".

    Without either it was loaded and not run, for want of inputs. `fused`: what this package made of it (1 if handed over
    unchanged). `seconds` of
    processor time, and how far memory grew beyond what was there before, in `nbytes`.
    """

    stage: str
    error: Failure | None
    values: tuple[Array, ...] | None
    fused: int
    seconds: float
    nbytes: int


class Worker(worker.Worker):
    """A process that loads models, and whose death does no harm."""

    def __init__(self) -> None:
        super().__init__(_set_up)

    def run(self, way: Way, model: str | bytes, level: int = 0, seconds: float = 60) -> Outcome:
        """The outcome at an accuracy level; raises Crash where the process does not live to tell it, or not in that time."""
        return self.call(_outcome_of, way, model, level, seconds=seconds)


def _set_up() -> None:
    logging.getLogger("ort_qdq_plugin").addHandler(logging.NullHandler())
    logging.getLogger("ort_qdq_plugin").propagate = False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the base class prints what it tries again
    import resource  # which some systems have not, on which models of nobody are not loaded

    resource.setrlimit(resource.RLIMIT_AS, (_WORKER_BYTES, _WORKER_BYTES))
    # What is imported or set up once is nobody's, and looking through it again and again would take most of the time.
    gc.collect()
    gc.freeze()
    for way in ("inspect", "ours", "stock", "unoptimized"):
        for model in seed_models()[:20]:
            _outcome_of(way, model)
    gc.collect()
    gc.freeze()


def _outcome_of(way: Way, model: str | bytes, level: int = 0) -> Outcome:
    # Not at the top: atheris must instrument this package before the process that fuzzes imports it.
    from ort_qdq_plugin import create_session, inspect, report_of
    from ort_qdq_plugin.system.platform import host

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before, start = host.sizes_of()["VmRSS"], time.process_time()
    stage, error, values, session, fused = "load", None, None, None, 0
    try:
        if way == "inspect":
            report = inspect(model, check=False)
            assert report.to_dict()
            assert str(report)
            fused = len(report.fused)
        else:
            options = quiet_options()
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(level))
            if way in ("unoptimized", "unchanged"):
                options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            create = create_session if way in ("ours", "unchanged") else onnxruntime.InferenceSession
            with handing_all_over() if way == "unchanged" else nullcontext():
                session = create(model, options, providers=CPU)
            stage, made = "run", report_of(session)
            fused = 0 if made is None or made.stock_reason else len(made.fused) + (made.unchanged is not None)
            if (inputs := _inputs(session)) is not None:
                values = tuple(session.run(None, inputs))
    except UnicodeDecodeError as problem:
        # ONNX Runtime's error quotes a name that is not UTF-8, and so lost its class on its way into Python.
        text = problem.object.decode("utf-8", "replace")
        error = Failure("NotImplemented" if ": NOT_IMPLEMENTED :" in text else type(problem).__name__, text)
    except Exception as problem:
        error = Failure(type(problem).__name__, re.sub(r"0x[0-9a-f]+", "0x", str(problem)))
    seconds, nbytes = time.process_time() - start, host.sizes_of()["VmHWM"] - before
    return Outcome(stage, error, values, fused=fused, seconds=seconds, nbytes=nbytes)


def _bounds(name: str) -> tuple[int, int]:
    """Of the values of an integer input; for indices, of which there is a number, those that count from the end too."""
    indices = re.match(f"{IDS}([0-9]+)_", name)
    return (-int(indices[1]), int(indices[1])) if indices else (0, 2)


def _inputs(session: onnxruntime.InferenceSession) -> dict[str, Array] | None:
    """Inputs that depend on nothing but their names and shapes; None where they would be large or of an odd type."""
    inputs: dict[str, Array] = {}
    for value in session.get_inputs():
        kind = _NUMPY_TYPES.get(value.type.removeprefix("tensor(").removesuffix(")"))
        shape = [size if isinstance(size, int) and size >= 0 else _SYMBOLIC for size in value.shape]
        if kind is None or np.prod(shape, dtype=object) > _MAX_INPUT_ELEMENTS:
            return None
        rng = np.random.default_rng(zlib.crc32(value.name.encode(errors="replace")))
        low, high = _bounds(value.name)
        drawn = rng.standard_normal(shape) if np.issubdtype(kind, np.floating) else rng.integers(low, high, shape)
        inputs[value.name] = np.asarray(drawn).astype(kind)
    return inputs
