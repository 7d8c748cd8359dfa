"""Loads a model that a tool wrote by unoptimized ONNX Runtime, by stock, and by this package, and says what became of it."""

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort

from conformance.drawing.canvas import graphs_of
from conformance.drawing.elements import Array
from conformance.sessions import CPU, quiet_options
from ort_qdq_plugin import Report, create_session, report_of

__all__ = ["Outcome", "outcome_of"]

_LEVEL_KEY = "session.qdq_matmulnbits_accuracy_level"
_LIMIT = 1e-5
"""Of the largest difference from the unoptimized model at accuracy level 0, as a part of the largest value."""
_STEPS = 2e-2
"""The same where activations are rounded to 8 bits at run time: the last bit of a product may decide about two steps."""
_FUSED = ("MatMulNBits", "GatherBlockQuantized")
_TYPES = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
_IDS = 500
"""Token ids stay below this; every table has more rows."""


class Outcome(NamedTuple):
    """What became of a model."""

    verdict: str  # how many weights are fused, and how many left for which reason, by its name
    fused_by_stock: int
    problems: list[str]  # where it is not as this package promises


def _feeds(session: Any) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    fed = {}
    for value in session.get_inputs():
        drawn = rng.integers(0, _IDS, value.shape) if "int" in value.type else rng.standard_normal(value.shape)
        fed[value.name] = np.asarray(drawn, _TYPES[value.type])
    return fed


def _session(path: Path, make: Any = ort.InferenceSession, *, level: int = 4, saved: str | Path = "", **how: Any) -> Any:
    options = quiet_options()
    options.add_session_config_entry(_LEVEL_KEY, str(level))
    options.optimized_model_filepath = str(saved)
    for name, value in how.items():
        setattr(options, name, value)
    return make(str(path), options, providers=CPU)


def _kinds(path: Path) -> Counter[str]:
    graphs = graphs_of(onnx.load(path, load_external_data=False).graph)
    return Counter(node.op_type for graph in graphs for node in graph.node)


def _integer_kernels(kinds: Mapping[str, int]) -> int:
    return sum(count for kind, count in kinds.items() if kind.startswith(("QLinear", "QGemm")) or "MatMulInteger" in kind)


def _verdict(report: Report) -> str:
    left = Counter(entry.reason.name for entry in report.unfused)
    parts = [f"{len(report.fused)} fused"] * bool(report.fused) + [f"{count} {name}" for name, count in sorted(left.items())]
    return ", ".join(parts) or str(report.stock_reason and report.stock_reason.name)


def _difference(actual: list[Array], expected: list[Array]) -> float:
    pairs = zip(actual, expected, strict=True)
    return max(float(np.abs(one - other).max() / np.abs(other).max()) for one, other in pairs)


def outcome_of(path: Path) -> Outcome:
    """What becomes of a model.

    Where stock fuses as many weights, results are the same to the last bit at level 4. At level 0 they are within 1e-5 of
    the unoptimized model's, or as close as stock's.
    """
    exact = _session(path, graph_optimization_level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    x = _feeds(exact)
    expected = exact.run(None, x)
    with tempfile.TemporaryDirectory() as name:
        saved = Path(name, "optimized.onnx")
        theirs = [_session(path, level=level, saved=saved).run(None, x) for level in (0, 4)]
        before = _kinds(saved)
        session = _session(path, create_session)
        ours = [_session(path, create_session, level=0).run(None, x), session.run(None, x)]
        _session(path, create_session, saved=saved)
        after, report = _kinds(saved), report_of(session)
    if report is None:
        return Outcome("no report", 0, ["the session is not this package's"])
    made, now = (sum(kinds[kind] for kind in _FUSED) for kinds in (before, after))
    problems = [f"stock fuses {made}"] * (made > len(report.fused))
    allowed = max(_STEPS if "QuantizeLinear" in after else _LIMIT, _difference(theirs[0], expected))
    if _difference(ours[0], expected) > allowed:
        problems.append(f"differs by {_difference(ours[0], expected):.1e} at level 0")
    if made == now and report.fused and not all(map(np.array_equal, ours[1], theirs[1])):
        problems.append("differs from stock, which fuses as much")
    if _integer_kernels(after) < _integer_kernels(before):
        problems.append("an integer kernel of stock's is gone")
    return Outcome(_verdict(report), made, problems)
