"""A kind of fusion as CONTRIBUTING.md has one made: x minus a dequantized weight, as x plus one with negative scales."""

from collections.abc import Mapping
from typing import NamedTuple

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.fusion.dequantize import Dequantized
from ort_qdq_plugin.fusion.emit import NodeEmitter
from ort_qdq_plugin.fusion.kind import FusionSettings, Site, report_entry
from ort_qdq_plugin.fusion.view import View
from ort_qdq_plugin.model.operands import Conversion, Operands, as_stored
from ort_qdq_plugin.model.tensors import Locate
from ort_qdq_plugin.report.weights import FusedWeight, Reason

__all__ = ["SubFusion", "fuse"]


class SubFusion(NamedTuple):
    """One Sub that becomes a DequantizeLinear and an Add."""

    site: Site
    shape: tuple[int, ...]
    operands: Operands
    other: str

    @property
    def operator(self) -> str:
        """The type of the fused node."""
        return "DequantizeLinear"

    def emit(self, emitter: NodeEmitter, operands: Mapping[str, str]) -> None:
        """Dequantize with the negative scales, and add that."""
        negative = emitter.node(self.operator, [operands["x"], operands["x_scale"]])
        emitter.node("Add", [self.other, negative])

    def entry(self) -> FusedWeight:
        """What the report says of it."""
        k, n = self.shape
        return report_entry(self, k=k, n=n, bits=8, block_size=0, layout="K-major")


def fuse(site: Site, dequantized: Dequantized, view: View, settings: FusionSettings, locate: Locate) -> SubFusion:
    """Fuse the Sub at a site, of a weight with a single scale and no zero point."""
    scope, index = site.replaced[0]
    other, subtracted = scope.nodes[index].input
    if subtracted != site.weight or other == site.weight:
        raise NotFusable(Reason.LEFT_OPERAND)
    if dequantized.axis is not None or dequantized.zero_points is not None or view != dequantized.view:
        raise NotFusable(Reason.BLOCKS_ALONG_N)
    weight, scales = dequantized.weight, dequantized.scales
    negative = as_stored(scales, scales.shape)._replace(conversion=Conversion(scales.data_type, scales.data_type, -1.0))
    return SubFusion(site, weight.shape, {"x": as_stored(weight, weight.shape), "x_scale": negative}, other)
