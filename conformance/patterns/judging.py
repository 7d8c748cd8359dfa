"""Runs a pattern by stock ONNX Runtime and by this package, and judges what became of it: its numbers, its report, and what
was fused, against what the pattern expects.
"""

import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx.reference
import onnxruntime as ort
from onnx import TensorProto, helper

from conformance.drawing.canvas import graphs_of
from conformance.drawing.draft import ROWS
from conformance.drawing.elements import MS, Array
from conformance.patterns.pattern import MAX_IDS, Pattern
from conformance.sessions import CPU, quiet_options
from conformance.tolerances import KEEPS_FLOAT16, largest_error
from ort_qdq_plugin import StockReason, create_session, inspect, report_of
from ort_qdq_plugin.model.releases import ZERO_POINTS_OF_OUTER_GRAPHS, has

__all__ = [
    "COLUMNS", "FUSION_KEY", "LEVELS", "ROW_COUNTS", "Form", "Row", "check", "error_of", "outputs_of",
    "reference_outputs",
]  # fmt: skip

Form = Literal["bytes", "file", "external"]
_MakeSession = Callable[[str | bytes, ort.SessionOptions], ort.InferenceSession]
_Outputs = tuple[tuple[Array, ...], ...]
"""A model's outputs for each of ROW_COUNTS."""
COLUMNS = ("pattern", "group", "stock", "stock+key", "this package", "identical", "error L0", "error L4", "verdict")
LEVELS = (0, 4)
ROW_COUNTS = (1, 3, 17)
"""One token, a few (MatMulNBits still goes row by row), and enough for its batched path."""
FOLDING_KEY = "session.disable_quant_qdq"
"""With this, ONNX Runtime folds every DequantizeLinear of a constant and fuses none."""
FUSION_KEY = "session.enable_dq_matmulnbits_fusion"
_make_stock: _MakeSession = partial(ort.InferenceSession, providers=CPU)
_make_ours: _MakeSession = partial(create_session, providers=CPU)
_BIASED = " + bias"
_LEVEL_KEY = "session.qdq_matmulnbits_accuracy_level"
_BYTES = (TensorProto.UINT8, TensorProto.INT8)
_INTEGERS = {TensorProto.INT64: MAX_IDS, TensorProto.UINT8: 100, TensorProto.INT8: 100}
"""Integer inputs, which are ids or quantized, stay below this."""


class _Result(NamedTuple):
    """What one way of running made of a model."""

    error: str = ""  # why it did not load or run
    outputs: _Outputs = ()
    ends: tuple[tuple[str | int | None, ...], ...] = ()  # name, type and shape of inputs and outputs
    fused: tuple[str, ...] = ()  # fused nodes, with their scales' types, in the graph that ORT really runs
    forms: tuple[tuple[int, int, int], ...] = ()  # bits, block size and accuracy level of its products
    left: int = 0  # DequantizeLinear nodes of constant weights in it
    report: Any = None  # this package's, if it has one

    @property
    def is_dequantized_once(self) -> bool:
        """Whether all weights that this package has changed are dequantized once."""
        report = self.report
        return report is not None and not report.fused and any(entry.bytes_added for entry in report.unfused)

    @property
    def verdict(self) -> str:
        if self.error:
            return "fails to load"
        return "no" if not self.fused else f"partly ({len(self.fused)})" if self.left else "fused"


def _feeds(model: onnx.ModelProto, rows: int) -> dict[str, Array]:
    """Random inputs of that many rows. Conditions alternate; overridable initializers are given on every second count."""
    rng = np.random.default_rng(rows)
    odd_one = ROW_COUNTS.index(rows) % 2 == 1
    left_out = () if odd_one else {tensor.name for tensor in model.graph.initializer}
    fed: dict[str, Array] = {}
    for value in (value for value in model.graph.input if value.name not in left_out):
        kind = value.type.tensor_type
        shape = [rows if dim.dim_param == ROWS else dim.dim_value for dim in kind.shape.dim]
        if kind.elem_type == TensorProto.BOOL:
            drawn: Any = odd_one
        elif kind.elem_type in _INTEGERS:
            drawn = rng.integers(0, _INTEGERS[kind.elem_type], shape)
        else:
            drawn = rng.standard_normal(shape)
        fed[value.name] = np.asarray(drawn).astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return fed


def outputs_of(model: onnx.ModelProto, session: Any) -> _Outputs:
    """What a session makes of random inputs, for each of ROW_COUNTS."""
    return tuple(tuple(session.run(None, _feeds(model, rows))) for rows in ROW_COUNTS)


def _census(model: onnx.ModelProto) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...], int]:
    """A model's fused nodes, with biases and scales' types, their bits and blocks, and how many DequantizeLinear nodes stay,
    not counting those of biases.
    """
    nodes = [node for graph in graphs_of(model.graph) for node in graph.node]
    constants = {tensor.name: tensor for graph in graphs_of(model.graph) for tensor in graph.initializer}
    constants |= {node.output[0]: node.attribute[0].t for node in nodes if node.op_type == "Constant"}
    fused, forms = [], []
    for node in nodes:
        if node.op_type == "MatMulNBits":
            given = {attribute.name: attribute.i for attribute in node.attribute}
            forms.append((given["bits"], given["block_size"], given.get("accuracy_level", 0)))
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized", "QMoE"):
            scales = constants.get(node.input[3 if node.op_type == "QMoE" else 2])
            bias = _BIASED if node.op_type == "MatMulNBits" and len(node.input) > 5 and node.input[5] else ""
            fused.append(f"{node.op_type}{bias}:{scales.data_type if scales else 0}")
        elif node.op_type == "Gather" and node.input[0] in constants:
            # Of a table's integers, which are dequantized afterwards.
            kind = constants[node.input[0]].data_type
            fused += [f"Gather:{kind}"] * (kind in _BYTES)
    matrices = {name for name, tensor in constants.items() if len(tensor.dims) > 1}
    left = sum(node.op_type == "DequantizeLinear" and node.input[0] in matrices for node in nodes)
    return tuple(sorted(fused)), tuple(sorted(forms)), left


def _run(
    model: onnx.ModelProto, stored: str | bytes, make: _MakeSession, folder: Path, level: int, key: str = ""
) -> _Result:
    """Loads and runs a model one way, then once more to see the graph: saving it may change the way this package takes."""

    def options(optimized: str = "") -> ort.SessionOptions:
        made = quiet_options()
        made.add_session_config_entry(_LEVEL_KEY, str(level))
        if key:
            made.add_session_config_entry(key, "1")
        made.optimized_model_filepath = optimized
        return made

    optimized = folder / "optimized.onnx"
    optimized.unlink(missing_ok=True)
    try:
        session = make(stored, options())
        outputs = outputs_of(model, session)
        make(stored, options(str(optimized)))
    except Exception as error:
        return _Result(error=f"{type(error).__name__}: {str(error)[:300]}")
    fused, forms, left = _census(onnx.load(optimized, load_external_data=False))
    ends = tuple((value.name, value.type, *value.shape) for value in [*session.get_inputs(), *session.get_outputs()])
    return _Result("", outputs, ends, fused, forms, left, report_of(session))


def reference_outputs(model: onnx.ModelProto) -> _Outputs:
    """The outputs of unoptimized ORT, or of ONNX' own evaluator where ORT lacks a kernel."""
    options = quiet_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return outputs_of(model, _make_stock(model.SerializeToString(), options))
    except Exception:
        standard = onnx.ModelProto.FromString(model.SerializeToString())
        for node in standard.graph.node:
            node.domain = "" if node.domain == MS else node.domain
        for opset in standard.opset_import:
            opset.version = max(opset.version, 21) if opset.domain == "" else opset.version
        return outputs_of(model, onnx.reference.ReferenceEvaluator(standard))


def _store(model: onnx.ModelProto, folder: Path, form: Form) -> str | bytes:
    """The model as it is handed to a session."""
    stored, path = bytes(model.SerializeToString()), folder / "pattern.onnx"
    if form == "bytes":
        return stored
    copy, external = onnx.ModelProto.FromString(stored), form == "external"
    onnx.save_model(copy, path, save_as_external_data=external, location="pattern.data", size_threshold=0)
    return str(path)


class Row(NamedTuple):
    """What the table shows of a pattern, and where its expectation does not hold."""

    cells: list[str]
    problems: list[str]


def error_of(outputs: _Outputs, reference: _Outputs) -> float:
    """The largest difference over the largest value, of the worst output, over all row counts."""
    if not outputs:
        return float("nan")
    worst = 0.0
    for pair in zip(zip(*reference, strict=True), zip(*outputs, strict=True), strict=True):
        a, b = (np.concatenate([np.ravel(output).astype(np.float64) for output in one]) for one in pair)
        if a.shape != b.shape or not np.isfinite(b).all():
            return float("inf")
        worst = max(worst, float(np.abs(a - b).max() / max(np.abs(a).max(), np.finfo(np.float64).tiny)))
    return worst


def _has_another_form(ours: _Result, theirs: _Result, level: int) -> bool:
    """Whether products differ in bits or blocks only where this package is to choose others than stock does.

    That is for 2 bits, and at levels that do not round for 8 bits without blocks and in blocks of 128; and where a release
    computes wrong numbers at level 4.
    """

    def is_chosen(ours: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
        slow = theirs[0] == 2 or (level < 4 and theirs[:2] in ((8, 32), (8, 128)))
        wrong = not has(ZERO_POINTS_OF_OUTER_GRAPHS) and ours[:2] == theirs[:2] and ours[2] == 0
        return ours == theirs or slow or wrong

    chosen = all(map(is_chosen, ours.forms, theirs.forms))
    return ours.forms != theirs.forms and len(ours.forms) == len(theirs.forms) and chosen


def _equal(one: _Result, two: _Result) -> bool:
    """Whether both ran and gave the same bits, types and shapes."""
    if one.error or two.error:
        return False
    pairs = [pair for a, b in zip(one.outputs, two.outputs, strict=True) for pair in zip(a, b, strict=True)]
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def _describe(ours: _Result) -> str:
    """This package's column: kinds, layouts, and where the bytes are."""
    report = ours.report
    if ours.error or report is None:
        return "fails to load" if ours.error else "no report"
    if not report.fused:
        reasons = sorted({str(unfused.reason) for unfused in report.unfused})
        said = "; ".join(reasons) or report.stock_message or "no reason"
        return f"{'dequantized once' if ours.is_dequantized_once else 'no'}: {said}"
    shown = Counter[str]()
    for fusion in report.fused:
        place = "in place" if not fusion.packed_bytes else "packed" if not fusion.borrowed_bytes else "packed in part"
        shown[f"{fusion.kind}{_BIASED * fusion.has_bias}, {fusion.layout}, {place}"] += 1
    parts = [f"{count}x {what}" if count > 1 else what for what, count in shown.items()]
    return "; ".join(parts + [f"{len(report.unfused)} left"] * bool(report.unfused))


def _broken_promises(pattern: Pattern, ours: _Result, report: Any) -> list[str]:
    """Where the report and the graph that runs differ from each other or from what the pattern expects."""
    fused, reasons = (0, 0) if report is None else (len(report.fused), len(report.unfused))
    ran, silent = not ours.error, ours.left - pattern.stays - reasons
    folded = any(_BIASED in entry for entry in ours.fused)
    refused = report is None or report.stock_reason is StockReason.REFUSED
    expects = pattern.expects if has(pattern.since) else "either"
    explained = fused or reasons or (refused and not ran)
    broken = {
        "no report": report is None and ran,
        f"{fused} of {pattern.fusions} fused": expects == "fused" and fused != pattern.fusions,
        "fused, but must not be": expects in ("reason", "unfused") and fused,
        "the report names no DequantizeLinear and no reason": expects in ("reason", "either") and not explained,
        "the bias is not folded, neither by this package nor by ONNX Runtime": pattern.bias and fused and not folded,
        f"the report has {fused} fusions, the graph {len(ours.fused)}": ran and bool(fused) != bool(ours.fused),
        f"{silent} DequantizeLinear left that the report is silent about": ran and fused and silent > 0,
    }
    return [problem for problem, found in broken.items() if found]


def check(pattern: Pattern, *, make_session: _MakeSession = _make_ours, form: Form = "bytes") -> Row:
    """Runs a pattern every way. `make_session` replaces this package's `create_session`, to take another route of it."""
    model = pattern.build()
    reference = reference_outputs(model)
    problems = []
    if not any(opset.domain == MS for opset in model.opset_import):
        try:
            onnx.checker.check_model(model, full_check=True)
        except Exception as invalid:  # the checker and shape inference raise unrelated types
            problems.append(f"not a valid model: {invalid}")
    with tempfile.TemporaryDirectory(prefix="pattern-") as name:
        folder = Path(name)
        stored = _store(model, folder, form)
        stock, keyed, ours = (
            {level: _run(model, stored, make, folder, level, key) for level in LEVELS}
            for make, key in ((_make_stock, ""), (_make_stock, FUSION_KEY), (make_session, ""))
        )
        if ours[4].is_dequantized_once:
            folded = {level: _run(model, stored, _make_stock, folder, level, FOLDING_KEY) for level in LEVELS}
            if not all(_equal(ours[level], folded[level]) for level in LEVELS):
                problems.append("differs from stock with constants folded")
        last, report, seen = ours[4], ours[4].report, None
        with suppress(Exception):  # no report either, then
            seen = inspect(stored)

    if last.error:
        report = seen
        problems += ["inspect says that it is fused"] * bool(seen is not None and seen.fused)
    elif report is not None and (seen is None or (seen.fused, seen.unfused) != (report.fused, report.unfused)):
        problems.append("inspect says otherwise than the report")
    problems += _broken_promises(pattern, last, report)
    if last.error and (not stock[4].error or pattern.expects == "fused"):
        problems.append(last.error)
    if not last.error and not stock[4].error and last.ends != stock[4].ends:
        problems.append(f"inputs and outputs {last.ends} instead of {stock[4].ends}")

    limits = [largest_error(pattern.precision, level) for level in LEVELS]
    errors, *others_errors = ([error_of(of[level].outputs, reference) for level in LEVELS] for of in (ours, stock, keyed))
    exceeded = [error > limit for error, limit in zip(errors, limits, strict=True)]
    problems += [f"error {errors[index]:.1e} at level {LEVELS[index]}" for index in np.flatnonzero(exceeded)]

    verdicts, shown = [], []
    for name, others, theirs in zip(("stock", "stock+key"), (stock, keyed), others_errors, strict=True):
        right = all(error <= limit for error, limit in zip(theirs, limits, strict=True))
        other = others[4]
        verdicts.append(other.verdict + (", wrong" if not other.error and not right else ""))
        # Bits must agree where stock fused just as much as this package, or neither did anything.
        comparable = (len(other.fused), other.left) == (len(last.fused), last.left) if last.fused else name == "stock"
        same_biases = sum(_BIASED in one for one in other.fused) == sum(_BIASED in one for one in last.fused)
        comparable = comparable and not last.is_dequantized_once and (same_biases or not KEEPS_FLOAT16)
        if other.error or not right or not comparable:
            continue
        reformed = [level for level in LEVELS if _has_another_form(ours[level], others[level], level)]
        equal = [level for level in LEVELS if level in reformed or _equal(ours[level], others[level])]
        text = "yes" if len(equal) == len(LEVELS) else f"only L{equal[0]}" if equal else "no"
        if reformed and text == "yes":
            shown.append(f"{name}: another form" + (f" at L{reformed[0]}" if len(reformed) < len(LEVELS) else ""))
            continue
        # The key's fusion runs before casts are inserted: it leaves a float16 model's nodes in other precisions than the
        # default's.
        elsewhere = name != "stock" and other.fused != last.fused
        shown.append(f"{name}: {text}" + (" (other precision)" if elsewhere and text != "yes" else ""))
        if text != "yes" and not elsewhere and not shown[0].startswith(("stock: yes", "stock: another form")):
            problems.append(f"differs from {name} ({text})")
    figures = ["-" if np.isnan(error) else f"{error:.1e}" if error else "0" for error in errors]
    verdict = "pass" if not problems else "**FAIL**: " + "; ".join(problems)
    group = "plain" if pattern.group == 2 else "as exporters write"
    cells = (pattern.name, group, *verdicts, _describe(last), ", ".join(shown) or "-", *figures, verdict)
    return Row([" ".join(cell.split()) for cell in cells], problems)
