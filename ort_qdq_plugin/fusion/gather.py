"""DequantizeLinear -> [Cast]* -> Gather (an embedding table), in the form that is fastest for such a table (`lookups`).

Where Reshapes make rows of blocks, or of groups, the table is one of such rows (`regrouped`).
"""

from __future__ import annotations

from contextlib import suppress

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.fusion.chosen import chosen_product
from ort_qdq_plugin.fusion.dequantize import Dequantized
from ort_qdq_plugin.fusion.gather_block_quantized import quantized_lookup
from ort_qdq_plugin.fusion.gathered_rows import gathered_rows
from ort_qdq_plugin.fusion.kind import Fusion, FusionSettings, Site
from ort_qdq_plugin.fusion.lookups import MAX_COPY, Form, Lookup, Squeezed, choice_for, is_small, scales_of, shape_in_rows
from ort_qdq_plugin.fusion.regrouped import merged
from ort_qdq_plugin.fusion.view import View
from ort_qdq_plugin.model.elements import FLOAT, FLOAT16
from ort_qdq_plugin.model.graph import Scope
from ort_qdq_plugin.model.messages import int_attribute
from ort_qdq_plugin.model.operands import packed_bytes
from ort_qdq_plugin.model.shapes import whole_numbers
from ort_qdq_plugin.model.tensors import Locate
from ort_qdq_plugin.report.weights import Reason

__all__ = ["fuse"]

_MATRIX = 2  # its rank
_AXES_INPUT = 13  # the opset since which the axes of Squeeze are an input


def fuse(site: Site, dequantized: Dequantized, view: View, settings: FusionSettings, locate: Locate) -> Fusion:
    """Fuse the Gather at a site (`kind.Fuse`), with the product behind it where it looks up one of a few matrices."""
    scope, index = site.replaced[0]
    dequantized, view = merged(dequantized, view)
    node, table = scope.nodes[index], dequantized.weight
    if len(node.input) != 2 or not node.output or node.input[0] != site.weight or site.weight == node.input[1]:
        raise NotFusable(Reason.CONSUMER)
    stored = dequantized.view.axes
    is_swapped = len(stored) > _MATRIX and view.axes == (*stored[:-2], stored[-1], stored[-2])
    if (view.axes != stored and not is_swapped) or int_attribute(node, "axis") not in (0, -len(table.shape)):
        raise NotFusable(Reason.GATHER)
    with suppress(NotFusable):
        return chosen_product(site, dequantized, view, settings, locate)
    types = (dequantized.scales.data_type, dequantized.output_type, view.data_type)
    if not all(data_type in (FLOAT, FLOAT16) for data_type in types):
        raise NotFusable(Reason.PRODUCT_TYPE)
    scales = scales_of(dequantized)
    choice = choice_for(dequantized, scales)
    indices = scope.stated_shape(node.input[1])
    if is_small(shape_in_rows(dequantized), choice, indices):
        raise NotFusable(Reason.SMALL_TABLE)
    lookup = Lookup(
        site=site,
        table=dequantized,
        scales=scales,
        indices=node.input[1],
        indices_rank=None if indices is None else len(indices),
        data_type=view.data_type,
        opset=scope.opset,
        is_swapped=is_swapped and view.axes != stored,
        squeezed=None if indices is None else _squeezed(scope, site.output, len(indices), locate),
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


def _squeezed(scope: Scope, output: str, indices_rank: int, locate: Locate) -> Squeezed | None:
    """The Squeeze of axes of the indices that alone reads what is looked up; None if there is none."""
    readers = scope.uses(output)
    if len(readers) != 1 or readers[0][0] is not scope or scope.is_output(output) or scope.opset < _AXES_INPUT:
        return None
    node = scope.nodes[readers[0][1]]
    if node.op_type != "Squeeze" or len(node.input) != 2 or not any(node.output):
        return None
    axes = whole_numbers(scope.constant(node.input[1]), locate)
    is_of_indices = axes is not None and all(0 <= axis < indices_rank for axis in axes)
    return Squeezed(readers[0], node.input[1], len(set(axes))) if axes and is_of_indices else None
