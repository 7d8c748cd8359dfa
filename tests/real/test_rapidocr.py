"""Reading text with RapidOCR's recognition model (attention, K = 120), quantized by real tools."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from ocr_model import LINEAR_LAYERS, PHRASES, drawn, prepared, read, recognizer_path
from real_support import (
    assert_all_fused,
    constants_as_nodes,
    dequantized_weights,
    fused_by_stock,
    nbits,
    needs,
    qoperator_twin,
    relative_error,
    run_script,
    stock_session,
)

from ort_qdq_plugin import Options, create_session, inspect, report_of

pytestmark = needs("rapidocr_onnxruntime", "PIL", "onnx_ir")

Array = NDArray[Any]


def reading(session: ort.InferenceSession) -> tuple[list[str], list[Array]]:
    """What `session` reads in the pictures of all phrases."""
    return read(lambda image: np.asarray(session.run(None, {"x": image})[0]), PHRASES)


def identical(ours: list[Array], theirs: list[Array]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))


def furthest(ours: list[Array], theirs: list[Array]) -> float:
    return max(relative_error(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def lifted() -> onnx.ModelProto:
    return prepared()


def test_the_float_model_reads_what_was_drawn() -> None:
    """The pictures, the alphabet and the decoding are right, or the rest would show nothing."""
    texts, _ = reading(stock_session(recognizer_path()))
    assert texts == list(PHRASES)


# ---------------------------------------------------------------------------------------------------- 4 bits


@pytest.mark.parametrize("constants", ["initializers", "nodes"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
def test_4_bits(lifted: onnx.ModelProto, block_size: int, symmetric: bool, constants: str, tmp_path: Path) -> None:
    """Stock ONNX Runtime fuses all of these: the same text, and not one bit of difference."""
    model = nbits(lifted, block_size=block_size, symmetric=symmetric)
    if constants == "nodes":
        model = constants_as_nodes(model)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert fused_by_stock(path, tmp_path)["MatMulNBits"] == len(LINEAR_LAYERS)

    session = create_session(path)
    report = report_of(session)
    assert_all_fused(report, model)
    assert report is not None
    assert sorted((fusion.k, fusion.n) for fusion in report.fused) == sorted(LINEAR_LAYERS)
    assert all(fusion.block_size == block_size for fusion in report.fused)
    our_texts, ours = reading(session)
    their_texts, theirs = reading(stock_session(path))
    assert our_texts == their_texts == list(PHRASES)
    assert identical(ours, theirs)
    assert session.get_modelmeta().custom_metadata_map.keys() == {"character"}


def test_4_bits_from_bytes(lifted: onnx.ModelProto) -> None:
    model = nbits(lifted, symmetric=False).SerializeToString()
    session = create_session(model)
    assert len(report_of(session).fused) == len(LINEAR_LAYERS)  # type: ignore[union-attr]
    assert identical(reading(session)[1], reading(stock_session(model))[1])


def test_inspect_says_the_same(lifted: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(nbits(lifted, symmetric=True), path)
    seen, made = inspect(path), report_of(create_session(path))
    assert made is not None
    assert seen.fused == made.fused
    assert seen.unfused == made.unfused


def test_the_float_model_is_left_alone() -> None:
    """Opset 12, every weight a Constant node, nothing quantized."""
    session = create_session(recognizer_path())
    report = report_of(session)
    assert report is None or (not report.fused and not report.unfused)
    assert identical(reading(session)[1], reading(stock_session(recognizer_path()))[1])


# ------------------------------------------------------------------------------- 8 bits, weights only: Olive


@pytest.fixture(scope="module")
def olive_folder(lifted: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("olive_ocr")
    onnx.save(lifted, folder / "model.onnx")
    run_script("olive_models.py", folder / "model.onnx", folder)
    return folder


@needs("olive", "requests")
@pytest.mark.parametrize("variant", ["uint8", "int8", "uint4"])
def test_olive_k_major(variant: str, olive_folder: Path) -> None:
    path = olive_folder / variant / "model.onnx"
    session = create_session(path)
    assert_all_fused(report_of(session), onnx.load(path))
    our_texts, ours = reading(session)
    their_texts, theirs = reading(stock_session(path))
    assert our_texts == their_texts == list(PHRASES)
    assert identical(ours, theirs)


@needs("olive", "requests")
@pytest.mark.parametrize("variant", ["uint8_transposed", "int8_transposed", "uint4_transposed"])
def test_olive_n_major(variant: str, olive_folder: Path) -> None:
    """Stock ONNX Runtime leaves these unfused: close to it at level 0, equal to a twin's at level 4."""
    path = olive_folder / variant / "model.onnx"
    their_texts, theirs = reading(stock_session(path))
    precise = create_session(path, options=Options(accuracy_level=0))
    assert_all_fused(report_of(precise), onnx.load(path))
    our_texts, ours = reading(precise)
    assert our_texts == their_texts == list(PHRASES)
    assert furthest(ours, theirs) <= 1e-4

    twin = stock_session(qoperator_twin(onnx.load(path)).SerializeToString())
    fast_texts, fast = reading(create_session(path))
    twin_texts, exact = reading(twin)
    assert fast_texts == twin_texts == list(PHRASES)
    assert identical(fast, exact)


# ------------------------------------------------------------------------ quantize_static: Q and DQ around A


class Pictures:
    """Calibration data: the pictures of the phrases."""

    def __init__(self) -> None:
        self._left: Iterator[str] = iter(PHRASES[:2])

    def get_next(self) -> dict[str, Array] | None:
        text = next(self._left, None)
        return None if text is None else {"x": drawn(text)}


def static(
    model: onnx.ModelProto,
    folder: Path,
    weights: str,
    activations: str,
    *,
    per_channel: bool,
    block_size: int = 0,
) -> Path:
    """`model` with `quantize_static` on its MatMuls."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    CalibrationDataReader.register(Pictures)
    source, made = folder / "float.onnx", folder / "static.onnx"
    onnx.save(model, source)
    logging.disable(logging.WARNING)
    try:
        quantize_static(
            source,
            made,
            Pictures(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            per_channel=per_channel,
            weight_type=QuantType[weights],
            activation_type=QuantType[activations],
            extra_options={"BlockSize": block_size} if block_size else {},
        )
    finally:
        logging.disable(logging.NOTSET)
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
    assert fused_by_stock(path, tmp_path)["MatMulNBits"] == len(LINEAR_LAYERS)
    session = create_session(path)
    assert_all_fused(report_of(session), onnx.load(path))
    our_texts, ours = reading(session)
    their_texts, theirs = reading(stock_session(path))
    assert our_texts == their_texts
    assert identical(ours, theirs)


def test_integer_kernels_are_left_alone(lifted: onnx.ModelProto, tmp_path: Path) -> None:
    """8 bits on both sides, per-channel weights: QLinearMatMul is faster than anything that we could fuse."""
    path = static(lifted, tmp_path, "QInt8", "QUInt8", per_channel=True)
    assert fused_by_stock(path, tmp_path)["QLinearMatMul"] >= len(LINEAR_LAYERS)
    session = create_session(path)
    report = report_of(session)
    assert report is None or not report.fused
    assert identical(reading(session)[1], reading(stock_session(path))[1])


def test_blocks_with_8_bit_activations(lifted: onnx.ModelProto, tmp_path: Path) -> None:
    """No integer kernel takes block-wise weights: stock ONNX Runtime dequantizes them on every run."""
    path = static(lifted, tmp_path, "QInt8", "QUInt8", per_channel=False, block_size=32)
    assert fused_by_stock(path, tmp_path)["MatMulNBits"] == 0
    session = create_session(path, options=Options(accuracy_level=0))
    our_texts, ours = reading(session)
    their_texts, theirs = reading(stock_session(path))
    assert our_texts == their_texts
    assert furthest(ours, theirs) <= 0.1  # a rounding of an activation may fall the other way
    assert_all_fused(report_of(session), onnx.load(path))


def test_blocks_along_n_are_never_fused(lifted: onnx.ModelProto, tmp_path: Path) -> None:
    """per_channel with BlockSize lays the blocks along N, which no MatMulNBits can say."""
    path = static(lifted, tmp_path, "QUInt8", "QUInt8", per_channel=True, block_size=32)
    session = create_session(path)
    report = report_of(session)
    assert report is not None
    assert not report.fused
    assert len(report.unfused) == len(LINEAR_LAYERS)
    assert identical(reading(session)[1], reading(stock_session(path))[1])


def test_contrib_dequantize_linear(tmp_path: Path) -> None:
    """Below opset 21, 4-bit weights come with com.microsoft's DequantizeLinear."""
    path = static(prepared(opset=17), tmp_path, "QInt4", "QUInt8", per_channel=False)
    model = onnx.load(path)
    assert {found.node.domain for found in dequantized_weights(model)} == {"com.microsoft"}
    session = create_session(path, options=Options(accuracy_level=0))
    our_texts, ours = reading(session)
    their_texts, theirs = reading(stock_session(path))
    assert our_texts == their_texts
    assert furthest(ours, theirs) <= 0.1
    assert_all_fused(report_of(session), model)
