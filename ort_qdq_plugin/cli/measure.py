"""Loads in processes of their own (what these do is in ``child``), watched from outside and repeated in turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import dropwhile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ort_qdq_plugin.cli import child
from ort_qdq_plugin.cli.inputs import random_inputs
from ort_qdq_plugin.cli.machine import make_ready
from ort_qdq_plugin.load.journal import tell_stage
from ort_qdq_plugin.model.files import data_files
from ort_qdq_plugin.options import Progress
from ort_qdq_plugin.system.environment import NO_TELEMETRY, PREFIX
from ort_qdq_plugin.system.platform import host, usage
from ort_qdq_plugin.values import NamedTuple

__all__ = ["Job", "Memory", "Peer", "Run", "difference", "in_turns", "job_for", "measured", "start"]

_SAMPLE_SECONDS = 0.01
_MESSAGE = 400  # characters of an error's beginning, and of its end
_PACKAGE = str(Path(__file__).resolve().parents[2])


class Job(NamedTuple):
    """What a process is to do."""

    model: str
    options: Mapping[str, Any] | None = None  # of this package; None loads the model with stock ONNX Runtime
    inputs: str = ""  # a file of arrays, for each run; "" has nothing run
    names: tuple[str, ...] = ()  # of the model's inputs that these are for
    outputs: str = ""  # the file that outputs go to; "" for none
    files: tuple[str, ...] = ()  # what is to be in the page cache when it starts
    entries: Mapping[str, str] = {}  # configuration entries of the session's options
    threads: int = 0  # of the session; 0 for ONNX Runtime's own choice
    runs: tuple[int, int, float] = (
        0,
        9,
        60.0,
    )  # after the first: at least, at most, and seconds after which none begins
    twice: bool = False  # whether the model is loaded a second time, the first session gone
    beside: tuple[Mapping[str, Any], ...] = ()  # options of further sessions, whose runs take turns with those measured
    as_bytes: bool = False  # whether the model is handed over as bytes
    hold: bool = False  # whether the process says "ready" after all runs, and waits for the end of its input
    engine: str = ""  # a Python file whose `loader(job)` gives a Load of ``child``, for what loads the model otherwise
    package: str = _PACKAGE  # the folder that this package is imported from
    folder: str = ""  # in which the process runs; "" for the one that this process is in
    usage: str = usage.__file__  # a Python file whose `usage()` tells what a process has used


class Memory(NamedTuple):
    """Bytes that a process has: anonymous ones, and those of files and of shared memory."""

    anonymous: int
    file: int


class Run(NamedTuple):
    """What one process took, in seconds and bytes."""

    init: float  # creating the session, with what is imported for it beside ONNX Runtime
    imported: float  # importing that
    import_cpu: float  # CPU seconds of that
    again: float  # creating it once more
    cpu: float  # CPU seconds of `init`, of all threads
    faults: int  # page faults during `init`
    loaded: float  # when the session was there, since the start of the process
    finished: float  # when all runs were done
    first: float  # the first run
    steady: float  # a later run, the median of them
    run_cpu: float  # CPU seconds of a later run, the mean of them
    beside: list[float]  # as `steady`, of the job's further sessions
    load_peak: int  # the most memory until the session was there
    peak: int  # the most memory at any time
    before: Memory  # what there was before the model was loaded
    after: Memory  # when the session was there
    resident: Memory  # after all runs
    samples: tuple[tuple[float, Memory], ...]  # at which time since the start, until all runs were done
    report: str  # this package's summary, "" for stock ONNX Runtime
    fused: int  # how many nodes this package fused
    facts: Mapping[str, Any]  # this package's whole report, as plain values; {} for stock ONNX Runtime


class Peer:
    """A way of loading: its job, what it took, and why it failed, if it did."""

    def __init__(self, job: Job, most: int = sys.maxsize) -> None:
        self.job = job
        self.most = most
        self.runs: list[Run] = []
        self.failure = ""

    def median(self, figure: Callable[[Run], float]) -> float:
        """Over all runs."""
        return float(median(map(figure, self.runs)))


def job_for(model: str, inputs: Path, shapes: Mapping[str, tuple[int, ...]]) -> Job:
    """The job of loading a model with stock ONNX Runtime and running it with random inputs, which are written to a file.

    Arguments and errors are those of `random_inputs`.
    """
    made = random_inputs(model, shapes)
    np.savez(inputs, *made.values())
    return Job(model, None, str(inputs), tuple(made), files=(model, *data_files(model)))


def in_turns(peers: Mapping[str, Peer], runs: int, progress: Progress) -> None:
    """Have every peer do its job in this many runs; they take turns, since a machine's speed drifts.

    One more turn comes before that, which only brings programs into the page cache. What failed is not tried again.
    """
    # What peers have beside the model is made of it.
    nbytes = min(sum(os.stat(file).st_size for file in peer.job.files) for peer in peers.values())
    done = 0
    for turn in range(-1, runs):
        for number, (name, peer) in enumerate(peers.items(), 1):
            turns = f"run {turn + 1} of {runs}" if turn >= 0 else "warming up"
            tell_stage(progress, f"way {number} of {len(peers)}, {name}, {turns}")
            progress(done, (runs + 1) * len(peers))
            if not peer.failure and turn < peer.most:
                make_ready(nbytes, peer.job.files)
                try:
                    run = measured(peer.job)
                except RuntimeError as error:
                    peer.failure = str(error)
                else:
                    peer.runs += [run] if turn >= 0 else []
            done += 1


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


def start(job: Job, group: Path | None = None) -> subprocess.Popen[bytes]:
    """A fresh process that does a job, in a control group if one is given."""
    # As a text: the folder of a file would be searched for modules, and has an `inspect` of its own.
    command = [sys.executable, "-c", Path(child.__file__).read_text("utf-8"), json.dumps(job._asdict())]
    if group is not None:
        command = ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"), *command]
    return subprocess.Popen(
        command,
        env={NO_TELEMETRY: "1", **os.environ, PREFIX: ""},
        cwd=job.folder or None,
        stdin=subprocess.PIPE if job.hold else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def measured(job: Job, group: Path | None = None, timeout: float | None = None) -> Run:
    """Do a job in a fresh process, in a control group if one is given.

    Raises:
        RuntimeError: It failed; with the end of its messages.
        subprocess.TimeoutExpired: It took more than `timeout` seconds, and was killed.
    """
    began = time.monotonic()
    process = start(job, group)
    samples: list[tuple[float, Memory]] = []
    watcher = threading.Thread(target=_watch, args=(process, began, samples), daemon=True)
    watcher.start()
    try:
        out, messages = process.communicate(timeout=timeout)
    finally:
        process.kill()
        watcher.join()
    if process.returncode:
        raise RuntimeError(_error_in(messages.decode(errors="replace")) or f"exit status {process.returncode}")
    plain = json.loads(out.splitlines()[-1])
    plain |= {name: Memory(*plain[name]) for name in ("before", "after", "resident")}
    plain |= {moment: plain[moment] - began for moment in ("loaded", "finished")}
    return Run(**plain, samples=tuple(sample for sample in samples if sample[0] <= plain["finished"]))


def _error_in(messages: str) -> str:
    """The error with which a process ended, in one line: all that stands behind its traceback, or else the last line."""
    lines = messages.strip().splitlines()
    traced = max((at for at, line in enumerate(lines) if line.startswith("Traceback ")), default=len(lines))
    said = list(dropwhile(lambda line: line.startswith(" "), lines[traced + 1 :])) or lines[-1:]
    error = " ".join(" ".join(said).split()).removeprefix("onnxruntime.capi.onnxruntime_pybind11_state.")
    # A note stands at the end, and says more than ONNX Runtime's own words.
    return error if len(error) <= 2 * _MESSAGE else f"{error[:_MESSAGE]} ... {error[-_MESSAGE:]}"


def _watch(process: subprocess.Popen[bytes], began: float, samples: list[tuple[float, Memory]]) -> None:
    # A process that is gone, or a zombie, has no memory left to tell of.
    with suppress(KeyError):
        while process.poll() is None:
            sizes = host.sizes_of(process.pid)
            samples.append((time.monotonic() - began, Memory(sizes["RssAnon"], sizes["RssFile"] + sizes["RssShmem"])))
            time.sleep(_SAMPLE_SECONDS)
