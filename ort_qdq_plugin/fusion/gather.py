"""DequantizeLinear -> [Cast]* -> Gather (an embedding table), as GatherBlockQuantized on the bytes as they are stored.

Format facts: ``com.microsoft.GatherBlockQuantized``: data of type int4, uint4 or uint8 (8 bits), scales with the data's
shape but one entry per block along ``quantize_axis``; without zero points 0 is taken for 4-bit data and 128 for uint8.
"""

from __future__ import annotations

from dataclasses import dataclass

from ort_qdq_plugin.fusion.dequantize import Dequantized
from ort_qdq_plugin.fusion.reason import NotFusable, Reason
from ort_qdq_plugin.fusion.view import View
from ort_qdq_plugin.model.graph import Location, attribute
from ort_qdq_plugin.model.quantized import FLOAT, FLOAT16
from ort_qdq_plugin.model.tensors import StoredTensor

__all__ = ["GatherFusion", "fuse_gather"]

_UINT8, _UINT4, _INT4 = 2, 21, 22  # TensorProto.DataType

_MIN_BLOCK_SIZE = 16


@dataclass(frozen=True)
class GatherFusion:
    """One Gather that becomes a GatherBlockQuantized node; its table stays the graph's own initializer.

    `scale_shape`: the shape that scales and zero points need, where it is not the one they have. `cast_to`: the type to cast
    the result to, where the table's own differs.
    """

    dequantize: str
    kind: str
    name: str
    replaced: tuple[Location, ...]
    dequantized: Dequantized
    block_size: int
    scale_shape: tuple[int, ...] | None
    indices: str
    output: str
    cast_to: int | None

    @property
    def operands(self) -> tuple[StoredTensor, ...]:
        """The tensors that it reads where they are stored."""
        table = self.dequantized
        return (table.weight, table.scales, *([] if table.zero_points is None else [table.zero_points]))


def fuse_gather(dequantize: str, dequantized: Dequantized, view: View, use: Location, name: str) -> GatherFusion:
    """The fusion of the Gather at `use`, which reads the table, seen as `view`, under `name`; raises NotFusable."""
    node = use[0].nodes[use[1]]
    table = dequantized.weight
    axis = attribute(node, "axis")
    if len(node.input) != 2 or not node.output or node.input[0] != name or name == node.input[1]:
        raise NotFusable(Reason.CONSUMER)
    unmoved = view.axes == dequantized.view.axes
    if not unmoved or len(table.shape) != 2 or (axis is not None and axis.i not in (0, -2)):
        raise NotFusable(Reason.GATHER)
    # uint8 without zero points means 0 to DequantizeLinear and 128 to the fused operator.
    if table.data_type not in (_UINT4, _INT4, _UINT8) or (table.data_type == _UINT8 and not dequantized.names[2]):
        raise NotFusable(Reason.GATHER)
    if dequantized.scales.data_type not in (FLOAT, FLOAT16) or view.data_type not in (FLOAT, FLOAT16):
        raise NotFusable(Reason.PRODUCT_TYPE)
    block_size, scale_shape = _blocks(dequantized)
    return GatherFusion(
        dequantize=dequantize,
        kind=node.op_type,
        name=node.name or node.output[0],
        replaced=(use,),
        dequantized=dequantized,
        block_size=block_size,
        scale_shape=scale_shape,
        indices=node.input[1],
        output=node.output[0],
        cast_to=None if view.data_type == dequantized.scales.data_type else view.data_type,
    )


def _blocks(dequantized: Dequantized) -> tuple[int, tuple[int, ...] | None]:
    """(block size along a row, shape of the scales where it has to change)."""
    rows, columns = dequantized.weight.shape
    if dequantized.axis == 0 and not dequantized.block:
        # A scale per row is one block that is at least as long as the row.
        return max(_MIN_BLOCK_SIZE, 1 << (columns - 1).bit_length()), (rows, 1)
    block = dequantized.block
    if dequantized.axis != 1 or block < _MIN_BLOCK_SIZE or block & (block - 1):
        raise NotFusable(Reason.GATHER)
    return block, None
