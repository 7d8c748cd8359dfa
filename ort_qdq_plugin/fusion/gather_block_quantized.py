"""GatherBlockQuantized: the operands that a table becomes, and the nodes around it.

Format facts: ``com.microsoft.GatherBlockQuantized`` (ONNX Runtime's contrib operators): ``data`` uint8 [rows, bytes of a
row], elements from the low bits up; ``scales`` [rows, blocks]; ``zero_points`` uint8 [rows, bytes that a row of them takes].
Elements are unsigned. Without zero points they are centred on 2**(bits-1). ``block_size`` is a power of two and at least 16.
The last block of a row may be shorter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.fusion.emit import NodeEmitter
from ort_qdq_plugin.fusion.kind import Site, report_entry
from ort_qdq_plugin.fusion.lookups import Lookup, Scales
from ort_qdq_plugin.model.elements import ELEMENTS, FLOAT, FLOAT16, INT32, UINT8, bits_of
from ort_qdq_plugin.model.messages import made_tensor
from ort_qdq_plugin.model.operands import Conversion, Operand, Operands, Order, zeros
from ort_qdq_plugin.report.weights import FusedWeight, Reason

__all__ = ["QuantizedLookup", "quantized_lookup"]

_MIN_BLOCK_SIZE = 16
_MATRIX = 2  # its rank

# The rows' numbers are a constant in the model itself: 64 MB of them at most.
_MAX_ROWS = 1 << 24

# Since this opset Slice takes where it starts and ends as inputs.
_SLICE_INPUTS = 10


class QuantizedLookup(NamedTuple):
    """One Gather that becomes a GatherBlockQuantized node."""

    lookup: Lookup
    operands: Operands  # data, scales and zero_points, as far as they are needed
    block_size: int  # elements of a row that share a scale
    computed_in: int  # TensorProto.DataType of the scales and the fused node's result

    @property
    def site(self) -> Site:
        """Where in the model."""
        return self.lookup.site

    @property
    def operator(self) -> str:
        """The type of the fused node."""
        return "GatherBlockQuantized"

    def emit(self, emitter: NodeEmitter, operands: Mapping[str, str]) -> None:
        """Gather rows, leave out the elements that fill up their last bytes, and cast them."""
        table = self.lookup.table
        rows, columns = table.weight.shape
        # GatherBlockQuantized gives zeros for indices out of range, without a word. Gather raises an error, and makes
        # negative ones positive.
        numbers = made_tensor(INT32, (rows,), np.arange(rows, dtype="<i4").tobytes())
        numbers_name = emitter.constant(numbers, f"{self.site.name}.rows")
        indices = emitter.node("Gather", [numbers_name, self.lookup.indices])
        inputs = [operands["data"], indices, operands["scales"]]
        inputs += [operands["zero_points"]] if "zero_points" in operands else []
        value = emitter.fused(
            self.operator, inputs, gather_axis=0, quantize_axis=1, block_size=self.block_size, bits=table.bits
        )  # fmt: skip
        if columns * table.bits % 8:
            value = emitter.cut(value, columns)
        for to in self.lookup.casts(self.computed_in):
            value = emitter.node("Cast", [value], to=to)

    def entry(self) -> FusedWeight:
        """What the report says of it."""
        rows, columns = self.lookup.table.weight.shape
        bits = self.lookup.table.bits
        return report_entry(self, k=columns, n=rows, bits=bits, block_size=self.block_size, layout="N-major")


def quantized_lookup(lookup: Lookup) -> QuantizedLookup:
    """A lookup as a GatherBlockQuantized; raises NotFusable where that operator does not take the table."""
    table = lookup.table
    if lookup.scales is Scales.COLUMNS or len(table.weight.shape) != _MATRIX or table.weight.shape[0] > _MAX_ROWS:
        raise NotFusable(Reason.GATHER)
    columns = table.weight.shape[1]
    if columns * table.bits % 8 and lookup.opset < _SLICE_INPUTS:
        raise NotFusable(Reason.GATHER)
    # A scale for each row is one block that is at least as long as the row.
    row_size = max(_MIN_BLOCK_SIZE, 1 << (columns - 1).bit_length())
    # A block of another size is several of the largest power of two that divides it, each with the same scale.
    block_size = table.block & -table.block if lookup.scales is Scales.BLOCKS else row_size
    if block_size < _MIN_BLOCK_SIZE:
        raise NotFusable(Reason.GATHER)
    # Float scales, and scales whose results are float, are too fine for float16.
    computed_in = FLOAT16 if (table.scales.data_type, table.output_type) == (FLOAT16, FLOAT16) else FLOAT
    return QuantizedLookup(lookup, _operands_of(lookup, block_size, computed_in), block_size, computed_in)


def _operands_of(lookup: Lookup, block_size: int, computed_in: int) -> Operands:
    """The operands of a fused node with these blocks, whose scales are of type `computed_in`."""
    table = lookup.table
    rows, columns = table.weight.shape
    blocks = -(-columns // block_size)
    repeat = table.block // block_size if lookup.scales is Scales.BLOCKS else 1
    bits, signed = table.bits, ELEMENTS[table.weight.data_type].weight == "signed"
    row_bytes, zero_bytes = -(-columns * bits // 8), -(-blocks * bits // 8)
    scale_bits, stored_type = bits_of(computed_in), table.scales.data_type
    order = Order.SPREAD if lookup.scales is Scales.ONE else Order.ROWS
    operands = {
        "data": Operand(
            UINT8, (rows, row_bytes), lines=rows, length=columns, line_bytes=row_bytes, source=table.weight,
            bits=bits, flip=signed,
        ),
        "scales": Operand(
            computed_in, (rows, blocks), lines=rows, length=blocks, line_bytes=blocks * scale_bits // 8,
            source=table.scales, order=order, bits=bits_of(stored_type), repeat=repeat,
            conversion=None if stored_type == computed_in else Conversion(stored_type, computed_in),
        ),
    }  # fmt: skip
    if table.zero_points is not None and not table.centred:
        operands["zero_points"] = Operand(
            UINT8, (rows, zero_bytes), lines=rows, length=blocks, line_bytes=zero_bytes, source=table.zero_points,
            order=order, bits=bits, flip=signed, repeat=repeat,
        )  # fmt: skip
    elif not table.centred:
        operands["zero_points"] = zeros(UINT8, rows * zero_bytes)._replace(shape=(rows, zero_bytes))
    return operands
