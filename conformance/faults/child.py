"""One load in a process of its own: break something, then load, and tell what came of it."""

import gc
import logging
import os
import signal
import sys
import time
from dataclasses import replace
from logging.handlers import BufferingHandler
from typing import Any

import onnxruntime as ort

from conformance.drawing.draft import stack
from conformance.faults.breaks import BREAKS, entering, missed, progress
from conformance.faults.job import LOADED, Job, Outcome
from conformance.sessions import CPU, SILENT, digest_of, quiet_options
from ort_qdq_plugin import Options, create_session, inspect, report_of
from ort_qdq_plugin.load.journal import Journal

__all__ = ["do_job"]


def _announce(what: str) -> None:
    """Print a line in one piece, whatever signal comes meanwhile."""
    os.write(1, f"{what}\n".encode())


def _follow_stages() -> None:
    """Tell of each stage that a load enters from now on. There is no public way to hear of it: the journal is told."""
    journal: Any = Journal
    original = journal.stage

    def stage(self: Journal, name: str) -> Any:
        _announce(name)
        entering(name)
        return original(self, name)

    journal.stage = stage


def _load(job: Job) -> Any:
    options = quiet_options(job.threads)
    if job.loader == "stock":
        return ort.InferenceSession(job.model, options, providers=CPU)
    ours = Options(buffer=job.buffer, spill_dir=job.spill_dir, progress=progress, threads=job.threads)
    if job.loader == "by path":
        options.add_provider(CPU[0], {})
        return create_session(job.model, options, options=ours)
    return create_session(job.model, options, CPU, options=ours)


def do_job(job: Job) -> Outcome:
    # Imports all of this package: what is limited is what the load itself needs.
    inspect(stack(1, 128).SerializeToString())
    ort.set_default_logger_severity(SILENT)
    listener = BufferingHandler(capacity=1000)
    listener.setLevel(logging.WARNING)
    logging.getLogger("ort_qdq_plugin").addHandler(listener)
    outcome = Outcome()
    # A shell has what it runs in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if job.uid:
        os.setgroups([])
        os.setgid(job.uid)
        os.setuid(job.uid)
    if job.breaks:
        BREAKS[job.breaks](job)
    try:
        _follow_stages()
        if job.wait:
            _announce("ready")
            sys.stdin.readline()
        start = time.perf_counter()
        session = _load(job)
        seconds = time.perf_counter() - start
        _announce(LOADED)
        report = report_of(session)
        route = "stock, asked" if report is None else report.route
        outcome = replace(outcome, result=digest_of(session), route=route, seconds=seconds)
    except (Exception, KeyboardInterrupt) as error:
        outcome = replace(outcome, error=type(error).__name__, messages=str(error)[:300])
        del error
    if job.again:
        # With the first session, if there is one, still alive.
        gc.collect()
        left = os.listdir(job.spill_dir) if job.spill_dir else []
        again = digest_of(_load(replace(job, breaks="")))
        outcome = replace(outcome, again="the same again" if again == outcome.result else again, left=left)
    return replace(outcome, warnings=[record.getMessage() for record in listener.buffer], missed=missed())
