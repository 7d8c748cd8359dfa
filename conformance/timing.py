"""How long runs of sessions take, compared with each other."""

import random
import time
from collections.abc import Mapping

import numpy as np
import onnxruntime as ort

from conformance.drawing.elements import Array

__all__ = ["least_seconds"]

_OTHER_MEMORY = np.ones(1 << 20)
"""8 MiB: more than the caches of one core hold."""


def least_seconds(
    sessions: Mapping[str, ort.InferenceSession], feed: Mapping[str, Array], *, runs: tuple[int, int], seconds: float
) -> dict[str, float]:
    """The least CPU time of this thread for a run of each session, which computes on it alone.

    They take turns, in another order each time: at least the first number of `runs` and at most the second, as long as one's
    runs take these seconds. Before each, other memory is read, as a model's other weights are.
    """
    taken: dict[str, list[int]] = {name: [] for name in sessions}
    run = ort.InferenceSession.run  # of the native session: what this package adds to each call is another matter
    for session in sessions.values():
        run(session, None, feed)
    least, most = runs
    for turn in range(most):
        for name in random.sample(list(sessions), len(sessions)):
            if turn >= least and sum(taken[name]) > seconds * 1e9:
                continue
            _OTHER_MEMORY.sum()
            start = time.thread_time_ns()
            run(sessions[name], None, feed)
            taken[name].append(time.thread_time_ns() - start)
    return {name: min(times) / 1e9 for name, times in taken.items()}
