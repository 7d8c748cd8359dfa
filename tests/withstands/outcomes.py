"""What comes of a model, and comparing it with what comes of it in stock ONNX Runtime."""

import re
from collections.abc import Callable

import numpy as np
import onnxruntime as ort

from conformance.fuzz.worker import MAX_BYTES, MAX_SECONDS
from conformance.fuzz.worker import Outcome as Measured
from tests.support import Array, quiet, result, stock

__all__ = ["Outcome", "assert_cheap", "assert_like", "outcome", "unoptimized"]

Outcome = tuple[str, str] | Array


def outcome(make: Callable[[], ort.InferenceSession]) -> Outcome:
    """What a session computes, or the class and text of what is raised instead."""
    try:
        session = make()
    except Exception as error:
        return type(error).__name__, re.sub(r"0x[0-9a-f]+", "0x", str(error))
    try:
        return result(session)
    except Exception as error:
        return type(error).__name__, "while running"


def unoptimized(path: str | bytes) -> Callable[[], ort.InferenceSession]:
    options = quiet()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return lambda: stock(path, options)


def assert_like(ours: Outcome, theirs: Outcome, truth: Outcome) -> None:
    """The same error, or numbers that are right by whichever of stock's ways."""
    if isinstance(ours, tuple):
        assert ours == theirs
        return
    # A broken part that fusion drops may go unnoticed, but not give wrong numbers.
    right = truth if isinstance(theirs, tuple) else theirs
    assert not isinstance(right, tuple), f"loaded, where stock says {theirs}"
    assert np.abs(ours - right).max() <= 2e-2 * np.abs(right).max()


def assert_cheap(ours: Measured, *errors: str, stock: Measured | None = None) -> None:
    """It ended well, or with one of these errors, at little cost beyond stock's, if that was measured, on a busy machine."""
    assert ours.error is None or ours.error.kind in errors
    assert ours.seconds < (stock.seconds if stock else 0) + 5 * MAX_SECONDS
    assert ours.nbytes < (stock.nbytes if stock else 0) + MAX_BYTES
