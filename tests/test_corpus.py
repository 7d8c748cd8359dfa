"""What fuzzing found, again: inputs that reach different parts of the package, and those that it once got wrong.

`python -m conformance.fuzz` finds more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.fuzz.judge import Judge
from conformance.fuzz.limits import MAX_BYTES, MAX_SECONDS
from conformance.fuzz.surroundings import beside_a_model
from conformance.fuzz.worker import Worker

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.onnx"))

# Processor time on a busy machine.
PATIENCE = 5 * MAX_SECONDS

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="measures memory as Linux counts it")


@pytest.fixture(scope="module")
def beside() -> Iterator[Path]:
    with beside_a_model() as folder:
        yield folder


def test_the_corpus_is_there_and_small() -> None:
    assert len(CORPUS) > 100
    assert sum(path.stat().st_size for path in CORPUS) < 1_000_000


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize("entry", CORPUS, ids=lambda path: path.stem)
def test_inspecting_ends_well(worker: Worker, beside: Path, entry: Path, as_file: bool) -> None:
    outcome = worker.run("inspect", placed(entry, beside) if as_file else entry.read_bytes())
    assert outcome.error is None or outcome.error[0] in ("ModelError", "FileNotFoundError", "OSError")
    assert outcome.seconds < PATIENCE
    assert outcome.nbytes < MAX_BYTES


@pytest.mark.parametrize("entry", CORPUS, ids=lambda path: path.stem)
def test_results_are_those_of_stock(judge: Judge, beside: Path, entry: Path) -> None:
    verdict = judge.verdict(placed(entry, beside))
    assert not verdict.failed, f"{verdict.value}\n{judge.details}"


def placed(entry: Path, folder: Path) -> str:
    """The entry as a file with everything beside it that it may refer to."""
    path = folder / "model.onnx"
    path.write_bytes(entry.read_bytes())
    return str(path)
