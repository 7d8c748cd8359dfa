"""Reading text with RapidOCR's recognition model (attention, K = 120), quantized by real tools."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest
import real_support
from ocr_model import LINEAR_LAYERS, PHRASES, drawn, prepared, read, recognizer_path
from real_support import Array, assert_all_fused, dequantized_weights, nbits, needs, stock_session, twin_session

from ort_qdq_plugin import Options, create_session, inspect, report_of

pytestmark = needs("rapidocr_onnxruntime", "PIL", "onnx_ir")

FLOAT = Options(accuracy_level=0)


def assert_reads_as(
    theirs: ort.InferenceSession, ours: ort.InferenceSession, *, tolerance: float = 0, right: bool = True
) -> None:
    """Both read the same, the phrases where it is `right`, with probabilities that differ by the tolerance at most."""
    our_texts, probabilities = read(ours)
    their_texts, expected = read(theirs)
    assert our_texts == their_texts
    assert our_texts == list(PHRASES) or not right
    assert max(map(real_support.relative_error, probabilities, expected)) <= tolerance


@pytest.fixture(scope="module")
def lifted() -> onnx.ModelProto:
    return prepared()


def test_the_float_model_is_left_alone() -> None:
    """Opset 12, every weight a Constant node, nothing quantized. It reads what was drawn, or the rest would show nothing."""
    session = create_session(recognizer_path())
    report = report_of(session)
    assert report is None or (not report.fused and not report.unfused)
    assert_reads_as(stock_session(recognizer_path()), session)


# ---------------------------------------------------------------------------------------------------- 4 bits


@pytest.mark.parametrize("constants", ["initializers", "nodes"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
def test_4_bits(lifted: onnx.ModelProto, block_size: int, symmetric: bool, constants: str, tmp_path: Path) -> None:
    """Stock ONNX Runtime fuses all of these: the same text, and not one bit of difference."""
    model = nbits(lifted, block_size=block_size, symmetric=symmetric)
    if constants == "nodes":
        model = real_support.constants_as_nodes(model)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert real_support.fused_by_stock(path, tmp_path)["MatMulNBits"] == len(LINEAR_LAYERS)
    session, seen = create_session(path), inspect(path)
    report = assert_all_fused(report_of(session), model)
    assert (seen.fused, seen.unfused) == (report.fused, report.unfused)
    shapes = sorted((fusion.k, fusion.n, fusion.block_size) for fusion in report.fused)
    assert shapes == sorted((*layer, block_size) for layer in LINEAR_LAYERS)
    assert_reads_as(stock_session(path), session)
    assert session.get_modelmeta().custom_metadata_map.keys() == {"character"}


def test_4_bits_from_bytes(lifted: onnx.ModelProto) -> None:
    model = nbits(lifted, symmetric=False)
    session = create_session(model.SerializeToString())
    assert_all_fused(report_of(session), model)
    assert_reads_as(stock_session(model.SerializeToString()), session)


# ------------------------------------------------------------------------------- 8 bits, weights only: Olive


@pytest.fixture(scope="module")
def olive_folder(lifted: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("olive_ocr")
    onnx.save(lifted, folder / "model.onnx")
    real_support.run_script("olive_models.py", folder / "model.onnx", folder)
    return folder


@needs("olive", "requests")
@pytest.mark.parametrize("n_major", [False, True])
@pytest.mark.parametrize("element", ["uint8", "int8", "uint4"])
def test_olive(element: str, n_major: bool, olive_folder: Path) -> None:
    """Stock ONNX Runtime leaves N-major ones unfused: close to it at level 0, equal to a twin's at level 4."""
    path = olive_folder / (f"{element}_transposed" if n_major else element) / "model.onnx"
    session = create_session(path)
    assert_all_fused(report_of(session), onnx.load(path))
    assert_reads_as(twin_session(onnx.load(path)) if n_major else stock_session(path), session)
    if n_major:
        assert_reads_as(stock_session(path), create_session(path, options=FLOAT), tolerance=1e-4)


# ------------------------------------------------------------------------ quantize_static: Q and DQ around A


class Pictures:
    """Calibration data: the pictures of the phrases."""

    def __init__(self) -> None:
        self._left: Iterator[str] = iter(PHRASES[:2])

    def get_next(self) -> dict[str, Array] | None:
        text = next(self._left, None)
        return None if text is None else {"x": drawn(text)}


def static(
    model: onnx.ModelProto, folder: Path, weights: str, activations: str, *, per_channel: bool, block_size: int = 0
) -> Path:
    """`model` with `quantize_static` on its MatMuls."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    CalibrationDataReader.register(Pictures)
    source, made = folder / "float.onnx", folder / "static.onnx"
    onnx.save(model, source)
    settings: dict[str, Any] = {
        "quant_format": QuantFormat.QDQ, "op_types_to_quantize": ["MatMul"], "per_channel": per_channel,
        "weight_type": QuantType[weights], "activation_type": QuantType[activations],
        "extra_options": {"BlockSize": block_size} if block_size else {},
    }  # fmt: skip
    real_support.without_warnings(lambda: quantize_static(source, made, Pictures(), **settings))
    return made


@pytest.mark.parametrize(
    ("weights", "block_size", "per_channel"),
    [("QInt8", 0, True), ("QUInt8", 32, False), ("QInt4", 32, False), ("QInt4", 0, False)],
    ids=["int8 per channel", "uint8 blocks", "int4 blocks", "int4 per tensor"],
)
def test_16_bit_activations(
    lifted: onnx.ModelProto, weights: str, block_size: int, per_channel: bool, tmp_path: Path
) -> None:
    """No integer kernel takes 16-bit activations: stock ONNX Runtime fuses the weights with MatMulNBits."""
    path = static(lifted, tmp_path, weights, "QUInt16", per_channel=per_channel, block_size=block_size)
    assert real_support.fused_by_stock(path, tmp_path)["MatMulNBits"] == len(LINEAR_LAYERS)
    session = create_session(path)
    assert_all_fused(report_of(session), onnx.load(path))
    assert_reads_as(stock_session(path), session, right=False)


@pytest.mark.parametrize(
    ("weights", "block_size", "left"),
    [("QInt8", 0, 0), ("QUInt8", 32, len(LINEAR_LAYERS))],
    ids=["integer kernels", "blocks along N"],
)
def test_what_is_left_alone(lifted: onnx.ModelProto, weights: str, block_size: int, left: int, tmp_path: Path) -> None:
    """8 bits on both sides, per-channel weights: QLinearMatMul is faster than anything that we could fuse.

    With BlockSize as well the blocks lie along N, which no MatMulNBits can say.
    """
    path = static(lifted, tmp_path, weights, "QUInt8", per_channel=True, block_size=block_size)
    assert left or real_support.fused_by_stock(path, tmp_path)["QLinearMatMul"] >= len(LINEAR_LAYERS)
    session = create_session(path)
    report = report_of(session)
    assert report is None or not report.fused
    assert not left or (report is not None and len(report.unfused) == left)
    assert_reads_as(stock_session(path), session, right=False)


@pytest.mark.parametrize("opset", [21, 17])
def test_blocks_and_4_bits_with_8_bit_activations(lifted: onnx.ModelProto, opset: int, tmp_path: Path) -> None:
    """No integer kernel takes block-wise weights: stock ONNX Runtime dequantizes them on every run.

    Below opset 21, 4-bit weights come with com.microsoft's DequantizeLinear.
    """
    if opset == 21:
        path = static(lifted, tmp_path, "QInt8", "QUInt8", per_channel=False, block_size=32)
        assert real_support.fused_by_stock(path, tmp_path)["MatMulNBits"] == 0
    else:
        path = static(prepared(opset), tmp_path, "QInt4", "QUInt8", per_channel=False)
        assert {found.node.domain for found in dequantized_weights(onnx.load(path))} == {"com.microsoft"}
    session = create_session(path, options=FLOAT)
    # A rounding of an activation may fall the other way.
    assert_reads_as(stock_session(path), session, tolerance=0.1, right=False)
    assert_all_fused(report_of(session), onnx.load(path))
