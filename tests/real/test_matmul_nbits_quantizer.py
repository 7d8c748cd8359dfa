"""ONNX Runtime's MatMulNBitsQuantizer in QDQ format on a small network, from opsets 17 and 21."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import real_support
from real_support import assert_all_fused, dequantized_weights, nbits, needs, stock_session, twin_session, y_of

from ort_qdq_plugin import Options, create_session, report_of

pytestmark = needs("onnx_ir")


@pytest.mark.parametrize("external", [False, True], ids=["inline", "external"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("opset", [17, 21])
def test_block_wise(opset: int, block_size: int, symmetric: bool, external: bool, tmp_path: Path) -> None:
    """The quantizer only raises an older model's opset number; stock ONNX Runtime fuses what it writes."""
    model = nbits(real_support.small_network(opset), symmetric=symmetric, block_size=block_size)
    assert [(found.axis, found.block_size) for found in dequantized_weights(model)] == [(0, block_size)] * 3
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=external, size_threshold=0)
    model = onnx.load(path)
    assert real_support.fused_by_stock(path, tmp_path)["MatMulNBits"] == 3
    session = create_session(path)
    assert_all_fused(report_of(session), model)
    assert np.array_equal(y_of(session), y_of(stock_session(path)))


@pytest.mark.parametrize("opset", [17, 21])
def test_an_activation_behind_makes_no_difference(opset: int, tmp_path: Path) -> None:
    """A Relu right behind a MatMul keeps stock ONNX Runtime from fusing it, but not us."""
    path = tmp_path / "model.onnx"
    model = nbits(real_support.small_network(opset, activation="Relu"), symmetric=False)
    onnx.save(model, path)
    assert real_support.fused_by_stock(path, tmp_path)["MatMulNBits"] == 2
    session = create_session(path)
    assert_all_fused(report_of(session), model)
    assert np.array_equal(y_of(session), y_of(twin_session(model)))


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_channel_wise(symmetric: bool, tmp_path: Path) -> None:
    """The whole of K as one block (96 and 160: no block size of MatMulNBits): unfused in stock ONNX Runtime.

    Symmetric ones are written N-major with a Transpose, asymmetric ones K-major.
    """
    path = tmp_path / "model.onnx"
    onnx.save(nbits(real_support.small_network(21), symmetric=symmetric, channel_wise=True), path)
    model = onnx.load(path)
    found = dequantized_weights(model)
    assert {weight.block_size for weight in found} == {96, 160}
    assert all(bool(weight.passed) == symmetric for weight in found)
    assert real_support.fused_by_stock(path, tmp_path)["MatMulNBits"] == 0
    session = create_session(path, options=Options(accuracy_level=0))
    assert real_support.relative_error(y_of(session), y_of(stock_session(path, level="ORT_DISABLE_ALL"))) <= 1e-5
    assert_all_fused(report_of(session), model)
