"""How the shapes of a node's outputs follow from those of its inputs: one table of the ONNX specification's operators.

A rule says nothing where it is not sure what ONNX's inference says, which is asked then. What is wanted most is the rank of
a value, and whether all its dimensions are fixed.

Format facts: the operators named below, of the ONNX specification from opset 10 on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ort_qdq_plugin.model import moved_shapes as moves
from ort_qdq_plugin.model.seen import ALL, Row, Rule, Seen
from ort_qdq_plugin.model.shapes import UNKNOWN, Shape, broadcast, from_the_front, of_rank
from ort_qdq_plugin.model.tensors import MAX_RANK
from ort_qdq_plugin.model.window_shapes import convolved, deconvolved, pooled, pooled_globally

__all__ = ["OPERATORS", "matrix_product", "recurrent", "same"]

_MATRIX = 2  # its rank
_STATES_RANK = 3  # of what LSTM and its like read: steps, batch and elements

_Outputs = Sequence["Shape | None"]


def same(seen: Seen) -> _Outputs:
    """The shape of the first input, for the first output."""
    return [seen.first]


def _same_rank(seen: Seen) -> _Outputs:
    return [of_rank(seen.first)]


def _elementwise(seen: Seen) -> _Outputs:
    return [broadcast(seen.all)]


def matrix_product(left: Shape, right: Shape) -> _Outputs:
    """The shape of a product, as MatMul has it."""
    if not left or not right:
        return []
    rows, columns = left[-2:-1], right[-1:] if len(right) > 1 else ()
    return [(*broadcast([left[:-2], right[:-2]]), *rows, *columns)]


def _matmul(seen: Seen) -> _Outputs:
    return matrix_product(seen.first, seen.all[1])


def _gemm(seen: Seen) -> _Outputs:
    # Without these too ONNX's inference may tell the rank, in some versions.
    left, right = seen.shape(0), seen.shape(1)
    if left is None or right is None or not len(left) == len(right) == _MATRIX:
        return []
    return [(left[bool(seen.whole("transA"))], right[not seen.whole("transB")])]


def _einsum(seen: Seen) -> _Outputs:
    equation = seen.text("equation").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    letters = left.replace(",", "")
    if not arrow or not (letters + right).isalpha() or [*map(len, terms)] != [*map(len, seen.all)]:
        return []
    dims: dict[str, list[int | None]] = {}
    for term, shape in zip(terms, seen.all, strict=True):
        for letter, dim in zip(term, shape, strict=True):
            dims.setdefault(letter, []).append(dim)
    if any(letter not in dims for letter in right):
        return []
    # Which of several dimensions it takes, where not all are fixed, is not told.
    return [tuple(dims[letter][0] if len(set(dims[letter])) == 1 else UNKNOWN for letter in right)]


def _reduced(seen: Seen) -> _Outputs:
    axes = seen.numbers(1) if seen.has(1) else seen.ints("axes") or []
    if axes is None:
        return []
    if not axes and seen.whole("noop_with_empty_axes"):
        return [seen.first]
    return _without(seen, axes or range(len(seen.first)))


def _found_best(seen: Seen) -> _Outputs:
    axis = seen.axis(0, len(seen.first))
    return [] if axis is None else _without(seen, [axis])


def _without(seen: Seen, axes: Sequence[int]) -> _Outputs:
    """The shape once these axes are reduced."""
    places, keeps = from_the_front(axes, len(seen.first)), seen.whole("keepdims", 1) == 1
    if places is None:
        return []
    return [tuple(1 if at in places else dim for at, dim in enumerate(seen.first) if keeps or at not in places)]


def _top(seen: Seen) -> _Outputs:
    axis = seen.axis(-1, len(seen.first))
    if axis is None:
        return []
    count = seen.numbers(1)
    whole = seen.first[axis]
    if whole is None or seen.is_computed(1):
        return [(None,) * len(seen.first)] * 2
    if whole == UNKNOWN or count is None:
        return [of_rank(seen.first)] * 2
    if len(count) != 1 or not 0 <= count[0] <= whole:
        return []
    return [(*seen.first[:axis], count[0], *seen.first[axis + 1 :])] * 2


def _one_hot(seen: Seen) -> _Outputs:
    rank = len(seen.first) + 1
    axis = seen.axis(-1, rank)
    if axis is None or not seen.first:
        return []
    depth = None if seen.is_computed(1) else UNKNOWN
    return [(*seen.first[:axis], depth, *seen.first[axis:])]


def recurrent(seen: Seen) -> _Outputs:
    """LSTM, GRU and RNN: the states of all steps, and the last one (of an LSTM two)."""
    # As Gemm, these may have a rank that does not come from what they read.
    before = seen.shape(0)
    if before is None or len(before) != _STATES_RANK:
        return []
    directions = {"forward": 1, "reverse": 1, "bidirectional": 2}.get(seen.text("direction", "forward"))
    hidden = max(0, seen.whole("hidden_size")) or None
    if seen.whole("layout"):
        batch, steps, _ = before
        return [(batch, steps, directions, hidden), *[(batch, directions, hidden)] * 2]
    steps, batch, _ = before
    return [(steps, directions, batch, hidden), *[(directions, batch, hidden)] * 2]


def _attention(seen: Seen) -> _Outputs:
    query, value = seen.shape(0), seen.shape(2)
    # Heads are an axis of their own, or parts of the last one.
    is_known = query is not None and value is not None and len(query) == len(value) in (3, 4)
    return [(*query[:-1], UNKNOWN)] if query is not None and is_known else []


def _quantized_dynamically(seen: Seen) -> _Outputs:
    return [seen.shape(0), (), ()]


def _constant(seen: Seen) -> _Outputs:
    tensor = seen.constants.get(seen.node.output[0])
    if tensor is not None:
        return [tuple(tensor.dims) if len(tensor.dims) <= MAX_RANK else None]
    found = {attr.name: attr for attr in seen.node.attribute}
    if "value_floats" in found or "value_strings" in found:
        return [(len(found["value_floats"].floats if "value_floats" in found else found["value_strings"].strings),)]
    return [()] if found.keys() & {"value_float", "value_int", "value_string"} else []


def _rows(*rows: tuple[str, Rule, int]) -> Mapping[str, Row]:
    return {name: Row(rule, needs) for names, rule, needs in rows for name in names.split()}


OPERATORS: Mapping[str, Row] = _rows(
    (
        "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh CumSum "
        "DequantizeLinear Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish Hardmax Identity "
        "InstanceNormalization IsInf IsNaN LRN LayerNormalization LeakyRelu Log LogSoftmax LpNormalization "
        "Mish Neg Not PRelu QuantizeLinear RMSNormalization Reciprocal Relu RotaryEmbedding Round "
        "ScatterElements ScatterND Selu Shrink Sigmoid Sign SimplifiedLayerNormalization Sin Sinh Softmax Softplus Softsign "
        "Sqrt Swish Tan Tanh ThresholdedRelu Trilu",
        same,
        1,
    ),
    (
        "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min "
        "Mod Mul Or Pow Sub Sum Where Xor",
        _elementwise,
        ALL,
    ),
    # Its other outputs have shapes of their own.
    ("BatchNormalization", lambda seen: [seen.shape(0)], 0),
    ("ReverseSequence", same, 2),
    ("GroupNormalization", _same_rank, 1),
    ("MatMul MatMulInteger", _matmul, 2),
    ("Gemm", _gemm, 0),
    ("Einsum", _einsum, ALL),
    ("Attention", _attention, 0),
    ("Conv ConvInteger", lambda seen: convolved(seen, 1), 2),
    ("QLinearConv", lambda seen: convolved(seen, 3), 4),
    ("ConvTranspose", deconvolved, 2),
    ("AveragePool LpPool MaxPool", pooled, 1),
    ("GlobalAveragePool GlobalLpPool GlobalMaxPool", pooled_globally, 1),
    ("GRU LSTM RNN", recurrent, 0),
    ("Resize", moves.resized, 1),
    ("DepthToSpace SpaceToDepth", moves.moved_depth, 1),
    ("DynamicQuantizeLinear", _quantized_dynamically, 0),
    ("Transpose", moves.transposed, 1),
    ("Reshape", moves.reshaped, 0),
    ("Squeeze", moves.squeezed, 1),
    ("Unsqueeze", moves.unsqueezed, 1),
    ("Flatten", moves.flattened, 1),
    ("Shape", moves.shape_of_shape, 0),
    ("Concat", moves.concatenated, ALL),
    ("Split", moves.split, 1),
    ("Slice", moves.sliced, 1),
    ("Pad", moves.padded, 1),
    ("Expand", moves.expanded, 1),
    ("Tile", moves.tiled, 1),
    (
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare",
        _reduced,
        1,
    ),
    ("ArgMax ArgMin", _found_best, 1),
    ("TopK", _top, 1),
    ("OneHot", _one_hot, 1),
    ("Gather", moves.gathered, 2),
    ("GatherElements", moves.like_indices, 0),
    ("GatherND", moves.gathered_parts, 2),
    ("ConstantOfShape", moves.filled, 0),
    ("Constant", _constant, 0),
    ("Size", lambda _: [()], 0),
)
"""Operator -> its rule. Two of them ONNX's inference knows nothing of, and ONNX Runtime does: SimplifiedLayerNormalization,
which is ONNX Runtime's own, and GroupNormalization."""
