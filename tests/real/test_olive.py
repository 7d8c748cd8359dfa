"""The QDQ that Olive's MatMulNBitsToQDQ pass writes, 4 and 8 bits, in both layouts."""

from pathlib import Path

import numpy as np
import olive_models
import onnx
import pytest
import real_support
from real_support import assert_all_fused, dequantized_weights, needs, run_script, stock_session, twin_session, y_of

from ort_qdq_plugin import Options, create_session, report_of

pytestmark = needs("olive", "requests")

TRANSPOSED = [name for name, variant in olive_models.VARIANTS.items() if variant.transposed]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("olive")
    onnx.save(real_support.small_network(opset=21), made / "model.onnx")
    run_script("olive_models.py", made / "model.onnx", made)
    return made


@pytest.mark.parametrize("variant", olive_models.VARIANTS)
def test_olive_writes_what_we_expect(variant: str, folder: Path) -> None:
    settings = olive_models.VARIANTS[variant]
    found = dequantized_weights(onnx.load(folder / variant / "model.onnx"))
    assert [weight.type_name for weight in found] == [settings.type_name] * 3
    one_block = settings.block_size > 200  # a single block becomes a scale for each channel
    assert {weight.block_size for weight in found} == {0 if one_block else settings.block_size}
    assert {weight.axis for weight in found} == {int(settings.transposed != one_block)}
    assert {weight.zero_points is None for weight in found} == {settings.signed and not settings.zero_points}


@pytest.mark.parametrize("variant", olive_models.VARIANTS)
def test_fused_and_equal(variant: str, folder: Path) -> None:
    """Close to stock ONNX Runtime where that computes in float."""
    path = folder / variant / "model.onnx"
    model, session = onnx.load(path), create_session(path)
    assert_all_fused(report_of(session), model)
    fused = real_support.fused_by_stock(path, folder)["MatMulNBits"] == 3
    assert fused or variant in TRANSPOSED
    others = [twin_session(model), *([stock_session(path)] if fused else [])]
    assert all(np.array_equal(y_of(session), y_of(other)) for other in others)
    if variant in TRANSPOSED:
        close, exact = create_session(path, options=Options(accuracy_level=0)), stock_session(path, level="ORT_DISABLE_ALL")
        assert real_support.relative_error(y_of(close), y_of(exact)) <= 1e-5
