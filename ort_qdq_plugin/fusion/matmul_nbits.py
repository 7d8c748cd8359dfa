"""The operator that matrix products become: the operands of MatMulNBits, and what its kernel takes.

Format facts: ``com.microsoft.MatMulNBits`` (ONNX Runtime's contrib operators): ``B`` uint8 [N, ceil(K/block), block*bits/8],
elements from the low bits up; ``scales`` [N * ceil(K/block)]; ``zero_points`` uint8 [N * ceil(ceil(K/block)*bits/8)], every
row padded to a byte. Elements are unsigned. Without zero points they are centred on 2**(bits-1).
"""

from __future__ import annotations

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.fusion.dequantize import QuantizedMatrix
from ort_qdq_plugin.fusion.kind import FusionSettings
from ort_qdq_plugin.model.elements import BFLOAT16, FLOAT, FLOAT16, UINT8, bits_of
from ort_qdq_plugin.model.operands import Conversion, Operand, Operands, Order, zeros
from ort_qdq_plugin.model.releases import LARGE_BLOCKS, has
from ort_qdq_plugin.report.weights import Reason

__all__ = [
    "ROUNDS", "bits_that_need_zero_points", "block_size_for", "kernel_takes", "kernel_type", "operands_of",
    "shortened_block",
]  # fmt: skip

ROUNDS = 4
"""The accuracy level from which on activations are rounded to 8 bits, block by block."""

# Block sizes that the CPU kernel takes, all powers of two. Newer ones take larger blocks of 4 and 8 bits (`LARGE_BLOCKS`).
_MIN_BLOCK_SIZE, _MAX_BLOCK_SIZE = 16, 256
_DEFAULT_BLOCK_SIZE = 32  # what ONNX Runtime takes for weights without blocks
_LEAST_PADDING = -1  # session.qdq_matmulnbits_block_size: choose by padding

# From this size on, the length of a block that holds all of a column changes no bit of the result, for 4 and 8 bits. Shorter
# ones have kernels of their own, which round otherwise at accuracy level 4; so does each block size for 2 bits.
_SAME_RESULT_FROM = 128

# Weights of 8 bits are not pre-packed below accuracy level 4: the kernel dequantizes B in every run. Where that does not
# start at a multiple of 32 bytes, a product takes 1.2 to 1.4 times as long (K=768, N=3072, few rows): then it is packed.
_READ_ALIGNED = 32

# Smaller blocks repeat scales: operands may grow to this multiple of their stored bytes, not further.
_MAX_GROWTH, _MAX_GROWTH_IF_WIDENED = 2, 3


def operands_of(
    matrix: QuantizedMatrix, bits: int, block_size: int, scale_type: int, accuracy_level: int = ROUNDS
) -> Operands:
    """The operands that take the place of a quantized matrix, in a fused node with these blocks and this type of scales.

    Elements get `bits` bits: their own, or twice as many. The block size divides the matrix's own blocks, where it has any.
    """
    blocks = -(-matrix.k // block_size)
    block_bytes = block_size * bits // 8
    is_wider = bits != matrix.bits
    # Where there are no zero points, the middle of the range is the 0: it becomes the middle of the new one.
    moved = (1 << bits - 1) - (1 << matrix.bits - 1) if matrix.centred else 0
    order = Order.TRANSPOSED if matrix.k_major else Order.ROWS
    stored_type = matrix.scales.data_type
    per_block = order if matrix.block else Order.SPREAD
    repeat = matrix.block // block_size if matrix.block else 1
    operands = {
        "B": Operand(
            UINT8,
            (matrix.n, blocks, block_bytes),
            lines=matrix.n,
            length=matrix.k,
            line_bytes=blocks * block_bytes,
            source=matrix.weight,
            order=order,
            bits=matrix.bits,
            flip=matrix.signed,
            widening=moved if is_wider else None,
            alignment=_READ_ALIGNED if bits == 8 and accuracy_level < ROUNDS else 1,
        ),
        "scales": Operand(
            scale_type,
            (matrix.n * blocks,),
            lines=matrix.n,
            length=blocks,
            line_bytes=blocks * bits_of(scale_type) // 8,
            source=matrix.scales,
            order=per_block,
            bits=bits_of(stored_type),
            repeat=repeat,
            conversion=None if stored_type == scale_type else Conversion(stored_type, scale_type),
        ),
    }
    line_bytes = (blocks * bits + 7) // 8
    if matrix.zero_points is not None:
        operands["zero_points"] = Operand(
            UINT8,
            (matrix.n * line_bytes,),
            lines=matrix.n,
            length=blocks,
            line_bytes=line_bytes,
            source=matrix.zero_points,
            order=per_block,
            bits=matrix.bits,
            flip=matrix.signed,
            repeat=repeat,
            widening=0 if is_wider else None,
        )
    elif not matrix.centred:
        operands["zero_points"] = zeros(UINT8, matrix.n * line_bytes)
    return operands


def bits_that_need_zero_points(settings: FusionSettings) -> int:
    """Elements of so many bits need their zero points, even if they are those that the kernel takes by itself; 0: none do.

    At accuracy level 4 ONNX Runtime has two kernels for 4 bits on ARM. The one for weights without zero points (KleidiAI's)
    rounds activations a row at a time: errors are 2 to 3 times as large, and others than stock's.
    """
    return 4 if settings.arm and settings.accuracy_level >= ROUNDS else 0


def kernel_type(product_type: int, matrix: QuantizedMatrix, bits: int, settings: FusionSettings) -> tuple[int, int | None]:
    """The type that MatMulNBits computes in, and the type to cast from and back to where it is not the product's own.

    `bits` are those of the fused node.

    Raises:
        NotFusable: The product is computed in a type that no kernel takes.
    """
    if product_type == FLOAT:
        return FLOAT, None
    if product_type == FLOAT16:
        # Float scales may be too small for float16: better to widen the activations than to narrow the scales. On ARM the
        # kernels for 4 and 8 bits add in float16 (errors of 9e-3 of the largest value for K=576), the one for 2 bits does so
        # in float (3e-4): weights of 2 bits stay as exact in 4.
        is_less_exact = settings.arm and bits != matrix.bits and settings.accuracy_level < ROUNDS
        takes = settings.float16 and not is_less_exact and matrix.scales.data_type == FLOAT16
        return (FLOAT16, None) if takes else (FLOAT, FLOAT16)
    if product_type == BFLOAT16:
        return FLOAT, BFLOAT16
    raise NotFusable(Reason.PRODUCT_TYPE)


def block_size_for(matrix: QuantizedMatrix, wanted: int, bits: int) -> int:
    """The block size of a fused node with `bits` bits; `wanted`: of a matrix without blocks (`FusionSettings.block_size`).

    Raises:
        NotFusable: No block size fits.
    """
    block = matrix.block
    if not block:
        return _chosen_block_size(wanted, matrix.k)
    if kernel_takes(block, bits):
        return block
    divisor = min(block & -block, _MAX_BLOCK_SIZE)
    scale_bits, has_zero_points = bits_of(matrix.scales.data_type), matrix.zero_points is not None

    def bits_per_element(bits: int, block: int) -> float:
        return bits + (scale_bits + bits * has_zero_points) / block

    growth = bits_per_element(bits, divisor) / bits_per_element(matrix.bits, block)
    if divisor < _MIN_BLOCK_SIZE or growth > (_MAX_GROWTH if bits == matrix.bits else _MAX_GROWTH_IF_WIDENED):
        raise NotFusable(Reason.BLOCK_SIZE)
    return divisor


def shortened_block(matrix: QuantizedMatrix, bits: int) -> int:
    """The block size for a matrix whose blocks are at least as long as K: the shortest with the same result to the last bit.

    0 (a scale for each column, in blocks of any size) if the kernel does not take the matrix's own with `bits` bits.
    """
    if not kernel_takes(matrix.block, bits):
        return 0
    if bits == 2:
        return matrix.block
    return min(matrix.block, max(_SAME_RESULT_FROM, 1 << (matrix.k - 1).bit_length()))


def kernel_takes(block: int, bits: int) -> bool:
    """Whether the kernel takes blocks of this size."""
    if block & (block - 1) or block < _MIN_BLOCK_SIZE:
        return False
    return block <= _MAX_BLOCK_SIZE or (bits > 2 and has(LARGE_BLOCKS))


def _chosen_block_size(wanted: int, k: int) -> int:
    """The block size for a weight of K = `k` rows without blocks of its own."""
    if wanted > 0:
        return wanted
    if wanted == _LEAST_PADDING:
        sizes = [_MIN_BLOCK_SIZE]
        while sizes[-1] * 2 <= min(k, _MAX_BLOCK_SIZE):
            sizes.append(sizes[-1] * 2)
        return min(reversed(sizes), key=lambda size: -k % size)
    return _DEFAULT_BLOCK_SIZE
