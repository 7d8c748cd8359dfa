"""Packing the obvious way: one integer per element, whole arrays, no tricks. The package must agree with it bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ort_qdq_plugin.model.operands import Operand, Order

Array = NDArray[Any]

__all__ = ["elements_of", "operand_lines", "packed_rows", "raw_bytes", "unsigned"]


def raw_bytes(elements: Array, bits: int, dirty: bool = False) -> bytes:
    """TensorProto's raw_data: low bits first, no padding but in the last byte, which is all ones there if `dirty`."""
    flat = elements.reshape(-1).astype(np.int64)
    as_bits = ((flat[:, None] >> np.arange(bits)) & 1).astype(np.uint8).reshape(-1)
    padding = np.full(-as_bits.size % 8, int(dirty), np.uint8)
    return bytes(np.packbits(np.concatenate([as_bits, padding]), bitorder="little").tobytes())


def elements_of(raw: bytes, bits: int, count: int) -> Array:
    """The first `count` elements of packed bytes."""
    as_bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")[: count * bits].reshape(count, bits)
    elements: Array = (as_bits.astype(np.int64) << np.arange(bits)).sum(axis=1)
    return elements


def unsigned(elements: Array, bits: int, signed: bool) -> Array:
    """As MatMulNBits stores them: two's complement moved up by half its range."""
    return elements + (1 << bits - 1) if signed else elements


def packed_rows(rows: Array, bits: int, row_bytes: int) -> Array:
    """Rows of unsigned elements, each packed from the low bits up into `row_bytes` bytes, zeros behind."""
    lines, length = rows.shape
    as_bits = (rows[:, :, None] >> np.arange(bits)) & 1
    padded = np.zeros((lines, row_bytes * 8), np.uint8)
    padded[:, : length * bits] = as_bits.reshape(lines, -1)
    return np.packbits(padded, axis=1, bitorder="little")


def operand_lines(operand: Operand) -> Array:
    """The elements of each line of an operand that is made of unconverted elements, as its description says."""
    assert operand.source is not None
    flat = elements_of(operand.source.read().tobytes(), operand.bits, operand.source.elements)
    if operand.order is Order.SPREAD:
        rows = np.broadcast_to(flat[:, None], (operand.lines, operand.length))
    elif operand.order is Order.ROWS:
        rows = flat.reshape(operand.lines, operand.stored_length)
    else:
        rows = flat.reshape(operand.stored_length, operand.lines).T
    if operand.order is not Order.SPREAD:
        rows = np.repeat(rows, operand.repeat, axis=1)[:, : operand.length]
    return rows ^ (1 << operand.bits - 1) if operand.flip else rows
