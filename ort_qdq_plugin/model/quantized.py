"""A quantized weight matrix as DequantizeLinear stores it.

Format facts: DequantizeLinear-21/-23/-25 of the ONNX specification (``axis``, ``block_size``, ranks of the scales).
"""

from __future__ import annotations

from dataclasses import dataclass

from ort_qdq_plugin.model.tensors import StoredTensor

__all__ = ["WEIGHT_TYPES", "QuantizedMatrix"]

# TensorProto.DataType -> (bits, signed): UINT8, INT8, UINT4, INT4, UINT2, INT2
WEIGHT_TYPES = {2: (8, False), 3: (8, True), 21: (4, False), 22: (4, True), 25: (2, False), 26: (2, True)}


@dataclass(frozen=True)
class QuantizedMatrix:
    """The constant operands of one dequantized product ``A[.., K] x W[K, N]``.

    `weight` is stored [K, N] when `k_major`, else [N, K]. `block` elements along K share a scale: `scales` and `zero_points`
    have one entry per block and column, [ceil(K/block), N] or [N, ceil(K/block)] like the weight. Without blocks (`block` 0)
    they have N entries, one per column, or a single one. Zero points, where given, have the weight's type.
    """

    weight: StoredTensor
    scales: StoredTensor
    zero_points: StoredTensor | None
    k: int
    n: int
    k_major: bool
    block: int

    @property
    def bits(self) -> int:
        """Bits of an element: 2, 4 or 8."""
        return WEIGHT_TYPES[self.weight.data_type][0]

    @property
    def signed(self) -> bool:
        """Whether elements are two's complement."""
        return WEIGHT_TYPES[self.weight.data_type][1]

    @property
    def storage(self) -> tuple[object, ...]:
        """Equal for matrices that are the same bytes, read the same way."""
        zero_points = None if self.zero_points is None else self.zero_points.storage
        types = (self.weight.data_type, self.scales.data_type)
        return (self.weight.storage, self.scales.storage, zero_points, self.k, self.n, self.k_major, self.block, types)
