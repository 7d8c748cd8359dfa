"""DequantizeLinear -> [Cast]* -> Gather (an embedding table), in the form that is fastest for such a table (`lookups`)."""

from __future__ import annotations

from contextlib import suppress

from ort_qdq_plugin.errors import ModelError, NotFusable
from ort_qdq_plugin.fusion.dequantize import Dequantized
from ort_qdq_plugin.fusion.gather_block_quantized import quantized_lookup
from ort_qdq_plugin.fusion.gathered_rows import gathered_rows
from ort_qdq_plugin.fusion.kind import Fusion, FusionSettings, Site
from ort_qdq_plugin.fusion.lookups import MAX_COPY, Form, Lookup, choice_for, is_small, scales_of
from ort_qdq_plugin.fusion.view import View
from ort_qdq_plugin.model.elements import FLOAT, FLOAT16, UINT8
from ort_qdq_plugin.model.graph import Scope
from ort_qdq_plugin.model.messages import int_attribute
from ort_qdq_plugin.model.operands import packed_bytes
from ort_qdq_plugin.model.tensors import Locate, StoredTensor
from ort_qdq_plugin.report.weights import Reason

__all__ = ["fuse"]


def fuse(site: Site, dequantized: Dequantized, view: View, settings: FusionSettings, locate: Locate) -> Fusion:
    """Fuse the Gather at a site (`kind.Fuse`). None of the settings matters to it."""
    scope, index = site.replaced[0]
    node, table = scope.nodes[index], dequantized.weight
    if len(node.input) != 2 or not node.output or node.input[0] != site.weight or site.weight == node.input[1]:
        raise NotFusable(Reason.CONSUMER)
    unmoved = view.axes == dequantized.view.axes
    if not unmoved or int_attribute(node, "axis") not in (0, -len(table.shape)):
        raise NotFusable(Reason.GATHER)
    types = (dequantized.scales.data_type, dequantized.output_type, view.data_type)
    if not all(data_type in (FLOAT, FLOAT16) for data_type in types):
        raise NotFusable(Reason.PRODUCT_TYPE)
    scales = scales_of(dequantized)
    choice = choice_for(dequantized, scales)
    if _is_quantized_again(scope, site.output, dequantized, locate):
        raise NotFusable(Reason.INTEGER_KERNEL)
    indices = scope.stated_shape(node.input[1])
    if is_small(table.shape, choice, indices):
        raise NotFusable(Reason.SMALL_TABLE)
    lookup = Lookup(
        site=site,
        table=dequantized,
        scales=scales,
        indices=node.input[1],
        indices_rank=None if indices is None else len(indices),
        data_type=view.data_type,
        opset=scope.opset,
    )
    return _first_of(lookup, choice.forms)


def _first_of(lookup: Lookup, forms: tuple[Form, ...]) -> Fusion:
    """The lookup in the first of these forms that takes it without copying much; raises NotFusable if none takes it."""
    taking: list[Fusion] = []
    for form in forms:
        with suppress(NotFusable):
            fusion = quantized_lookup(lookup) if form is Form.QUANTIZED else gathered_rows(lookup, form)
            if packed_bytes([fusion.operands["data"]]) <= MAX_COPY:
                return fusion
            taking.append(fusion)
    if not taking:
        raise NotFusable(Reason.GATHER)
    return taking[0]


def _is_quantized_again(scope: Scope, output: str, table: Dequantized, locate: Locate) -> bool:
    """Whether all that reads the rows makes the same bytes of them again: ONNX Runtime then gathers those itself."""
    readers = scope.uses(output)
    if table.axis is not None or table.weight.data_type != UINT8 or not readers or scope.is_output(output):
        return False
    wanted = [table.scales, table.zero_points]
    for inner, index in readers:
        node = inner.nodes[index]
        if node.op_type != "QuantizeLinear" or len(node.input) < 2:
            return False
        try:
            given = [None if tensor is None else locate(tensor) for tensor in map(inner.constant, node.input[1:])]
            if not all(map(_same, wanted, [*given, None][: len(wanted)])):
                return False
        except (ModelError, OSError):
            return False
    return True


def _same(one: StoredTensor | None, two: StoredTensor | None) -> bool:
    """Whether two scalars are the same number of the same type."""
    if one is None or two is None:
        return one is two
    return (one.data_type, one.nbytes) == (two.data_type, two.nbytes) and one.read().tobytes() == two.read().tobytes()
