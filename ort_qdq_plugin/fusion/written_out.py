"""Dequantizing written out: ``(Cast(integers) - zero points) * scales`` by Cast, Sub and Mul in place of a DequantizeLinear.

torchao, HQQ, the ONNX export of PyTorch and hand-made models have it, with Reshapes and Transposes between for blocks. The
last step is a Mul where one operand is made of stored integers and the other is constant. Where the scales stand behind the
product, it is the Cast or the Sub that the product reads, and there is one scale, which is 1. It becomes what a
DequantizeLinear is (`Dequantized`), and all that follows takes it as one: the integers as weight, axis and blocks as the
operands broadcast.

That is exact. The integers have at most 8 bits, so that they and their differences are numbers of float and float16, and the
product is rounded once, as DequantizeLinear rounds it.

ONNX Runtime folds such nodes into a weight in float when it loads a model. What is left to it costs no time on a run, but
takes the memory of the floats.

Format facts: Cast, Sub and Mul of the ONNX specification, and its multidirectional broadcasting.
"""

from __future__ import annotations

import math

import numpy as np

from ort_qdq_plugin.errors import ModelError, NotFusable
from ort_qdq_plugin.folding.arithmetic import cast
from ort_qdq_plugin.folding.building import elementwise, inverse, reshaped, transposed, unordered
from ort_qdq_plugin.folding.computed import as_tensor
from ort_qdq_plugin.folding.elements import elements_of
from ort_qdq_plugin.folding.expression import Elementwise, Expression, Transposed, key_of
from ort_qdq_plugin.fusion.casts import FLOATS, core_of, is_exact_cast
from ort_qdq_plugin.fusion.centred import Centred
from ort_qdq_plugin.fusion.constants import Constants
from ort_qdq_plugin.fusion.dequantize import Dequantized
from ort_qdq_plugin.fusion.factors import constant
from ort_qdq_plugin.fusion.forms import form_of
from ort_qdq_plugin.fusion.kind import Fusion, FusionSettings
from ort_qdq_plugin.fusion.matmul_nbits import ROUNDS
from ort_qdq_plugin.fusion.steps import (
    MAX_STEPS,
    Readers,
    elements_in,
    integers_at,
    stored_integers,
    what_reads,
)
from ort_qdq_plugin.fusion.view import View, view_of
from ort_qdq_plugin.model.elements import ELEMENTS, FLOAT, FLOAT16, WEIGHT_TYPES, bits_of
from ort_qdq_plugin.model.graph import Scope
from ort_qdq_plugin.model.messages import NodeProto, TensorProto, text
from ort_qdq_plugin.model.tensors import StoredTensor
from ort_qdq_plugin.report.weights import Reason, UnfusedWeight
from ort_qdq_plugin.values import NamedTuple

__all__ = ["WrittenOut"]

_UNSCALED = ("Cast", "Sub")  # of the last steps, those that make what has no scale
_BROADCAST_SINCE = 7  # the opset

# MatMulNBits takes zero points that are fractions for 4 bits alone, and dequantizes all in every run then: 26 to 50 times
# slower for a row than a product in float. So they have to be integers, which is seen by reading them at matching, some at
# a time, up to a limit for a model.
_PIECE, _MAX_READ_BYTES = 1 << 18, 1 << 30

# At accuracy levels below ROUNDS the kernel for 8 bits dequantizes all in every run: 1.2 to 42 times slower than the product
# with the floats that ONNX Runtime makes at load. At that level it is 1.1 to 2.5 times faster (1 to 512 rows, 0.6 to 4 Mi
# elements).
_SLOW_BITS = 8


class _Parts(NamedTuple):
    """What is written out, as constant expressions, the others of shapes that broadcast to that of the integers."""

    integers: Expression
    zero_points: Expression | None
    scales: Expression
    perm: tuple[int, ...]  # the Transpose of the product of all, which is the result


class WrittenOut:
    """Finds and reads what is written out, for one model."""

    def __init__(self, constants: Constants) -> None:
        self._constants = constants
        self._left = _MAX_READ_BYTES
        self._known: dict[tuple[object, ...], bool | None] = {}
        self._readers: dict[tuple[Scope, str], Readers] = {}  # values may have thousands of them

    def ends_at(self, scope: Scope, node: NodeProto) -> bool:
        """Whether a node is the last step of such a weight, or of one in other steps, and something reads it as a weight.

        It is one that `may_end_steps`.
        """
        if len(node.output) != 1:
            return False
        if len(node.input) > 1 and scope.opset < _BROADCAST_SINCE:
            return False
        if not self._is_read_as_weight(scope, node.output[0]):
            return False
        return all(self._constants.is_constant(scope, name) for name in node.input) and self._makes_floats(scope, node)

    def read(self, scope: Scope, node: NodeProto, is_centred: Centred) -> tuple[Dequantized, View]:
        """What a last step dequantizes, and how its output shows that.

        Raises:
            NotFusable: No DequantizeLinear does the same.
        """
        try:
            return self._read(scope, node, is_centred)
        except (ModelError, OSError) as error:
            raise NotFusable(Reason.INVALID) from error

    @staticmethod
    def integers(scope: Scope, node: NodeProto) -> TensorProto:
        """The stored integers that a last step dequantizes: the most elements, if there are several."""
        stored = [stored_integers(scope, name, node) for name in node.input]
        return max((one for one in stored if one is not None), key=elements_in)

    def entry(self, scope: Scope, node: NodeProto, reason: Reason, read: Dequantized | None) -> UnfusedWeight:
        """What the report says of a last step that stays. `read`: its operands, if they could be read."""
        tensor = self.integers(scope, node)
        shape = tuple(tensor.dims) if read is None else read.weight.shape
        floats = bits_of(FLOAT if read is None else read.output_type) // 8 * elements_in(tensor)
        operands = [] if read is None else [one.nbytes for one in read.tensors]
        return UnfusedWeight(
            dequantize=text(node.name or node.output[0]),
            weight=text(tensor.name),
            reason=reason,
            shape=shape,
            bits=bits_of(tensor.data_type if read is None else read.weight.data_type),
            block_size=0 if read is None else read.block,
            stored_bytes=sum(operands) or (elements_in(tensor) * bits_of(tensor.data_type) + 7) // 8,
            bytes_per_run=0,
            bytes_folded=floats,
            form=form_of(scope, node, read),
        )

    @staticmethod
    def check_faster(fusion: Fusion, settings: FusionSettings) -> None:
        """Raise NotFusable where a fused product is slower than one with the floats that ONNX Runtime makes at load."""
        is_slow = fusion.operator == "MatMulNBits" and fusion.entry().bits == _SLOW_BITS and settings.accuracy_level < ROUNDS
        if is_slow:
            raise NotFusable(Reason.SLOWER_THAN_FLOAT)

    def _read(self, scope: Scope, node: NodeProto, is_centred: Centred) -> tuple[Dequantized, View]:
        integers, zero_points, scales, order = self._parts(scope, node)
        if scales.data_type not in (FLOAT, FLOAT16):
            raise NotFusable(Reason.SCALE_TYPE)
        if zero_points is not None:
            zero_points = self._as_integers(zero_points, integers.data_type)
        shape = integers.shape
        granularity = _broadcast([scales.shape, () if zero_points is None else zero_points.shape], shape)
        axis, block = _axis_and_block(shape, granularity)
        of_scales = granularity if block else () if axis is None else (granularity[axis],)
        # A transposed weight stays as it is stored: its reader sees a view.
        perm = tuple(range(len(shape)))
        while isinstance(integers, Transposed):
            perm, integers = tuple(integers.perm[at] for at in perm), integers.source
        back = inverse(perm)

        def operand(expression: Expression, what: str) -> StoredTensor:
            value = _spread(expression, granularity)
            value = transposed(value, back) if block else reshaped(value, of_scales)
            return as_tensor(value, f"{what} of {node.output[0]!r}")

        weight = as_tensor(integers, f"integers of {node.output[0]!r}")
        zeros = None if zero_points is None else operand(zero_points, "zero points")
        dequantized = Dequantized(
            weight=weight,
            scales=operand(scales, "scales"),
            zero_points=zeros,
            centred=is_centred(weight.data_type, zeros),
            axis=None if axis is None else perm[axis],
            block=block,
            output_type=scales.data_type,
        )
        return dequantized, view_of(weight.shape, scales.data_type).transposed(perm).transposed(order)

    def _makes_floats(self, scope: Scope, node: NodeProto) -> bool:
        """Whether a Cast or Sub makes floats, and a Cast makes them of integers; as far as is known."""
        if node.op_type not in _UNSCALED:
            return True
        source, result = (self._constants.outline(scope, name) for name in (node.input[0], node.output[0]))
        is_of_floats = node.op_type == "Cast" and source is not None and source.data_type in FLOATS
        return not is_of_floats and (result is None or result.data_type in FLOATS)

    def _is_read_as_weight(self, scope: Scope, name: str) -> bool:
        """Whether a value goes into a product, a lookup or the like, maybe through views or in parts."""
        waiting = [(scope, name)]
        for _ in range(MAX_STEPS):
            if not waiting:
                return False
            value = waiting.pop()
            if value not in self._readers:
                self._readers[value] = what_reads(*value)
            is_read, after = self._readers[value]
            if is_read:
                return True
            waiting += after
        return False

    def _parts(self, scope: Scope, node: NodeProto) -> _Parts:
        """The operands of the last step."""
        result, perm = unordered(self._constants.expression(scope, node.output[0]))
        if node.op_type in _UNSCALED:
            # What is read has no scale. One that stands behind the product is left there.
            value, scales = result, constant(1, result.data_type, ())
        elif isinstance(result, Elementwise) and result.name == "Mul":
            at = integers_at(scope, node) or 0
            value, scales = result.operands[at], result.operands[1 - at]
        else:
            raise NotFusable(Reason.OTHER_STEPS)
        value, zero_points = _undone(value)
        integers = core_of(value)
        if integers.data_type not in WEIGHT_TYPES:
            raise NotFusable(Reason.OTHER_STEPS)
        return _Parts(integers, zero_points, scales, perm)

    def _as_integers(self, zero_points: Expression, data_type: int) -> Expression | None:
        """Zero points in the type of the integers; None where all are 0. Those that were cast to another type are not read.

        Raises:
            NotFusable: They are no integers of this type.
        """
        core = core_of(zero_points)
        if core.data_type == data_type:
            return core
        key = (data_type, key_of(zero_points))
        if key not in self._known:
            self._known[key] = self._are_integers(as_tensor(zero_points, "zero points"), data_type)
        known = self._known[key]
        if known is None:
            raise NotFusable(Reason.FRACTIONAL)
        if not known:
            return None
        convert = cast(zero_points.data_type, data_type)
        return elementwise(f"Cast {data_type}", convert, [zero_points], data_type)

    def _are_integers(self, zero_points: StoredTensor, data_type: int) -> bool | None:
        """Whether zero points are integers of this type other than 0; None if not all of them are integers of it."""
        element = ELEMENTS[data_type]
        low = -(1 << element.bits - 1) if element.weight == "signed" else 0
        high = low + (1 << element.bits) - 1
        any_is_set = False
        for first in range(0, zero_points.elements, _PIECE):
            count = min(_PIECE, zero_points.elements - first)
            self._left -= count * ELEMENTS[zero_points.data_type].bits // 8
            if self._left < 0:
                raise NotFusable(Reason.COMPUTED)
            values = elements_of(zero_points, first, count)
            # A number that is none compares as unequal to itself.
            if not ((values == np.trunc(values)) & (values >= low) & (values <= high)).all():
                return None
            any_is_set |= bool(values.any())
        return any_is_set


def _undone(value: Expression) -> tuple[Expression, Expression | None]:
    """The minuend and the zero points that are subtracted from it, if there are any, of what has no scale."""
    inner = value
    while isinstance(inner, Elementwise) and is_exact_cast(inner):
        inner = inner.operands[0]
    if not (isinstance(inner, Elementwise) and inner.name == "Sub"):
        return value, None
    minuend, zero_points = inner.operands
    if minuend.shape != inner.shape:
        raise NotFusable(Reason.SCALE_SHAPE)
    return minuend, zero_points


def _broadcast(shapes: list[tuple[int, ...]], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that operands have together, with as many axes as the integers; NotFusable if these are broadcast, too."""
    try:
        together = np.broadcast_shapes(*shapes, (1,) * len(shape))
    except ValueError:
        raise NotFusable(Reason.INVALID) from None
    if len(together) != len(shape) or any(size not in (1, whole) for size, whole in zip(together, shape, strict=True)):
        raise NotFusable(Reason.SCALE_SHAPE)
    return together


def _axis_and_block(shape: tuple[int, ...], granularity: tuple[int, ...]) -> tuple[int | None, int]:
    """The axis along which scales differ or blocks lie, and the block size, as a DequantizeLinear would have them."""
    differing = [axis for axis, size in enumerate(granularity) if size > 1]
    sharing = [axis for axis, size in enumerate(granularity) if size == 1 and shape[axis] > 1]
    if not differing:
        return None, 0
    if len(differing) == 1:
        return differing[0], 0
    if len(sharing) != 1:
        raise NotFusable(Reason.SCALE_SHAPE)
    return sharing[0], shape[sharing[0]]


def _spread(expression: Expression, shape: tuple[int, ...]) -> Expression:
    """Scales or zero points in this shape, to which they broadcast."""
    if math.prod(expression.shape) == math.prod(shape):
        return reshaped(expression, shape)
    return Elementwise("Expand", _unchanged, (expression,), expression.data_type, shape)


def _unchanged(values: np.ndarray) -> np.ndarray:
    return values
