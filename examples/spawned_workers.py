"""A pool of processes, started by `spawn`: the first that loads the model packs it, the others map what it packed.

python examples/spawned_workers.py [--workers 4] [--model MODEL --input BATCHES.npy]
"""

import multiprocessing
import sys
from argparse import Namespace
from multiprocessing.synchronize import Barrier
from typing import Any

import numpy as np
from common import Work, Worker, parser, run_batches

__all__ = ["main", "serve"]

_worker: Worker
_all_ready: Barrier


def _begin(model: str, cache_dir: str, share: bool, all_ready: Barrier) -> None:
    """Give this process its session."""
    global _worker, _all_ready
    _worker, _all_ready = Worker(model, cache_dir, share), all_ready


def _run(batch: np.ndarray) -> np.ndarray:
    return _worker.run(batch)


def _facts(_number: int) -> dict[str, Any]:
    # Every process answers once: none takes a second question while another one has had none.
    _all_ready.wait()
    return _worker.facts()


def serve(asked: Work, inputs: list[np.ndarray], given: Namespace) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """Run batches through a pool of processes; the results in order, and every process's facts."""
    context = multiprocessing.get_context("spawn")
    begin = (asked.model, str(asked.folder), asked.share, context.Barrier(given.workers))
    with context.Pool(given.workers, _begin, begin) as pool:
        facts = pool.map(_facts, range(given.workers), chunksize=1)
        return pool.map(_run, inputs, chunksize=1), facts


def main(arguments: list[str] | None = None) -> int:
    """Serve some batches and tell how it went."""
    described = parser("A pool of spawned processes: one packs, the others map what it packed.")
    described.add_argument("--workers", type=int, default=4, help="processes (default 4)")
    return run_batches(described, serve, arguments)


if __name__ == "__main__":
    sys.exit(main())
