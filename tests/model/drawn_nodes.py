"""Nodes drawn at random, one operator at a time."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from tests.model.drawing import Dims, Drawing
from tests.model.drawn_moves import MOVES

_INPUTS_OF_TYPE = {
    "And": TensorProto.BOOL, "BitShift": TensorProto.UINT8, "BitwiseAnd": TensorProto.INT32, "BitwiseNot": TensorProto.INT32,
    "BitwiseOr": TensorProto.INT32, "BitwiseXor": TensorProto.INT32, "Not": TensorProto.BOOL, "Or": TensorProto.BOOL,
    "Xor": TensorProto.BOOL,
}  # fmt: skip


def drawn(op_type: str, opset: int, seed: int) -> onnx.ModelProto:
    """A model of one node."""
    drawing = Drawing(op_type, opset, seed)
    drawing.without_shape = 0.1
    NODES.get(op_type, _plain)(drawing)
    return drawing.model()


def _plain(d: Drawing) -> None:
    d.node(d.value(d.dims(1 if "max" in d.op_type.lower() else 0), _INPUTS_OF_TYPE.get(d.op_type, TensorProto.FLOAT)))


def _with_channels(d: Drawing) -> None:
    count = 4 if d.op_type == "BatchNormalization" else 2
    groups = 2 if d.op_type == "GroupNormalization" else None
    value = d.value([d.dim(), d.pick(4, "c"), *d.dims(1, 3)])
    d.node(value, *(d.constant([1] * 4, "float32") for _ in range(count)), num_groups=groups)


def _with_scale(d: Drawing) -> None:
    value = d.value([*d.dims(), 4])
    outputs = d.pick(1, 3) if d.op_type == "LayerNormalization" else 1
    d.node(value, d.constant([1] * 4, "float32"), outputs=outputs, axis=d.perhaps(-1))


def _two(d: Drawing) -> None:
    data_type = _INPUTS_OF_TYPE.get(d.op_type, TensorProto.FLOAT)
    count = d.number(1, 3) if d.op_type in ("Max", "Mean", "Min", "Sum") else 2
    attributes: dict[str, Any] = {"direction": "LEFT"} if d.op_type == "BitShift" else {}
    if d.op_type == "Mod":
        attributes["fmod"] = 1
    d.node(*(d.value(d.dims(0), data_type) for _ in range(count)), **attributes)


def _where(d: Drawing) -> None:
    d.node(d.value(d.dims(0, 3), TensorProto.BOOL), d.value(d.dims(0, 3)), d.value(d.dims(0, 3)))


def _quantized(d: Drawing) -> None:
    data_type = TensorProto.FLOAT if d.op_type == "QuantizeLinear" else TensorProto.UINT8
    d.node(d.value(d.dims(0), data_type), d.constant(0.1, "float32"), d.constant(0, "uint8"))


def _matmul(d: Drawing) -> None:
    data_type = TensorProto.FLOAT if d.op_type == "MatMul" else TensorProto.UINT8
    batch = d.dims(0, 2)
    left = d.pick([4], [*batch, d.dim(), 4])
    d.node(d.value(left, data_type), d.value(d.pick([4], [4, d.dim()], [*batch, 4, 2]), data_type))


def _gemm(d: Drawing) -> None:
    d.node(
        d.value([d.dim(), "k"]), d.value([d.pick("k", None), d.dim()]), transA=d.perhaps(d.number(0, 1)), transB=d.perhaps(0)
    )


def _einsum(d: Drawing) -> None:
    equation = d.pick(
        "ij,jk->ik", "bij,bjk->bik", "bij , jk -> bik", "ij->ji", "i,i->", "bhid,bhjd->bhij", "ij,jk", "iij->j"
    )
    sizes = {letter: d.dim() for letter in "bhidjk"}
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    d.node(*(d.value([d.pick(sizes[at], sizes[at], "z") for at in term]) for term in terms), equation=equation)


def _window(d: Drawing, rank: int) -> dict[str, Any]:
    sizes: dict[str, Any] = {"strides": d.perhaps([d.number(1, 3) for _ in range(rank)])}
    sizes["dilations"] = d.perhaps([d.number(1, 2) for _ in range(rank)], 0.3)
    if d.chance(0.3):
        sizes["auto_pad"] = d.pick("SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET")
    elif d.chance(0.5):
        sizes["pads"] = [d.number(0, 1) for _ in range(2 * rank)]
    return sizes


def _conv(d: Drawing) -> None:
    kernel = [d.number(1, 3) for _ in range(d.number(1, 3))]
    sizes = _window(d, len(kernel))
    if d.op_type == "ConvTranspose":
        sizes["output_shape"] = d.perhaps([20] * len(kernel), 0.2)
    channels = [2, 4] if d.op_type == "ConvTranspose" else [4, 2]
    weight = [*channels, *kernel]
    name = d.constant(np.zeros(weight), "float32") if d.chance(0.8) else d.value([d.pick(size, "q") for size in weight])
    image = d.value([d.dim(), d.pick(2, "c"), *(d.pick(5, 8, 9, "h", None) for _ in kernel)])
    d.node(image, name, kernel_shape=d.perhaps(kernel), **sizes)


def _quantized_conv(d: Drawing) -> None:
    image, weight = d.value([d.dim(), 2, d.pick(8, "h")], TensorProto.UINT8), d.constant(np.zeros((4, 2, 3)), "uint8")
    if d.op_type == "ConvInteger":
        d.node(image, weight, pads=d.perhaps([1, 1]))
        return
    scale, zero = d.constant(0.1, "float32"), d.constant(0, "uint8")
    d.node(image, scale, zero, weight, scale, zero, scale, zero, pads=d.perhaps([1, 1]))


def _pool(d: Drawing) -> None:
    kernel = [d.number(1, 3) for _ in range(d.number(1, 3))]
    sizes = _window(d, len(kernel))
    dilates = {"AveragePool": 19, "LpPool": 18, "MaxPool": 10}[d.op_type]
    if d.opset < dilates:
        sizes.pop("dilations")
    sizes["ceil_mode"] = d.perhaps(1, 0.3) if d.op_type != "LpPool" or d.opset >= dilates else None
    outputs = d.number(1, 2) if d.op_type == "MaxPool" else 1
    image = d.value([d.dim(), d.dim(), *(d.pick(5, 8, 9, "h", None) for _ in kernel)])
    d.node(image, outputs=outputs, kernel_shape=kernel, **sizes)


def _pool_globally(d: Drawing) -> None:
    d.node(d.value(d.dims(2, 5)))


def _recurrent(d: Drawing) -> None:
    direction = d.perhaps(d.pick("forward", "reverse", "bidirectional"))
    layout = d.perhaps(d.number(0, 1)) if d.opset >= 14 else None
    outputs = d.number(1, 3 if d.op_type == "LSTM" else 2)
    weights = [d.constant(np.zeros((1, 32, size)), "float32") for size in (4, 8)]
    d.node(d.value([d.dim(), d.dim(), 4]), *weights, outputs=outputs, hidden_size=8, direction=direction, layout=layout)


def _attention(d: Drawing) -> None:
    if d.chance(0.5):
        d.node(d.value([d.dim(), 4, d.dim(), 8]), d.value([2, 4, 3, 8]), d.value([2, 4, 3, d.pick(8, "v")]))
    else:
        values = [d.value([d.dim(), d.dim(), 32]), d.value([2, 3, 32]), d.value([2, 3, d.pick(32, 16)])]
        d.node(*values, q_num_heads=4, kv_num_heads=4)


def _rotary(d: Drawing) -> None:
    value = d.value(d.pick([d.dim(), d.dim(), d.dim(), 8], [d.dim(), d.dim(), 32]))
    d.node(value, d.value([5, 4]), d.value([5, 4]), d.value([1, 1], TensorProto.INT64), num_heads=4)


def _reduce(d: Drawing) -> None:
    dims = d.dims()
    axes = sorted(d.rng.sample(range(len(dims)), d.number(0, len(dims)))) if d.chance(0.5) else [d.number(-len(dims), -1)]
    keepdims = d.perhaps(d.number(0, 1))
    if d.opset >= 18 or (d.op_type == "ReduceSum" and d.opset >= 13):
        given = [d.numbers(axes)] if d.chance(0.8) else []
        d.node(d.value(dims), *given, keepdims=keepdims, noop_with_empty_axes=d.perhaps(d.number(0, 1)))
    else:
        d.node(d.value(dims), axes=d.perhaps(axes or None), keepdims=keepdims)


def _arg(d: Drawing) -> None:
    dims = d.dims()
    axis = d.perhaps(d.number(-len(dims) if d.opset >= 11 else 0, len(dims) - 1))
    d.node(d.value(dims), axis=axis, keepdims=d.perhaps(d.number(0, 1)))


def _top(d: Drawing) -> None:
    dims = [d.pick(4, 8, "a", None) for _ in range(d.number(1, 4))]
    axis = d.perhaps(d.number(-len(dims) if d.opset >= 11 else 0, len(dims) - 1))
    d.node(d.value(dims), d.numbers([2]), outputs=2, axis=axis)


def _one_hot(d: Drawing) -> None:
    dims = d.dims()
    depth = d.numbers([5]) if d.chance(0.7) else d.constant(5)
    values, axis = d.constant([0, 1], "float32"), d.perhaps(d.number(-len(dims) - 1, len(dims)))
    d.node(d.value(dims, TensorProto.INT64), depth, values, axis=axis)


def _constant(d: Drawing) -> None:
    tensor = numpy_helper.from_array(np.zeros((2, 3), np.float32))
    more = [{"value_ints": [1, 2]}, {"value_floats": [1.0]}, {"value_int": 3}, {"value_float": 1.0}, {"value_string": "a"}]
    d.node(**(d.pick(*more) if d.opset >= 12 and d.chance(0.8) else {"value": tensor}))


def _like_first(*others: Callable[[Drawing, Dims], str], least: int = 1, **attributes: Any) -> Callable[[Drawing], None]:
    def draw(d: Drawing) -> None:
        dims = d.dims(least)
        d.node(d.value(dims), *(other(d, dims) for other in others), **attributes)

    return draw


NODES: dict[str, Callable[[Drawing], None]] = {
    **MOVES,
    **dict.fromkeys(("BatchNormalization", "GroupNormalization", "InstanceNormalization"), _with_channels),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), _with_scale),
    **dict.fromkeys(
        (
            "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
            "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "Sub", "Sum", "Xor",
        ),
        _two,
    ),
    "Where": _where,
    **dict.fromkeys(("DequantizeLinear", "QuantizeLinear"), _quantized),
    "DynamicQuantizeLinear": lambda d: d.node(d.value(d.dims(0)), outputs=3),
    **dict.fromkeys(("MatMul", "MatMulInteger"), _matmul),
    "Gemm": _gemm,
    "Einsum": _einsum,
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    **dict.fromkeys(("ConvInteger", "QLinearConv"), _quantized_conv),
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"), _pool_globally),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _recurrent),
    "Attention": _attention,
    "RotaryEmbedding": _rotary,
    **dict.fromkeys(
        (
            "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
            "ReduceSum", "ReduceSumSquare",
        ),
        _reduce,
    ),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    "TopK": _top,
    "OneHot": _one_hot,
    "ConstantOfShape": lambda d: d.node(d.numbers([d.number(0, 3) for _ in range(d.number(0, 3))])),
    "Constant": _constant,
    "Cast": _like_first(to=10, least=0),
    "CastLike": _like_first(lambda d, _: d.value([1], TensorProto.FLOAT16), least=0),
    "CumSum": _like_first(lambda d, _: d.constant(0)),
    "LRN": lambda d: d.node(d.value(d.dims(4, 4)), size=3),
    "PRelu": _like_first(lambda d, _: d.constant([1.0], "float32")),
    "ReverseSequence": lambda d: d.node(d.value([3, "a", *d.dims(0, 2)]), d.value(["n"], TensorProto.INT64)),
    "ScatterElements": _like_first(lambda d, dims: d.value(dims, TensorProto.INT64), lambda d, dims: d.value(dims)),
    "ScatterND": _like_first(
        lambda d, _: d.value(["k", 1], TensorProto.INT64), lambda d, dims: d.value(["k", *dims[1:]])
    ),
    "Trilu": lambda d: d.node(d.value(d.dims(2))),
}  # fmt: skip
"""Operator -> what draws it; others have one input of any shape."""
