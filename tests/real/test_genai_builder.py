"""Greedy decoding, with the KV cache, of models that onnxruntime-genai's model builder writes."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import genai_models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import real_support
from real_support import Decoded, decode_greedily, dequantized_weights, needs, stock_session, twin_session

from ort_qdq_plugin import Options, create_session, report_of

pytestmark = needs("onnxruntime_genai", "torch", "transformers", "onnx_ir")

PROMPT = (3, 141, 59, 26, 5)
LINEAR_LAYERS = 2 * 5 + 1  # packed q/k/v, o, gate, up and down in each of two layers, and the head
K_MAJOR = ("symmetric", "asymmetric")
# The builder writes a GPTQ checkpoint's unsigned bytes as INT4 unless it is told is_symmetric=false: gptq_signed is a model
# that talks nonsense, but a valid one, with signed N-major weights and zero points.
N_MAJOR = ("gptq", "gptq_signed")


@pytest.fixture(scope="module")
def stock(built: Path) -> Callable[[str], Decoded]:
    """What stock ONNX Runtime decodes, once for each variant."""
    return cache(lambda variant: decode(stock_session(built / variant / "model.onnx")))


def decode(session: ort.InferenceSession) -> Decoded:
    return decode_greedily(session, PROMPT, genai_models.HEAD_SIZE)


@pytest.mark.parametrize("variant", K_MAJOR + N_MAJOR)
def test_what_the_builder_writes_is_fused(variant: str, built: Path) -> None:
    path, k_major = built / variant / "model.onnx", variant in K_MAJOR
    found = dequantized_weights(onnx.load(path, load_external_data=False))
    assert len(found) == LINEAR_LAYERS
    assert any(node.op_type == "GroupQueryAttention" for node in onnx.load(path).graph.node)
    assert {weight.type_name for weight in found} == {"UINT4" if variant in ("asymmetric", "gptq") else "INT4"}
    assert {(weight.axis, bool(weight.passed)) for weight in found} == {(0, False) if k_major else (-1, True)}
    assert all(weight.weight.data_location == onnx.TensorProto.EXTERNAL for weight in found)
    assert real_support.fused_by_stock(path, built)["MatMulNBits"] == (LINEAR_LAYERS if k_major else 0)
    report = real_support.assert_all_fused(report_of(create_session(path)), onnx.load(path))
    assert {fusion.layout for fusion in report.fused} == {"K-major" if k_major else "N-major"}
    if variant == "gptq":  # these bytes are in MatMulNBits order where they are
        assert (report.packed_bytes, report.borrowed_bytes > 0) == (0, True)


@pytest.mark.parametrize("variant", K_MAJOR)
def test_decodes_as_stock_fuses(variant: str, built: Path, stock: Callable[[str], Decoded]) -> None:
    """Stock ONNX Runtime fuses these itself: not one bit may differ."""
    ours, theirs = decode(create_session(built / variant / "model.onnx")), stock(variant)
    assert ours.tokens == theirs.tokens
    assert np.array_equal(ours.logits, theirs.logits)
    assert len(set(ours.tokens)) > 32, "a model that repeats itself shows little"


@pytest.mark.parametrize("variant", N_MAJOR)
def test_decodes_as_stock_computes(variant: str, built: Path, stock: Callable[[str], Decoded]) -> None:
    """Stock ONNX Runtime dequantizes these to float on every run, which accuracy level 0 comes close to."""
    ours = decode(create_session(built / variant / "model.onnx", options=Options(accuracy_level=0)))
    theirs = stock(variant)
    assert ours.tokens == theirs.tokens
    assert real_support.relative_error(ours.logits, theirs.logits) <= 1e-4
    if variant == "gptq":
        assert theirs.margin > 4 * np.abs(ours.logits - theirs.logits).max(), "a lead that rounding might explain"
        assert len(set(ours.tokens)) > 32, "a model that repeats itself shows little"
        # Accuracy level 4 rounds activations too, and still chooses the same tokens.
        rounded = decode(create_session(built / variant / "model.onnx"))
        assert rounded.tokens == theirs.tokens
        assert real_support.relative_error(rounded.logits, theirs.logits) <= 5e-2


@pytest.mark.parametrize("variant", K_MAJOR + N_MAJOR)
@pytest.mark.parametrize("accuracy_level", [0, 4])
def test_decodes_as_its_qoperator_twin(variant: str, accuracy_level: int, built: Path) -> None:
    """MatMulNBits nodes with equal bytes, packed by plain NumPy."""
    path = built / variant / "model.onnx"
    twin = decode(twin_session(onnx.load(path), accuracy_level=accuracy_level))
    ours = decode(create_session(path, options=Options(accuracy_level=accuracy_level)))
    assert ours.tokens == twin.tokens
    assert np.array_equal(ours.logits, twin.logits)


def test_the_builders_own_qoperator_model(built: Path, stock: Callable[[str], Decoded]) -> None:
    """A model that already holds MatMulNBits keeps giving what it gave."""
    session = create_session(built / "qoperator" / "model.onnx")
    assert np.array_equal(decode(session).logits, stock("qoperator").logits)
