"""A process that loads models which may crash it, and tells what came of each."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import resource
import sys
from multiprocessing.connection import Connection
from typing import Any

from conformance.fuzz.outcome import Outcome, Way
from conformance.fuzz.seeds import seed_models

__all__ = ["Crash", "Worker"]

_WORKER_BYTES = 8 << 30  # of address space


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
    # Not at the top: atheris must instrument this package before the process that fuzzes imports it.
    from conformance.fuzz.loading import outcome_of

    logging.getLogger("ort_qdq_plugin").addHandler(logging.NullHandler())
    logging.getLogger("ort_qdq_plugin").propagate = False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the base class prints what it tries again
    resource.setrlimit(resource.RLIMIT_AS, (_WORKER_BYTES, _WORKER_BYTES))
    # What is imported or set up once is nobody's.
    for way in ("inspect", "ours", "stock", "unoptimized"):
        for model in seed_models()[:20]:
            outcome_of(way, model)
    gc.collect()
    gc.freeze()
    while True:
        try:
            way, model = connection.recv()
        except EOFError:
            return
        connection.send(outcome_of(way, model))
