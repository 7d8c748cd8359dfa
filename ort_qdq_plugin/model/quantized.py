"""A quantized weight matrix as DequantizeLinear stores it.

Format facts: DequantizeLinear-21/-23/-25 of the ONNX specification (``axis``, ``block_size``, ranks of the scales).
"""

from __future__ import annotations

from dataclasses import dataclass

from ort_qdq_plugin.model.tensors import StoredTensor

__all__ = [
    "BFLOAT16",
    "FLOAT",
    "FLOAT16",
    "SCALE_TYPES",
    "WEIGHT_TYPES",
    "FusedWeight",
    "QuantizedMatrix",
    "default_zero_point",
]

# TensorProto.DataType -> (bits, signed): UINT8, INT8, UINT4, INT4, UINT2, INT2
WEIGHT_TYPES = {2: (8, False), 3: (8, True), 21: (4, False), 22: (4, True), 25: (2, False), 26: (2, True)}

FLOAT, FLOAT16, BFLOAT16 = 1, 10, 16  # TensorProto.DataType
SCALE_TYPES = (FLOAT, FLOAT16, BFLOAT16)


def default_zero_point(bits: int) -> int:
    """What MatMulNBits takes without zero points: the middle of the unsigned range."""
    return 1 << (bits - 1)


@dataclass(frozen=True)
class QuantizedMatrix:
    """The constant operands of one dequantized product ``A[.., K] x W[K, N]``.

    `weight` is stored [K, N] when `k_major`, else [N, K]. `block` elements along K share a scale: `scales` and `zero_points`
    have one entry per block and column, [ceil(K/block), N] or [N, ceil(K/block)] like the weight. Without blocks (`block` 0)
    they have N entries, one per column, or a single one. Zero points, where given, have the weight's type. `centred`: there
    are none because all are what MatMulNBits takes by itself, 2**(bits-1) once the elements are unsigned; otherwise none
    means 0.
    """

    weight: StoredTensor
    scales: StoredTensor
    zero_points: StoredTensor | None
    centred: bool
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


@dataclass(frozen=True)
class FusedWeight:
    """`matrix` as MatMulNBits is to get it: in blocks of `block_size`, its scales of type `scale_type` and multiplied by
    `scale_factor`.

    `block_size` divides the matrix's own blocks, where it has any.
    """

    matrix: QuantizedMatrix
    block_size: int
    scale_type: int
    scale_factor: float = 1.0

    @property
    def scale_repeat(self) -> int:
        """How many blocks share each stored scale."""
        return self.matrix.block // self.block_size if self.matrix.block else 1

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for what is made of the same bytes in the same way."""
        matrix = self.matrix
        zero_points = None if matrix.zero_points is None else matrix.zero_points.storage
        stored = (
            matrix.weight.storage,
            matrix.weight.data_type,
            matrix.scales.storage,
            matrix.scales.data_type,
            zero_points,
        )
        read_as = (matrix.centred, matrix.k, matrix.n, matrix.k_major, matrix.block)
        return (*stored, *read_as, self.block_size, self.scale_type, self.scale_factor)
