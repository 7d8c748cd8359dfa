"""CONTRIBUTING.md's way to a new operator to fuse, followed in a copy of the package: one file, one row, and it works."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ort_qdq_plugin
from conformance.drawing.draft import Draft
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR
from ort_qdq_plugin.model.operators import Operator
from tests.fusion.test_validity import test_operators_are_as_onnx_has_them as check_row
from tests.support import python, save, stock, x_of

FILE = Path(__file__).with_name("toy.py")
ROW = Operator("PRelu", "reader", "1 FF consumed_inputs:ints|6 FF|9 NN|16", fused_by="toy")
SHAPE = (64, 128)

LOADS = """
import sys, numpy, ort_qdq_plugin
from ort_qdq_plugin import create_session, report_of
session = create_session(sys.argv[1], providers=["CPUExecutionProvider"])
numpy.save(sys.argv[3], session.run(None, {"x": numpy.load(sys.argv[2])})[0])
report = report_of(session)
print(ort_qdq_plugin.__file__)
print(*[(entry.kind, entry.node, entry.k, entry.n, entry.packed_bytes, entry.borrowed_bytes) for entry in report.fused])
print(*[entry.reason.name for entry in report.unfused])
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package, in which the recipe was followed."""
    folder = tmp_path_factory.mktemp("copy")
    copy = folder / "ort_qdq_plugin"
    shutil.copytree(Path(ort_qdq_plugin.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(FILE, copy / "fusion" / "toy.py")
    table = copy / "model" / "operators.py"
    before, after = table.read_text("utf-8").split("\nOPERATORS = (\n")
    table.write_text(f"{before}\nOPERATORS = (\n    {ROW!r},\n{after}", "utf-8")
    return folder


def model_of(folder: Path, left: bool = False, **weight: Any) -> str:
    """y = PRelu(x, W) with a dequantized weight, or PRelu(W, x)."""
    draft = Draft("toy")
    draft.input("x", SHAPE)
    draft.output("y", SHAPE)
    draft.dequantize("w", SHAPE, **{"axis": 1, "block": PER_TENSOR, "element": "int8", "zero": "none", **weight})
    draft.node("PRelu", ["w_d", "x"] if left else ["x", "w_d"], "y")
    return str(save(draft.model(), folder, "file"))


def check_loads(model: str, package: Path, fused: str, reasons: str) -> None:
    """Load a model in a fresh process with that package: what it reports, and that results are ONNX Runtime's own."""
    session = stock(model)
    inputs = x_of(session)
    folder = Path(model).parent
    np.save(folder / "x.npy", inputs["x"])
    done = python(LOADS, model, folder / "x.npy", folder / "y.npy", cwd=folder, variables={"PYTHONPATH": str(package)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(package / "ort_qdq_plugin" / "__init__.py"), fused, reasons]
    np.testing.assert_array_equal(np.load(folder / "y.npy"), session.run(None, inputs)[0])


def test_the_row_is_as_onnx_has_the_operator() -> None:
    check_row(ROW)


def test_a_new_kind_of_fusion_is_a_file_and_a_row(package: Path, tmp_path: Path) -> None:
    check_loads(model_of(tmp_path), package, f"('PRelu', 'y_node', 64, 128, {64 * 128}, 4)", "")


def test_what_it_cannot_do_it_leaves_with_its_reason(package: Path, tmp_path: Path) -> None:
    check_loads(model_of(tmp_path, block=PER_CHANNEL), package, "", "BLOCKS_ALONG_N")
    check_loads(model_of(tmp_path, left=True), package, "", "LEFT_OPERAND")


def test_without_the_row_the_operator_only_reads_the_weight(tmp_path: Path) -> None:
    check_loads(model_of(tmp_path), Path(ort_qdq_plugin.__file__).parents[1], "", "CONSUMER")
