"""Loads in processes of their own, watched from outside: ``python -m ort_qdq_plugin.cli.measure JOB`` does one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

import ort_qdq_plugin
from ort_qdq_plugin.cli.machine import make_ready
from ort_qdq_plugin.system.platform import host

__all__ = ["Job", "Peer", "Run", "difference", "in_turns"]

_RUNS = 10
# Where a run takes long, fewer of them will do.
_RUNS_SECONDS = 60.0
_SAMPLE_SECONDS = 0.01
_QUIET = 3  # ONNX Runtime's severity of errors
_CPU = ["CPUExecutionProvider"]
_MESSAGE = 300


class Job(NamedTuple):
    """What a process is to do.

    Attributes:
        model: The path of the model that is loaded.
        options: Of this package; None loads it with stock ONNX Runtime.
        inputs: A file of arrays, for each run.
        names: Of the model's inputs that these are for.
        outputs: The file that the outputs go to.
        files: What is to be in the page cache when it starts.
    """

    model: str
    options: Mapping[str, Any] | None
    inputs: str
    names: tuple[str, ...]
    outputs: str
    files: tuple[str, ...]


class Memory(NamedTuple):
    """Bytes that a process has: anonymous ones, and those of files and of shared memory."""

    anonymous: int
    file: int


class Run(NamedTuple):
    """What one process took, in seconds and bytes.

    Attributes:
        init: Creating the session.
        loaded: When that was done, since the start of the process.
        finished: When all runs were done.
        first: The first run.
        steady: A later run, the median of them.
        peak: The most memory at any time.
        resident: What it had after all runs.
        samples: What it had at which time since its start, until all runs were done.
        report: This package's summary, "" for stock ONNX Runtime.
        fused: How many nodes this package fused.
    """

    init: float
    loaded: float
    finished: float
    first: float
    steady: float
    peak: int
    resident: Memory
    samples: tuple[tuple[float, Memory], ...]
    report: str
    fused: int


class Peer:
    """A way of loading: its job, what it took, and why it failed, if it did."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.runs: list[Run] = []
        self.failure = ""

    def median(self, figure: Callable[[Run], float]) -> float:
        """Over all runs."""
        return float(median(map(figure, self.runs)))


def in_turns(peers: Mapping[str, Peer], runs: int, progress: Callable[[int, int], None]) -> None:
    """Have every peer do its job so many times; they take turns, since a machine's speed drifts.

    One more turn comes before that, which only brings programs into the page cache. What failed is not tried again.
    """
    # What peers have beside the model is made of it.
    nbytes = min(sum(os.stat(file).st_size for file in peer.job.files) for peer in peers.values())
    done = 0
    for turn in range(-1, runs):
        for peer in peers.values():
            if not peer.failure:
                make_ready(nbytes, peer.job.files)
                try:
                    run = _apart(peer.job)
                except RuntimeError as error:
                    peer.failure = str(error)
                else:
                    peer.runs += [run] if turn >= 0 else []
            done += 1
            progress(done, (runs + 1) * len(peers))


def difference(ours: Peer, reference: Peer) -> float | None:
    """The largest difference of two elements, by the output's largest element; None if there is nothing to compare."""
    if not (ours.runs and reference.runs):
        return None
    with np.load(ours.job.outputs) as mine, np.load(reference.job.outputs) as theirs:
        return max((_distance(mine[name], theirs[name]) for name in theirs.files), default=None)


def _distance(mine: np.ndarray, theirs: np.ndarray) -> float:
    if mine.shape != theirs.shape:
        return float("inf")
    if np.array_equal(mine, theirs, equal_nan=theirs.dtype.kind == "f"):
        return 0.0
    exact = theirs.astype(np.float64)
    return float(np.abs(mine.astype(np.float64) - exact).max() / max(np.abs(exact).max(), np.finfo(np.float64).tiny))


def _apart(job: Job) -> Run:
    """Do a job in a fresh process; RuntimeError with the end of its messages if it fails."""
    start = time.monotonic()
    # -P would be right, but is younger than the oldest Python: the package is found where this one is.
    code = f"import sys; sys.path.insert(0, {str(Path(ort_qdq_plugin.__file__).parents[1])!r})\n" + _CHILD
    process = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(job)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    samples: list[tuple[float, Memory]] = []
    watcher = threading.Thread(target=_watch, args=(process, start, samples), daemon=True)
    watcher.start()
    try:
        out, messages = process.communicate()
    finally:
        process.kill()
        watcher.join()
    if process.returncode:
        last = messages.decode(errors="replace").strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
        raise RuntimeError(last[0][:_MESSAGE])
    plain = json.loads(out.splitlines()[-1])
    resident = Memory(*plain.pop("resident"))
    loaded, finished = (plain.pop(moment) - start for moment in ("loaded", "finished"))
    kept = tuple(sample for sample in samples if sample[0] <= finished)
    return Run(**plain, loaded=loaded, finished=finished, resident=resident, samples=kept)


_CHILD = "from ort_qdq_plugin.cli.measure import child; child()"


def _watch(process: subprocess.Popen[bytes], start: float, samples: list[tuple[float, Memory]]) -> None:
    # A process that is gone, or a zombie, has no memory left to tell of.
    with suppress(KeyError):
        while process.poll() is None:
            samples.append((time.monotonic() - start, _memory(process.pid)[0]))
            time.sleep(_SAMPLE_SECONDS)


def _memory(pid: int | str) -> tuple[Memory, int]:
    """What a process has, and the most that it ever had; KeyError if it has none left."""
    sizes = host.sizes_of(pid)
    return Memory(sizes["RssAnon"], sizes["RssFile"] + sizes["RssShmem"]), sizes["VmHWM"]


def child() -> None:
    """Do the job that the command line gives, and print what it took."""
    job = Job(*json.loads(sys.argv[1]))
    import onnxruntime

    onnxruntime.set_default_logger_severity(_QUIET)
    with np.load(job.inputs) as stored:
        inputs = dict(zip(job.names, map(stored.get, stored.files), strict=True))
    report, fused = "", 0
    start = time.monotonic()
    if job.options is None:
        session = onnxruntime.InferenceSession(job.model, providers=_CPU)
    else:
        from ort_qdq_plugin import Options, create_session, report_of

        session = create_session(job.model, providers=_CPU, options=Options(**job.options))
        made = report_of(session)
        report, fused = ("", 0) if made is None else (made.summary(), len(made.fused))
    loaded = time.monotonic()
    seconds: list[float] = []
    while len(seconds) < _RUNS and sum(seconds) < _RUNS_SECONDS:
        before = time.monotonic()
        outputs = session.run(None, inputs)
        seconds.append(time.monotonic() - before)
    finished = time.monotonic()
    resident, peak = _memory("self")
    np.savez(job.outputs, *[output for output in outputs if isinstance(output, np.ndarray)])
    figures = {
        "init": loaded - start,
        "loaded": loaded,
        "finished": finished,
        "first": seconds[0],
        "steady": median(seconds[1:] or seconds),
    }
    sys.stdout.write(json.dumps({**figures, "peak": peak, "resident": resident, "report": report, "fused": fused}) + "\n")
