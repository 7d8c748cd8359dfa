"""Models made to hurt: they cost neither seconds nor hundreds of megabytes."""

import os
from collections.abc import Collection, Iterable
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


# Those that cost least, some of each kind.
QUICK = {
    "weight-of-100000-dims", "64-dims-of-2**62", "permutation-of-many-axes", "function-laughs", "name-long",
    "empty-graphs-one-by-one", "deep-unknown-names", "block-of-2**40",
}  # fmt: skip
# Those that stock ONNX Runtime loads, or refuses, within seconds itself; the first ones in no time.
LOADED = [
    "64-dims-of-2**62", "block-of-2**40", "block-of-2**62", "function-recursive", "name-long", "empty-nodes", "empty-inputs",
    "empty-graphs", "many-readers", "many-products", "identities-behind", "transposes-behind", "identities-in-front",
    "constants-among-many-nodes",
]  # fmt: skip


def slow_but(quick: Collection[str], names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", slow_but(QUICK, HOSTILE))
def test_inspecting_costs_little(worker: Worker, name: str) -> None:
    model = HOSTILE[name]()
    assert len(model) < 1_100_000
    outcome = worker.run("inspect", model)
    assert outcome.error is None or outcome.error[0] == "ModelError"
    assert outcome.seconds < PATIENCE
    assert outcome.nbytes < MAX_BYTES
    if name in ("identities-behind", "transposes-behind", "identities-in-front"):
        assert outcome.fused == 1, "long chains are fused"


@pytest.mark.parametrize("name", slow_but(LOADED[:5], LOADED))
def test_loading_costs_little_more_than_in_stock(worker: Worker, name: str) -> None:
    model = HOSTILE[name]()
    theirs: Outcome = worker.run("stock", model)
    ours = worker.run("ours", model)
    assert (ours.error is None) == (theirs.error is None)
    assert ours.seconds < theirs.seconds + PATIENCE
    assert ours.nbytes < theirs.nbytes + MAX_BYTES


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
