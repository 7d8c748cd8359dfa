"""Models made to hurt: they cost neither seconds nor hundreds of megabytes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance.drawing.weight import Weight
from conformance.fuzz.outcome import MAX_BYTES, MAX_SECONDS, Outcome
from conformance.fuzz.worker import Worker
from ort_qdq_plugin import inspect
from tests.support import external_tensor, linear
from tests.withstands.hostile import HOSTILE, dims

# Processor time on a busy machine; models that are hung take minutes.
PATIENCE = 5 * MAX_SECONDS

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="measures memory as Linux counts it")


@pytest.mark.parametrize("name", HOSTILE)
def test_inspecting_costs_little(worker: Worker, name: str) -> None:
    model = HOSTILE[name]()
    assert len(model) < 1_100_000
    outcome = worker.run("inspect", model)
    assert outcome.error is None or outcome.error[0] == "ModelError"
    assert outcome.seconds < PATIENCE
    assert outcome.nbytes < MAX_BYTES


# Those that stock ONNX Runtime loads, or refuses, within seconds itself.
LOADED = [
    "64-dims-of-2**62", "empty-nodes", "empty-inputs", "empty-graphs", "many-readers", "many-products", "identities-behind",
    "transposes-behind", "identities-in-front", "constants-among-many-nodes", "name-long", "block-of-2**40",
    "block-of-2**62", "function-recursive",
]  # fmt: skip


@pytest.mark.parametrize("name", LOADED)
def test_loading_costs_little_more_than_in_stock(worker: Worker, name: str) -> None:
    model = HOSTILE[name]()
    theirs: Outcome = worker.run("stock", model)
    ours = worker.run("ours", model)
    assert (ours.error is None) == (theirs.error is None)
    assert ours.seconds < theirs.seconds + PATIENCE
    assert ours.nbytes < theirs.nbytes + MAX_BYTES


def test_long_chains_are_fused(worker: Worker) -> None:
    for name in ("identities-behind", "transposes-behind", "identities-in-front"):
        assert worker.run("inspect", HOSTILE[name]()).fused == 1


TERABYTE = 1 << 40


def sparse(folder: Path, rows: int, **weight: Any) -> str:
    """A model of some hundred bytes, its weight and zero points in a file of holes."""
    model = linear(Weight(k=32, n=16, element="int8", block=16, **weight))
    offset = 0
    for tensor in model.graph.initializer:
        tensor.dims[0] = rows * 16 if tensor.name == "w" else rows
        external_tensor(model, tensor.name, location="model.data", offset=str(offset))
        offset += rows * 16 * (16 if tensor.name == "w" else 4)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with (folder / "model.data").open("wb") as file:
        try:
            file.truncate(offset)
        except OSError:
            pytest.skip("the file system has no files of that size")
    return str(path)


def test_inspecting_a_sparse_file_reads_little_of_it(worker: Worker, tmp_path: Path) -> None:
    outcome = worker.run("inspect", sparse(tmp_path, TERABYTE // 400))
    assert outcome.error is None
    assert outcome.seconds < PATIENCE
    assert outcome.nbytes < MAX_BYTES


def test_a_large_number_of_elements_is_reported_as_such() -> None:
    report = inspect(dims(0, *[2**62] * 64))
    assert np.isfinite(float(report.unfused[0].bytes_per_run))
    assert str(report)
