"""The load table: how a session starts, what it costs and how it runs, by several ways of loading.

    python -m conformance.load_table                      # the table, a Phi-3-mini-shaped decoder
    python -m conformance.load_table --quick              # the same on tiny models, within seconds
    python -m conformance.load_table --packing --inline --overhead

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
import mmap
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from conformance.models import ModelPair, ModelSpec

__all__ = ["CONTENDERS", "Job", "Measurement", "main", "measure"]

MB = 1e6
_SAMPLE_SECONDS = 0.005
_READ_BYTES = 8 << 20
# More than any contender needs: the packed weights and ONNX Runtime's copies of them.
_TOUCHED_PER_BYTE = 3
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
class Memory:
    """Bytes of one process, from /proc. File: all that is mapped from files or shared."""

    anon: int
    file: int
    high: int  # VmHWM, the most that was ever resident


@dataclass(frozen=True)
class Measurement:
    """What a child measured, and what its parent saw meanwhile."""

    import_seconds: float
    init_seconds: float
    again_seconds: float = 0.0  # the same load once more, in a process that has done it before
    first_seconds: float = 0.0  # from the start of the load to the first result
    token_seconds: float = 0.0
    checksum: float = 0.0
    before: Memory = Memory(0, 0, 0)
    after: Memory = Memory(0, 0, 0)  # once the session exists
    end: Memory = Memory(0, 0, 0)
    packing_anon: int = 0  # most anonymous memory during packing, above `before`
    report: dict[str, Any] = field(default_factory=dict)
    peak_anon: int = 0
    peak_file: int = 0

    @staticmethod
    def from_json(text: str) -> Measurement:
        """The reverse of `json.dumps(asdict(measurement))`."""
        raw = json.loads(text)
        for key in ("before", "after", "end"):
            raw[key] = Memory(**raw[key])
        return Measurement(**raw)


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


def _memory(pid: int | str = "self") -> Memory:
    """Read /proc/PID/status."""
    with open(f"/proc/{pid}/status") as status:
        fields = dict(line.split(":", 1) for line in status)

    def size(key: str) -> int:
        return int(fields[key].split()[0]) * 1024

    return Memory(size("RssAnon"), size("RssFile") + size("RssShmem"), size("VmHWM"))


_packing_anon: list[int] = [0]


def _watcher(_done: int, _total: int) -> None:
    """Progress callback: remember the most anonymous memory."""
    _packing_anon[0] = max(_packing_anon[0], _memory().anon)


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
    before = _memory()
    start = time.perf_counter()
    loaded = contender.load(module, job)
    init = time.perf_counter() - start
    after = _memory()
    report = module.report_of(loaded) if contender.module == "ort_qdq_plugin" else None
    measured = Measurement(
        import_seconds=imported,
        init_seconds=init,
        before=before,
        after=after,
        report=_facts(report) if report else {},
        packing_anon=max(0, _packing_anon[0] - before.anon),
    )
    if job.load_only:
        again = _load_again(contender, module, job) if job.load_again else 0.0
        return replace(measured, again_seconds=again, end=_memory())
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
        end=_memory(),
    )


def _load_again(contender: Contender, module: Any, job: Job) -> float:
    start = time.perf_counter()
    contender.load(module, job)
    return time.perf_counter() - start


def _facts(report: Any) -> dict[str, Any]:
    """The report's sums."""
    return {
        "fused": len(report.fused),
        "unfused": len(report.unfused),
        "route": report.route,
        "packed_bytes": report.packed_bytes,
        "borrowed_bytes": report.borrowed_bytes,
        "seconds": dict(report.seconds),
    }


# ---- running children ------------------------------------------------------------------------------


def _warm(model: Path) -> None:
    """Read a model's files, so that they are in the page cache."""
    for path in (model, model.with_name(model.name + ".data")):
        if path.exists():
            with open(path, "rb", buffering=0) as file:
                while file.read(_READ_BYTES):
                    pass


def _settle_free_memory(nbytes: int) -> None:
    """Touch so much memory once and give it back.

    A virtual machine's host takes free memory away after a while; who touches it first then pays for that, several times the
    cost of clearing it. Done before every start, so that no contender finds more of it paid for by the one before him.
    """
    with open("/proc/meminfo") as table:
        available = next(int(line.split()[1]) << 10 for line in table if line.startswith("MemAvailable"))
    with mmap.mmap(
        -1, max(mmap.PAGESIZE, min(nbytes, available // 2)), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    ) as memory:
        for offset in range(0, len(memory), mmap.PAGESIZE):
            memory[offset] = 1


def _watch(process: subprocess.Popen[str], peaks: list[int]) -> None:
    """Sample a child's memory until it ends."""
    while process.poll() is None:
        try:
            now = _memory(process.pid)
        except (OSError, KeyError):
            # It is gone, or a zombie, which has no memory left to tell of.
            return
        peaks[0] = max(peaks[0], now.anon)
        peaks[1] = max(peaks[1], now.file)
        time.sleep(_SAMPLE_SECONDS)


def measure(job: Job, timeout: float = 1800) -> Measurement:
    """Run a job in a fresh process; RuntimeError with the end of its messages if it fails."""
    _warm(Path(job.model))
    _settle_free_memory(
        _TOUCHED_PER_BYTE * sum(path.stat().st_size for path in Path(job.model).parent.glob(f"{Path(job.model).stem}.*"))
    )
    command = [sys.executable, "-m", "conformance.load_table", "--child", json.dumps(asdict(job))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peaks = [0, 0]
    watcher = threading.Thread(target=_watch, args=(process, peaks), daemon=True)
    watcher.start()
    try:
        out, messages = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise RuntimeError(f"took longer than {timeout:.0f} s") from None
    finally:
        watcher.join()
    if process.returncode:
        tail = messages.strip().splitlines()[-1:] or ["no message"]
        raise RuntimeError(f"exit code {process.returncode}: {tail[0][:300]}")
    measured = Measurement.from_json(out.strip().splitlines()[-1])
    return replace(measured, peak_anon=peaks[0], peak_file=peaks[1])


@dataclass
class Results:
    """All runs of one contender, and why there are no more of them."""

    runs: list[Measurement] = field(default_factory=list)
    failure: str = ""

    def __bool__(self) -> bool:
        return bool(self.runs) and not self.failure

    def median(self, value: Callable[[Measurement], float]) -> float:
        """The median of one figure over the runs."""
        return float(median(value(run) for run in self.runs))

    @property
    def init(self) -> float:
        """Median seconds of the load."""
        return self.median(lambda run: run.init_seconds)

    @property
    def token(self) -> float:
        """Median seconds of one token."""
        return self.median(lambda run: run.token_seconds)

    @property
    def peak(self) -> float:
        """Median VmHWM of the whole process, runs included."""
        return self.median(lambda run: run.end.high)

    @property
    def packed_bytes(self) -> int:
        """Bytes packed in the last run."""
        return int(self.runs[-1].report.get("packed_bytes", 0))


def _interleave(jobs: dict[str, Job], runs: int, limits: dict[str, int] | None = None) -> dict[str, Results]:
    """Run every job `runs` times (or its limit), in turns."""
    results = {name: Results() for name in jobs}
    for turn in range(runs):
        for name, job in jobs.items():
            result = results[name]
            if result.failure or turn >= (limits or {}).get(name, runs):
                continue
            try:
                run = measure(job)
            except RuntimeError as error:
                result.failure = str(error)
                _say(f"  {name}: failed: {error}")
                continue
            result.runs.append(run)
            _say(
                f"  {turn + 1}/{runs} {name:18} import {run.import_seconds:.2f} s, init {run.init_seconds:.3f} s, "
                f"token {run.token_seconds * 1e3:.1f} ms, peak {run.end.high / MB:.0f} MB, "
                f"checksum {run.checksum:.9g}"
            )
    return results


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---- targets ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """One thing to reach, and what was measured."""

    what: str
    measured: float
    limit: float
    unit: str = "x"
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """Whether it is reached."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def __str__(self) -> str:
        verdict, sign = "PASS" if self.passed else "FAIL", ">=" if self.at_least else "<="
        return f"- {verdict}: {self.what}: {self.measured:.3g} {self.unit} ({sign} {self.limit:.3g})"


def _ratio(what: str, ours: Results, other: Results, figure: Callable[[Results], float], limit: float) -> list[Target]:
    """A target for ours / other; nothing where either did not run."""
    return [Target(what, figure(ours) / figure(other), limit)] if ours and other else []


def _load_targets(spec: ModelSpec, results: dict[str, Results]) -> list[Target]:
    """What a variant's table is judged by."""
    ours, ours_qop, qdq, qop = (results.get(name, Results()) for name in ("ours-qdq", "ours-qop", "stock-qdq", "stock-qop"))
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


def _borrowing_targets(spec: ModelSpec, results: dict[str, Results]) -> list[Target]:
    """Weights that are stored as MatMulNBits takes them stay where they are."""
    ours = results.get("ours-qdq", Results())
    if not ours or not spec.n_major or spec.signed:
        return []
    return [Target("bytes packed", ours.packed_bytes, 0, "B")]


@dataclass(frozen=True)
class Section:
    """A part of the result: text, and what it is judged by."""

    title: str
    lines: list[str]
    targets: list[Target] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        verdicts = [str(target) for target in self.targets] + [f"- ERROR: {error}" for error in self.errors]
        return "\n".join([f"## {self.title}", "", *self.lines, "", *verdicts]).rstrip() + "\n"


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


def _disagreements(spec: ModelSpec, differences: dict[str, float], results: dict[str, Results]) -> list[str]:
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


def _pair(args: argparse.Namespace, variant: str, inline: bool = False, layers: int = 0) -> ModelPair:
    """A variant's models, written unless they are there."""
    from conformance.models import ensure_pair, spec_of

    shape = _QUICK_SHAPE if args.quick else {}
    layers = layers or args.layers
    spec = spec_of(variant, layers=layers, inline=inline, accuracy_level=args.accuracy_level, **shape)
    name = f"{variant}-{layers}{'-inline' if inline else ''}{'-quick' if args.quick else ''}"
    _say(f"{name}: {spec.weight_bytes / MB:.0f} MB of weights")
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
        needed, free = spec.elements * 4 * _DENSE_OVERHEAD, _available_memory()
        if needed < free:
            names.append("stock-dense")
        else:
            notes.append(f"Dense: needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are available; left out.")
    return names, notes


def _available_memory() -> int:
    with open("/proc/meminfo") as meminfo:
        return next(int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemAvailable"))


def load_section(args: argparse.Namespace, variant: str, inline: bool = False, layers: int = 0) -> Section:
    """The table of one variant."""
    pair = _pair(args, variant, inline, layers)
    names, notes = _chosen(args, pair.spec)
    with tempfile.TemporaryDirectory(dir=args.dir) as scratch:
        jobs = _jobs(args, pair, names, Path(scratch))
        results = _interleave(jobs, args.runs, {"stock-dense": args.dense_runs})
        outputs = {name: Path(job.output) for name, job in jobs.items()}
        differences = _differences(outputs, "stock-qop")
    spec = pair.spec
    targets = _borrowing_targets(spec, results)
    if args.quick:
        notes.append("Tiny models show that it works; their time and memory are not judged.")
    else:
        targets += _inline_targets(results) if inline else _load_targets(spec, results)
    described = (
        f"{spec.layers} layers, hidden {spec.hidden}, {spec.weight_bytes / MB:.0f} MB of {spec.weight} weights, "
        f"block {spec.block}, {'with' if spec.zero_points else 'no'} zero points, {spec.scales} scales, "
        f"{'N-major' if spec.n_major else 'K-major'}, {'inline' if inline else 'external data'}; "
        f"accuracy level {spec.accuracy_level}, {args.runs} runs each."
    )
    lines = [
        described,
        "",
        *_table(results, differences),
        "",
        *notes,
    ]
    title = f"Load, {variant}{', inline' if inline else ''}"
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


def _table(results: dict[str, Results], differences: dict[str, float]) -> list[str]:
    """The medians as Markdown."""
    lines = [_row(_COLUMNS), _row(["---"] * len(_COLUMNS))]
    qdq, qop = (results.get(name, Results()) for name in ("stock-qdq", "stock-qop"))
    for name, result in results.items():
        title = CONTENDERS[name].title
        if result.failure or not result.runs:
            lines.append(_row([title, f"failed: {result.failure or 'not run'}", *[""] * (len(_COLUMNS) - 2)]))
            continue
        lines.append(_row([title, *_figures(result), *_ratios(result, qdq, qop), _agreement(name, differences)]))
    return lines


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _figures(result: Results) -> list[str]:
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


def _ratios(result: Results, qdq: Results, qop: Results) -> list[str]:
    figures: tuple[Callable[[Results], float], ...] = (lambda r: r.init, lambda r: r.peak)
    return [f"{figure(result) / figure(other):.2f}" if other else "" for figure in figures for other in (qdq, qop)]


def _agreement(name: str, differences: dict[str, float]) -> str:
    if name not in differences:
        return ""
    return "equal" if differences[name] == 0 else f"{differences[name]:.1e} off"


def _inline_targets(results: dict[str, Results]) -> list[Target]:
    ours, qop = (results.get(name, Results()) for name in ("ours-qdq", "stock-qop"))
    return _ratio("inline, peak / stock QOperator", ours, qop, lambda r: r.peak, 1.0)


def inline_section(args: argparse.Namespace) -> Section:
    """Weights inside the .onnx."""
    return load_section(args, "uint4", inline=True, layers=1 if args.quick else 4)


def packing_section(args: argparse.Namespace, variant: str) -> Section:
    """How fast weights are packed, and with how much memory."""
    pair = _pair(args, variant)
    job = Job("ours-qdq", str(pair.qdq), args.threads, args.accuracy_level, load_only=True, watch_packing=True)
    result = _interleave({"ours-qdq": job}, args.runs)["ours-qdq"]
    if not result:
        return Section(f"Packing, {variant}", [], errors=[result.failure])
    seconds = _stages(result)["pack"]
    scratch = result.median(lambda run: run.packing_anon) / MB
    stages = ", ".join(f"{name} {value:.2f} s" for name, value in _stages(result).items())
    packed = f"{result.packed_bytes / MB:.0f} MB with scales and zero points"
    lines = [f"{pair.spec.weight_bytes / MB:.0f} MB of weights in {seconds:.2f} s, {packed}; stages: {stages}."]
    if args.quick or not result.packed_bytes:
        return Section(f"Packing, {variant}", lines)
    rate = pair.spec.weight_bytes / seconds / 1e9
    targets = [
        Target("weights packed", rate, 0.8, "GB/s", at_least=True),
        Target("anonymous memory taken while packing", scratch, 256, "MB"),
    ]
    return Section(f"Packing, {variant}", lines, targets)


def _stages(result: Results) -> dict[str, float]:
    """Median seconds of each of the report's stages."""
    runs = [run.report["seconds"] for run in result.runs]
    return {name: float(median(run[name] for run in runs)) for name in runs[0]}


def overhead_section(args: argparse.Namespace) -> Section:
    """What a model costs that this package does nothing for."""
    from conformance.models import write_float_model

    columns = (
        "model without QDQ",
        "stock ms",
        "this package ms",
        "difference ms",
        "second load: stock / this ms",
    )
    lines = [_row(columns), _row(["---"] * len(columns))]
    targets, errors = [], []
    models = {
        "tiny, inline": (16, 1, True),
        "53 MB, inline": (1024, 12, True),
        "53 MB, external data": (1024, 12, False),
    }
    for title, (width, layers, inline) in models.items():
        path = args.dir / "float" / f"{layers}-{'inline' if inline else 'external'}.onnx"
        if not path.exists():
            write_float_model(path, width, layers, inline)
        # A difference of milliseconds needs more runs than one of seconds.
        results = _interleave(_load_jobs(args, path), 3 * args.runs)
        stock, ours = results["stock-qdq"], results["ours-qdq"]
        errors += [f"{title}: {result.failure}" for result in results.values() if result.failure]
        if not (stock and ours):
            continue
        again = [result.median(lambda run: run.again_seconds) * 1e3 for result in (stock, ours)]
        extra = (ours.init - stock.init) * 1e3
        lines.append(
            _row(
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


def fanout_section(args: argparse.Namespace) -> Section:
    """A graph of many nodes: what deciding and rewriting cost."""
    from conformance.models import write_fanout_model

    title = "5,000 nodes, 500 fusions"
    path = args.dir / "fanout" / "model.onnx"
    write_fanout_model(path)
    results = _interleave(_load_jobs(args, path), args.runs)
    stock, ours = results["stock-qdq"], results["ours-qdq"]
    errors = [result.failure for result in results.values() if result.failure]
    if not (stock and ours):
        return Section(title, [], errors=errors)
    own = ours.median(_own_seconds)
    fused = ours.runs[-1].report["fused"]
    if fused != 500:
        errors.append(f"{fused} fusions, not 500")
    line = f"Load: stock {stock.init:.2f} s, this package {ours.init:.2f} s, {fused} fusions."
    target = Target("create_session without packing and hand-over", own, 1.5, "s")
    return Section(title, [line], [target], errors)


def _own_seconds(run: Measurement) -> float:
    seconds = run.report["seconds"]
    return run.init_seconds - float(seconds.get("pack", 0.0)) - float(seconds.get("hand over", 0.0))


# ---- the command -----------------------------------------------------------------------------------


def _sections(args: argparse.Namespace) -> list[Section]:
    sections: list[Section] = []
    if args.table or not (args.packing or args.inline or args.overhead):
        sections += [load_section(args, variant) for variant in args.variants]
    if args.packing:
        sections += [packing_section(args, variant) for variant in args.variants]
    if args.inline:
        sections.append(inline_section(args))
    if args.overhead:
        sections += [overhead_section(args), fanout_section(args)]
    return sections


def _machine() -> str:
    """Where this was measured."""
    version = importlib.import_module("onnxruntime").__version__
    with open("/proc/cpuinfo") as cpuinfo:
        models = [line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")]
    return (
        f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, onnxruntime "
        f"{version}, Python {platform.python_version()}, load average "
        f"{os.getloadavg()[0]:.1f} at the end. Medians of fresh, interleaved processes; "
        "MB are 10^6 bytes; peak is VmHWM of the whole process; the output is compared with stock QOperator's."
    )


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
    parser.add_argument("--overhead", action="store_true", help="models without QDQ; a graph of many nodes")
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
    text = "\n".join(["# Load table\n", _machine() + "\n", *map(str, sections)])
    print(text)
    if args.markdown:
        args.markdown.write_text(text)
    missed = [target for section in sections for target in section.targets if not target.passed]
    errors = [error for section in sections for error in section.errors]
    return int(bool(errors or (args.check and missed)))


if __name__ == "__main__":
    sys.exit(main())
