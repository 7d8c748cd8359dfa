"""DequantizeLinear -> [Cast]* -> Gather (an embedding table), as GatherBlockQuantized on the bytes as they are stored.

Format facts: ``com.microsoft.GatherBlockQuantized``: data of type int4, uint4 or uint8 (8 bits), scales with the data's
shape but one entry per block along ``quantize_axis``. Without zero points it takes 0 for 4-bit data and 128 for uint8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.fusion.dequantize import Dequantized
from ort_qdq_plugin.fusion.emit import NodeEmitter
from ort_qdq_plugin.fusion.kind import FusionSettings, Site, report_entry
from ort_qdq_plugin.fusion.view import View
from ort_qdq_plugin.model.elements import FLOAT, FLOAT16, INT4, UINT4, UINT8
from ort_qdq_plugin.model.messages import int_attribute
from ort_qdq_plugin.model.operands import Operands, as_stored
from ort_qdq_plugin.model.tensors import Locate
from ort_qdq_plugin.report.weights import FusedWeight, Reason

__all__ = ["GatherFusion", "fuse"]

_MIN_BLOCK_SIZE = 16


class GatherFusion(NamedTuple):
    """One Gather that becomes a GatherBlockQuantized node."""

    site: Site
    table: Dequantized  # what is dequantized, [rows, columns]
    # The table, its scales and its zero points, all of them where they are stored if they can be used there.
    operands: Operands
    block_size: int  # elements of a row that share a scale
    indices: str  # the name of the indices
    cast_to: int | None  # the type to cast the result to, if the table's own is another one

    @property
    def operator(self) -> str:
        """The type of the fused node."""
        return "GatherBlockQuantized"

    def emit(self, emitter: NodeEmitter, operands: Mapping[str, str]) -> None:
        """Gather rows, and cast them where the product wants another type."""
        inputs = [operands["data"], self.indices, operands["scales"]]
        inputs += [operands["zero_points"]] if "zero_points" in operands else []
        value = emitter.fused(
            self.operator, inputs, gather_axis=0, quantize_axis=1, block_size=self.block_size, bits=self.table.bits
        )  # fmt: skip
        if self.cast_to is not None:
            emitter.node("Cast", [value], to=self.cast_to)

    def entry(self) -> FusedWeight:
        """What the report says of it."""
        rows, columns = self.table.weight.shape
        return report_entry(self, k=columns, n=rows, bits=self.table.bits, block_size=self.block_size, layout="N-major")


def fuse(site: Site, dequantized: Dequantized, view: View, settings: FusionSettings, locate: Locate) -> GatherFusion:
    """Fuse the Gather at a site (`kind.Fuse`). None of the settings matters to it."""
    scope, index = site.replaced[0]
    node, table = scope.nodes[index], dequantized.weight
    if len(node.input) != 2 or not node.output or node.input[0] != site.weight or site.weight == node.input[1]:
        raise NotFusable(Reason.CONSUMER)
    unmoved = view.axes == dequantized.view.axes
    if not unmoved or len(table.shape) != 2 or int_attribute(node, "axis") not in (0, -2):
        raise NotFusable(Reason.GATHER)
    # uint8 without zero points means 0 to DequantizeLinear and 128 to the fused operator.
    if table.data_type not in (UINT4, INT4, UINT8) or (table.data_type == UINT8 and dequantized.zero_points is None):
        raise NotFusable(Reason.GATHER)
    if dequantized.scales.data_type not in (FLOAT, FLOAT16) or view.data_type not in (FLOAT, FLOAT16):
        raise NotFusable(Reason.PRODUCT_TYPE)
    block_size, scale_shape = _blocks(dequantized)
    operands = {"data": as_stored(table, table.shape), "scales": as_stored(dequantized.scales, scale_shape)}
    if dequantized.zero_points is not None:
        operands["zero_points"] = as_stored(dequantized.zero_points, scale_shape)
    return GatherFusion(
        site=site,
        table=dequantized,
        operands=operands,
        block_size=block_size,
        indices=node.input[1],
        cast_to=None if view.data_type == dequantized.scales.data_type else view.data_type,
    )


def _blocks(dequantized: Dequantized) -> tuple[int, tuple[int, ...]]:
    """The block size along a row, and the shape that scales must have; raises NotFusable where there are no such blocks."""
    rows, columns = dequantized.weight.shape
    if dequantized.axis == 0 and not dequantized.block:
        # A scale per row is one block that is at least as long as the row.
        return max(_MIN_BLOCK_SIZE, 1 << (columns - 1).bit_length()), (rows, 1)
    block = dequantized.block
    if dequantized.axis != 1 or block < _MIN_BLOCK_SIZE or block & (block - 1):
        raise NotFusable(Reason.GATHER)
    return block, dequantized.scales.shape
