"""How shapes follow through ONNX Runtime's own operators, of which ONNX's inference knows none.

What is said here is what ONNX Runtime's own inference says. Of operators that are not in the table nothing is known.

Format facts: the operators named below, of ONNX Runtime's contrib operators (contrib_defs.cc, bert_defs.cc).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ort_qdq_plugin.model.seen import Row, Seen
from ort_qdq_plugin.model.shape_rules import matrix_product, recurrent, same
from ort_qdq_plugin.model.shapes import UNKNOWN, Shape, broadcast
from ort_qdq_plugin.model.window_shapes import convolved

__all__ = ["CONTRIB_OPERATORS"]

_TOKENS_RANK = 3  # batch, sequence, hidden


def _attention(seen: Seen) -> Sequence[Shape | None]:
    first = seen.first
    return [(*first[:2], UNKNOWN)] if len(first) == _TOKENS_RANK else []


def _multi_head_attention(seen: Seen) -> Sequence[Shape | None]:
    query, value = seen.first, seen.shape(2)
    if value is None or not len(query) == len(value) == _TOKENS_RANK:
        return []
    return [(*query[:2], value[2])]


def _embedded(seen: Seen) -> Sequence[Shape | None]:
    ids, words = seen.first, seen.shape(2)
    return [(*ids, words[1])] if words is not None and len(ids) == len(words) == 2 else []


def _skipped(seen: Seen) -> Sequence[Shape | None]:
    return [seen.first, None, None, seen.first]


def _product(seen: Seen) -> Sequence[Shape | None]:
    """Products of matrices; the last two axes may be taken the other way round."""
    if seen.has_any("transBatchA", "transBatchB") and (seen.whole("transBatchA") or seen.whole("transBatchB")):
        return []
    left, right = seen.all[:2]
    if min(len(left), len(right)) < 2:
        return []
    left = (*left[:-2], left[-1], left[-2]) if seen.whole("transA") else left
    right = (*right[:-2], right[-1], right[-2]) if seen.whole("transB") else right
    return matrix_product(left, right)


def _product_of_blocks(seen: Seen) -> Sequence[Shape | None]:
    return [(*seen.first[:-1], seen.whole("N"))] if seen.first else []


def _quantized_elementwise(seen: Seen) -> Sequence[Shape | None]:
    second = seen.shape(3)
    return [] if second is None else [broadcast([seen.first, second])]


CONTRIB_OPERATORS: Mapping[str, Row] = {
    **dict.fromkeys(
        (
            "BiasGelu", "DequantizeLinear", "FastGelu", "Gelu", "QLinearLeakyRelu", "QLinearSigmoid",
            "QLinearSoftmax", "QuantizeLinear", "QuickGelu", "RotaryEmbedding",
        ),
        Row(same),
    ),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), Row(_skipped)),
    **dict.fromkeys(("Attention", "QAttention"), Row(_attention)),
    **dict.fromkeys(("DynamicQuantizeMatMul", "FusedMatMul", "MatMulIntegerToFloat"), Row(_product, 2)),
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), Row(_quantized_elementwise)),
    "MultiHeadAttention": Row(_multi_head_attention),
    "EmbedLayerNormalization": Row(_embedded),
    "MatMulNBits": Row(_product_of_blocks),
    "DynamicQuantizeLSTM": Row(recurrent, 0),
    "FusedConv": Row(lambda seen: convolved(seen, 1), 2),
}  # fmt: skip
"""Operator -> its rule."""
