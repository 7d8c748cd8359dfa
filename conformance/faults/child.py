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

from conformance.faults.breaks import BREAKS, missed, progress
from conformance.faults.internals import import_everything, on_every_stage
from conformance.faults.job import LOADED, Job, Outcome
from conformance.sessions import CPU, SILENT, digest_of, quiet_options
from ort_qdq_plugin import Options, create_session, report_of

__all__ = ["do_job"]


def _announce(what: str) -> None:
    """Print a line in one piece, whatever signal comes meanwhile."""
    os.write(1, f"{what}\n".encode())


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
    """Do a job in this process."""
    # What is limited is what the load itself needs.
    import_everything()
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
        if job.wait:
            # So that whoever ends this process knows where it was.
            on_every_stage(_announce)
            _announce("ready")
            sys.stdin.readline()
        start = time.perf_counter()
        session = _load(job)
        seconds = time.perf_counter() - start
        if job.wait:
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
