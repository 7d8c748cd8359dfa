"""The QDQ that Olive's MatMulNBitsToQDQ pass writes, 4 and 8 bits, in both layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import olive_models
import onnx
import pytest
from real_support import (
    assert_all_fused,
    dequantized_weights,
    fused_by_stock,
    needs,
    qoperator_twin,
    relative_error,
    run_script,
    small_network,
    stock_session,
)

from ort_qdq_plugin import Options, create_session, report_of

pytestmark = needs("olive", "requests")

X = np.random.default_rng(3).standard_normal((2, 7, 96)).astype(np.float32)
TRANSPOSED = [name for name, variant in olive_models.VARIANTS.items() if variant.transposed]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("olive")
    onnx.save(small_network(opset=21), made / "model.onnx")
    run_script("olive_models.py", made / "model.onnx", made)
    return made


@pytest.mark.parametrize("variant", olive_models.VARIANTS)
def test_olive_writes_what_we_expect(variant: str, folder: Path) -> None:
    settings = olive_models.VARIANTS[variant]
    found = dequantized_weights(onnx.load(folder / variant / "model.onnx"))
    assert len(found) == 3
    assert {weight.type_name for weight in found} == {settings.type_name}
    one_block = settings.block_size > 200  # a single block becomes a scale for each channel
    assert {weight.block_size for weight in found} == {0 if one_block else settings.block_size}
    assert {weight.axis for weight in found} == {int(settings.transposed != one_block)}
    assert {weight.zero_points is None for weight in found} == {settings.signed and not settings.zero_points}


@pytest.mark.parametrize("variant", olive_models.VARIANTS)
def test_fused_and_equal(variant: str, folder: Path) -> None:
    path = folder / variant / "model.onnx"
    model = onnx.load(path)
    session = create_session(path)
    assert_all_fused(report_of(session), model)
    ours = session.run(None, {"x": X})[0]
    assert np.array_equal(ours, stock_session(qoperator_twin(model).SerializeToString()).run(None, {"x": X})[0])
    if fused_by_stock(path, folder)["MatMulNBits"] == 3:
        assert np.array_equal(ours, stock_session(path).run(None, {"x": X})[0])
    else:
        assert variant in TRANSPOSED


@pytest.mark.parametrize("variant", TRANSPOSED)
def test_close_to_stock_where_stock_computes_in_float(variant: str, folder: Path) -> None:
    path = folder / variant / "model.onnx"
    ours = create_session(path, options=Options(accuracy_level=0)).run(None, {"x": X})[0]
    unoptimized = stock_session(path, level="ORT_DISABLE_ALL").run(None, {"x": X})[0]
    assert relative_error(ours, unoptimized) <= 1e-5
