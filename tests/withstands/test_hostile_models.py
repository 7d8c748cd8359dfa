"""Models made to hurt: they cost neither seconds nor hundreds of megabytes."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance.drawing.weight import Weight
from conformance.fuzz.worker import Worker
from ort_qdq_plugin import inspect
from tests.support import external_tensor, linear
from tests.withstands.hostile import HOSTILE, dims
from tests.withstands.outcomes import assert_cheap

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
    """Of the others, which take seconds each and are of few kinds, every third is slow, and the rest long."""
    left = [name for name in names if name not in quick]
    marks = {name: pytest.mark.slow if turn % 3 == 1 else pytest.mark.long for turn, name in enumerate(left)}
    return [pytest.param(name, marks=marks.get(name, ())) for name in names]


@pytest.mark.parametrize("name", slow_but(QUICK, HOSTILE))
def test_inspecting_costs_little(worker: Worker, name: str) -> None:
    model = HOSTILE[name]()
    assert len(model) < 1_100_000
    outcome = worker.run("inspect", model)
    assert_cheap(outcome, "ModelError", "ExternalDataError")
    if name in ("identities-behind", "transposes-behind", "identities-in-front"):
        assert outcome.fused == 1, "long chains are fused"


@pytest.mark.parametrize("name", slow_but(LOADED[:5], LOADED))
def test_loading_costs_little_more_than_in_stock(worker: Worker, name: str) -> None:
    model = HOSTILE[name]()
    theirs, ours = worker.run("stock", model), worker.run("ours", model)
    assert (ours.error is None) == (theirs.error is None)
    assert_cheap(ours, ours.error.kind if ours.error else "", stock=theirs)


def sparse(folder: Path) -> str:
    """A model of some hundred bytes, its weight and zero points in a file of holes, about a terabyte."""
    model = linear(Weight(k=32, n=16, element="int8", block=16))
    rows, offset = (1 << 40) // 400, 0
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


@pytest.mark.slow
def test_inspecting_a_sparse_file_reads_little_of_it(worker: Worker, tmp_path: Path) -> None:
    assert_cheap(worker.run("inspect", sparse(tmp_path)))


def test_a_large_number_of_elements_is_reported_as_such() -> None:
    report = inspect(dims(0, *[2**62] * 64))
    assert np.isfinite(float(report.unfused[0].bytes_per_run))
    assert str(report)
