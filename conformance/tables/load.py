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
import importlib
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conformance.tables.measuring import (
    MB,
    Results,
    Run,
    Section,
    Target,
    available_memory,
    facts,
    finish,
    interleave,
    memory,
    row,
    say,
    stages,
)

if TYPE_CHECKING:
    from conformance.tables.decoder import ModelPair, ModelSpec

__all__ = ["CONTENDERS", "Job", "Measurement", "main"]

_MODULE = "conformance.tables.load"
# A repeated run is cut short once its repetitions took this long.
_STEADY_SECONDS = 8.0
# What a dense model takes beyond its float weights while it is folded and packed.
_DENSE_OVERHEAD = 1.25
_QUICK_SHAPE = {"hidden": 256, "ffn": 512, "vocab": 1024}


# ---- one run, in its own process -------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What a child process is to do."""

    contender: str
    model: str
    threads: int = 0  # 0: what the library takes by itself
    accuracy_level: int = 4
    steady_runs: int = 7
    output: str = ""  # where the first result goes, as .npy
    watch_packing: bool = False  # look at memory during packing
    load_only: bool = False
    load_again: bool = False


@dataclass(frozen=True)
class Measurement(Run):
    """What a child measured."""

    import_seconds: float = 0.0
    again_seconds: float = 0.0  # the same load once more, in a process that has done it before
    first_seconds: float = 0.0  # from the start of the load to the first result
    checksum: float = 0.0
    packing_anon: int = 0  # most anonymous memory during packing, above `before`

    def __str__(self) -> str:
        return f"import {self.import_seconds:.2f} s, {super().__str__()}, checksum {self.checksum:.9g}"


_Results = Results[Measurement]


@dataclass(frozen=True)
class Contender:
    """A way of loading: a title, which model of a pair it takes, and how it makes a runner."""

    title: str
    takes: str  # "qdq" | "qop"
    module: str
    load: Callable[[Any, Job], Any]


def _session_options(job: Job) -> Any:
    options = importlib.import_module("onnxruntime").SessionOptions()
    options.log_severity_level = 3
    if job.threads:
        options.intra_op_num_threads = job.threads
    level = str(job.accuracy_level)
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
    return options


def _load_stock(module: Any, job: Job) -> Any:
    options = _session_options(job)
    return module.InferenceSession(job.model, options, providers=["CPUExecutionProvider"])


def _load_dense(module: Any, job: Job) -> Any:
    options = _session_options(job)
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return module.InferenceSession(job.model, options, providers=["CPUExecutionProvider"])


def _load_ours(module: Any, job: Job) -> Any:
    # Strict: a fallback to stock ORT must not pass for this package's figure.
    extra: dict[str, Any] = {"options": module.Options(strict=True, progress=_watcher if job.watch_packing else None)}
    options = _session_options(job)
    return module.create_session(job.model, options, providers=["CPUExecutionProvider"], **extra)


def _load_openvino(module: Any, job: Job) -> Any:
    config = {"INFERENCE_NUM_THREADS": job.threads} if job.threads else {}
    core = module.Core()
    return core.compile_model(core.read_model(job.model), "CPU", config)


CONTENDERS = {
    "stock-qop": Contender("stock, QOperator", "qop", "onnxruntime", _load_stock),
    "stock-qdq": Contender("stock, QDQ", "qdq", "onnxruntime", _load_stock),
    "stock-dense": Contender("stock, QDQ, disable_quant_qdq", "qdq", "onnxruntime", _load_dense),
    "openvino": Contender("OpenVINO, QDQ", "qdq", "openvino", _load_openvino),
    "ours-qdq": Contender("**this package**, QDQ", "qdq", "ort_qdq_plugin", _load_ours),
    "ours-qop": Contender("**this package**, QOperator", "qop", "ort_qdq_plugin", _load_ours),
}


_packing_anon: list[int] = [0]


def _watcher(_done: int, _total: int) -> None:
    """Progress callback: remember the most anonymous memory."""
    _packing_anon[0] = max(_packing_anon[0], memory().anon)


def _runner(job: Job, loaded: Any) -> Callable[[], NDArray[np.generic]]:
    """A function that runs one token through whatever was loaded."""
    rng = np.random.default_rng(1)
    if job.contender == "openvino":
        width = loaded.inputs[0].partial_shape[2].get_length()
        name, kind = loaded.inputs[0].any_name, loaded.inputs[0].element_type.to_dtype()
        x = rng.standard_normal((1, 1, width), dtype=np.float32).astype(kind)
        return lambda: np.asarray(loaded({name: x})[loaded.outputs[0]])
    entry = loaded.get_inputs()[0]
    kind = np.float16 if entry.type == "tensor(float16)" else np.float32
    x = rng.standard_normal((1, 1, entry.shape[2]), dtype=np.float32).astype(kind)
    return lambda: np.asarray(loaded.run(None, {entry.name: x})[0])


def _steady(run: Callable[[], object], job: Job) -> float:
    """Median seconds of one run, after the first."""
    times: list[float] = []
    while len(times) < job.steady_runs and sum(times) < _STEADY_SECONDS:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times) if times else 0.0


def _child(job: Job) -> Measurement:
    """Do a job in this process."""
    contender = CONTENDERS[job.contender]
    start = time.perf_counter()
    module = importlib.import_module(contender.module)
    getattr(module, "create_session", None)  # this package imports what it needs when it is first asked for it
    imported = time.perf_counter() - start
    before = memory()
    start = time.perf_counter()
    loaded = contender.load(module, job)
    init = time.perf_counter() - start
    after = memory()
    report = module.report_of(loaded) if contender.module == "ort_qdq_plugin" else None
    measured = Measurement(
        import_seconds=imported,
        init_seconds=init,
        before=before,
        after=after,
        report=facts(report),
        packing_anon=max(0, _packing_anon[0] - before.anon),
    )
    if job.load_only:
        again = _load_again(contender, module, job) if job.load_again else 0.0
        return replace(measured, again_seconds=again, end=memory())
    run = _runner(job, loaded)
    result = run()
    first = time.perf_counter() - start
    token = _steady(run, job)
    if job.output:
        np.save(job.output, result)
    return replace(
        measured,
        first_seconds=first,
        token_seconds=token,
        checksum=float(np.abs(result.astype(np.float64)).mean()),
        end=memory(),
    )


def _load_again(contender: Contender, module: Any, job: Job) -> float:
    start = time.perf_counter()
    contender.load(module, job)
    return time.perf_counter() - start


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
        results = interleave(_MODULE, jobs, args.runs, Measurement, {"stock-dense": args.dense_runs})
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
    result = interleave(_MODULE, {"ours-qdq": job}, args.runs, Measurement)["ours-qdq"]
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
        results = interleave(_MODULE, _load_jobs(args, path), 3 * args.runs, Measurement)
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
    parser.add_argument("--contenders", nargs="+", default=usual, choices=list(CONTENDERS))
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
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.layers = args.layers or (2 if args.quick else 32)
    args.runs = args.runs or (2 if args.quick else 5)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; 1 if something is wrong."""
    args = _arguments(argv)
    if args.child:
        print(json.dumps(asdict(_child(Job(**json.loads(args.child))))), flush=True)
        return 0
    with tempfile.TemporaryDirectory(prefix="load-table-") as temporary:
        args.dir = (args.dir or Path(temporary)).resolve()
        args.dir.mkdir(parents=True, exist_ok=True)
        sections = _sections(args)
    return finish("Load table", sections, args)


if __name__ == "__main__":
    sys.exit(main())
