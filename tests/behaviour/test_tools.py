"""What `python -m conformance.tools` needs no tools for: the float networks, the judge, and that everything is pinned."""

import re
from pathlib import Path

import onnx
import pytest

import conformance.tools
from conformance.drawing.draft import Draft, stack
from conformance.tools.expected import EXPECTED
from conformance.tools.judging import outcome_of
from conformance.tools.networks import NETWORKS, write_networks
from conformance.tools.workshop import ENVIRONMENTS

HERE = Path(conformance.tools.__file__).parent


@pytest.mark.parametrize("opset", [17, 21])
def test_networks_are_valid_and_in_float(opset: int, tmp_path: Path) -> None:
    write_networks(tmp_path, opset)
    assert {path.stem for path in tmp_path.iterdir()} == set(NETWORKS)
    for path in tmp_path.iterdir():
        onnx.checker.check_model(path, full_check=True)
        assert outcome_of(path) == ("NOT_QUANTIZED", 0, [])


def test_outcomes_of_what_stock_fuses_too_and_of_what_it_does_not(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for n_major in (False, True):
        model = stack(2, 64, n_major=n_major)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 4
        onnx.save(model, path)
        assert outcome_of(path).verdict == "2 fused"
        assert outcome_of(path).problems == []


def test_outcome_of_a_weight_that_is_left(tmp_path: Path) -> None:
    draft = Draft("left")
    draft.input("x", [4, 64])
    draft.dequantize("w", [64, 64], axis=1)  # blocks along N
    draft.write("y = MatMul(x, w_d)")
    draft.output("y", [4, 64])
    onnx.save(draft.model(), tmp_path / "left.onnx")
    assert outcome_of(tmp_path / "left.onnx") == ("1 BLOCKS_ALONG_N", 0, [])


def test_each_tool_has_a_script_and_an_environment_of_pinned_packages() -> None:
    scripts = {path.stem.removeprefix("write_") for path in (HERE / "writers").glob("write_*.py")}
    assert scripts == set(EXPECTED)
    assert set(ENVIRONMENTS) == scripts - {"torchao"}  # torch's
    for name in ENVIRONMENTS:
        lines = (HERE / "requirements" / f"{name}.txt").read_text("utf-8").splitlines()
        assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
