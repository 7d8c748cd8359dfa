"""Judges what became of a pattern: its numbers, its report and what was fused, against what the pattern expects."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx.reference

from conformance.drawing.elements import MS, Array
from conformance.patterns.pattern import Pattern
from conformance.patterns.running import (
    BIASED,
    LEVELS,
    Form,
    MakeSession,
    Result,
    make_ours,
    make_stock,
    reference_outputs,
    run,
    store,
)
from ort_qdq_plugin import inspect

__all__ = ["LIMITS", "Row", "check"]

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
        return "no: " + ("; ".join(reasons) or report.stock_message or "no reason")
    shown = []
    for fusion in report.fused:
        place = "in place" if not fusion.packed_bytes else "packed" if not fusion.borrowed_bytes else "packed in part"
        bias = " + bias" if fusion.has_bias else ""
        shown.append(f"{fusion.kind}{bias}, {fusion.layout}, {place}")
    text = "; ".join(f"{shown.count(entry)}x {entry}" if shown.count(entry) > 1 else entry for entry in dict.fromkeys(shown))
    return text + (f"; {len(report.unfused)} left" if report.unfused else "")


def _inspected(stored: str | bytes) -> Any:
    """What the package decides about a model that no session can be made of."""
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
    if pattern.bias and fused and not any(BIASED in entry for entry in ours.fused):
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
    reference = reference_outputs(model)
    make = make_session or make_ours
    with tempfile.TemporaryDirectory(prefix="pattern-") as name:
        folder = Path(name)
        stored = store(model, folder, form)
        stock = {level: run(model, stored, make_stock, folder, level) for level in LEVELS}
        keyed = {level: run(model, stored, make_stock, folder, level, keyed=True) for level in LEVELS}
        ours = {level: run(model, stored, make, folder, level, ours=True) for level in LEVELS}
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
        stock=verdicts["stock"],
        keyed=verdicts["stock+key"],
        ours=_describe(last),
        identical=identical,
        errors=(errors[0], errors[4]),
        problems=tuple(problems),
    )
