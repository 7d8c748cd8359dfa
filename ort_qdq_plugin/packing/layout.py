"""Where each operand of MatMulNBits goes, and how its bytes get there.

Format facts: ``com.microsoft.MatMulNBits`` (ONNX Runtime's contrib operators): ``B`` uint8 [N, ceil(K/block), block*bits/8],
elements from the low bits up; ``scales`` [N * ceil(K/block)]; ``zero_points`` uint8 [N * ceil(ceil(K/block)*bits/8)], every
row padded to a byte. Elements are unsigned; without zero points they are centred on 2**(bits-1).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

from ort_qdq_plugin.model.quantized import FusedWeight, QuantizedMatrix
from ort_qdq_plugin.model.tensors import ELEMENT_BITS, StoredTensor

__all__ = ["Layout", "Move", "Operand", "Order", "PackedWeight", "plan_layout"]

_UINT8 = 2  # TensorProto.DataType

_PAGE_BYTES = 4096
_CACHE_LINE_BYTES = 64
# Operands of at least so many bytes start on a page of their own, so that they can be trimmed apart.
_PAGE_ALIGNED_BYTES = 1 << 16


class Order(Enum):
    """How a move's source relates to its target, `lines` lines of `length` elements."""

    TRANSPOSED = "source is [source_length, lines]"
    ROWS = "source is [lines, source_length]"
    SPREAD = "source has one element per line, or one in all, repeated along the line"


@dataclass(frozen=True)
class Conversion:
    """Floating-point elements of TensorProto.DataType `source` multiplied by `factor`, as elements of type `target`."""

    source: int
    target: int
    factor: float


@dataclass(frozen=True)
class Move:
    """One tensor on its way into the packed buffer.

    The target starts at byte `offset` of buffer `segment` and has `lines` lines, `row_bytes` apart; each receives `length`
    elements. What a line does not fill stays zero. The source has elements of `bits` bits and each counts for `repeat`
    successive ones of the target. `flip`: two's complement becomes unsigned by flipping each top bit. `conversion`: of
    floating-point elements; None keeps them as they are.
    """

    source: StoredTensor
    order: Order
    lines: int
    length: int
    bits: int
    flip: bool
    segment: int
    offset: int
    row_bytes: int
    repeat: int = 1
    conversion: Conversion | None = None

    @property
    def source_length(self) -> int:
        """Elements of the source along a line."""
        return -(-self.length // self.repeat)


@dataclass(frozen=True)
class Operand:
    """An input of the fused node: at byte `offset` of packed buffer `segment`, or, where `in_place` is given, not moved at
    all."""

    data_type: int
    shape: tuple[int, ...]
    nbytes: int
    in_place: StoredTensor | None = None
    segment: int = 0
    offset: int = 0


@dataclass(frozen=True)
class PackedWeight:
    """The operands that take the place of one quantized matrix."""

    b: Operand
    scales: Operand
    zero_points: Operand | None

    @property
    def operands(self) -> tuple[Operand, ...]:
        """B, scales and, where there are any, zero points."""
        return (self.b, self.scales) if self.zero_points is None else (self.b, self.scales, self.zero_points)

    @property
    def in_place(self) -> tuple[StoredTensor, ...]:
        """The operands that are not moved, as they are stored."""
        return tuple(operand.in_place for operand in self.operands if operand.in_place is not None)

    @property
    def packed_bytes(self) -> int:
        """Bytes in packed buffers."""
        return sum(operand.nbytes for operand in self.operands if operand.in_place is None)

    @property
    def borrowed_bytes(self) -> int:
        """Bytes used where the model stores them."""
        return sum(tensor.nbytes for tensor in self.in_place)


@dataclass(frozen=True)
class Layout:
    """A plan: `weights` has the operands of each weight asked for; carrying out `moves` fills zeroed buffers of `sizes`
    bytes."""

    weights: dict[tuple[object, ...], PackedWeight]
    moves: tuple[Move, ...]
    sizes: tuple[int, ...]

    def of(self, weight: FusedWeight) -> PackedWeight:
        """The operands planned for `weight`."""
        return self.weights[weight.key]


def plan_layout(wanted: Iterable[FusedWeight], segments: int = 1) -> Layout:
    """Give every operand of every weight its place in one of at most `segments` buffers of similar size.

    What is made of the same stored bytes in the same way is placed once.
    """
    planner = _Planner(segments)
    weights = {key: planner.weight(weight) for key, weight in {weight.key: weight for weight in wanted}.items()}
    return planner.finish(weights)


class _Planner:
    def __init__(self, segments: int) -> None:
        self._moves: list[Move] = []
        self._sizes = [0] * segments
        self._segment = 0
        self._zeros = 0

    def finish(self, weights: dict[tuple[object, ...], PackedWeight]) -> Layout:
        # Explicit zero points of zero share one run of zeros behind everything else.
        zeros = self._place(self._zeros)
        placed = {key: _with_zeros_at(weight, self._segment, zeros) for key, weight in weights.items()}
        return Layout(placed, tuple(self._moves), tuple(size for size in self._sizes if size))

    def weight(self, weight: FusedWeight) -> PackedWeight:
        matrix, block_size = weight.matrix, weight.block_size
        # Into the emptiest buffer; no later one is used before an earlier one, so that none in the middle stays empty.
        self._segment = min(range(len(self._sizes)), key=self._sizes.__getitem__)
        blocks = -(-matrix.k // block_size)
        row_bytes = blocks * block_size * matrix.bits // 8
        order = Order.TRANSPOSED if matrix.k_major else Order.ROWS
        b = self._operand(
            (matrix.n, blocks, row_bytes // blocks), _UINT8,
            matrix.weight, order, matrix.n, matrix.k, matrix.bits, matrix.signed, row_bytes,
        )  # fmt: skip
        per_block = order if matrix.block else Order.SPREAD
        stored_type, scale_type = matrix.scales.data_type, weight.scale_type
        same = stored_type == scale_type and weight.scale_factor == 1.0
        scales = self._operand(
            (matrix.n * blocks,), scale_type, matrix.scales, per_block, matrix.n, blocks, ELEMENT_BITS[stored_type], False,
            blocks * ELEMENT_BITS[scale_type] // 8, weight.scale_repeat,
            None if same else Conversion(stored_type, scale_type, weight.scale_factor),
        )  # fmt: skip
        return PackedWeight(b, scales, self._zero_points(matrix, blocks, per_block, weight.scale_repeat))

    def _zero_points(self, matrix: QuantizedMatrix, blocks: int, order: Order, repeat: int) -> Operand | None:
        row_bytes = (blocks * matrix.bits + 7) // 8
        shape = (matrix.n * row_bytes,)
        if matrix.zero_points is not None:
            return self._operand(
                shape, _UINT8, matrix.zero_points, order, matrix.n, blocks, matrix.bits, matrix.signed, row_bytes, repeat
            )
        if matrix.centred:
            return None
        self._zeros = max(self._zeros, shape[0])
        return Operand(_UINT8, shape, shape[0], segment=_IN_ZEROS)

    def _operand(
        self, shape: tuple[int, ...], data_type: int,
        source: StoredTensor, order: Order, lines: int, length: int, bits: int, flip: bool, row_bytes: int,
        repeat: int = 1, conversion: Conversion | None = None,
    ) -> Operand:  # fmt: skip
        nbytes = lines * row_bytes
        # A matrix of one column or of one row is its own transpose.
        stored_as_lines = order is Order.ROWS or (order is Order.TRANSPOSED and 1 in (lines, length))
        fills_its_lines = length * bits == row_bytes * 8 or lines == 1
        changed = flip or repeat != 1 or conversion is not None
        if stored_as_lines and fills_its_lines and not changed and source.nbytes == nbytes:
            return Operand(data_type, shape, nbytes, in_place=source)
        offset = self._place(nbytes)
        self._moves.append(
            Move(source, order, lines, length, bits, flip, self._segment, offset, row_bytes, repeat, conversion)
        )
        return Operand(data_type, shape, nbytes, segment=self._segment, offset=offset)

    def _place(self, nbytes: int) -> int:
        size = self._sizes[self._segment]
        alignment = _PAGE_BYTES if nbytes >= _PAGE_ALIGNED_BYTES else _CACHE_LINE_BYTES
        offset = -(-size // alignment) * alignment
        self._sizes[self._segment] = offset + nbytes
        return offset


_IN_ZEROS = -1


def _with_zeros_at(weight: PackedWeight, segment: int, offset: int) -> PackedWeight:
    if weight.zero_points is None or weight.zero_points.segment != _IN_ZEROS:
        return weight
    return replace(weight, zero_points=replace(weight.zero_points, segment=segment, offset=offset))
