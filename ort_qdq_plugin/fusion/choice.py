"""Which form a product with a quantized weight gets: MatMulNBits with these bits and blocks, or none.

Forms multiply by the same numbers; they differ in speed, by up to a hundred times, and in memory. Only what is known at load
decides: types, shapes, the accuracy level. A form's operands take at most three times the bytes that the model stores.
"""

from __future__ import annotations

from collections.abc import Callable

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.fusion.dequantize import QuantizedMatrix
from ort_qdq_plugin.fusion.kind import FusionSettings
from ort_qdq_plugin.fusion.matmul_nbits import ROUNDS, block_size_for, shortened_block
from ort_qdq_plugin.model.elements import FLOAT
from ort_qdq_plugin.report.weights import Reason
from ort_qdq_plugin.values import NamedTuple

__all__ = ["Form", "form_of"]

# The kernel for 2 bits in blocks of 128 takes four blocks at a time, and what is left of K much more slowly. From so many
# blocks on, that is lost in the rest.
_BLOCK_OF_FOURS, _FOURS, _MANY_BLOCKS = 128, 4, 10

# From so many elements on, a weight of 4 bits comes from memory in every run, and twice the bytes take longer than what the
# 4-bit kernel saves.
_LARGE = 6 << 20

# From so many elements on, a weight that is dequantized to float leaves the cache meanwhile.
_LARGE_IN_FLOAT = 1 << 20

_WIDE_BLOCK = 256


class Form(NamedTuple):
    """A product as MatMulNBits."""

    matrix: QuantizedMatrix  # without needless padding, where one block holds all of K
    bits: int  # of an element of the fused node; the stored ones are widened to these
    block_size: int  # of the fused node


def _always(_: QuantizedMatrix) -> bool:
    return True


def _is_large_in_float(matrix: QuantizedMatrix) -> bool:
    return matrix.block > 0 and matrix.k * matrix.n >= _LARGE_IN_FLOAT


def _leaves_blocks(matrix: QuantizedMatrix) -> bool:
    blocks = -(-matrix.k // _BLOCK_OF_FOURS)
    return blocks % _FOURS > 0 and blocks < _MANY_BLOCKS


def _is_large(matrix: QuantizedMatrix) -> bool:
    return matrix.block > 0 and matrix.k * matrix.n >= _LARGE and not _leaves_blocks(matrix)


def _is_padded_by_nothing(matrix: QuantizedMatrix) -> bool:
    return matrix.block == 0 and matrix.k % _WIDE_BLOCK == 0


def _stock_leaves_it(matrix: QuantizedMatrix) -> bool:
    """Whether ONNX Runtime dequantizes the weight to float, as it does unless it is K-major: that it would fuse itself."""
    return matrix.block > 0 and not matrix.k_major and matrix.scales.data_type == FLOAT


class _Rule(NamedTuple):
    """What becomes of weights that are stored in so many bits, at such an accuracy level, in such blocks."""

    bits: int
    rounds: bool  # for accuracy level 4, or for the others
    smallest: int  # of the block sizes that it is for, those that the kernel would be given otherwise
    largest: int
    applies: Callable[[QuantizedMatrix], bool]
    to_bits: int  # of the fused node; 0: it is left to ONNX Runtime
    to_block: int = 0  # of the fused node; 0: as the blocks are


_ANY = 1 << 62

# The first that applies; where none does, the weight is fused as it is stored. Ratios are those of `python -m
# conformance.choices` with ONNX Runtime 1.32.0, from one row to many.
_RULES = (
    # 2 bits in float: the kernel dequantizes all in every run, 16 times slower than 4 bits for a row, twice for 128.
    _Rule(2, False, 16, _ANY, _always, to_bits=4),
    # 2 bits in blocks of 16: the same (40 times). In blocks of 32 4 bits are as fast for a row, 1.8 times faster for many.
    _Rule(2, True, 16, 32, _always, to_bits=4),
    # 1.2 to 2.2 times faster in 4 bits.
    _Rule(2, True, 128, 128, _leaves_blocks, to_bits=4),
    # 2 bits in larger blocks are dequantized in every run, too (64 to 98 times slower than smaller ones). Of the two that
    # are not, 4 bits are up to 1.8 times faster unless memory is what takes the time: then they are 1.5 times slower.
    _Rule(2, True, 256, _ANY, _is_large, to_bits=2, to_block=128),
    _Rule(2, True, 256, _ANY, _always, to_bits=4),
    # 8 bits in float are dequantized in every run, at best in blocks of 256 (1.8 times faster than in blocks of 32). Where
    # ONNX Runtime does the same outside the product, it is 1.1 to 2 times faster.
    _Rule(8, False, 16, _ANY, _is_padded_by_nothing, to_bits=8, to_block=_WIDE_BLOCK),
    _Rule(8, False, 16, _ANY, _stock_leaves_it, to_bits=0),
    # Blocks of 128 are slower by a fifth than those of 64, unless the weight is small.
    _Rule(8, False, 128, 128, _is_large_in_float, to_bits=8, to_block=64),
)


def form_of(matrix: QuantizedMatrix, product_type: int, settings: FusionSettings) -> Form:
    """The form of a product with this weight, which is computed in `product_type` (TensorProto.DataType).

    Raises:
        NotFusable: No form is right, or none is faster than ONNX Runtime's own.
    """
    form = _as_bits(matrix, matrix.bits, settings)
    rounds = settings.accuracy_level >= ROUNDS
    for rule in _RULES:
        fits = (rule.bits, rule.rounds) == (matrix.bits, rounds) and rule.smallest <= form.block_size <= rule.largest
        if not fits or not rule.applies(form.matrix):
            continue
        if not rule.to_bits:
            if product_type != FLOAT:
                continue
            raise NotFusable(Reason.SLOWER)
        if rule.to_bits != matrix.bits:
            form = _as_bits(matrix, rule.to_bits, settings)
        is_asked_for = settings.block_size and not form.matrix.block
        return form._replace(block_size=rule.to_block) if rule.to_block and not is_asked_for else form
    return form


def _as_bits(matrix: QuantizedMatrix, bits: int, settings: FusionSettings) -> Form:
    """The weight in its own blocks, or in those that are asked for where it has none, with elements of so many bits."""
    if matrix.block >= matrix.k:
        # A scale for each column, however long the block is.
        matrix = matrix._replace(block=shortened_block(matrix, bits))
    return Form(matrix, bits, block_size_for(matrix, settings.block_size, bits))
