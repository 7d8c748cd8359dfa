"""Feeds a pattern's model, and runs it by stock ONNX Runtime and by this package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx.reference
import onnxruntime as ort
from onnx import TensorProto

from conformance.drawing.canvas import graphs_of
from conformance.drawing.draft import ROWS
from conformance.drawing.elements import MS, Array
from conformance.patterns.pattern import MAX_IDS
from conformance.sessions import CPU, quiet_options
from ort_qdq_plugin import create_session, report_of

__all__ = [
    "BIASED",
    "DTYPES",
    "FORMS",
    "FUSED_OPS",
    "FUSION_KEY",
    "LEVELS",
    "LEVEL_KEY",
    "ROW_COUNTS",
    "Form",
    "MakeSession",
    "Result",
    "feeds",
    "make_ours",
    "make_stock",
    "reference_outputs",
    "run",
    "store",
]

Form = Literal["bytes", "file", "external"]
MakeSession = Callable[[str | bytes, ort.SessionOptions], ort.InferenceSession]
FORMS: tuple[Form, ...] = ("bytes", "file", "external")
LEVELS = (0, 4)
ROW_COUNTS = (1, 3, 17)
"""One token, a few (MatMulNBits still goes row by row), and enough for its batched path."""
LEVEL_KEY = "session.qdq_matmulnbits_accuracy_level"
FUSION_KEY = "session.enable_dq_matmulnbits_fusion"
BIASED = " + bias"
FUSED_OPS = frozenset({"MatMulNBits", "GatherBlockQuantized"})
DTYPES: dict[int, type[np.generic]] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.INT64: np.int64,
    TensorProto.BOOL: np.bool_,
    TensorProto.UINT8: np.uint8,
    TensorProto.INT8: np.int8,
}


@dataclass(frozen=True)
class Result:
    """What one way of running made of a model."""

    error: str | None = None  # why it did not load or run
    outputs: tuple[tuple[Array, ...], ...] = ()  # for each of ROW_COUNTS
    ends: tuple[tuple[str | int | None, ...], ...] = ()  # name, type and shape of inputs and outputs
    fused: tuple[str, ...] = ()  # nodes of FUSED_OPS, with their scales' types, in the graph that ORT really runs
    left: int = 0  # DequantizeLinear nodes of constant weights in it
    report: Any = None  # this package's, if it has one

    @property
    def verdict(self) -> str:
        """One word for the table."""
        if self.error is not None:
            return "fails to load"
        return "no" if not self.fused else f"partly ({len(self.fused)})" if self.left else "fused"


def _random_input(rng: np.random.Generator, code: int, shape: Sequence[int]) -> Array:
    """A random input; small where it is quantized or an id."""
    if code == TensorProto.INT64:
        return rng.integers(0, MAX_IDS, tuple(shape))
    if code in (TensorProto.UINT8, TensorProto.INT8):
        return rng.integers(0, 100, tuple(shape)).astype(DTYPES[code])
    return np.asarray(rng.standard_normal(tuple(shape))).astype(DTYPES[code])


def feeds(model: onnx.ModelProto, rows: int) -> dict[str, Array]:
    """Inputs with so many rows. Conditions alternate; overridable initializers are overridden on every second count."""
    rng = np.random.default_rng(rows)
    odd_one = ROW_COUNTS.index(rows) % 2 == 1
    initializers = {tensor.name for tensor in model.graph.initializer}
    fed: dict[str, Array] = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        if value.name in initializers and not odd_one:
            continue
        if kind.elem_type == TensorProto.BOOL:
            fed[value.name] = np.array(odd_one)
            continue
        shape = [rows if dim.dim_param == ROWS else dim.dim_value for dim in kind.shape.dim]
        fed[value.name] = _random_input(rng, kind.elem_type, shape)
    return fed


def _census(model: onnx.ModelProto) -> tuple[tuple[str, ...], int]:
    """A model's fused nodes, with biases and scales' types, and how many DequantizeLinear of constants but biases stay."""
    graphs = list(graphs_of(model.graph))
    nodes = [node for graph in graphs for node in graph.node]
    constants = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
    constants |= {node.output[0]: node.attribute[0].t for node in nodes if node.op_type == "Constant"}
    fused = []
    for node in nodes:
        if node.op_type in FUSED_OPS:
            scales = constants.get(node.input[2])
            bias = BIASED if node.op_type == "MatMulNBits" and len(node.input) > 5 and node.input[5] else ""
            fused.append(f"{node.op_type}{bias}:{scales.data_type if scales else 0}")
    matrices = {name for name, tensor in constants.items() if len(tensor.dims) > 1}
    left = sum(node.op_type == "DequantizeLinear" and node.input[0] in matrices for node in nodes)
    return tuple(sorted(fused)), left


def _session_options(level: int | None, optimized: Path | None = None, keyed: bool = False) -> ort.SessionOptions:
    """Quiet options; level None means no optimization at all."""
    options = quiet_options()
    if level is None:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return options
    options.add_session_config_entry(LEVEL_KEY, str(level))
    if keyed:
        options.add_session_config_entry(FUSION_KEY, "1")
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return options


def make_stock(model: str | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    """A session of ORT's own."""
    return ort.InferenceSession(model, options, providers=CPU)


def make_ours(model: str | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    """A session of this package's."""
    return create_session(model, options, providers=CPU)


def run(
    model: onnx.ModelProto,
    stored: str | bytes,
    make: MakeSession,
    folder: Path,
    level: int,
    keyed: bool = False,
    ours: bool = False,
) -> Result:
    """Loads and runs a model one way, then once more to see the graph: saving it may change the way this package takes."""
    optimized = folder / "optimized.onnx"
    optimized.unlink(missing_ok=True)
    try:
        session = make(stored, _session_options(level, keyed=keyed))
        outputs = tuple(tuple(session.run(None, feeds(model, rows))) for rows in ROW_COUNTS)
        make(stored, _session_options(level, optimized, keyed))
    except Exception as error:
        return Result(error=f"{type(error).__name__}: {str(error)[:300]}")
    fused, left = _census(onnx.load(optimized, load_external_data=False))
    ends = tuple((value.name, value.type, *value.shape) for value in [*session.get_inputs(), *session.get_outputs()])
    return Result(None, outputs, ends, fused, left, report_of(session) if ours else None)


def reference_outputs(model: onnx.ModelProto) -> tuple[tuple[Array, ...], ...]:
    """The outputs of unoptimized ORT, or of ONNX' own evaluator where ORT lacks a kernel."""
    try:
        session = ort.InferenceSession(model.SerializeToString(), _session_options(None), providers=CPU)
        return tuple(tuple(session.run(None, feeds(model, rows))) for rows in ROW_COUNTS)
    except Exception:
        standard = onnx.ModelProto()
        standard.CopyFrom(model)
        for node in standard.graph.node:
            node.domain = "" if node.domain == MS else node.domain
        for opset in standard.opset_import:
            opset.version = max(opset.version, 21) if opset.domain == "" else opset.version
        evaluator = onnx.reference.ReferenceEvaluator(standard)
        return tuple(tuple(evaluator.run(None, feeds(model, rows))) for rows in ROW_COUNTS)


def store(model: onnx.ModelProto, folder: Path, form: Form) -> str | bytes:
    """The model as it is handed to a session."""
    if form == "bytes":
        return bytes(model.SerializeToString())
    path = folder / "pattern.onnx"
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if form == "external":
        onnx.save_model(copy, path, save_as_external_data=True, location="pattern.data", size_threshold=0)
    else:
        onnx.save_model(copy, path)
    return str(path)
