"""Constant inputs of fused nodes: what each is, and how its bytes come from a tensor of the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from enum import Enum

from ort_qdq_plugin.model.elements import bits_of
from ort_qdq_plugin.model.tensors import StoredTensor
from ort_qdq_plugin.values import NamedTuple

__all__ = [
    "Conversion",
    "Operand",
    "Operands",
    "Order",
    "as_stored",
    "borrowed_bytes",
    "packed_bytes",
    "zeros",
]


class Order(Enum):
    """The shape of an operand's source. The operand itself is a matrix [lines, length]."""

    TRANSPOSED = "[length, lines]; of a stack, several of these one after another, which share the lines"
    ROWS = "[lines, length]"
    SPREAD = "[lines] or [1]: each line is filled with one element"


class Conversion(NamedTuple):
    """Floating-point elements become those of another type."""

    source: int  # the TensorProto.DataType they have
    target: int  # the one they get


class Operand(NamedTuple):
    """A constant input of a node. Its bytes are a matrix of elements, one line after the other."""

    data_type: int  # TensorProto.DataType
    shape: tuple[int, ...]  # its dimensions, as the fused node sees them
    lines: int
    length: int  # elements in a line
    line_bytes: int  # bytes of a line; those after its elements are zero
    source: StoredTensor | None  # the tensor that the elements come from; None for zeros
    order: Order = Order.ROWS  # the shape of the source
    bits: int = 8  # bits of an element of the source
    flip: bool = False  # whether the top bit of every element is flipped, which makes unsigned elements of two's complement
    repeat: int = 1  # how often each element of the source stands in its line
    # Matrices that a transposed source is made of, each from a byte's border on: [stack, length, lines of each].
    stack: int = 1
    conversion: Conversion | None = None  # of floating-point elements; None leaves them as they are
    # Of integers of 2 or 4 bits: they get twice as many, and this is added to each of them, after `flip`. None leaves them.
    widening: int | None = None
    alignment: int = 1  # bytes: where the source has to start if it is to be used in place

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.lines * self.line_bytes

    @property
    def stored_length(self) -> int:
        """Elements that the source has for a line."""
        return -(-self.length // self.repeat)

    @property
    def is_copy(self) -> bool:
        """Whether the operand's bytes are those of the source."""
        # A matrix of one column or of one row is its own transpose.
        is_vector = 1 in (self.lines // self.stack, self.length)
        stored_as_lines = self.order is Order.ROWS or (self.order is Order.TRANSPOSED and is_vector)
        fills_its_lines = self.length * self.bits == self.line_bytes * 8 or self.lines == 1
        changed = self.flip or self.repeat != 1 or self.conversion is not None or self.widening is not None
        same_size = self.source is not None and self.source.nbytes == self.nbytes
        return same_size and not changed and stored_as_lines and fills_its_lines

    @property
    def in_place(self) -> StoredTensor | None:
        """The source, if it can be used where it is stored: then nothing is packed."""
        source = self.source
        return source if self.is_copy and source is not None and source.is_aligned_to(self.alignment) else None

    def as_bytes(self) -> Operand:
        """The same bytes of the same source, as lines of one byte. Only for copies (`is_copy`)."""
        return self._replace(lines=self.nbytes, length=1, line_bytes=1, order=Order.ROWS, bits=8, stack=1)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for operands that are the same bytes of any shape, made in the same way of the same stored bytes."""
        return (self.data_type, *self[2:5], *self[6:], None if self.source is None else self.source.storage)


Operands = Mapping[str, Operand]
"""The constant inputs of one fused node, by the names that the operator's specification gives them."""


def as_stored(tensor: StoredTensor, shape: tuple[int, ...]) -> Operand:
    """The stored tensor itself as an operand of this shape."""
    return Operand(
        tensor.data_type, shape, lines=1, length=math.prod(shape), line_bytes=tensor.nbytes, source=tensor,
        bits=bits_of(tensor.data_type),
    )  # fmt: skip


def packed_bytes(operands: Iterable[Operand]) -> int:
    """Bytes of those operands that have to be packed."""
    return sum(operand.nbytes for operand in operands if operand.in_place is None)


def borrowed_bytes(operands: Iterable[Operand]) -> int:
    """Bytes of those operands that are used where the model stores them."""
    return sum(operand.nbytes for operand in operands if operand.in_place is not None)


def zeros(data_type: int, nbytes: int) -> Operand:
    """`nbytes` bytes of zeros, as a tensor of rank 1."""
    return Operand(data_type, (nbytes,), lines=1, length=nbytes, line_bytes=nbytes, source=None)
