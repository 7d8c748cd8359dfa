"""The comparison that ``python -m ort_qdq_plugin`` prints: a model loaded by stock ONNX Runtime and by this package.

Every load has a process of its own, the two take turns, and medians are shown. Without an argument the models are made for
the occasion, in a temporary directory.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ort_qdq_plugin.demo_model import BLOCK_SIZE, PRODUCTS, WEIGHT_BYTES, write_model
from ort_qdq_plugin.session import create_session, inspect, report_of

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

_WAYS = {"stock": "stock ONNX Runtime", "package": "this package"}
_RUNS = 5
# Steady runs of one process: as many as fit into the time, at most so many.
_TOKEN_RUNS, _TOKEN_SECONDS = 7, 2.0
_MB = 1e6

# At accuracy level 4 activations are rounded to 8 bits, where an unfused product stays in float.
_ROUNDING = 0.05

_NUMPY_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(bool)": np.bool_,
    "tensor(int8)": np.int8, "tensor(int16)": np.int16, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16, "tensor(uint32)": np.uint32, "tensor(uint64)": np.uint64,
}  # fmt: skip


HELP = "load a QDQ model with stock ONNX Runtime and with this package, and compare"
EXAMPLE = "ort-qdq demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("model", nargs="?", help="an .onnx file; without one, small models are made and thrown away")
    parser.add_argument("--runs", type=int, default=_RUNS, help=f"fresh processes each way (default {_RUNS})")
    parser.add_argument("--measure", choices=_WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)


def run(given: argparse.Namespace) -> int:
    """Compare; 0 when both ways gave what they should."""
    if given.measure:
        _say(json.dumps(asdict(_load_here(given.measure, given.model, given.output))))
        return 0
    with tempfile.TemporaryDirectory(prefix="ort-qdq-demo-") as folder:
        runs = max(given.runs, 1)
        return _compare_given(given.model, Path(folder), runs) if given.model else _compare_made(Path(folder), runs)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


# One load, in a process of its own


@dataclass(frozen=True)
class _Load:
    """What one load took, in seconds and bytes.

    `first`: from the start of the load to the first result; `token`: a later run. None where the inputs cannot be made up,
    or where the system does not tell.
    """

    init: float | None = None
    first: float | None = None
    token: float | None = None
    peak: float | None = None
    report: str = ""
    stock: bool = False  # this package left it to stock ONNX Runtime
    note: str = ""
    failure: str = ""


def _load_here(way: str, model: str, output: str) -> _Load:
    """Load and run the model in this process; its results go to the file `output`."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    start = time.perf_counter()
    session = create_session(model) if way == "package" else onnxruntime.InferenceSession(model)
    init = time.perf_counter() - start
    first, token, note = None, None, ""
    feeds = _feeds(session)
    if feeds is None:
        note = "its inputs are not all tensors of numbers"
    else:
        try:
            results = session.run(None, feeds)
            first = time.perf_counter() - start
            token = _steady_seconds(lambda: session.run(None, feeds))
            np.savez(output, *[result for result in results if isinstance(result, np.ndarray)])
        except Exception as error:
            # Made-up inputs need not make sense to the model.
            note = f"it does not run on made-up inputs ({' '.join(str(error).split())[:200]})"
    load = _Load(init, first, token, _peak_bytes(), note=note)
    report = report_of(session)
    if report is None:
        return load
    return replace(load, report=report.summary(), stock=report.passed_through is not None)


def _steady_seconds(run: Callable[[], object]) -> float:
    """Median seconds of a run."""
    times: list[float] = []
    while not times or (len(times) < _TOKEN_RUNS and sum(times) < _TOKEN_SECONDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times)


def _feeds(session: Any) -> dict[str, np.ndarray] | None:
    """Random numbers for floats, zeros for the rest, one for every dimension without a size; None where that cannot be."""
    rng = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    for value in session.get_inputs():
        kind = _NUMPY_TYPES.get(value.type)
        if kind is None:
            return None
        shape = [dim if isinstance(dim, int) and dim > 0 else 1 for dim in value.shape]
        is_float = np.issubdtype(kind, np.floating)
        feeds[value.name] = (rng.standard_normal(shape) if is_float else np.zeros(shape)).astype(kind)
    return feeds


def _peak_bytes() -> int | None:
    """The most memory that this process ever had."""
    with suppress(OSError), open("/proc/self/status") as status:
        return next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:")), None)
    return None


# Both ways, in turns


def _load_apart(way: str, model: str | Path, output: Path) -> _Load:
    """Load the model in a fresh process."""
    command = [sys.executable, "-m", "ort_qdq_plugin", "demo", str(model), "--measure", way, "--output", str(output)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return _Load(failure=last[0][:300])
    return _Load(**json.loads(done.stdout.splitlines()[-1]))


def _load_in_turns(model: str | Path, folder: Path, runs: int) -> dict[str, list[_Load]]:
    """Loads by way; what failed once is not tried again."""
    loads: dict[str, list[_Load]] = {way: [] for way in _WAYS}
    # The first turn only brings the files into the page cache.
    for turn in range(-1, runs):
        for way in _WAYS:
            if loads[way] and loads[way][0].failure:
                continue
            load = _load_apart(way, model, folder / f"{way}.npz")
            if turn >= 0 or load.failure:
                loads[way].append(load)
    return loads


def _compare(model: str | Path, folder: Path, runs: int) -> tuple[dict[str, list[_Load]], float | None]:
    """Print the comparison; the loads, and how far results are apart (None: not to be told)."""
    loads = _load_in_turns(model, folder, runs)
    for line in _table(loads):
        _say(line)
    stock, package = (loads[way][-1] for way in _WAYS)
    apart = _difference(folder / "stock.npz", folder / "package.npz")
    if apart is not None:
        _say("results: identical" if apart == 0 else f"results: {apart:.1e} apart, relative to their size")
    elif package.note or stock.note:
        _say(f"not run: {package.note or stock.note}")
    if package.report:
        _say(f"report:  {package.report}")
    _say("")
    return loads, apart


# Title, unit, factor, digits and value of each figure.
_COLUMNS: tuple[tuple[str, str, float, int, Callable[[_Load], float | None]], ...] = (
    ("init", "s", 1, 2, lambda load: load.init),
    ("to first result", "s", 1, 2, lambda load: load.first),
    ("one-token run", "ms", 1e3, 1, lambda load: load.token),
    ("peak memory", "MB", 1 / _MB, 0, lambda load: load.peak),
)


def _table(loads: dict[str, list[_Load]]) -> Iterator[str]:
    yield " " * 20 + "".join(f"{column[0]:>17}" for column in _COLUMNS)
    medians: dict[str, list[float | None]] = {}
    for way, title in _WAYS.items():
        if loads[way][0].failure:
            yield f"{title:20}  failed: {loads[way][0].failure}"
            continue
        medians[way] = [_median([value(load) for load in loads[way]]) for *_, value in _COLUMNS]
        cells = [
            _figure(value, factor, unit, digits)
            for (_, unit, factor, digits, _), value in zip(_COLUMNS, medians[way], strict=True)
        ]
        yield f"{title:20}" + "".join(f"{cell:>17}" for cell in cells)
    if len(medians) == len(_WAYS):
        ratios = [_ratio(ours, stock) for ours, stock in zip(medians["package"], medians["stock"], strict=True)]
        yield f"{'ratio':20}" + "".join(f"{ratio:>17}" for ratio in ratios)


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(median(known)) if known else None


def _figure(value: float | None, factor: float, unit: str, digits: int) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f} {unit}"


def _ratio(ours: float | None, stock: float | None) -> str:
    return "-" if ours is None or not stock else f"{ours / stock:.2f} x"


def _difference(stock: Path, package: Path) -> float | None:
    """The largest distance between two results, relative to their norm; None where there are none to compare."""
    if not (stock.exists() and package.exists()):
        return None
    with np.load(stock) as theirs, np.load(package) as ours:
        if not theirs.files or theirs.files != ours.files:
            return None
        return max(_distance(theirs[name], ours[name]) for name in theirs.files)


def _distance(theirs: np.ndarray, ours: np.ndarray) -> float:
    if theirs.shape != ours.shape:
        return math.inf
    if np.array_equal(theirs, ours, equal_nan=theirs.dtype.kind == "f"):
        return 0.0
    exact = theirs.astype(np.float64)
    return float(np.linalg.norm(ours.astype(np.float64) - exact) / max(np.linalg.norm(exact), np.finfo(np.float64).tiny))


# What is compared


def _compare_given(model: str, folder: Path, runs: int) -> int:
    """The user's own model: what inspect says, then both ways."""
    _say(f"{inspect(model)}\n")
    loads, _ = _compare(model, folder, runs)
    return int(any(load.failure for way in loads for load in loads[way]))


def _compare_made(folder: Path, runs: int) -> int:
    """Models of our own, in the two orders in which weights are stored."""
    weights = f"{WEIGHT_BYTES / _MB:.0f} MB of uint4 weights, block {BLOCK_SIZE}, zero points"
    _say(f"{PRODUCTS} products, {weights}; medians of {runs} loads.")
    _say("Models this small show that it works; fixed costs weigh less on larger ones.\n")
    agreed = True
    for k_major, title in (
        (True, "K-major: DequantizeLinear(axis=0) -> MatMul, as most quantizers write it"),
        (False, "N-major: DequantizeLinear(axis=1) -> Transpose -> MatMul, which stock ONNX Runtime leaves unfused"),
    ):
        _say(title)
        path = write_model(folder / ("k-major" if k_major else "n-major"), k_major)
        loads, apart = _compare(path, path.parent, runs)
        fused = all(not load.failure and not load.stock for way in loads for load in loads[way])
        agreed &= fused and apart is not None and apart <= (0.0 if k_major else _ROUNDING)
    _say("Both ways agree." if agreed else "The two ways DO NOT AGREE as they should: this is a bug, please report it.")
    return int(not agreed)
