"""The pattern table: every pattern through unoptimized ORT, stock ORT and this package.

    python -m conformance.patterns [--quick] [--only GLOB] [--group 2|3] [--form bytes|file|external] [--markdown FILE]

A row passes if the package does what the pattern expects, says so truthfully, gives stock ORT's very bits wherever
stock fuses the same nodes, and stays within the error limits against the unoptimized model. The exit code is 1 if a row
fails.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx.reference
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto

from conformance.patterns.catalogue import MAX_IDS, MS, PATTERNS, ROWS, Pattern, graphs_of, quick_patterns

__all__ = ["Form", "MakeSession", "Row", "check", "feeds", "main", "markdown"]

Array = NDArray[Any]
Form = Literal["bytes", "file", "external"]
MakeSession = Callable[[str | bytes, ort.SessionOptions], ort.InferenceSession]

FORMS: tuple[Form, ...] = ("bytes", "file", "external")
LEVELS = (0, 4)
ROW_COUNTS = (1, 3, 17)
"""One token, a few (MatMulNBits still goes row by row), and enough for its batched path."""
LEVEL_KEY = "session.qdq_matmulnbits_accuracy_level"
FUSION_KEY = "session.enable_dq_matmulnbits_fusion"
_BIASED = " + bias"
FUSED_OPS = frozenset({"MatMulNBits", "GatherBlockQuantized"})
CPU = ["CPUExecutionProvider"]
LIMITS = {
    ("float", 0): 1e-5,
    ("float16", 0): 2e-3,
    ("bfloat16", 0): 2e-2,
    ("float", 4): 2e-2,
    ("float16", 4): 2e-2,
    ("bfloat16", 4): 3e-2,
}
"""Largest error at an accuracy level. A bfloat16 weight has 8 bits of precision once dequantized, which the fused kernel
never loses."""
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


@dataclass(frozen=True)
class Row:
    """A pattern and how the three ways compare on it."""

    pattern: Pattern
    stock: str
    keyed: str
    ours: str
    identical: str
    errors: tuple[float, float]  # at LEVELS; NaN where there is nothing to compare
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the pattern's expectation holds."""
        return not self.problems

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of the Markdown table."""
        errors = ["-" if np.isnan(error) else f"{error:.1e}" if error else "0" for error in self.errors]
        verdict = "pass" if self.passed else "**FAIL**: " + "; ".join(self.problems)
        cells = (self.pattern.name, self.stock, self.keyed, self.ours, self.identical, *errors, verdict)
        return tuple(" ".join(cell.split()) for cell in cells)


# Feeding and running


_GROUPS = {2: "Plain layouts", 3: "Layouts that exporters write besides"}


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
            bias = _BIASED if node.op_type == "MatMulNBits" and len(node.input) > 5 and node.input[5] else ""
            fused.append(f"{node.op_type}{bias}:{scales.data_type if scales else 0}")
    matrices = {name for name, tensor in constants.items() if len(tensor.dims) > 1}
    left = sum(node.op_type == "DequantizeLinear" and node.input[0] in matrices for node in nodes)
    return tuple(sorted(fused)), left


def _session_options(level: int | None, optimized: Path | None = None, keyed: bool = False) -> ort.SessionOptions:
    """Quiet options; level None means no optimization at all."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if level is None:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return options
    options.add_session_config_entry(LEVEL_KEY, str(level))
    if keyed:
        options.add_session_config_entry(FUSION_KEY, "1")
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return options


def _make_stock(model: str | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    """A session of ORT's own."""
    return ort.InferenceSession(model, options, providers=CPU)


def _make_ours(model: str | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    """A session of this package's."""
    from ort_qdq_plugin import create_session

    return create_session(model, options, providers=CPU)


def _report_of(session: ort.InferenceSession) -> Any:
    """The package's report on a session, if the package made it."""
    from ort_qdq_plugin import report_of

    return report_of(session)


def _run(
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
    return Result(None, outputs, ends, fused, left, _report_of(session) if ours else None)


def _reference(model: onnx.ModelProto) -> tuple[tuple[Array, ...], ...]:
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


def _store(model: onnx.ModelProto, folder: Path, form: Form) -> str | bytes:
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


# Comparing


def _error(ours: Result, reference: tuple[tuple[Array, ...], ...]) -> float:
    """The largest difference over the largest value, of the worst output, over all row counts."""
    if not ours.outputs:
        return float("nan")
    worst = 0.0
    for index in range(len(reference[0])):
        a = np.concatenate([np.ravel(outputs[index]).astype(np.float64) for outputs in reference])
        b = np.concatenate([np.ravel(outputs[index]).astype(np.float64) for outputs in ours.outputs])
        if a.shape != b.shape or not np.isfinite(b).all():
            return float("inf")
        worst = max(worst, float(np.abs(a - b).max() / max(np.abs(a).max(), np.finfo(np.float64).tiny)))
    return worst


def _equal(one: Result, two: Result) -> bool:
    """Whether both ran and gave the same bits, types and shapes."""
    if one.error is not None or two.error is not None:
        return False
    pairs = [pair for a, b in zip(one.outputs, two.outputs, strict=True) for pair in zip(a, b, strict=True)]
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def _identical(ours: dict[int, Result], other: dict[int, Result]) -> tuple[str, bool]:
    """For the table: at which levels ours equals the other's; and whether at all of them."""
    equal = [level for level in LEVELS if _equal(ours[level], other[level])]
    text = "yes" if len(equal) == len(LEVELS) else "no" if not equal else f"only L{equal[0]}"
    return text, len(equal) == len(LEVELS)


def _comparable(ours: Result, other: Result) -> bool:
    """Whether stock fused just as much as this package, so that bits must agree."""
    if other.error is not None or not other.fused:
        return False
    return (len(other.fused), other.left) == (len(ours.fused), ours.left)


def _describe(ours: Result) -> str:
    """This package's column: kinds, layouts, and where the bytes are."""
    if ours.error is not None:
        return "fails to load"
    report = ours.report
    if report is None:
        return "no report"
    if not report.fused:
        reasons = sorted({str(unfused.reason) for unfused in report.unfused})
        return "no: " + ("; ".join(reasons) or report.passed_through or "no reason")
    shown = []
    for fusion in report.fused:
        place = "in place" if not fusion.packed_bytes else "packed" if not fusion.borrowed_bytes else "packed in part"
        bias = " + bias" if fusion.has_bias else ""
        shown.append(f"{fusion.kind}{bias}, {fusion.layout}, {place}")
    text = "; ".join(f"{shown.count(entry)}x {entry}" if shown.count(entry) > 1 else entry for entry in dict.fromkeys(shown))
    return text + (f"; {len(report.unfused)} left" if report.unfused else "")


def _inspected(stored: str | bytes) -> Any:
    """What the package decides about a model that no session can be made of."""
    from ort_qdq_plugin import inspect

    try:
        return inspect(stored)
    except Exception:
        return None


def _broken_promises(pattern: Pattern, ours: Result, report: Any) -> list[str]:
    """Where the report and the graph that runs differ from each other or from what the pattern expects."""
    fused = 0 if report is None else len(report.fused)
    reasons = 0 if report is None else len(report.unfused)
    problems = []
    if report is None and ours.error is None:
        problems.append("no report")
    if pattern.expects == "fused" and fused != pattern.fusions:
        problems.append(f"{fused} of {pattern.fusions} fused")
    if pattern.expects in ("reason", "unfused") and fused:
        problems.append("fused, but must not be")
    refused = ours.error is not None and report is None
    if pattern.expects in ("reason", "either") and not fused and not reasons and not refused:
        problems.append("the report names no DequantizeLinear and no reason")
    if pattern.bias and fused and not any(_BIASED in entry for entry in ours.fused):
        problems.append("the bias is not folded, neither by this package nor by ONNX Runtime")
    if ours.error is None and bool(fused) != bool(ours.fused):
        problems.append(f"the report has {fused} fusions, the graph {len(ours.fused)}")
    silent = ours.left - pattern.stays - (0 if report is None else len(report.unfused))
    if ours.error is None and fused and silent > 0:
        problems.append(f"{silent} DequantizeLinear left that the report is silent about")
    return problems


def _validity(model: onnx.ModelProto) -> list[str]:
    """The catalogue's own mistakes, as far as ONNX' checker knows the operators."""
    if any(opset.domain == MS for opset in model.opset_import):
        return []
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker and shape inference raise unrelated types
        return [f"not a valid model: {error}"]
    return []


def check(pattern: Pattern, *, make_session: MakeSession | None = None, form: Form = "bytes") -> Row:
    """Runs a pattern every way. `make_session` replaces this package's `create_session`, to take another route of it."""
    model = pattern.build()
    problems = _validity(model)
    reference = _reference(model)
    make = make_session or _make_ours
    with tempfile.TemporaryDirectory(prefix="pattern-") as name:
        folder = Path(name)
        stored = _store(model, folder, form)
        stock = {level: _run(model, stored, _make_stock, folder, level) for level in LEVELS}
        keyed = {level: _run(model, stored, _make_stock, folder, level, keyed=True) for level in LEVELS}
        ours = {level: _run(model, stored, make, folder, level, ours=True) for level in LEVELS}
        last = ours[LEVELS[-1]]
        report = last.report if last.error is None else _inspected(stored)

    problems += _broken_promises(pattern, last, report)
    if last.error is not None and (stock[4].error is None or pattern.expects == "fused"):
        problems.append(last.error)
    if last.error is None and stock[4].error is None and last.ends != stock[4].ends:
        problems.append(f"inputs and outputs {last.ends} instead of {stock[4].ends}")
    errors = {level: _error(ours[level], reference) for level in LEVELS}
    for level, error in errors.items():
        if error > LIMITS[pattern.precision, level]:
            problems.append(f"error {error:.1e} at level {level}")

    verdicts, shown = {}, []
    for name, others in (("stock", stock), ("stock+key", keyed)):
        right = all(_error(others[level], reference) <= LIMITS[pattern.precision, level] for level in LEVELS)
        ran = others[4].error is None
        verdicts[name] = others[4].verdict + (", wrong" if ran and not right else "")
        if not ran or not right or not (_comparable(last, others[4]) if last.fused else name == "stock"):
            continue
        text, equal = _identical(ours, others)
        # The key's fusion runs before casts are inserted: it leaves a float16 model's nodes in other precisions than the
        # default's.
        elsewhere = name != "stock" and others[4].fused != last.fused
        shown.append(f"{name}: {text}" + (" (other precision)" if elsewhere and not equal else ""))
        if not equal and not elsewhere and shown[0] != "stock: yes":
            problems.append(f"differs from {name} ({text})")
    identical = ", ".join(shown) or "-"
    return Row(
        pattern,
        verdicts["stock"],
        verdicts["stock+key"],
        _describe(last),
        identical,
        (errors[0], errors[4]),
        tuple(problems),
    )


# The table


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown document."""
    passed = sum(row.passed for row in rows)
    header = ("pattern", "stock", "stock+key", "this package", "identical", "error L0", "error L4", "verdict")
    lines = [
        "# The pattern table",
        "",
        f"onnxruntime {ort.__version__}, onnx {onnx.__version__}, CPU provider. "
        f"`stock+key` is stock ORT with `{FUSION_KEY}=1`.",
        "`identical` compares with stock's outputs, to the last bit, at accuracy levels "
        + " and ".join(map(str, LEVELS))
        + " and with",
        ", ".join(map(str, ROW_COUNTS))
        + " rows, wherever stock fuses the same nodes or nothing is fused, and stock is right.",
        "Stock is wrong on 2-bit [K, N] weights whose N is no multiple of 4: it transposes them wrongly.",
        "Errors are max|a-b|/max|a| against the unoptimized model.",
    ]
    for group in sorted({row.pattern.since for row in rows}):
        lines += ["", f"## {_GROUPS[group]}", ""]
        lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        for row in rows:
            if row.pattern.since == group:
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row.cells) + " |")
    return "\n".join([*lines, "", f"{passed} passed, {len(rows) - passed} failed", ""])


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m conformance.patterns", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="only the subset for every commit")
    parser.add_argument("--only", metavar="GLOB", default="*", help="only patterns with such names")
    parser.add_argument("--group", type=int, choices=tuple(_GROUPS), help="only this group's patterns")
    parser.add_argument(
        "--form",
        choices=FORMS,
        default="bytes",
        help="how models are handed over: bytes, a file, or a file with external data",
    )
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the table there")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the table; 1 if a row fails."""
    arguments = _arguments(argv)
    chosen = [
        pattern
        for pattern in (quick_patterns() if arguments.quick else PATTERNS)
        if fnmatch.fnmatch(pattern.name, arguments.only) and arguments.group in (None, pattern.since)
    ]
    rows = []
    for pattern in chosen:
        rows.append(check(pattern, form=arguments.form))
        print(" | ".join(rows[-1].cells), flush=True)
    if arguments.markdown:
        arguments.markdown.write_text(markdown(rows), encoding="utf-8")
    failed = sum(not row.passed for row in rows)
    print(f"{len(rows) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
