"""A process that loads models which may crash it, and tells what came of each, and what that cost."""

import gc
import logging
import os
import resource
import sys
from dataclasses import dataclass
from typing import NamedTuple

from conformance import worker
from conformance.drawing.elements import Array
from conformance.fuzz.seeds import seed_models

__all__ = ["MAX_BYTES", "MAX_SECONDS", "Failure", "Outcome", "Way", "Worker"]

_WORKER_BYTES = 8 << 30  # of address space
# What a model may cost beyond what stock ONNX Runtime takes for it.
MAX_SECONDS = 2  # of processor time
MAX_BYTES = 256 << 20
Way = str
"""How a model is loaded: "ours", "stock", "unoptimized" (by stock), or "inspect" for its report alone."""


class Failure(NamedTuple):
    """An exception: its class, and its text without addresses, which are never the same."""

    kind: str
    text: str


@dataclass(frozen=True)
class Outcome:
    """What came of a model: `values` of its outputs, or the `error` of `stage` "load" or "run".

    Without either it was loaded and not run, for want of inputs. `fused`: what this package made of it. `seconds` of
    processor time, and how far memory grew beyond what was there before, in `nbytes`.
    """

    stage: str
    error: Failure | None
    values: tuple[Array, ...] | None
    fused: int
    seconds: float
    nbytes: int


class Worker(worker.Worker):
    """A process that loads models, and whose death does no harm."""

    def __init__(self) -> None:
        super().__init__(_set_up)

    def run(self, way: Way, model: str | bytes, seconds: float = 60) -> Outcome:
        """The outcome; raises Crash where the process does not live to tell it, or not within that time."""
        self.send(_outcome_of, way, model)
        try:
            outcome: Outcome = self.answer(seconds)
        except worker.Crash as crash:
            raise worker.Crash(f"{way}: {crash}") from None
        return outcome


def _set_up() -> None:
    logging.getLogger("ort_qdq_plugin").addHandler(logging.NullHandler())
    logging.getLogger("ort_qdq_plugin").propagate = False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the base class prints what it tries again
    resource.setrlimit(resource.RLIMIT_AS, (_WORKER_BYTES, _WORKER_BYTES))
    # What is imported or set up once is nobody's.
    for way in ("inspect", "ours", "stock", "unoptimized"):
        for model in seed_models()[:20]:
            _outcome_of(way, model)
    gc.collect()
    gc.freeze()


def _outcome_of(way: Way, model: str | bytes) -> Outcome:
    # Not at the top: atheris must instrument this package before the process that fuzzes imports it.
    from conformance.fuzz.loading import outcome_of

    return outcome_of(way, model)
