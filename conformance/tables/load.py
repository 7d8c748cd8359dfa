"""The load table: how a session starts, what it costs and how it runs, by several ways of loading.

    python -m conformance.tables.load                      # the table, a Phi-3-mini-shaped decoder
    python -m conformance.tables.load --quick              # the same on tiny models, within seconds
    python -m conformance.tables.load --packing --inline --overhead

Each run is a fresh process. Contenders take turns (A B C A B C ...), since a machine's speed drifts,
and right before each start the model's files are read and free memory is touched, so that all find
the page cache warm and no memory that the host has taken away.
Medians are reported. Below each table stand the targets that can be judged from it; `--check` makes
a missed one an error. A contender that fails is shown as failed and does not stop the others.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conformance.tables.contenders import CHILD, CONTENDERS, Job, Measurement
from conformance.tables.measuring import (
    MB,
    Results,
    Section,
    Target,
    finish,
    interleave,
    row,
    say,
    stages,
)
from ort_qdq_plugin.cli.machine import available_memory

if TYPE_CHECKING:
    from conformance.tables.decoder import ModelPair, ModelSpec

__all__ = ["main"]

_Results = Results[Measurement]

# What a dense model takes beyond its float weights while it is folded and packed.
_DENSE_OVERHEAD = 1.25
_QUICK_SHAPE = {"hidden": 256, "ffn": 512, "vocab": 1024}


# ---- targets ---------------------------------------------------------------------------------------


def _ratio(what: str, ours: _Results, other: _Results, figure: Callable[[_Results], float], limit: float) -> list[Target]:
    """A target for ours / other; nothing where either did not run."""
    return [Target(what, figure(ours) / figure(other), limit)] if ours and other else []


def _load_targets(spec: ModelSpec, results: dict[str, _Results]) -> list[Target]:
    """What a variant's table is judged by."""
    ours, ours_qop, qdq, qop = (results.get(name, _Results()) for name in ("ours-qdq", "ours-qop", "stock-qdq", "stock-qop"))
    targets = [
        *_ratio("QOperator through this package, init / stock", ours_qop, qop, lambda r: r.init, 0.75),
        *_ratio("QOperator through this package, peak / stock", ours_qop, qop, lambda r: r.peak, 0.90),
    ]
    if spec.n_major and not spec.signed:
        targets += _ratio("init / stock QOperator", ours, qop, lambda r: r.init, 0.75)
        if ours and qdq:
            speedup = qdq.token / ours.token
            targets.append(Target("token, times faster than stock QDQ", speedup, 20, at_least=True))
        return targets
    targets += _ratio("init / stock QOperator", ours, qop, lambda r: r.init, 1.0)
    targets += _ratio("peak / stock QOperator", ours, qop, lambda r: r.peak, 0.90)
    if not spec.n_major:
        targets += _ratio("init / stock QDQ", ours, qdq, lambda r: r.init, 0.40)
        targets += _ratio("peak / stock QDQ", ours, qdq, lambda r: r.peak, 0.65)
    return targets


def _borrowing_targets(spec: ModelSpec, results: dict[str, _Results]) -> list[Target]:
    """Weights that are stored as MatMulNBits takes them stay where they are."""
    ours = results.get("ours-qdq", _Results())
    if not ours or not spec.n_major or spec.signed:
        return []
    return [Target("bytes packed", ours.report["packed_bytes"], 0, "B")]


# ---- do all give the same answer? ------------------------------------------------------------------


def _differences(outputs: dict[str, Path], reference: str) -> dict[str, float]:
    """Each output's distance from the reference, relative to the reference's norm."""
    if reference not in outputs or not outputs[reference].exists():
        return {}
    base = np.load(outputs[reference]).astype(np.float64)
    scale = float(np.linalg.norm(base))
    return {
        name: float(np.linalg.norm(np.load(path).astype(np.float64) - base)) / scale
        for name, path in outputs.items()
        if path.exists()
    }


def _disagreements(spec: ModelSpec, differences: dict[str, float], results: dict[str, _Results]) -> list[str]:
    """Contenders that run the same kernel on the same weights must agree to the last bit.

    Stock ORT fuses no N-major weights, and puts float16 casts elsewhere in a QDQ model.
    """
    exact = ["ours-qdq", "ours-qop"]
    if not spec.n_major and spec.scales == "float":
        exact.append("stock-qdq")
    wrong = [
        f"{name} differs from stock-qop by {differences[name]:.3g}" for name in exact if differences.get(name, 0.0) != 0.0
    ]
    failed = [
        f"{name}: {result.failure}"
        for name, result in results.items()
        if result.failure and name in ("stock-qop", "ours-qdq", "ours-qop")
    ]
    return wrong + failed


# ---- the sections ----------------------------------------------------------------------------------


def _pair(args: argparse.Namespace, variant: str, storage: str = "external", layers: int = 0) -> ModelPair:
    """A variant's models, written unless they are there."""
    from conformance.tables.decoder import ensure_pair, spec_of

    shape = _QUICK_SHAPE if args.quick else {}
    layers = layers or args.layers
    spec = spec_of(variant, layers=layers, storage=storage, accuracy_level=args.accuracy_level, **shape)
    name = "-".join([variant, str(layers), *storage.lower().replace(",", "").split(), *(["quick"] if args.quick else [])])
    say(f"{name}: {spec.weight_bytes / MB:.0f} MB of weights")
    return ensure_pair(spec, args.dir / name)


def _jobs(args: argparse.Namespace, pair: ModelPair, names: Sequence[str], outputs: Path) -> dict[str, Job]:
    return {
        name: Job(
            name,
            str(pair.qdq if CONTENDERS[name].takes == "qdq" else pair.qop),
            threads=args.threads,
            accuracy_level=args.accuracy_level,
            output=str(outputs / f"{name}.npy"),
        )
        for name in names
    }


def _chosen(args: argparse.Namespace, spec: ModelSpec) -> tuple[list[str], list[str]]:
    """The contenders that can run here, and notes on those that cannot."""
    names, notes = list(args.contenders), []
    if "openvino" in names and importlib.util.find_spec("openvino") is None:
        names.remove("openvino")
        notes.append("OpenVINO: not installed.")
    if args.dense and "stock-dense" not in names:
        needed, free = spec.elements * 4 * _DENSE_OVERHEAD, available_memory()
        if needed < free:
            names.append("stock-dense")
        else:
            notes.append(f"Dense: needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are available; left out.")
    return names, notes


def load_section(args: argparse.Namespace, variant: str, storage: str = "external", layers: int = 0) -> Section:
    """The table of one variant."""
    pair = _pair(args, variant, storage, layers)
    names, notes = _chosen(args, pair.spec)
    with tempfile.TemporaryDirectory(dir=args.dir) as scratch:
        jobs = _jobs(args, pair, names, Path(scratch))
        results = interleave(CHILD, jobs, args.runs, Measurement, {"stock-dense": args.dense_runs})
        outputs = {name: Path(job.output) for name, job in jobs.items()}
        differences = _differences(outputs, "stock-qop")
    spec = pair.spec
    targets = _borrowing_targets(spec, results)
    if args.quick:
        notes.append("Tiny models show that it works; their time and memory are not judged.")
    else:
        targets += _load_targets(spec, results) if storage == "external" else _inline_targets(results)
    described = (
        f"{spec.layers} layers, hidden {spec.hidden}, {spec.weight_bytes / MB:.0f} MB of {spec.weight} weights, "
        f"block {spec.block}, {'with' if spec.zero_points else 'no'} zero points, {spec.scales} scales, "
        f"{'N-major' if spec.n_major else 'K-major'}, {spec.storage}; "
        f"accuracy level {spec.accuracy_level}, {args.runs} runs each."
    )
    lines = [
        described,
        "",
        *_table(results, differences),
        "",
        *notes,
    ]
    title = f"Load, {variant}{'' if storage == 'external' else f', {storage}'}"
    return Section(title, lines, targets, _disagreements(spec, differences, results))


_COLUMNS = (
    "contender",
    "import s",
    "init s (min-max)",
    "first result s",
    "token ms",
    "peak MB",
    "peak of the load MB",
    "peak anonymous MB",
    "peak file MB",
    "then anonymous / file MB",
    "init / QDQ",
    "init / QOp",
    "peak / QDQ",
    "peak / QOp",
    "output",
)


def _table(results: dict[str, _Results], differences: dict[str, float]) -> list[str]:
    """The medians as Markdown."""
    lines = [row(_COLUMNS), row(["---"] * len(_COLUMNS))]
    qdq, qop = (results.get(name, _Results()) for name in ("stock-qdq", "stock-qop"))
    for name, result in results.items():
        title = CONTENDERS[name].title
        if result.failure or not result.runs:
            lines.append(row([title, f"failed: {result.failure or 'not run'}", *[""] * (len(_COLUMNS) - 2)]))
            continue
        lines.append(row([title, *_figures(result), *_ratios(result, qdq, qop), _agreement(name, differences)]))
    return lines


def _figures(result: _Results) -> list[str]:
    inits = [run.init_seconds for run in result.runs]

    def megabytes(value: Callable[[Measurement], float]) -> str:
        return f"{result.median(value) / MB:.0f}"

    return [
        f"{result.median(lambda run: run.import_seconds):.2f}",
        f"{result.init:.3g} ({min(inits):.3g}-{max(inits):.3g})",
        f"{result.median(lambda run: run.first_seconds):.3g}",
        f"{result.token * 1e3:.1f}",
        megabytes(lambda run: run.end.high),
        megabytes(lambda run: run.after.high),
        megabytes(lambda run: run.peak_anon),
        megabytes(lambda run: run.peak_file),
        f"{megabytes(lambda run: run.after.anon)} / {megabytes(lambda run: run.after.file)}",
    ]


def _ratios(result: _Results, qdq: _Results, qop: _Results) -> list[str]:
    figures: tuple[Callable[[_Results], float], ...] = (lambda r: r.init, lambda r: r.peak)
    return [f"{figure(result) / figure(other):.2f}" if other else "" for figure in figures for other in (qdq, qop)]


def _agreement(name: str, differences: dict[str, float]) -> str:
    if name not in differences:
        return ""
    return "equal" if differences[name] == 0 else f"{differences[name]:.1e} off"


def _inline_targets(results: dict[str, _Results]) -> list[Target]:
    ours, qdq, qop = (results.get(name, _Results()) for name in ("ours-qdq", "stock-qdq", "stock-qop"))
    return [
        *_ratio("inline, peak / stock QOperator", ours, qop, lambda r: r.peak, 1.0),
        *_ratio("inline, peak / stock QDQ", ours, qdq, lambda r: r.peak, 1.0),
        *_ratio("inline, init / stock QDQ", ours, qdq, lambda r: r.init, 1.1),
    ]


def inline_sections(args: argparse.Namespace) -> list[Section]:
    """Weights inside the .onnx."""
    layers = 1 if args.quick else 4
    return [load_section(args, "uint4", storage, layers) for storage in ("inline", "inline, explicit DEFAULT")]


def packing_section(args: argparse.Namespace, variant: str) -> Section:
    """How fast weights are packed, and with how much memory."""
    pair = _pair(args, variant)
    job = Job("ours-qdq", str(pair.qdq), args.threads, args.accuracy_level, load_only=True, watch_packing=True)
    result = interleave(CHILD, {"ours-qdq": job}, args.runs, Measurement)["ours-qdq"]
    if not result:
        return Section(f"Packing, {variant}", [], errors=[result.failure])
    seconds, packed_bytes = stages(result), result.report["packed_bytes"]
    scratch = result.median(lambda run: run.packing_anon) / MB
    spent = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
    weights = f"{pair.spec.weight_bytes / MB:.0f} MB of weights, {packed_bytes / MB:.0f} MB with scales and zero points"
    lines = [f"{weights}: {spent}."]
    if args.quick or not packed_bytes:
        return Section(f"Packing, {variant}", lines)
    rate = pair.spec.weight_bytes / seconds["pack"] / 1e9
    targets = [
        Target("weights packed", rate, 0.8, "GB/s", at_least=True),
        Target("anonymous memory taken while packing", scratch, 256, "MB"),
    ]
    return Section(f"Packing, {variant}", lines, targets)


def overhead_section(args: argparse.Namespace) -> Section:
    """What a model costs that this package does nothing for."""
    from conformance.tables.decoder import write_float_model

    columns = (
        "model without QDQ",
        "stock ms",
        "this package ms",
        "difference ms",
        "second load: stock / this ms",
    )
    lines = [row(columns), row(["---"] * len(columns))]
    targets, errors = [], []
    models = {
        "tiny, inline": (16, 1, "inline"),
        "53 MB, inline": (1024, 12, "inline"),
        "53 MB, external data": (1024, 12, "external"),
    }
    for title, (width, layers, storage) in models.items():
        path = args.dir / "float" / f"{layers}-{storage}.onnx"
        if not path.exists():
            write_float_model(path, width, layers, storage)
        # A difference of milliseconds needs more runs than one of seconds.
        results = interleave(CHILD, _load_jobs(args, path), 3 * args.runs, Measurement)
        stock, ours = results["stock-qdq"], results["ours-qdq"]
        errors += [f"{title}: {result.failure}" for result in results.values() if result.failure]
        if not (stock and ours):
            continue
        again = [result.median(lambda run: run.again_seconds) * 1e3 for result in (stock, ours)]
        extra = (ours.init - stock.init) * 1e3
        lines.append(
            row(
                [
                    title,
                    f"{stock.init * 1e3:.1f}",
                    f"{ours.init * 1e3:.1f}",
                    f"{extra:+.1f}",
                    f"{again[0]:.1f} / {again[1]:.1f}",
                ]
            )
        )
        targets.append(Target(f"{title}, slower than stock", extra, 10 + 50 * stock.init, "ms"))
    return Section("Overhead", lines, targets, errors)


def _load_jobs(args: argparse.Namespace, path: Path) -> dict[str, Job]:
    return {
        name: Job(name, str(path), args.threads, args.accuracy_level, load_only=True, load_again=True)
        for name in ("stock-qdq", "ours-qdq")
    }


# ---- the command -----------------------------------------------------------------------------------


def _sections(args: argparse.Namespace) -> list[Section]:
    sections: list[Section] = []
    if args.table or not (args.packing or args.inline or args.overhead):
        sections += [load_section(args, variant) for variant in args.variants]
    if args.packing:
        sections += [packing_section(args, variant) for variant in args.variants]
    if args.inline:
        sections += inline_sections(args)
    if args.overhead:
        sections.append(overhead_section(args))
    return sections


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    usual = ["stock-qop", "stock-qdq", "openvino", "ours-qdq", "ours-qop"]
    parser.add_argument("--layers", type=int, help="default 32; with --quick 2")
    parser.add_argument("--runs", type=int, help="runs of each contender: default 5; with --quick 2")
    parser.add_argument("--variants", nargs="+", default=["uint4", "int4", "uint4-nmajor"])
    parser.add_argument("--contenders", nargs="+", default=usual, choices=[*usual, "stock-dense"])
    parser.add_argument("--dense", action="store_true", help="also stock with disable_quant_qdq (much memory)")
    parser.add_argument("--dense-runs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="intra-op; 0: the library's own choice")
    parser.add_argument("--accuracy-level", type=int, default=4)
    parser.add_argument("--dir", type=Path, help="where models are kept (default: a temporary folder)")
    parser.add_argument("--quick", action="store_true", help="tiny models: does it work, not how fast")
    parser.add_argument("--table", action="store_true", help="the load table: what is done if nothing is asked")
    parser.add_argument("--packing", action="store_true", help="packing's speed and scratch")
    parser.add_argument("--inline", action="store_true", help="weights inside the .onnx")
    parser.add_argument("--overhead", action="store_true", help="models without QDQ")
    parser.add_argument("--markdown", type=Path, help="write the result there too")
    parser.add_argument("--check", action="store_true", help="a missed target is an error")
    args = parser.parse_args(argv)
    args.layers = args.layers or (2 if args.quick else 32)
    args.runs = args.runs or (2 if args.quick else 5)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; 1 if something is wrong."""
    args = _arguments(argv)
    with tempfile.TemporaryDirectory(prefix="load-table-") as temporary:
        args.dir = (args.dir or Path(temporary)).resolve()
        args.dir.mkdir(parents=True, exist_ok=True)
        sections = _sections(args)
    return finish("Load table", sections, args)


if __name__ == "__main__":
    sys.exit(main())
