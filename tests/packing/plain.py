"""Packing the obvious way: one integer per element, whole arrays, no tricks. The package must agree with it bit for bit."""

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto

from conformance.drawing.elements import TYPES
from ort_qdq_plugin.model.operands import Conversion, Operand, Order
from ort_qdq_plugin.model.sources import MemorySource
from ort_qdq_plugin.model.tensors import StoredTensor

Array = NDArray[Any]

__all__ = ["BITS", "Array", "elements_of", "operand_lines", "operands", "packed_lines", "packed_rows", "raw_bytes", "stored"]

FLOAT, FLOAT16, BFLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
WHOLE: dict[int, int] = {TYPES[f"{sign}int{bits}"]: bits for sign in ("", "u") for bits in (2, 4, 8)}
BITS: dict[int, int] = {**WHOLE, FLOAT: 32, FLOAT16: 16, BFLOAT16: 16}
"""TensorProto.DataType -> bits of an element, of the types that are packed."""


def raw_bytes(elements: Array, bits: int, dirty: bool = False) -> bytes:
    """TensorProto's raw_data: low bits first, no padding but in the last byte, which is all ones there if `dirty`."""
    kind: Any = np.uint8 if bits <= 8 else np.int64  # the smaller one makes large weights in an eighth of the time
    flat: Array = elements.reshape(-1).astype(kind)
    as_bits = ((flat[:, None] >> np.arange(bits, dtype=kind)) & 1).astype(np.uint8).reshape(-1)
    padding = np.full(-as_bits.size % 8, int(dirty), np.uint8)
    return bytes(np.packbits(np.concatenate([as_bits, padding]), bitorder="little").tobytes())


def elements_of(raw: bytes, bits: int, count: int) -> Array:
    """The first `count` elements of packed bytes."""
    as_bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")[: count * bits].reshape(count, bits)
    elements: Array = (as_bits.astype(np.int64) << np.arange(bits)).sum(axis=1)
    return elements


def packed_rows(rows: Array, bits: int, row_bytes: int) -> Array:
    """Rows of unsigned elements, each packed from the low bits up into `row_bytes` bytes, zeros behind."""
    lines, length = rows.shape
    as_bits = (rows[:, :, None] >> np.arange(bits)) & 1
    padded = np.zeros((lines, row_bytes * 8), np.uint8)
    padded[:, : length * bits] = as_bits.reshape(lines, -1)
    return np.packbits(padded, axis=1, bitorder="little")


def stored(
    data_type: int, shape: tuple[int, ...], name: str = "t", *, seed: int = 0, offset: int = 0, dirty: bool = False
) -> StoredTensor:
    """Random elements at `offset` of some memory; those of floating-point types are small and positive."""
    rng, bits, count = np.random.default_rng(seed), BITS[data_type], math.prod(shape)
    if data_type in WHOLE:
        elements = rng.integers(0, 1 << bits, count)
    elif data_type == FLOAT16:
        elements = rng.uniform(0.001, 2.0, count).astype(np.float16).view(np.uint16)
    else:
        elements = rng.uniform(0.001, 2.0, count).astype(np.float32).view(np.uint32) >> 32 - bits
    raw = raw_bytes(elements, bits, dirty)
    return StoredTensor(name, data_type, shape, MemorySource(b"\xa5" * offset + raw + b"\xa5" * 3), offset, len(raw))


def operand_lines(operand: Operand) -> Array:
    """The elements of each line of an operand, widened, but before they are converted, as its description says."""
    assert operand.source is not None
    flat = elements_of(operand.source.read().tobytes(), operand.bits, operand.source.elements)
    if operand.order is Order.SPREAD:
        rows = np.broadcast_to(flat[:, None], (operand.lines, operand.length))
    elif operand.order is Order.ROWS:
        rows = flat.reshape(operand.lines, operand.stored_length)
    else:
        matrices = flat.reshape(operand.stack, operand.stored_length, operand.lines // operand.stack)
        rows = np.concatenate([matrix.T for matrix in matrices])
    if operand.order is not Order.SPREAD:
        rows = np.repeat(rows, operand.repeat, axis=1)[:, : operand.length]
    rows = rows ^ (1 << operand.bits - 1) if operand.flip else rows
    return rows if operand.widening is None else rows + operand.widening


def converted(bits: Array, conversion: Conversion) -> Array:
    """Bits of floating-point numbers of one type -> those of the same numbers of another one."""
    as_float = (bits << 16 if conversion.source == BFLOAT16 else bits).astype(f"u{2 if conversion.source == FLOAT16 else 4}")
    numbers = as_float.view(f"f{as_float.itemsize}").astype(np.float32)
    size = BITS[conversion.target] // 8
    result: Array = numbers.astype(f"f{size}").view(f"u{size}").astype(np.int64)
    return result


def packed_lines(operand: Operand) -> Array:
    """All bytes of an operand, uint8 [lines, line_bytes]."""
    if operand.source is None:
        return np.zeros((operand.lines, operand.line_bytes), np.uint8)
    lines, bits = operand_lines(operand), operand.bits
    if operand.conversion is not None:
        lines, bits = converted(lines, operand.conversion), BITS[operand.conversion.target]
    if operand.widening is not None:
        bits = 2 * operand.bits
    return packed_rows(lines, bits, operand.line_bytes)


CONVERSIONS: dict[int, list[Conversion | None]] = {
    FLOAT: [None, Conversion(FLOAT, FLOAT16)],
    FLOAT16: [None, Conversion(FLOAT16, FLOAT)],
    BFLOAT16: [None, Conversion(BFLOAT16, FLOAT), Conversion(BFLOAT16, FLOAT16)],
}


@st.composite
def operands(draw: st.DrawFn, sizes: st.SearchStrategy[int], offsets: st.SearchStrategy[int], dirty: bool) -> Operand:
    """Elements of any type, stored in any way, and what an operand may say of them."""
    data_type, order = draw(st.sampled_from([*BITS])), draw(st.sampled_from(Order))
    lines, length = draw(sizes), draw(sizes)
    repeat = 1 if order is Order.SPREAD else draw(st.sampled_from([1, 1, 2, 4]))
    of_line = -(-length // repeat)
    spread = (lines,) if draw(st.booleans()) else ()
    stack = 1
    if order is Order.TRANSPOSED and of_line * lines * BITS[data_type] % 8 == 0:
        stack = draw(st.sampled_from([1, 1, 2, 5]))
    shape = {Order.ROWS: (lines, of_line), Order.TRANSPOSED: (stack, of_line, lines), Order.SPREAD: spread}[order]
    lines *= stack
    conversion = draw(st.sampled_from(CONVERSIONS.get(data_type, [None])))
    bits = BITS[data_type if conversion is None else conversion.target]
    # The largest sum still fits.
    widening = draw(st.sampled_from([None, 0, (1 << 2 * bits) - (1 << bits)])) if bits < 8 else None
    line_bytes = -(-length * (bits if widening is None else 2 * bits) // 8) + draw(st.sampled_from([0, 0, 1, 16]))
    source = stored(data_type, shape, seed=draw(st.integers(0, 99)), offset=draw(offsets), dirty=dirty)
    flip = data_type in WHOLE and draw(st.booleans())
    return Operand(
        TensorProto.UINT8, (lines * line_bytes,), lines, length, line_bytes, source, order, BITS[data_type], flip, repeat,
        stack, conversion, widening,
    )  # fmt: skip
