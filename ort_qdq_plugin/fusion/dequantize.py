"""Reading a DequantizeLinear node: its operands, checked against each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.fusion.reason import NotFusable, Reason
from ort_qdq_plugin.model.graph import Scope, attributes
from ort_qdq_plugin.model.quantized import WEIGHT_TYPES, QuantizedMatrix
from ort_qdq_plugin.model.tensors import StoredTensor

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

__all__ = ["Dequantized", "Locate", "has_constant_weight", "read_dequantize"]

Locate = Callable[["TensorProto"], StoredTensor]
"""Finds the bytes of a tensor; raises ModelError when they are not all there."""

_FLOAT, _FLOAT16 = 1, 10  # TensorProto.DataType, the types of MatMulNBits' T1 with a CPU kernel

# DequantizeLinear's default axis, in the ONNX specification since version 13.
_DEFAULT_AXIS = 1


@dataclass(frozen=True)
class Dequantized:
    """The operands of one DequantizeLinear with a weight of rank 2.

    `axis` (0 or 1) is where the scales vary, None when there is a single scale. `block` elements along it share a scale;
    0: the scales are one per row or column.
    """

    weight: StoredTensor
    scales: StoredTensor
    zero_points: StoredTensor | None
    axis: int | None
    block: int

    def matrix(self, k_axis: int) -> QuantizedMatrix:
        """The weight as a product sees it whose K runs along `k_axis`; raises NotFusable when blocks do not."""
        blockwise_along_n = self.block and self.axis != k_axis
        per_row_of_k = not self.block and self.axis == k_axis
        if blockwise_along_n or per_row_of_k:
            raise NotFusable(Reason.BLOCKS_ALONG_N)
        return QuantizedMatrix(
            weight=self.weight,
            scales=self.scales,
            zero_points=self.zero_points,
            k=self.weight.shape[k_axis],
            n=self.weight.shape[1 - k_axis],
            k_major=k_axis == 0,
            block=self.block,
        )


def has_constant_weight(scope: Scope, node: NodeProto) -> bool:
    """Whether `node` dequantizes a tensor that the model itself holds."""
    is_dequantize = node.op_type == "DequantizeLinear" and node.domain in ("", "ai.onnx")
    return (
        is_dequantize
        and len(node.input) >= 2
        and (scope.constant(node.input[0]) is not None or scope.is_overridable(node.input[0]))
    )


def read_dequantize(scope: Scope, node: NodeProto, locate: Locate) -> Dequantized:
    """The operands of `node`; raises NotFusable where they are not what MatMulNBits can take."""
    names = [name for name in node.input[:3] if name]
    if any(scope.is_overridable(name) for name in names):
        raise NotFusable(Reason.OVERRIDABLE)
    tensors = [scope.constant(name) for name in names]
    if any(tensor is None for tensor in tensors):
        raise NotFusable(Reason.NOT_CONSTANT)
    protos = [tensor for tensor in tensors if tensor is not None]
    weight, scales = protos[0], protos[1]
    if weight.data_type not in WEIGHT_TYPES:
        raise NotFusable(Reason.WEIGHT_TYPE)
    if scales.data_type not in (_FLOAT, _FLOAT16):
        raise NotFusable(Reason.SCALE_TYPE)
    if len(weight.dims) != 2:
        raise NotFusable(Reason.RANK)
    given = attributes(node)
    if "output_dtype" in given and given["output_dtype"].i not in (0, scales.data_type):
        raise NotFusable(Reason.OUTPUT_TYPE)
    if len(protos) == 3 and (protos[2].data_type != weight.data_type or list(protos[2].dims) != list(scales.dims)):
        raise NotFusable(Reason.INVALID)
    axis = given["axis"].i if "axis" in given else _DEFAULT_AXIS
    block = given["block_size"].i if "block_size" in given else 0
    scale_axis, block = _granularity(tuple(weight.dims), tuple(scales.dims), axis, block)
    try:
        located = [locate(proto) for proto in protos]
    except (ModelError, OSError) as error:
        raise NotFusable(Reason.INVALID) from error
    return Dequantized(located[0], located[1], located[2] if len(located) == 3 else None, scale_axis, block)


def _granularity(weight: tuple[int, ...], scales: tuple[int, ...], axis: int, block: int) -> tuple[int | None, int]:
    """(axis along which scales vary, block size) of a [rows, columns] weight; raises NotFusable(INVALID)."""
    if min(weight) <= 0 or not -2 <= axis < 2 or block < 0:
        raise NotFusable(Reason.INVALID)
    axis %= 2
    if block:
        expected = tuple(-(-size // block) if at == axis else size for at, size in enumerate(weight))
        if scales != expected:
            raise NotFusable(Reason.INVALID)
        return axis, block
    if scales in ((), (1,)):
        return None, 0
    if scales != (weight[axis],):
        raise NotFusable(Reason.INVALID)
    return axis, 0
