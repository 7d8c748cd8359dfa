"""A kind of fusion as CONTRIBUTING.md has one made: PRelu with slopes of int8, as PRelu with the same slopes of uint8."""

from collections.abc import Mapping
from typing import NamedTuple

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.fusion.dequantize import Dequantized
from ort_qdq_plugin.fusion.emit import NodeEmitter
from ort_qdq_plugin.fusion.kind import FusionSettings, Site, report_entry
from ort_qdq_plugin.fusion.view import View
from ort_qdq_plugin.model.elements import INT8, UINT8
from ort_qdq_plugin.model.messages import made_tensor
from ort_qdq_plugin.model.operands import Operands, as_stored
from ort_qdq_plugin.model.tensors import Locate
from ort_qdq_plugin.report.weights import FusedWeight, Reason

__all__ = ["SlopesFusion", "fuse"]


class SlopesFusion(NamedTuple):
    """One PRelu whose slopes get another DequantizeLinear."""

    site: Site
    shape: tuple[int, ...]
    operands: Operands
    other: str

    @property
    def operator(self) -> str:
        """The type of the fused node."""
        return "DequantizeLinear"

    def emit(self, emitter: NodeEmitter, operands: Mapping[str, str]) -> None:
        """Dequantize unsigned elements, of which the middle is zero, and give them to the PRelu."""
        middle = emitter.constant(made_tensor(UINT8, (), b"\x80"), f"{self.site.name}.middle")
        unsigned = emitter.node(self.operator, [operands["x"], operands["x_scale"], middle])
        emitter.node("PRelu", [self.other, unsigned])

    def entry(self) -> FusedWeight:
        """What the report says of it."""
        k, n = self.shape
        return report_entry(self, k=k, n=n, bits=8, block_size=0, layout="K-major")


def fuse(site: Site, dequantized: Dequantized, view: View, settings: FusionSettings, locate: Locate) -> SlopesFusion:
    """Fuse the PRelu at a site, with a weight of int8 with a single scale and no zero point."""
    scope, index = site.replaced[0]
    other, slopes = scope.nodes[index].input
    if slopes != site.weight or other == site.weight:
        raise NotFusable(Reason.LEFT_OPERAND)
    if dequantized.axis is not None or dequantized.zero_points is not None or view != dequantized.view:
        raise NotFusable(Reason.BLOCKS_ALONG_N)
    weight, scales = dequantized.weight, dequantized.scales
    if weight.data_type != INT8:
        raise NotFusable(Reason.WEIGHT_TYPE)
    unsigned = as_stored(weight, weight.shape)._replace(data_type=UINT8, flip=True)
    return SlopesFusion(site, weight.shape, {"x": unsigned, "x_scale": as_stored(scales, scales.shape)}, other)
