"""Ways of loading a model, each measured in a process of its own: `python -m conformance.tables.contenders --child JOB`."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conformance.tables.measuring import Run, facts, memory
from ort_qdq_plugin.cli.machine import read_files

__all__ = ["CHILD", "CONTENDERS", "Contender", "Job", "Measurement", "runner"]

CHILD = "conformance.tables.contenders"
# A repeated run is cut short once its repetitions took this long.
_STEADY_SECONDS = 8.0


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
    cache_dir: str = ""  # of this package, where the contender has a cache


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
    return _create(module, job, strict=True, progress=_watcher if job.watch_packing else None)


def _load_cached(module: Any, job: Job) -> Any:
    return _create(module, job, strict=True, cache_dir=job.cache_dir)


def _load_shared(module: Any, job: Job) -> Any:
    return _create(module, job, strict=True, cache_dir=job.cache_dir, share_weights=True)


def _create(module: Any, job: Job, **options: Any) -> Any:
    return module.create_session(
        job.model, _session_options(job), providers=["CPUExecutionProvider"], options=module.Options(**options)
    )


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
    "cached": Contender("**this package**, from the cache", "qdq", "ort_qdq_plugin", _load_cached),
    "shared": Contender("**this package**, from the cache, shared weights", "qdq", "ort_qdq_plugin", _load_shared),
}


_packing_anon: list[int] = [0]


def _watcher(_done: int, _total: int) -> None:
    """Progress callback: remember the most anonymous memory."""
    _packing_anon[0] = max(_packing_anon[0], memory().anon)


def runner(job: Job, loaded: Any) -> Callable[[], NDArray[np.generic]]:
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
    if job.cache_dir:
        read_files(Path(job.cache_dir).rglob("*"))
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
    run = runner(job, loaded)
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


if __name__ == "__main__":
    print(json.dumps(asdict(_child(Job(**json.loads(sys.argv[sys.argv.index("--child") + 1]))))), flush=True)
