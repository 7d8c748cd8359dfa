"""What the examples share: their arguments, what each worker tells of itself, and a table of that."""

import argparse
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import numpy as np

import ort_qdq_plugin  # which imports ONNX Runtime when it is first asked for a session
from ort_qdq_plugin.cli.demo_model import write_model

__all__ = ["Work", "Worker", "parser", "run_batches", "work"]

# An example is not to be counted, unless the variable says so. ONNX Runtime reads it when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_MB = 1e6
_BATCHES, _TOKENS, _WIDTH = 16, 4, 2048  # of what is run if nothing is given


class Worker:
    """A session that knows what it cost. It has so many `threads`; 0: as many as the machine has cores."""

    def __init__(self, model: str, cache_dir: str, share: bool, node: str = "this machine", threads: int = 0) -> None:
        import onnxruntime  # here, so that a process without a session, which may fork, has none of its threads

        start = time.perf_counter()
        options = ort_qdq_plugin.Options(cache_dir=cache_dir, share_weights=share)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        self._session = ort_qdq_plugin.create_session(model, settings, ["CPUExecutionProvider"], options=options)
        self._seconds = time.perf_counter() - start
        self._node = node

    def run(self, batch: np.ndarray) -> np.ndarray:
        """The model's first output for a batch."""
        result: np.ndarray = self._session.run(None, {self._session.get_inputs()[0].name: batch})[0]
        return result

    def facts(self) -> dict[str, Any]:
        """How this worker got its session, in how many seconds, and the memory of its process in bytes."""
        report = ort_qdq_plugin.report_of(self._session)
        assert report is not None
        memory = {}
        with open("/proc/self/smaps_rollup", encoding="ascii") as rollup:
            for line in rollup:
                name, _, value = line.partition(":")
                if name in ("Pss", "Pss_Anon"):
                    memory[name] = int(value.split()[0]) * 1024
        return {"node": self._node, "cache": report.cache, "seconds": self._seconds, **memory}


class Work(NamedTuple):
    """What an example is to do."""

    model: str
    folder: Path  # of caches
    share: bool  # pre-packed weights too


Serve = Callable[[Work, list[np.ndarray], argparse.Namespace], tuple[list[np.ndarray], list[dict[str, Any]]]]
"""Runs batches through a model: the results, in their order, and the facts of every worker."""


def parser(description: str) -> argparse.ArgumentParser:
    """The arguments of every example."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--model", help="a model with one input of floats (default: one that is made for the occasion)")
    made.add_argument("--share-weights", action="store_true", help="let workers share pre-packed weights too")
    return made


def run_batches(described: argparse.ArgumentParser, serve: Serve, arguments: list[str] | None) -> int:
    """All of an example that runs some batches and ends: what the arguments ask for is served, and told of."""
    described.add_argument("--input", type=Path, help="a .npy file: batches, stacked (default: random ones)")
    described.add_argument("--output", type=Path, help="where the results go, stacked, as a .npy file")
    given = described.parse_args(arguments)
    with work(given) as asked:
        start = time.perf_counter()
        results, facts = serve(asked, _batches(given), given)
        print(f"{len(results)} batches by {len(facts)} workers in {time.perf_counter() - start:.1f} s, their start included")
    if given.output:
        np.save(given.output, np.stack(results))
    _tell(facts)
    return 0


def _batches(given: argparse.Namespace) -> list[np.ndarray]:
    """The inputs that the arguments ask for."""
    if given.input:
        return list(np.load(given.input))
    shape = _shape(given.model) if given.model else [1, _TOKENS, _WIDTH]
    return list(np.random.default_rng(0).standard_normal((_BATCHES, *shape)).astype(np.float32))


def _shape(model: str) -> list[int]:
    """That of the model's first input; 1 where it may vary."""
    import onnxruntime

    entry = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).get_inputs()[0]
    return [size if isinstance(size, int) else 1 for size in entry.shape]


@contextmanager
def work(given: argparse.Namespace) -> Iterator[Work]:
    """What the arguments ask for, with a folder that is gone afterwards."""
    folder, owner = Path(mkdtemp(prefix="ort-qdq-example-")), os.getpid()
    try:
        yield Work(given.model or str(write_model(folder / "model", k_major=True)), folder / "caches", given.share_weights)
    finally:
        # Workers that were forked meanwhile leave by this way too.
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)


def _tell(facts: Sequence[dict[str, Any]]) -> None:
    """Print a line for each node: what its workers did and cost together."""
    print(f"{'node':14} {'workers':>7} {'packed':>6} {'mapped':>6} {'slowest start':>14} {'anonymous':>10} {'PSS':>8}")
    for node in sorted({fact["node"] for fact in facts}):
        own = [fact for fact in facts if fact["node"] == node]
        ways = Counter(fact["cache"] for fact in own)
        print(
            f"{node:14} {len(own):7} {ways['made']:6} {ways['used']:6} {max(fact['seconds'] for fact in own):12.2f} s "
            f"{sum(fact['Pss_Anon'] for fact in own) / _MB:7.0f} MB {sum(fact['Pss'] for fact in own) / _MB:5.0f} MB"
        )
