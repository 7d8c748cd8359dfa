"""Where the bytes of weights go: into a file or memory when packed, nowhere when they are used in place."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, create_session
from ort_qdq_plugin.model.releases import LENT_FILES, has
from ort_qdq_plugin.options import Buffer
from tests.support import (
    CPU,
    IN_PLACE,
    external_tensor,
    linear,
    made_report,
    mapped,
    quiet,
    result,
    save,
    stack,
    stock,
    x_of,
)


@IN_PLACE
def test_n_major_unsigned_weights_are_not_moved(tmp_path: Path, empty: Path) -> None:
    stored = save(stack(3, 256, n_major=True), tmp_path, "external")
    session = create_session(stored, quiet(), CPU, options=Options(strict=True, buffer="file", spill_dir=empty))
    report = made_report(session)
    assert (len(report.fused), report.packed_bytes) == (3, 0)
    assert report.borrowed_bytes > 3 * 256 * 256 // 2
    assert mapped(tmp_path)
    assert not mapped(empty)


@pytest.mark.parametrize("buffer", ["auto", "file", "memory"])
@pytest.mark.needs("unnamed files")
def test_progress_and_where_packed_bytes_go(tmp_path: Path, empty: Path, buffer: Buffer, make: Any) -> None:
    seen: list[tuple[int, int]] = []
    options = Options(buffer=buffer, spill_dir=empty, progress=lambda done, total: seen.append((done, total)))
    stored = save(stack(3, 128), tmp_path, "file")
    session = create_session(stored, make(), options=options)
    assert seen[-1][0] == seen[-1][1] > 0
    assert not list(empty.iterdir()), "no file keeps its name"
    report = made_report(session)
    if report.route == "borrowed":
        assert bool(mapped(empty)) == (buffer == "file")
    np.testing.assert_array_equal(result(session), result(stock(stored)))


@pytest.mark.skipif(not has(LENT_FILES), reason="stock ONNX Runtime ends the process before 1.31")
def test_empty_external_tensors(tmp_path: Path, make: Any) -> None:
    """A tensor without elements has no bytes to borrow; its file may be empty."""
    model = linear(Weight())
    for number, location in enumerate(["empty.data", "model.data"]):
        model.graph.initializer.append(TensorProto(name=f"nothing{number}", data_type=TensorProto.FLOAT, dims=[0]))
        external_tensor(model, f"nothing{number}", location=location)
        model.graph.node.append(helper.make_node("Identity", [f"nothing{number}"], [f"out{number}"]))
        model.graph.output.append(helper.make_tensor_value_info(f"out{number}", TensorProto.FLOAT, [0]))
    (tmp_path / "empty.data").write_bytes(b"")
    (tmp_path / "model.data").write_bytes(b"something")
    stored = save(model, tmp_path, "file")
    theirs, ours = stock(stored), create_session(stored, make(), options=Options(strict=True))
    for one, other in zip(ours.run(None, x_of(ours)), theirs.run(None, x_of(theirs)), strict=True):
        np.testing.assert_array_equal(one, other)
