"""One load, measured from inside: ``measure`` has fresh interpreters run this text (``python -c``), with a job as JSON.

It imports nothing of this package but by its public names, when their turn has come: what importing takes is measured as
well, and the package may be the one of another folder.
"""

from __future__ import annotations

import json
import runpy
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

__all__ = ["main"]

_QUIET = 3  # ONNX Runtime's severity of errors
_CPU = ["CPUExecutionProvider"]
_NOT_RUN: dict[str, Any] = {"first": 0.0, "steady": 0.0, "run_cpu": 0.0, "beside": []}

Job = dict[str, Any]
Load = Callable[[Job], tuple[Callable[[Any], Any], Any]]
"""Loads a job's model: what runs it, given its inputs, and this package's report, what gives it, or None."""


class _Usage(NamedTuple):
    """What the process has used and has, as its system tells it."""

    cpu: float
    faults: int
    peak: int
    memory: tuple[int, int]  # anonymous, and of files and shared memory

    @classmethod
    def now(cls) -> _Usage:
        """That of this moment."""
        told = _told[0]()
        return cls(told["cpu"], int(told["faults"]), int(told["peak"]), (int(told["anonymous"]), int(told["file"])))


_told: list[Callable[[], dict[str, float]]] = []


def main() -> None:
    """Do the job that the command line gives, and print what it took."""
    job: Job = json.loads(sys.argv[1])
    _told.append(runpy.run_path(job["usage"])["usage"])
    sys.path[:] = [job["package"], *filter(None, sys.path)]
    inputs = {}
    if job["inputs"]:
        with np.load(job["inputs"]) as stored:
            inputs = dict(zip(job["names"], map(stored.get, stored.files), strict=True))
    if job["as_bytes"]:
        job["model"] = Path(job["model"]).read_bytes()
    load: Load = runpy.run_path(job["engine"])["loader"](job) if job["engine"] else _stock()
    before, start = _Usage.now(), time.monotonic()
    if job["options"] is not None and not job["engine"]:
        load = _ours()
    imported, import_cpu = time.monotonic() - start, _Usage.now().cpu - before.cpu
    run, report = load(job)
    loaded = time.monotonic()
    after, again = _Usage.now(), 0.0
    if job["twice"]:
        del run, report
        second = time.monotonic()
        run, report = load(job)
        again = time.monotonic() - second
    figures = {"init": loaded - start, "imported": imported, "import_cpu": import_cpu, "again": again, "loaded": loaded}
    running = [*(load({**job, "options": options})[0] for options in job["beside"]), run]
    outputs, ran = _outputs(job, running, inputs) if job["inputs"] else ([], _NOT_RUN)
    figures |= {**ran, "finished": time.monotonic()}
    end = _Usage.now()
    if job["outputs"]:
        np.savez(job["outputs"], *[output for output in outputs if isinstance(output, np.ndarray)])
    if job["hold"]:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.read()
    figures |= {"cpu": after.cpu - before.cpu, "faults": after.faults - before.faults, "load_peak": after.peak}
    memory = {"peak": end.peak, "before": before.memory, "after": after.memory, "resident": end.memory}
    report = report() if callable(report) else report
    told: dict[str, Any] = {"facts": {}, "report": "", "fused": 0}
    if report is not None:
        told = {"facts": report.to_dict(), "report": report.summary(), "fused": len(report.fused)}
    sys.stdout.write(json.dumps({**figures, **memory, **told}) + "\n")


def _stock() -> Load:
    import onnxruntime

    onnxruntime.set_default_logger_severity(_QUIET)

    def load(job: Job) -> tuple[Callable[[Any], Any], Any]:
        session = onnxruntime.InferenceSession(job["model"], _settings(job), providers=_CPU)
        return partial(session.run, None), None

    return load


def _ours() -> Load:
    from ort_qdq_plugin import Options, create_session, report_of

    def load(job: Job) -> tuple[Callable[[Any], Any], Any]:
        session = create_session(job["model"], _settings(job), providers=_CPU, options=Options(**job["options"]))
        # A report may have weights looked for that the load itself did not look for.
        return partial(session.run, None), partial(report_of, session)

    return load


def _settings(job: Job) -> Any:
    """Session options; None where a program that does not care for them would have none."""
    if not (job["threads"] or job["entries"]):
        return None
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = job["threads"]
    for key, value in job["entries"].items():
        settings.add_session_config_entry(key, value)
    return settings


def _outputs(job: Job, running: list[Callable[[Any], Any]], inputs: Any) -> tuple[Any, dict[str, Any]]:
    """Run what was loaded, the last of these, in turns with the others: what it gives, and seconds."""
    least, most, budget = job["runs"]
    start = time.monotonic()
    outputs = running[-1](inputs)
    first = time.monotonic() - start
    for other in running[:-1]:
        other(inputs)
    seconds: list[list[float]] = [[] for _ in running]
    spent = seconds[-1]
    begun = _Usage.now()
    while len(spent) < least or (len(spent) < most and sum(spent) < budget):
        for run, own in zip(running, seconds, strict=True):
            start = time.monotonic()
            outputs = run(inputs)
            own.append(time.monotonic() - start)
    cpu = (_Usage.now().cpu - begun.cpu) / max(len(spent), 1)
    *beside, steady = [median(own or [first]) for own in seconds]
    return outputs, {"first": first, "steady": steady, "run_cpu": cpu, "beside": beside}


if __name__ == "__main__":
    main()
