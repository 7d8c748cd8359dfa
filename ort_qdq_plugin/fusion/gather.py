"""DequantizeLinear -> [Cast]* -> Gather (an embedding table), in the form that is fastest for such a table (`lookups`)."""

from __future__ import annotations

from contextlib import suppress

from ort_qdq_plugin.errors import ModelError, NotFusable
from ort_qdq_plugin.fusion.dequantize import Dequantized
from ort_qdq_plugin.fusion.gather_block_quantized import quantized_lookup
from ort_qdq_plugin.fusion.gathered_rows import gathered_rows
from ort_qdq_plugin.fusion.kind import Fusion, FusionSettings, Site
from ort_qdq_plugin.fusion.lookups import MAX_COPY, Form, Lookup, Squeezed, choice_for, is_small, scales_of, shape_in_rows
from ort_qdq_plugin.fusion.view import View
from ort_qdq_plugin.model.elements import FLOAT, FLOAT16, UINT8
from ort_qdq_plugin.model.graph import Scope
from ort_qdq_plugin.model.messages import int_attribute
from ort_qdq_plugin.model.operands import packed_bytes
from ort_qdq_plugin.model.shapes import whole_numbers
from ort_qdq_plugin.model.tensors import Locate, StoredTensor
from ort_qdq_plugin.report.weights import Reason

__all__ = ["fuse"]

_MATRIX = 2  # its rank
_AXES_INPUT = 13  # the opset since which the axes of Squeeze are an input


def fuse(site: Site, dequantized: Dequantized, view: View, settings: FusionSettings, locate: Locate) -> Fusion:
    """Fuse the Gather at a site (`kind.Fuse`). None of the settings matters to it."""
    scope, index = site.replaced[0]
    node, table = scope.nodes[index], dequantized.weight
    if len(node.input) != 2 or not node.output or node.input[0] != site.weight or site.weight == node.input[1]:
        raise NotFusable(Reason.CONSUMER)
    stored = dequantized.view.axes
    is_swapped = len(stored) > _MATRIX and view.axes == (*stored[:-2], stored[-1], stored[-2])
    if (view.axes != stored and not is_swapped) or int_attribute(node, "axis") not in (0, -len(table.shape)):
        raise NotFusable(Reason.GATHER)
    types = (dequantized.scales.data_type, dequantized.output_type, view.data_type)
    if not all(data_type in (FLOAT, FLOAT16) for data_type in types):
        raise NotFusable(Reason.PRODUCT_TYPE)
    scales = scales_of(dequantized)
    choice = choice_for(dequantized, scales)
    if _is_quantized_again(scope, site.output, dequantized, locate):
        raise NotFusable(Reason.INTEGER_KERNEL)
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
