"""A pool of processes, started by `spawn`: the first that loads the model packs it, the others map what it packed.

python examples/spawned_workers.py [--workers 4] [--model MODEL --input BATCHES.npy]
"""

import multiprocessing
import sys
import time
from multiprocessing.synchronize import Barrier
from typing import Any

import numpy as np
from common import Work, Worker, add_batches, batches, parser, tell, work

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


def serve(asked: Work, inputs: list[np.ndarray], workers: int) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """Run batches through a pool of so many processes; the results in order, and every process's facts."""
    context = multiprocessing.get_context("spawn")
    begin = (asked.model, str(asked.folder), asked.share, context.Barrier(workers))
    with context.Pool(workers, _begin, begin) as pool:
        facts = pool.map(_facts, range(workers), chunksize=1)
        return pool.map(_run, inputs, chunksize=1), facts


def main(arguments: list[str] | None = None) -> int:
    """Serve some batches and tell how it went."""
    described = parser("A pool of spawned processes: one packs, the others map what it packed.")
    described.add_argument("--workers", type=int, default=4, help="processes (default 4)")
    add_batches(described)
    given = described.parse_args(arguments)
    with work(given) as asked:
        start = time.perf_counter()
        results, facts = serve(asked, batches(given), given.workers)
        print(f"{len(results)} batches through {len(facts)} processes in {time.perf_counter() - start:.1f} s")
    tell(given, results, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
