"""ONNX Runtime's own operators, drawn with open dimensions, against what its sessions say of their outputs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from ort_qdq_plugin.model.contrib_shapes import CONTRIB_OPERATORS
from ort_qdq_plugin.model.operators import CONTRIB_DOMAIN
from ort_qdq_plugin.model.shapes import UNKNOWN, Shape
from tests.model.drawing import Drawing
from tests.model.drawn_nodes import NODES
from tests.model.inferring import ONNX_RUNTIMES_OWN, followed

BYTE, HALF, INTS = TensorProto.UINT8, TensorProto.FLOAT16, TensorProto.INT32


def said_by_onnx_runtime(d: Drawing) -> list[Shape | None]:
    """The shapes that a session, which optimizes nothing, says of the outputs. None for one that it says no shape of."""
    model = d.model()
    model.opset_import.append(helper.make_opsetid(CONTRIB_DOMAIN, 1))
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in d.nodes[-1].output if name)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [tuple(dim if isinstance(dim, int) else None for dim in value.shape) for value in session.get_outputs()]


def constants(d: Drawing, *shapes: tuple[int, ...], dtype: str = "float32") -> list[str]:
    return [d.constant(np.ones(shape), dtype) for shape in shapes]


def tokens(d: Drawing) -> list[int | str | None]:
    return [d.dim(), d.dim(), 8]


def plain(d: Drawing) -> None:
    d.node(d.value(d.dims()))


def with_bias(d: Drawing) -> None:
    d.node(d.value([*d.dims(0, 3), 8]), *constants(d, (8,)))


def skipped(d: Drawing) -> None:
    dims, gamma = tokens(d), constants(d, (8,))
    more = constants(d, (8,)) if d.op_type == "SkipLayerNormalization" and d.chance(0.5) else []
    outputs = d.pick(1, 4)
    d.node(d.value(dims), d.value(dims), *gamma, *more, outputs=outputs)
    if outputs == 4:
        d.nodes[-1].output[1:3] = ["", ""]


def attention(d: Drawing) -> None:
    sizes = [8, 8, 16] if d.chance(0.5) else None
    width = sum(sizes or [8, 8, 8])
    d.node(d.value(tokens(d)), *constants(d, (8, width), (width,)), num_heads=2, qkv_hidden_sizes=sizes)


def quantized_attention(d: Drawing) -> None:
    value = d.value(tokens(d), BYTE)
    weight = d.constant(np.ones((8, 24)), "uint8")
    d.node(value, weight, *constants(d, (24,), (), ()), "", *constants(d, (), (), dtype="uint8"), num_heads=2)


def multi_head_attention(d: Drawing) -> None:
    dims = tokens(d)
    d.node(d.value(dims), d.value([dims[0], 3, 8]), d.value([dims[0], 3, d.pick(8, 16)]), num_heads=2)


def embedded(d: Drawing) -> None:
    ids = d.value([d.dim(), d.dim()], INTS)
    d.node(ids, "", *constants(d, (9, 8), (9, 8)), "", *constants(d, (8,), (8,)), outputs=2)


def product(d: Drawing) -> None:
    turned = [d.number(0, 1), d.number(0, 1)]
    batch = d.dims(0, 2)
    left, right = [d.dim(), 4], [4, d.dim()]
    names = [d.value([*batch, *(dims[::-1] if turn else dims)]) for dims, turn in zip((left, right), turned, strict=True)]
    d.node(*names, transA=turned[0], transB=turned[1])


def integer_product(d: Drawing) -> None:
    left, scale, zero = [*d.dims(1, 3), 4], constants(d, ()), constants(d, (), dtype="uint8")
    weight = d.constant(np.ones((4, 6)), "uint8")
    if d.op_type == "DynamicQuantizeMatMul":
        d.node(d.value(left), weight, *scale)
    else:
        d.node(d.value(left, BYTE), weight, *scale, *scale, *zero)


def product_of_blocks(d: Drawing) -> None:
    weight, scales = d.constant(np.ones((6, 1, 8)), "uint8"), constants(d, (6,))
    d.node(d.value([*d.dims(1, 3), 16]), weight, *scales, K=16, N=6, bits=4, block_size=16)


def quantized_pair(d: Drawing) -> None:
    scale, zero = constants(d, ()), constants(d, (), dtype="uint8")
    dims = d.dims(0, 3)
    other = [d.pick(1, dim) for dim in dims[d.number(0, len(dims)) :]]
    d.node(d.value(dims, BYTE), *scale, *zero, d.value(other, BYTE), *scale, *zero, *scale, *zero)


def quantized_one(d: Drawing) -> None:
    scale, zero = constants(d, ()), constants(d, (), dtype="uint8")
    more: dict[str, Any] = {"alpha": 0.1} if d.op_type == "QLinearLeakyRelu" else {}
    more = {"axis": -1, "opset": 13} if d.op_type == "QLinearSoftmax" else more
    d.node(d.value(d.dims(1, 3), BYTE), *scale, *zero, *scale, *zero, **more)


def quantizing(d: Drawing) -> None:
    data_type = BYTE if d.op_type == "DequantizeLinear" else TensorProto.FLOAT
    d.node(d.value(d.dims(0, 3), data_type), *constants(d, ()), *constants(d, (), dtype="uint8"))


def rotary(d: Drawing) -> None:
    d.node(d.value(tokens(d)), d.value([1], TensorProto.INT64), *constants(d, (5, 4), (5, 4)))


def recurrent(d: Drawing) -> None:
    weights = constants(d, (1, 4, 32), (1, 8, 32), dtype="uint8")
    bias, scale, zero = constants(d, (1, 64)), constants(d, (1,)), constants(d, (1,), dtype="uint8")
    value = d.value([d.dim(), d.dim(), 4])
    d.node(value, *weights, *bias, "", "", "", "", *scale, *zero, *scale, *zero, outputs=3, hidden_size=8)


def convolved(d: Drawing) -> None:
    d.node(d.value([d.dim(), 2, d.pick(5, 8, "h")]), *constants(d, (4, 2, 3)), activation="Relu", pads=d.perhaps([1, 1]))


DRAWN: dict[str, Callable[[Drawing], Any]] = {
    "BiasGelu": with_bias, "FastGelu": with_bias, "Gelu": plain, "QuickGelu": plain,
    "DequantizeLinear": quantizing, "QuantizeLinear": quantizing, "QLinearLeakyRelu": quantized_one,
    "QLinearSigmoid": quantized_one, "QLinearSoftmax": quantized_one, "RotaryEmbedding": rotary,
    "SkipLayerNormalization": skipped, "SkipSimplifiedLayerNormalization": skipped, "Attention": attention,
    "QAttention": quantized_attention, "DynamicQuantizeMatMul": integer_product, "FusedMatMul": product,
    "MatMulIntegerToFloat": integer_product, "QLinearAdd": quantized_pair, "QLinearMul": quantized_pair,
    "MultiHeadAttention": multi_head_attention, "EmbedLayerNormalization": embedded, "MatMulNBits": product_of_blocks,
    **{op_type: NODES[op_type] for op_type in ONNX_RUNTIMES_OWN}, "DynamicQuantizeLSTM": recurrent, "FusedConv": convolved,
}  # fmt: skip


@pytest.mark.parametrize("op_type", [*CONTRIB_OPERATORS, *ONNX_RUNTIMES_OWN])
def test_operators(op_type: str) -> None:
    checked = 0
    for seed in range(12):
        drawing = Drawing(op_type, 21, seed, "" if op_type in ONNX_RUNTIMES_OWN else CONTRIB_DOMAIN)
        DRAWN[op_type](drawing)
        known, names = followed(drawing.model())[0], [name for name in drawing.nodes[-1].output if name]
        for name, shape in zip(names, said_by_onnx_runtime(drawing), strict=True):
            dims = known.get(name)
            if dims is not None:
                assert shape is not None
                assert len(dims) == len(shape), (seed, dims, shape)
                assert all(dim in (UNKNOWN, other) for dim, other in zip(dims, shape, strict=True)), (seed, dims, shape)
                checked += 1
    assert checked >= 6
