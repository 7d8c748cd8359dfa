"""Reading a DequantizeLinear node: its operands, checked against each other."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING

from ort_qdq_plugin.errors import ModelError, NotComputedError, NotFusable
from ort_qdq_plugin.fusion.centred import Centred
from ort_qdq_plugin.fusion.constants import Constants
from ort_qdq_plugin.fusion.validity import schema_at
from ort_qdq_plugin.fusion.view import View, view_of
from ort_qdq_plugin.model.elements import DEQUANTIZED_TYPES, ELEMENTS, SCALE_TYPES
from ort_qdq_plugin.model.graph import Scope
from ort_qdq_plugin.model.messages import NodeProto, TensorProto, int_attribute, text
from ort_qdq_plugin.model.operators import operator_of, role_of
from ort_qdq_plugin.model.tensors import StoredTensor, shape_of
from ort_qdq_plugin.report.weights import Reason
from ort_qdq_plugin.system.forks import fork_lock
from ort_qdq_plugin.values import NamedTuple

if TYPE_CHECKING:
    from ort_qdq_plugin.folding.expression import Expression

__all__ = [
    "Dequantized",
    "QuantizedMatrix",
    "Seen",
    "has_constant_weight",
    "is_dequantize",
    "read_dequantize",
]

# Shapes of a single scale or zero point. ONNX Runtime takes either for either.
_SINGLE = ((), (1,))

# DequantizeLinear's default axis, in the ONNX specification since version 13 and in ONNX Runtime's contrib operators.
_DEFAULT_AXIS = 1


class QuantizedMatrix(NamedTuple):
    """The constant operands of one dequantized product ``A[.., K] x W[K, N]``.

    Format facts: DequantizeLinear-21, -23 and -25 of the ONNX specification (``axis``, ``block_size``, ranks of the scales).
    """

    weight: StoredTensor  # the quantized elements, stored [K, N] if `k_major`, else [N, K]
    # One for each block and column, [ceil(K/block), N] or [N, ceil(K/block)] like the weight. Without blocks there are N of
    # them, one for each column, or a single one.
    scales: StoredTensor
    # As many as scales, of the weight's type. None: none are needed (`centred`), or all are 0.
    zero_points: StoredTensor | None
    centred: bool  # all zero points are what MatMulNBits takes by itself: 2**(bits-1), once the elements are unsigned
    k: int  # rows, as the product sees the weight
    n: int  # columns
    k_major: bool  # whether the weight is stored [K, N]
    block: int  # elements along K that share a scale; 0 if all of a column do
    # What each row is multiplied by besides, floats [K]: the activation has to be. None: nothing.
    rows: StoredTensor | None = None

    @property
    def bits(self) -> int:
        """Bits of an element: 2, 4 or 8."""
        return ELEMENTS[self.weight.data_type].bits

    @property
    def signed(self) -> bool:
        """Whether elements are two's complement."""
        return ELEMENTS[self.weight.data_type].weight == "signed"


class Dequantized(NamedTuple):
    """The operands of one DequantizeLinear."""

    weight: StoredTensor  # the quantized tensor
    scales: StoredTensor
    # its zero points, of the weight's type and the scales' shape (but for () and (1,)); None if the node has none.
    zero_points: StoredTensor | None
    # Whether the zero points, given or not, are those that MatMulNBits takes by itself; of types that it does not take: 0.
    centred: bool
    axis: int | None  # the axis along which scales differ or blocks lie; None if there is a single scale
    block: int  # elements along the axis that share a scale; 0: every index has its own
    output_type: int  # the TensorProto.DataType of the result
    # What the values are multiplied by besides: each of float, and of shapes that broadcast to the weight's without another
    # axis. A kind of fusion is only given such a weight if it says so (`kind`).
    factors: tuple[Expression, ...] = ()

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The weight, its scales, and its zero points if there are any."""
        return (self.weight, self.scales) if self.zero_points is None else (self.weight, self.scales, self.zero_points)

    @property
    def bits(self) -> int:
        """Bits of an element: 2, 4 or 8."""
        return ELEMENTS[self.weight.data_type].bits

    @property
    def has_blocks(self) -> bool:
        """Whether there are several blocks along the axis. ONNX Runtime's integer kernels would take each for a column."""
        return self.axis is not None and 0 < self.block < self.weight.shape[self.axis]

    @property
    def view(self) -> View:
        """The dequantized tensor as it is stored."""
        return view_of(self.weight.shape, self.output_type)

    def matrix(self, view: View, transposed: bool, rows_may_differ: bool = False) -> QuantizedMatrix:
        """The right operand W[K, N] of a product that reads the weight as `view`, or as the transpose of that.

        Args:
            view: How the product sees the weight.
            transposed: Whether it takes the transpose of what it sees.
            rows_may_differ: Whether each row may be multiplied by a number of its own (`QuantizedMatrix.rows`).

        Raises:
            NotFusable: This is no matrix with blocks along K.
        """
        if len(view.axes) < 2:
            raise NotFusable(Reason.RANK)
        if any(view.axes[:-2]):
            raise NotFusable(Reason.BATCHED)
        k_axes, n_axes = view.axes[-2:]
        if transposed:
            k_axes, n_axes = n_axes, k_axes
        stored, perm = self._as_stored()
        if perm is not None:
            with suppress(NotFusable):
                k_stored, n_stored = (tuple(perm[axis] for axis in axes) for axes in (k_axes, n_axes))
                return stored._matrix(k_stored, n_stored, rows_may_differ)
        return self._matrix(k_axes, n_axes, rows_may_differ)

    def _as_stored(self) -> tuple[Dequantized, tuple[int, ...] | None]:
        """The same without a Transpose that computes the weight: its axis i is axis perm[i] then. None: there is none."""
        if self.weight.source.is_stored:
            return self, None
        with fork_lock:
            from ort_qdq_plugin.folding.building import inverse, transposed, unordered
            from ort_qdq_plugin.folding.computed import as_expression, as_tensor
        weight, perm = unordered(as_expression(self.weight))
        if perm == tuple(range(len(perm))):
            return self, None

        def turned(tensor: StoredTensor) -> StoredTensor:
            is_vector = len(tensor.shape) < len(perm)
            return tensor if is_vector else as_tensor(transposed(as_expression(tensor), inverse(perm)), tensor.name)

        return self._replace(
            weight=as_tensor(weight, self.weight.name),
            scales=turned(self.scales),
            zero_points=None if self.zero_points is None else turned(self.zero_points),
            axis=None if self.axis is None else perm[self.axis],
            factors=tuple(transposed(factor, inverse(perm)) for factor in self.factors),
        ), perm

    def _matrix(self, k_axes: tuple[int, ...], n_axes: tuple[int, ...], rows_may_differ: bool) -> QuantizedMatrix:
        """The matrix with these of the weight's axes as K and N; raises NotFusable."""
        k_major = list(k_axes + n_axes) == sorted(k_axes + n_axes)
        if not k_major and list(n_axes + k_axes) != sorted(n_axes + k_axes):
            raise NotFusable(Reason.INTERLEAVED)
        k, n = (math.prod(self.weight.shape[axis] for axis in axes) for axes in (k_axes, n_axes))
        scales, zero_points, rows = self.scales, self.zero_points, None
        block = self._block_along(k_axes, n_axes)
        if block is None or self.factors:
            with fork_lock:
                from ort_qdq_plugin.folding.computed import as_tensor
                from ort_qdq_plugin.fusion.scaling import Scaled, Scaling, scaling_of
            given = Scaling(scales, zero_points, -1 if block is None else block)
            matrix = Scaled(self.weight.shape, k_axes, n_axes, k, n, k_major)
            scales, zero_points, block, of_rows = scaling_of(given, self.axis, self.centred, self.factors, matrix)
            if of_rows is not None and not rows_may_differ:
                raise NotFusable(Reason.FACTOR if self.factors else Reason.BLOCKS_ALONG_N)
            rows = None if of_rows is None else as_tensor(of_rows, self.scales.name)
        return QuantizedMatrix(
            weight=self.weight,
            scales=scales,
            zero_points=None if self.centred else zero_points,
            centred=self.centred,
            k=k,
            n=n,
            k_major=k_major,
            block=block,
            rows=rows,
        )

    def _block_along(self, k_axes: tuple[int, ...], n_axes: tuple[int, ...]) -> int | None:
        """Elements along K that share a scale; 0 where all of a column do. None where the scales are of no such form."""
        if self.axis is None or (not self.block and n_axes == (self.axis,)):
            return 0
        size = self.weight.shape[self.axis]
        if self.block and k_axes[-1:] == (self.axis,):
            if len(k_axes) > 1 and self.block < size and size % self.block:
                raise NotFusable(Reason.BLOCK_SIZE)
            return self.block if len(k_axes) == 1 else min(self.block, size)
        if self.has_blocks:
            raise NotFusable(Reason.BLOCKS_ALONG_N)
        return None


class Seen(NamedTuple):
    """A value: what is dequantized, and how that looks to those who read the value."""

    dequantized: Dequantized
    view: View
    nodes: int = 0  # how many nodes made other operands of those that a DequantizeLinear has


def is_dequantize(node: NodeProto) -> bool:
    """Whether `node` is a DequantizeLinear."""
    return role_of(node) == "dequantize"


def has_constant_weight(scope: Scope, node: NodeProto, constants: Constants) -> bool:
    """Whether `node` dequantizes a tensor that the model itself holds, or computes from nothing else."""
    return len(node.input) >= 2 and constants.is_constant(scope, node.input[0])


def read_dequantize(scope: Scope, node: NodeProto, constants: Constants, is_centred: Centred) -> Dequantized:
    """Read the operands of a DequantizeLinear and check them against each other.

    Raises:
        NotFusable: They are not constant, not of known types, or do not fit together.
    """
    names = [name for name in node.input if name]
    if len(node.input) > 3:
        raise NotFusable(Reason.INVALID)
    if any(scope.is_overridable(name) for name in names):
        raise NotFusable(Reason.OVERRIDABLE)
    operands = [_operand(scope, name, constants) for name in names]
    types = [operand.data_type for operand in operands]
    if types[0] not in DEQUANTIZED_TYPES:
        raise NotFusable(Reason.WEIGHT_TYPE)
    if types[1] not in SCALE_TYPES:
        raise NotFusable(Reason.SCALE_TYPE)
    try:
        shapes = [shape_of(operand) if isinstance(operand, TensorProto) else operand.shape for operand in operands]
    except ModelError as error:
        raise NotFusable(Reason.INVALID) from error
    output_type = int_attribute(node, "output_dtype") or types[1]
    if output_type not in SCALE_TYPES or types[2:] not in ([], types[:1]):
        raise NotFusable(Reason.INVALID)
    axis, block = int_attribute(node, "axis", _DEFAULT_AXIS), int_attribute(node, "block_size")
    scale_axis, block = _granularity(shapes[0], shapes[1], axis, block)
    # A single scale and its zero point may be a scalar and a vector, in whichever order.
    if shapes[2:] and shapes[2] != shapes[1] and (scale_axis is not None or shapes[2] not in _SINGLE):
        raise NotFusable(Reason.INVALID)
    try:
        located = [
            constants.locate(operand) if isinstance(operand, TensorProto) else _as_tensor(operand, text(name))
            for name, operand in zip(names, operands, strict=True)
        ]
        zero_points = located[2] if len(located) == 3 else None
        centred = is_centred(types[0], zero_points)
    except NotComputedError as error:
        raise NotFusable(Reason.COMPUTED) from error
    except (ModelError, OSError) as error:
        raise NotFusable(Reason.INVALID) from error
    # Where all operands are stored, those who look at the node see it.
    operator = operator_of(node)
    schema = None if operator is None else schema_at(operator, scope.opset)
    has_types = schema is None or all(one in allowed for one, allowed in zip(types, schema.types, strict=False))
    is_as_stated = all(scope.stated_type(output) in (None, output_type) for output in node.output)
    if not (has_types and is_as_stated) and not all(isinstance(operand, TensorProto) for operand in operands):
        raise NotFusable(Reason.OPSET)
    return Dequantized(
        weight=located[0],
        scales=located[1],
        zero_points=zero_points,
        centred=centred,
        axis=scale_axis,
        block=block,
        output_type=output_type,
    )


def _as_tensor(expression: Expression, name: str) -> StoredTensor:
    with fork_lock:
        from ort_qdq_plugin.folding.computed import as_tensor
    return as_tensor(expression, name)


def _operand(scope: Scope, name: str, constants: Constants) -> TensorProto | Expression:
    """An operand that the model stores or computes; raises NotFusable for others."""
    stored = scope.constant(name)
    return constants.expression(scope, name) if stored is None else stored


def _granularity(weight: tuple[int, ...], scales: tuple[int, ...], axis: int, block: int) -> tuple[int | None, int]:
    """The axis of the scales, or None, and the block size; raises NotFusable if shapes and attributes do not fit."""
    rank = len(weight)
    if not weight or min(weight) <= 0 or block < 0:
        raise NotFusable(Reason.INVALID)
    if not block and scales in _SINGLE:
        # A single scale, whatever the axis says.
        return None, 0
    if not -rank <= axis < rank:
        raise NotFusable(Reason.INVALID)
    axis %= rank
    blocked = (
        tuple(-(-size // block) if at == axis else size for at, size in enumerate(weight)) if block else (weight[axis],)
    )
    if scales != blocked:
        raise NotFusable(Reason.INVALID)
    return axis, block
