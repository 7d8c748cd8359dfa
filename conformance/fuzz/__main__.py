"""Models that nobody trusts: whatever is in a file, nothing crashes, hangs or fills the memory, and no result is wrong.

    python -m conformance.fuzz --coverage-guided 30 --corpus DIR   half an hour of atheris on `inspect`
    python -m conformance.fuzz --mutations 20000                   mutated models, with this package and with stock

The first needs atheris (`pip install atheris`; Linux, Python up to 3.13). It gives each model as bytes and as a file with
a data file, links and a FIFO beside it. What it finds stays in the corpus; an input that raises what it should not, takes
longer than 2 s or grows the process by 256 MB ends it, and is written beside the corpus. The second loads and runs each
model in three ways, ours and stock ONNX Runtime's in processes of their own, so that a crash has an owner, and counts the
verdicts.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import importlib
import logging
import multiprocessing
import os
import random
import re
import resource
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st
from numpy.typing import NDArray

from conformance.fuzz.mutations import mutate, mutated_models, seed_models

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import onnxruntime

__all__ = ["MAX_BYTES", "MAX_SECONDS", "Judge", "Outcome", "Verdict", "Worker", "beside_a_model", "main"]

MAX_SECONDS = 2
MAX_BYTES = 256 << 20

_MAX_MODEL_BYTES = 1 << 15  # of the coverage-guided fuzzer's inputs
_NOT_LOOKED_FOR = "is stored externally and should not"
_STRUCTURED = 0.7  # share of its mutations that keep a model a model


@contextmanager
def beside_a_model() -> Iterator[Path]:
    """A folder with all that `mutations.LOCATIONS` speaks of; in memory where that can be had."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.path.isdir(memory) else None) as outer:
        folder = Path(outer) / "inside"
        (folder / "sub").mkdir(parents=True)
        data = random.Random(0).randbytes(1 << 14)
        (folder / "model.data").write_bytes(data)
        (Path(outer) / "outside.data").write_bytes(data)
        (folder / "link.data").symlink_to("model.data")
        (folder / "leaving.data").symlink_to("../outside.data")
        (folder / "zero").symlink_to("/dev/zero")
        os.mkfifo(folder / "fifo")
        yield folder


# Coverage-guided


def coverage_guided(corpus: Path, minutes: float) -> None:
    """Fuzz `inspect` until time is up or something is found; ends the process."""
    atheris: Any = importlib.import_module("atheris")  # not on every Python
    with atheris.instrument_imports(include=["ort_qdq_plugin"]):
        import ort_qdq_plugin.fusion.match
        import ort_qdq_plugin.model.graph
        import ort_qdq_plugin.packing.layout
        import ort_qdq_plugin.session  # noqa: F401
    from ort_qdq_plugin import ModelError, inspect

    corpus.mkdir(parents=True, exist_ok=True)
    for number, model in enumerate(seed_models()):
        (corpus / f"seed-{number}").write_bytes(model)

    def target(data: bytes) -> None:
        path.write_bytes(data)
        for model in (data, str(path)):
            try:
                report = inspect(model)
                assert report.to_dict()
                assert str(report)
            except (ModelError, OSError):
                continue
            except BaseException:
                # Left to atheris, the process is gone before the input is written.
                Path(f"{corpus}.found-error").write_bytes(data)
                traceback.print_exc()
                os._exit(1)

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < _STRUCTURED:
            mutated = mutate(rng, data)
            if 0 < len(mutated) <= max_size:
                return mutated
        return bytes(atheris.Mutate(data, max_size))

    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    flags = {
        "timeout": MAX_SECONDS, "rss_limit_mb": resident + (MAX_BYTES >> 20), "max_len": _MAX_MODEL_BYTES, "mutate_depth": 2,
        "max_total_time": round(60 * minutes), "print_final_stats": 1, "artifact_prefix": f"{corpus}.found-",
    }  # fmt: skip
    with beside_a_model() as folder:
        path = folder / "model.onnx"
        arguments = [sys.argv[0], *(f"-{key}={value}" for key, value in flags.items()), str(corpus)]
        atheris.Setup(arguments, target, custom_mutator=mutator)
        atheris.Fuzz()


# Ours and stock's, side by side

Array = NDArray[Any]

_WORKER_BYTES = 8 << 30  # of address space
_MAX_INPUT_ELEMENTS = 1 << 20
_SYMBOLIC = 5  # what a dimension without a size gets
_NUMPY_TYPES = {
    "float": np.float32, "float16": np.float16, "double": np.float64, "bool": np.bool_, "int8": np.int8, "uint8": np.uint8,
    "int16": np.int16, "uint16": np.uint16, "int32": np.int32, "uint32": np.uint32, "int64": np.int64, "uint64": np.uint64,
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What came of a model: `values` of its outputs, or the `error`, class and text, of `stage` "load" or "run".

    Without either it was loaded and not run, for want of inputs. `fused`: what this package made of it. `seconds` of
    processor time, and how far memory grew beyond what was there before, in `nbytes`.
    """

    stage: str
    error: tuple[str, str] | None
    values: tuple[Array, ...] | None
    fused: int
    seconds: float
    nbytes: int


Way = str
"""How a model is loaded: "ours", "stock", "unoptimized" (by stock), or "inspect" for its report alone."""


class Crash(Exception):
    """A worker died, or gave no answer in time."""


class Worker:
    """A process that loads models, and whose death does no harm."""

    def __init__(self) -> None:
        self._process: Any = None
        self._connection: Connection[Any, Any] | None = None

    def run(self, way: Way, model: str | bytes, seconds: float = 60) -> Outcome:
        """The outcome; raises Crash where the process does not live to tell it, or not within so many seconds."""
        if self._connection is None:
            context = multiprocessing.get_context("spawn")
            self._connection, end = context.Pipe()
            self._process = context.Process(target=_work, args=(end,), daemon=True)
            self._process.start()
            end.close()
        try:
            self._connection.send((way, model))
            if self._connection.poll(seconds):
                outcome: Outcome = self._connection.recv()
                return outcome
            reason = f"no answer within {seconds} s"
        except (EOFError, OSError):
            self._process.join(seconds)
            reason = f"exit code {self._process.exitcode}"
        self.close()
        raise Crash(f"{way}: {reason}")

    def close(self) -> None:
        """End the process."""
        if self._connection is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
        self._connection = self._process = None


def _work(connection: Connection[Any, Any]) -> None:
    """A worker's life."""
    logging.getLogger("ort_qdq_plugin").addHandler(logging.NullHandler())
    logging.getLogger("ort_qdq_plugin").propagate = False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the base class prints what it tries again
    resource.setrlimit(resource.RLIMIT_AS, (_WORKER_BYTES, _WORKER_BYTES))
    # What is imported or set up once is nobody's.
    for way in ("inspect", "ours", "stock", "unoptimized"):
        for model in seed_models()[:20]:
            _outcome(way, model)
    gc.collect()
    gc.freeze()
    while True:
        try:
            way, model = connection.recv()
        except EOFError:
            return
        connection.send(_outcome(way, model))


def _outcome(way: Way, model: str | bytes) -> Outcome:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before, start = _status("VmRSS"), time.process_time()
    stage, error, values, session, fused = "load", None, None, None, 0
    try:
        if way == "inspect":
            fused = _inspect(model)
        else:
            session = _session(way, model)
            stage, fused = "run", _fused(session)
            inputs = _inputs(session)
            if inputs is not None:
                values = tuple(session.run(None, inputs))
    except Exception as problem:
        error = (type(problem).__name__, re.sub(r"0x[0-9a-f]+", "0x", str(problem)))
    seconds, nbytes = time.process_time() - start, _status("VmHWM") - before
    return Outcome(stage, error, values, fused, seconds, nbytes)


def _status(key: str) -> int:
    """A figure of this process, in bytes."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def _inspect(model: str | bytes) -> int:
    from ort_qdq_plugin import inspect

    report = inspect(model)
    assert report.to_dict()
    assert str(report)
    return len(report.fused)


def _session(way: Way, model: str | bytes) -> onnxruntime.InferenceSession:
    import onnxruntime

    from ort_qdq_plugin import create_session

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    # Activations stay as they are: then right numbers are close ones, whatever the weights.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    if way == "unoptimized":
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    create = create_session if way == "ours" else onnxruntime.InferenceSession
    return create(model, options, providers=["CPUExecutionProvider"])


def _fused(session: onnxruntime.InferenceSession) -> int:
    from ort_qdq_plugin import report_of

    report = report_of(session)
    return 0 if report is None or report.passed_through else len(report.fused)


def _inputs(session: onnxruntime.InferenceSession) -> dict[str, Array] | None:
    """Inputs that depend on nothing but their names and shapes; None where they would be large or of an odd type."""
    inputs: dict[str, Array] = {}
    for value in session.get_inputs():
        kind = _NUMPY_TYPES.get(value.type.removeprefix("tensor(").removesuffix(")"))
        shape = [size if isinstance(size, int) and size >= 0 else _SYMBOLIC for size in value.shape]
        if kind is None or np.prod(shape, dtype=object) > _MAX_INPUT_ELEMENTS:
            return None
        rng = np.random.default_rng(zlib.crc32(value.name.encode(errors="replace")))
        drawn = rng.standard_normal(shape) if np.issubdtype(kind, np.floating) else rng.integers(0, 2, shape)
        inputs[value.name] = np.asarray(drawn).astype(kind)
    return inputs


class Verdict(Enum):
    """What a mutated model showed; from WRONG on it is a failure of this package."""

    IDENTICAL = "the same numbers as stock, to the last bit"
    CLOSE = "stock's numbers, but for rounding"
    UNOPTIMIZED = "the numbers of unoptimized stock; those of optimized stock are others"
    SAME_ERROR = "the same error as stock"
    SAME_CLASS = "the same class of error as stock, optimized or not, in other words"
    NO_KERNEL = "stock has no kernel for these types"
    LOADED_BOTH = "loaded by both, not run"
    ONLY_OURS = "right, where stock's optimizer fails"
    LIFTED = "loads, where stock does not look for a subgraph's external data"
    BOTH_RUN_INTO = "both fail while they run, each in its own kernel"
    VARIES = "stock's numbers are others each time"
    STOCK_CRASHED = "stock crashed; ours was not asked"
    WRONG = "other numbers than stock"
    OTHER_ERROR = "another error than stock, or one of the two only"
    CRASHED = "a crash or a hang"
    SLOW = "2 s more than stock"
    LARGE = "256 MB more than stock"

    @property
    def failed(self) -> bool:
        """Whether it must not be."""
        return list(Verdict).index(self) >= list(Verdict).index(Verdict.WRONG)


class Judge:
    """Gives verdicts; has a process for ours and one for stock's."""

    def __init__(self) -> None:
        self._ours, self._stock = Worker(), Worker()
        self.details = ""
        self.fused = 0

    def close(self) -> None:
        """End both."""
        self._ours.close()
        self._stock.close()

    def verdict(self, model: str | bytes) -> Verdict:
        """Load and run the model in all ways. `details` then says more, `fused` how many fusions ours had."""
        self.details, self.fused = "", 0
        try:
            stock, truth = (self._stock.run(way, model) for way in ("stock", "unoptimized"))
        except Crash as crash:
            self.details = str(crash)
            return Verdict.STOCK_CRASHED
        try:
            ours = self._ours.run("ours", model)
        except Crash as crash:
            self.details = str(crash)
            return Verdict.CRASHED
        self.fused = ours.fused
        seconds, nbytes = max(stock.seconds, truth.seconds), max(stock.nbytes, truth.nbytes)
        self.details = (
            f"ours: {_said(ours)}\nstock: {_said(stock)}\nunoptimized: {_said(truth)}\n"
            f"{ours.seconds:.2f} s, stock {seconds:.2f} s; {ours.nbytes >> 20} MB, stock {nbytes >> 20} MB"
        )
        if ours.seconds > seconds + MAX_SECONDS:
            return Verdict.SLOW
        if ours.nbytes > nbytes + MAX_BYTES:
            return Verdict.LARGE
        verdict = _compared(ours, stock, truth)
        if verdict is Verdict.WRONG and not _close(self._stock.run("stock", model), stock):
            return Verdict.VARIES
        return verdict


def _compared(ours: Outcome, stock: Outcome, truth: Outcome) -> Verdict:
    if stock.error is not None:
        if truth.error is not None and stock.error[0] == truth.error[0] == "NotImplemented":
            return Verdict.NO_KERNEL
        if ours.error is not None:
            if ours.stage == stock.stage == "run":
                return Verdict.SAME_ERROR if ours.error == stock.error else Verdict.BOTH_RUN_INTO
            same = (ours.stage, ours.error[0]) in (
                (stock.stage, stock.error[0]),
                (truth.stage, truth.error and truth.error[0]),
            )
            return Verdict.SAME_ERROR if ours.error == stock.error else Verdict.SAME_CLASS if same else Verdict.OTHER_ERROR
        if _NOT_LOOKED_FOR in stock.error[1]:
            return Verdict.LIFTED
        if truth.error is not None:
            return Verdict.OTHER_ERROR
        return Verdict.ONLY_OURS if ours.values is None or _close(ours, truth) else Verdict.WRONG
    if ours.error is not None:
        return Verdict.OTHER_ERROR
    if ours.values is None or stock.values is None:
        return Verdict.LOADED_BOTH
    if all(map(_identical, ours.values, stock.values)):
        return Verdict.IDENTICAL
    if _close(ours, stock):
        return Verdict.CLOSE
    return Verdict.UNOPTIMIZED if truth.values is not None and _close(ours, truth) else Verdict.WRONG


def _identical(a: Any, b: Any) -> bool:
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
        return type(a) is type(b)
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _close(ours: Outcome, theirs: Outcome) -> bool:
    if ours.values is None or theirs.values is None:
        return False
    return all(_identical(a, b) or _nearly(a, b) for a, b in zip(ours.values, theirs.values, strict=True))


def _nearly(a: Any, b: Any) -> bool:
    if not isinstance(a, np.ndarray) or a.shape != b.shape or a.dtype != b.dtype or not np.issubdtype(a.dtype, np.floating):
        return False
    a, b = a.astype(np.float64), b.astype(np.float64)
    # Where float16 overflows, wider intermediate results need not.
    a, b = a[np.isfinite(b)], b[np.isfinite(b)]
    tolerance = 2e-3 * max(np.abs(b).max(initial=0), 1e-30)
    return bool((np.abs(a - b) <= tolerance).all())


def _said(outcome: Outcome) -> str:
    if outcome.error is not None:
        return f"{outcome.stage}: {outcome.error[0]}: {outcome.error[1][:300]}"
    if outcome.values is None:
        return "loaded"
    return ", ".join(f"{np.shape(value)} {np.ravel(value)[:4]}" for value in outcome.values) + f"; {outcome.fused} fused"


def mutations(count: int, seed: int, failures: Path, tell: Callable[[str], None]) -> Counter[tuple[Verdict, bool]]:
    """Judge so many mutated models; how often each verdict was given, by whether anything was fused.

    Those that fail, and those that crash stock, are written to the folder `failures`.
    """
    counts: Counter[tuple[Verdict, bool]] = Counter()
    with beside_a_model() as folder, ExitStack() as closing:
        judge = Judge()
        closing.callback(judge.close)
        path = folder / "model.onnx"

        @hypothesis_seed(seed)
        @settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(mutated_models(), st.booleans())
        def judged(model: bytes, as_file: bool) -> None:
            path.write_bytes(model)
            verdict = judge.verdict(str(path) if as_file else model)
            counts[verdict, judge.fused > 0] += 1
            if verdict.failed or verdict is Verdict.STOCK_CRASHED:
                failures.mkdir(parents=True, exist_ok=True)
                name = f"{verdict.name.lower()}-{'file' if as_file else 'bytes'}-{hashlib.sha256(model).hexdigest()[:12]}"
                (failures / f"{name}.onnx").write_bytes(model)
                tell(f"{name}: {verdict.value}\n{judge.details}")
            if counts.total() % 1000 == 0:
                tell(f"{counts.total()} judged")

        judged()
    return counts


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m conformance.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--coverage-guided", type=float, metavar="MINUTES")
    parser.add_argument("--corpus", type=Path, default=Path("fuzz-corpus"), help="folder for the coverage-guided fuzzer's")
    parser.add_argument("--mutations", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="folder for mutated models that fail")
    arguments = parser.parse_args()
    if arguments.mutations is not None:
        start = time.monotonic()
        counts = mutations(arguments.mutations, arguments.seed, arguments.failures, lambda text: print(text, flush=True))
        for (verdict, fused), count in sorted(counts.items(), key=lambda item: -item[1]):
            print(f"{count:6} {verdict.value}{', with fusions' if fused else ''}")
        print(f"{counts.total()} mutated models in {time.monotonic() - start:.0f} s")
        if any(verdict.failed for verdict, _ in counts):
            sys.exit(1)
    if arguments.coverage_guided is not None:
        coverage_guided(arguments.corpus, arguments.coverage_guided)


if __name__ == "__main__":
    main()
