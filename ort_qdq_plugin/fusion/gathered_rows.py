"""Lookups that gather the integers of a table, as they are stored, and dequantize what was gathered.

Format facts: Gather, DequantizeLinear, Cast, Sub and Mul of the ONNX specification. DequantizeLinear is
``(x - zero point) * scale``: exact but for the product, which is rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.fusion.emit import NodeEmitter
from ort_qdq_plugin.fusion.kind import Site, report_entry
from ort_qdq_plugin.fusion.lookups import Form, Lookup, Scales
from ort_qdq_plugin.model.elements import FLOAT, bits_of
from ort_qdq_plugin.model.graph import Scope, scopes
from ort_qdq_plugin.model.operands import Conversion, Operand, Operands, as_stored
from ort_qdq_plugin.model.operators import role_of
from ort_qdq_plugin.report.weights import FusedWeight, Reason
from ort_qdq_plugin.values import NamedTuple

__all__ = ["GatheredRows", "gathered_rows"]

# The standard DequantizeLinear takes axes since opset 13, float16 scales since 19; models with blocks are of a later one.
# Operands of Sub and Mul are broadcast since opset 7.
_AXIS_SINCE, _FLOAT16_SINCE, _BROADCAST_SINCE = 13, 19, 7

_PRODUCTS = ("MatMul", "Gemm", "FusedMatMul")
# Beside views: what ONNX Runtime moves a DequantizeLinear past.
_MOVES = ("Slice", "Split", "Gather", "Concat", "MaxPool", "Pad", "Expand")


class GatheredRows(NamedTuple):
    """One Gather that becomes a Gather of integers, and nodes that dequantize what it gives."""

    lookup: Lookup
    form: Form
    operands: Operands  # data, scales and zero_points, as far as there are any; each as it is stored, but for shapes

    @property
    def site(self) -> Site:
        """Where in the model."""
        return self.lookup.site

    @property
    def operator(self) -> str:
        """The type of the node that takes the table."""
        return "Gather"

    def emit(self, emitter: NodeEmitter, operands: Mapping[str, str]) -> None:
        """Gather, dequantize, cast."""
        gathered = {name: self._gathered(emitter, name, value) for name, value in operands.items()}
        if self.form is Form.DEQUANTIZED:
            value = emitter.node("DequantizeLinear", [*gathered.values()], **self._attributes())
            computed = self.lookup.table.output_type
        else:
            value, computed = emitter.node("Cast", [gathered["data"]], to=FLOAT), FLOAT
            if "zero_points" in gathered:
                value = emitter.node("Sub", [value, emitter.node("Cast", [gathered["zero_points"]], to=FLOAT)])
            value = emitter.node("Mul", [value, gathered["scales"]])
        for to in self.lookup.casts(computed):
            value = emitter.node("Cast", [value], to=to)

    def entry(self) -> FusedWeight:
        """What the report says of it."""
        table, k = self.lookup.table, self.lookup.row_length
        block_size = {Scales.BLOCKS: table.block, Scales.COLUMNS: 1}.get(self.lookup.scales, k)
        rows = table.weight.shape[0]
        return report_entry(self, k=k, n=rows, bits=table.bits, block_size=block_size, layout="N-major")

    def _gathered(self, emitter: NodeEmitter, name: str, value: str) -> str:
        """The operand's entries for the indices; the operand itself if they are the same for all of them."""
        if name != "data" and self.lookup.scales in (Scales.ONE, Scales.COLUMNS):
            return value
        return emitter.node("Gather", [value, self.lookup.indices])

    def _attributes(self) -> dict[str, int]:
        """DequantizeLinear's attributes."""
        table = self.lookup.table
        attributes = {}
        if self.lookup.scales is Scales.ROWS:
            attributes["axis"] = 0  # the only one of the indices
        elif table.axis is not None:
            # From the end: how many axes the indices have is not known.
            attributes["axis"] = table.axis - len(table.weight.shape)
        if table.block:
            attributes["block_size"] = table.block
        if table.output_type != table.scales.data_type:
            attributes["output_dtype"] = table.output_type
        return attributes


def gathered_rows(lookup: Lookup, form: Form) -> GatheredRows:
    """A lookup in this form; raises NotFusable where that does not take the table."""
    taken = _dequantizes(lookup) if form is Form.DEQUANTIZED else _multiplies(lookup, form)
    if lookup.table.bits != 8 or lookup.is_swapped or not taken:
        raise NotFusable(Reason.GATHER)
    return GatheredRows(lookup, form, _operands_of(lookup, form))


def _dequantizes(lookup: Lookup) -> bool:
    """Whether there is such a DequantizeLinear, and ONNX Runtime leaves it alone."""
    table = lookup.table
    needed = 0 if lookup.scales is Scales.ONE else _AXIS_SINCE
    if lookup.opset < (needed if table.scales.data_type == FLOAT else _FLOAT16_SINCE):
        return False
    if lookup.scales is Scales.ROWS and (lookup.indices_rank != 1 or table.block):
        return False
    scope, _ = lookup.site.replaced[0]
    return not _meets_integer_kernels(scope, lookup.site.output)


def _multiplies(lookup: Lookup, form: Form) -> bool:
    """Whether scales and zero points can be broadcast, and there are zero points where the form has them."""
    fits = lookup.scales is not Scales.BLOCKS and lookup.opset >= _BROADCAST_SINCE
    return fits and (form is Form.SHIFTED) == lookup.has_zero_points


def _operands_of(lookup: Lookup, form: Form) -> Operands:
    table = lookup.table
    operands = {"data": as_stored(table.weight, table.weight.shape)}
    zero_points = {"zero_points": table.zero_points} if lookup.has_zero_points else {}
    for name, tensor in {"scales": table.scales, **zero_points}.items():
        if tensor is None:
            continue
        as_broadcast = form is not Form.DEQUANTIZED or lookup.scales is Scales.ONE
        shape = _broadcast_shape(lookup) if as_broadcast else tensor.shape
        operands[name] = as_stored(tensor, shape)
        if form is not Form.DEQUANTIZED and name == "scales" and tensor.data_type != FLOAT:
            operands[name] = _as_floats(operands[name])
    return operands


def _broadcast_shape(lookup: Lookup) -> tuple[int, ...]:
    """The shape in which scales and zero points meet what was gathered, aligned with its last axes."""
    shape = lookup.table.weight.shape
    if lookup.scales is Scales.ONE:
        return ()
    if lookup.scales is Scales.ROWS:
        return (shape[0], *(1 for _ in shape[1:]))
    axis = lookup.table.axis or 0
    return (shape[axis], *(1 for _ in shape[axis + 1 :]))


def _as_floats(stored: Operand) -> Operand:
    """Scales as floats, which all of them are in any type."""
    target = bits_of(FLOAT) // 8
    return stored._replace(
        data_type=FLOAT,
        line_bytes=stored.length * target,
        conversion=Conversion(stored.data_type, FLOAT),
    )


def _meets_integer_kernels(scope: Scope, name: str) -> bool:
    """Whether ONNX Runtime may make an integer kernel of what reads a value, if that came from a DequantizeLinear.

    It would, without asking whether the scales are those that the kernel takes: products of two dequantized values, and
    nodes between DequantizeLinear and QuantizeLinear.
    """
    if any(node.op_type == "QuantizeLinear" for inner in scopes(scope.root) for node in inner.nodes):
        return True
    waiting, seen = [(scope, name)], set()
    while waiting:
        where, value = waiting.pop()
        if (where.definer(value), value) in seen:
            continue
        seen.add((where.definer(value), value))
        for inner, index in where.uses(value):
            node = inner.nodes[index]
            if node.op_type in _PRODUCTS:
                return True
            if role_of(node) == "view" or node.op_type in _MOVES:
                waiting += [(inner, output) for output in node.output if output]
    return False
