"""One load in a process of its own: break something, then load, and tell what came of it."""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import signal
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime as ort

from conformance.faults.breaks import BREAKS, TIMED
from conformance.faults.internals import import_everything
from conformance.faults.job import LOADED, Job, Outcome
from conformance.faults.moments import announce, announce_stages, happened, progress
from conformance.sessions import CPU, SILENT, quiet_options
from ort_qdq_plugin import Options, create_session, report_of

__all__ = ["do_job"]


class _Listener(logging.Handler):
    """The package's warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _load(job: Job) -> Any:
    options = quiet_options(job.threads)
    if job.loader == "stock":
        return ort.InferenceSession(job.model, options, providers=CPU)
    ours = Options(buffer=job.buffer, spill_dir=job.spill_dir, progress=progress, threads=job.threads)
    if job.loader == "by path":
        options.add_provider(CPU[0], {})
        return create_session(job.model, options, options=ours)
    return create_session(job.model, options, CPU, options=ours)


def _digest(session: Any) -> str:
    entry = session.get_inputs()[0]
    x = np.linspace(-1, 1, 3 * entry.shape[2], dtype=np.float32).reshape(1, 3, -1)
    return hashlib.sha256(session.run(None, {entry.name: x})[0].tobytes()).hexdigest()


def do_job(job: Job) -> Outcome:
    """Do a job in this process."""
    # What is limited is what the load itself needs.
    import_everything()
    ort.set_default_logger_severity(SILENT)
    listener = _Listener()
    logging.getLogger("ort_qdq_plugin").addHandler(listener)
    outcome, session = Outcome(), None
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
            announce_stages()
            announce("ready")
            sys.stdin.readline()
        session = _load(job)
        if job.wait:
            announce(LOADED)
        report = report_of(session)
        route = "stock, asked" if report is None else report.route
        outcome = replace(outcome, result=_digest(session), route=route)
    except (Exception, KeyboardInterrupt) as error:
        outcome = replace(outcome, error=type(error).__name__, messages=str(error)[:300])
        del error
    if job.again:
        outcome = _load_again(job, outcome)
    return replace(outcome, warnings=tuple(listener.messages), missed=job.breaks in TIMED and not happened)


def _load_again(job: Job, outcome: Outcome) -> Outcome:
    """The same once more, with the first session, if there is one, still alive."""
    gc.collect()
    left = os.listdir(job.spill_dir) if job.spill_dir else []
    again = _digest(_load(replace(job, breaks="")))
    same = "the same again" if again == outcome.result else again
    return replace(outcome, again=same, left=tuple(left))
