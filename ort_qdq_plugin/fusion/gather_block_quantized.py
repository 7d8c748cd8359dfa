"""GatherBlockQuantized: the operands that a table becomes, and the nodes around it.

Format facts: ``com.microsoft.GatherBlockQuantized`` (ONNX Runtime's contrib operators): ``data`` uint8 [rows, bytes of a
row], elements from the low bits up; ``scales`` [rows, blocks]; ``zero_points`` uint8 [rows, bytes that a row of them takes].
Elements are unsigned. Without zero points they are centred on 2**(bits-1). ``block_size`` is a power of two and at least 16.
The last block of a row may be shorter.

An index of a table of higher rank, such as the matrices of experts, stands for all rows of what it looks up. The kernel
shares rows among threads; a whole matrix as one of them would keep a single thread busy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.fusion.emit import NodeEmitter
from ort_qdq_plugin.fusion.kind import Site, report_entry
from ort_qdq_plugin.fusion.lookups import Lookup, Scales, Squeezed, shape_in_rows
from ort_qdq_plugin.model.elements import ELEMENTS, FLOAT, FLOAT16, INT32, UINT8, bits_of
from ort_qdq_plugin.model.messages import made_tensor
from ort_qdq_plugin.model.operands import Conversion, Operand, Operands, Order, zeros
from ort_qdq_plugin.report.weights import FusedWeight, Reason
from ort_qdq_plugin.values import NamedTuple

__all__ = ["QuantizedLookup", "quantized_lookup"]

_MIN_BLOCK_SIZE = 16
_MATRIX = 2  # its rank

# The rows' numbers are a constant in the model itself: 64 MB of them at most.
_MAX_ROWS = 1 << 24
_MAX_NUMBER = 2**31 - 1  # of a row

# Since these opsets Slice takes where it starts and ends as inputs, and Add broadcasts.
_SLICE_INPUTS, _BROADCAST_SINCE = 10, 7


class _Rows(NamedTuple):
    """A table as a matrix [rows, columns] in whose rows the blocks lie."""

    shape: tuple[int, ...]  # the table's, with the columns last
    stack: int  # matrices that are stored transposed, one after another; 0 if rows are stored as they are
    is_swapped: bool  # whether the last two axes of the result have to be exchanged

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def of_index(self) -> int:
        """Rows that an index stands for."""
        return math.prod(self.shape[1:-1])

    @property
    def total(self) -> int:
        return self.shape[0] * self.of_index


class QuantizedLookup(NamedTuple):
    """One Gather that becomes a GatherBlockQuantized node."""

    lookup: Lookup
    rows: _Rows
    operands: Operands  # data, scales and zero_points, as far as they are needed
    block_size: int  # elements of a row that share a scale
    computed_in: int  # TensorProto.DataType of the scales and the fused node's result

    @property
    def site(self) -> Site:
        """Where in the model."""
        site, squeezed = self.lookup.site, self._squeezed
        if squeezed is None:
            return site
        scope, index = squeezed.node_ref
        return site._replace(replaced=(*site.replaced, squeezed.node_ref), output=scope.nodes[index].output[0])

    @property
    def _squeezed(self) -> Squeezed | None:
        """The Squeeze that goes before the axes are exchanged: ONNX Runtime fuses a Transpose with a product behind it."""
        return self.lookup.squeezed if self.rows.is_swapped else None

    @property
    def operator(self) -> str:
        """The type of the fused node."""
        return "GatherBlockQuantized"

    def emit(self, emitter: NodeEmitter, operands: Mapping[str, str]) -> None:
        """Gather rows, leave out the elements that fill up their last bytes, and cast them."""
        columns, bits = self.rows.columns, self.lookup.table.bits
        inputs = [operands["data"], self._numbers(emitter), operands["scales"]]
        inputs += [operands["zero_points"]] if "zero_points" in operands else []
        value = emitter.fused(
            self.operator, inputs, gather_axis=0, quantize_axis=1, block_size=self.block_size, bits=bits
        )  # fmt: skip
        if columns * bits % 8:
            value = emitter.cut(value, columns)
        if self.rows.is_swapped:
            rank = (self.lookup.indices_rank or 0) + len(self.rows.shape) - 1
            if self._squeezed is not None:
                value, rank = emitter.node("Squeeze", [value, self._squeezed.axes]), rank - self._squeezed.lost
            value = emitter.node("Transpose", [value], perm=[*range(rank - 2), rank - 1, rank - 2])
        for to in self.lookup.casts(self.computed_in):
            value = emitter.node("Cast", [value], to=to)

    def entry(self) -> FusedWeight:
        """What the report says of it."""
        return report_entry(
            self,
            k=self.rows.columns,
            n=self.rows.total,
            bits=self.lookup.table.bits,
            block_size=self.block_size,
            layout="K-major" if self.rows.stack else "N-major",
        )

    def _numbers(self, emitter: NodeEmitter) -> str:
        """The numbers of the rows to look up.

        GatherBlockQuantized gives zeros for indices out of range, without a word. Gather raises an error, and makes negative
        ones positive.
        """
        inner = self.rows.shape[1:-1]
        first = np.arange(self.rows.shape[0], dtype="<i4") * np.int32(self.rows.of_index)
        starts = made_tensor(INT32, (first.size, *(1 for _ in inner)), first.tobytes())
        numbers = emitter.node("Gather", [emitter.constant(starts, f"{self.site.name}.rows"), self.lookup.indices])
        if not inner:
            return numbers
        within = made_tensor(INT32, inner, np.arange(self.rows.of_index, dtype="<i4").tobytes())
        return emitter.node("Add", [numbers, emitter.constant(within, f"{self.site.name}.rows_of_each")])


def quantized_lookup(lookup: Lookup) -> QuantizedLookup:
    """A lookup as a GatherBlockQuantized; raises NotFusable where that operator does not take the table."""
    table, rows = lookup.table, _rows_of(lookup)
    if max(rows.shape[0], rows.of_index) > _MAX_ROWS or rows.total > _MAX_NUMBER:
        raise NotFusable(Reason.GATHER)
    columns = rows.columns
    needed = max(_SLICE_INPUTS if columns * table.bits % 8 else 0, _BROADCAST_SINCE if len(rows.shape) > _MATRIX else 0)
    if lookup.opset < needed or (rows.is_swapped and lookup.indices_rank is None):
        raise NotFusable(Reason.GATHER)
    # A scale for each row is one block that is at least as long as the row.
    row_size = max(_MIN_BLOCK_SIZE, 1 << (columns - 1).bit_length())
    # A block of another size is several of the largest power of two that divides it, each with the same scale.
    block_size = table.block & -table.block if 0 < table.block < columns else row_size
    if block_size < _MIN_BLOCK_SIZE:
        raise NotFusable(Reason.GATHER)
    # Float scales, and scales whose results are float, are too fine for float16.
    computed_in = FLOAT16 if (table.scales.data_type, table.output_type) == (FLOAT16, FLOAT16) else FLOAT
    return QuantizedLookup(lookup, rows, _operands_of(lookup, rows, block_size, computed_in), block_size, computed_in)


def _rows_of(lookup: Lookup) -> _Rows:
    """The rows that blocks lie in; raises NotFusable where blocks do not lie in rows or columns of matrices."""
    table, shape = lookup.table, lookup.table.weight.shape
    rank, stack = len(shape), math.prod(shape[:-2])
    if rank >= _MATRIX and lookup.scales is not Scales.COLUMNS and (rank == _MATRIX or table.axis in (None, rank - 1)):
        return _Rows(shape, 0, lookup.is_swapped)
    stacks = [tensor for tensor in (table.weight, table.zero_points) if tensor is not None]
    starts_on_bytes = all(tensor.elements // stack * table.bits % 8 == 0 for tensor in stacks)
    if rank <= _MATRIX or not table.block or table.axis != rank - 2 or not starts_on_bytes:
        raise NotFusable(Reason.GATHER)
    return _Rows(shape_in_rows(table), stack, not lookup.is_swapped)


def _operands_of(lookup: Lookup, rows: _Rows, block_size: int, computed_in: int) -> Operands:
    """The operands of a fused node with these blocks, whose scales are of type `computed_in`."""
    table = lookup.table
    columns, count = rows.columns, rows.total
    blocks = -(-columns // block_size)
    repeat = table.block // block_size if 0 < table.block < columns else 1
    bits, signed = table.bits, ELEMENTS[table.weight.data_type].weight == "signed"
    row_bytes, zero_bytes = -(-columns * bits // 8), -(-blocks * bits // 8)
    scale_bits, stored_type = bits_of(computed_in), table.scales.data_type
    stored, stack = (Order.TRANSPOSED, rows.stack) if rows.stack else (Order.ROWS, 1)
    order = Order.SPREAD if lookup.scales is Scales.ONE else stored
    operands = {
        "data": Operand(
            UINT8, (count, row_bytes), lines=count, length=columns, line_bytes=row_bytes, source=table.weight,
            order=stored, bits=bits, flip=signed, stack=stack,
        ),
        "scales": Operand(
            computed_in, (count, blocks), lines=count, length=blocks, line_bytes=blocks * scale_bits // 8,
            source=table.scales, order=order, bits=bits_of(stored_type), repeat=repeat, stack=stack,
            conversion=None if stored_type == computed_in else Conversion(stored_type, computed_in),
        ),
    }  # fmt: skip
    if table.zero_points is not None and not table.centred:
        operands["zero_points"] = Operand(
            UINT8, (count, zero_bytes), lines=count, length=blocks, line_bytes=zero_bytes, source=table.zero_points,
            order=order, bits=bits, flip=signed, repeat=repeat, stack=stack,
        )  # fmt: skip
    elif not table.centred:
        operands["zero_points"] = zeros(UINT8, count * zero_bytes)._replace(shape=(count, zero_bytes))
    return operands
