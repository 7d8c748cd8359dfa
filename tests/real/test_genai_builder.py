"""Greedy decoding, with the KV cache, of models that onnxruntime-genai's model builder writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import genai_models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from real_support import (
    Decoded,
    assert_all_fused,
    decode_greedily,
    dequantized_weights,
    fused_by_stock,
    needs,
    qoperator_twin,
    relative_error,
    stock_session,
)

from ort_qdq_plugin import Options, create_session, report_of

pytestmark = needs("onnxruntime_genai", "torch", "transformers", "onnx_ir")

PROMPT = (3, 141, 59, 26, 5)
LINEAR_LAYERS = 2 * 5 + 1  # packed q/k/v, o, gate, up and down in each of two layers, and the head
K_MAJOR = ("symmetric", "asymmetric")
N_MAJOR = ("gptq", "gptq_signed")
# The builder writes a GPTQ checkpoint's unsigned bytes as INT4 unless it is told is_symmetric=false: a model
# that talks nonsense, but a valid one, with signed N-major weights and zero points.
NONSENSE = "gptq_signed"


@pytest.fixture(scope="module")
def stock(built: Path) -> Callable[[str], Decoded]:
    """What stock ONNX Runtime decodes, once for each variant."""
    known: dict[str, Decoded] = {}

    def decoded(variant: str) -> Decoded:
        if variant not in known:
            known[variant] = decode(stock_session(built / variant / "model.onnx"))
        return known[variant]

    return decoded


def decode(session: ort.InferenceSession) -> Decoded:
    return decode_greedily(session, PROMPT, genai_models.HEAD_SIZE)


def same_tokens(ours: Decoded, theirs: Decoded) -> bool:
    """The same choices, each by a lead that no rounding explains."""
    return ours.tokens == theirs.tokens and theirs.margin > 4 * float(np.abs(ours.logits - theirs.logits).max())


@pytest.mark.parametrize("variant", K_MAJOR + N_MAJOR)
def test_builder_writes_what_we_expect(variant: str, built: Path) -> None:
    model = onnx.load(built / variant / "model.onnx", load_external_data=False)
    found = dequantized_weights(model)
    assert len(found) == LINEAR_LAYERS
    assert any(node.op_type == "GroupQueryAttention" for node in model.graph.node)
    assert {weight.type_name for weight in found} == {"UINT4" if variant in ("asymmetric", "gptq") else "INT4"}
    assert {weight.axis for weight in found} == {0 if variant in K_MAJOR else -1}
    assert all(bool(weight.passed) == (variant in N_MAJOR) for weight in found)
    assert all(weight.weight.data_location == onnx.TensorProto.EXTERNAL for weight in found)
    assert fused_by_stock(built / variant / "model.onnx", built)["MatMulNBits"] == (
        LINEAR_LAYERS if variant in K_MAJOR else 0
    )


@pytest.mark.parametrize("variant", K_MAJOR + N_MAJOR)
def test_every_linear_layer_is_fused(variant: str, built: Path) -> None:
    path = built / variant / "model.onnx"
    report = report_of(create_session(path))
    assert_all_fused(report, onnx.load(path))
    assert report is not None
    assert {fusion.layout for fusion in report.fused} == {"K-major" if variant in K_MAJOR else "N-major"}
    if variant == "gptq":  # these bytes are in MatMulNBits order where they are
        assert report.packed_bytes == 0
        assert report.borrowed_bytes > 0


@pytest.mark.parametrize("variant", K_MAJOR)
def test_decodes_as_stock_fuses(variant: str, built: Path, stock: Callable[[str], Decoded]) -> None:
    """Stock ONNX Runtime fuses these itself: not one bit may differ."""
    ours = decode(create_session(built / variant / "model.onnx"))
    theirs = stock(variant)
    assert ours.tokens == theirs.tokens
    assert np.array_equal(ours.logits, theirs.logits)
    assert len(set(ours.tokens)) > 32, "a model that repeats itself shows little"


@pytest.mark.parametrize("variant", N_MAJOR)
def test_decodes_as_stock_computes(variant: str, built: Path, stock: Callable[[str], Decoded]) -> None:
    """Stock ONNX Runtime dequantizes these to float on every run, which accuracy level 0 comes close to."""
    ours = decode(create_session(built / variant / "model.onnx", options=Options(accuracy_level=0)))
    theirs = stock(variant)
    assert ours.tokens == theirs.tokens
    assert relative_error(ours.logits, theirs.logits) <= 1e-4
    if variant != NONSENSE:
        assert same_tokens(ours, theirs)
        assert len(set(ours.tokens)) > 32, "a model that repeats itself shows little"


def test_default_accuracy_decodes_the_same(built: Path, stock: Callable[[str], Decoded]) -> None:
    """Accuracy level 4 rounds activations too, and still chooses the same tokens."""
    ours = decode(create_session(built / "gptq" / "model.onnx"))
    theirs = stock("gptq")
    assert ours.tokens == theirs.tokens
    assert relative_error(ours.logits, theirs.logits) <= 5e-2


@pytest.mark.parametrize("variant", K_MAJOR + N_MAJOR)
@pytest.mark.parametrize("accuracy_level", [0, 4])
def test_decodes_as_its_qoperator_twin(
    variant: str, accuracy_level: int, built: Path, record_property: Callable[[str, object], None]
) -> None:
    """MatMulNBits nodes with equal bytes, packed by plain NumPy."""
    path = built / variant / "model.onnx"
    twin = decode(stock_session(qoperator_twin(onnx.load(path), accuracy_level).SerializeToString()))
    ours = decode(create_session(path, options=Options(accuracy_level=accuracy_level)))
    assert ours.tokens == twin.tokens
    assert np.array_equal(ours.logits, twin.logits)
    record_property("milliseconds a token", {"ours": ours.milliseconds, "QOperator twin": twin.milliseconds})


def test_the_builders_own_qoperator_model(built: Path, stock: Callable[[str], Decoded]) -> None:
    """A model that already holds MatMulNBits keeps giving what it gave."""
    session = create_session(built / "qoperator" / "model.onnx")
    assert np.array_equal(decode(session).logits, stock("qoperator").logits)


@pytest.mark.parametrize("variant", K_MAJOR + N_MAJOR)
def test_time_of_a_token(
    variant: str,
    built: Path,
    stock: Callable[[str], Decoded],
    record_property: Callable[[str, object], None],
) -> None:
    """For information: these models are too small to assert a time on."""
    ours = decode(create_session(built / variant / "model.onnx"))
    record_property("milliseconds a token", {"ours": ours.milliseconds, "stock": stock(variant).milliseconds})
