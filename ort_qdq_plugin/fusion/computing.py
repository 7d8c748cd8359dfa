"""What nodes make of constants: the expression of a node's output, from those of its inputs.

`_RESULTS` is the table of operators that can be folded: a function for each.

Format facts: these operators of the ONNX specification.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.folding.arithmetic import FUNCTIONS, cast, clip, dequantize, quantize
from ort_qdq_plugin.folding.expression import (
    Concatenated,
    Elementwise,
    Expression,
    Reshaped,
    Spread,
    Transposed,
)
from ort_qdq_plugin.model.elements import DEQUANTIZED_TYPES, FLOAT, FLOAT16, UINT8
from ort_qdq_plugin.model.graph import Scope
from ort_qdq_plugin.model.messages import NodeProto, attribute, int_attribute, is_standard
from ort_qdq_plugin.model.shapes import reshaped_by, whole_numbers
from ort_qdq_plugin.model.tensors import MAX_RANK, Locate

__all__ = ["Given", "result_of"]

_SINGLE = ((), (1,))
_DEFAULT_AXIS = 1  # of QuantizeLinear and DequantizeLinear


class Given(NamedTuple):
    """A node whose inputs are all constant."""

    scope: Scope
    node: NodeProto
    inputs: tuple[Expression | None, ...]  # None where an input is left out
    locate: Locate

    @property
    def present(self) -> list[Expression]:
        """The inputs that are there."""
        return [given for given in self.inputs if given is not None]

    def numbers(self, name: str) -> list[int]:
        """The whole numbers that a stored vector holds."""
        found = whole_numbers(self.scope.constant(name), self.locate)
        if found is None:
            raise ModelError(f"{self.node.op_type}: numbers that are not stored")
        return found


def result_of(given: Given, output: int) -> Expression:
    """The expression of a node's output number `output`.

    Raises:
        ModelError: The node is not followed, or its operands do not fit together.
    """
    compute = _RESULTS.get(given.node.op_type) if is_standard(given.node) else None
    if compute is None or not given.inputs or given.inputs[0] is None:
        raise ModelError(f"{given.node.op_type} is not followed")
    return compute(given, output)


def _elementwise(name: str, compute: Callable[..., np.ndarray], operands: list[Expression], data_type: int) -> Expression:
    try:
        shape = np.broadcast_shapes(*(operand.shape for operand in operands))
    except ValueError:
        raise ModelError(f"{name}: shapes that do not fit together") from None
    if len(shape) > MAX_RANK:
        raise ModelError(f"{name}: {len(shape)} dimensions")
    return Elementwise(name, compute, tuple(operands), data_type, shape)


def _binary(given: Given, _: int) -> Expression:
    function, operands = FUNCTIONS[given.node.op_type], given.present
    types = {operand.data_type for operand in operands}
    if given.node.attribute or len(operands) != 2 or len(types) != 1 or not types <= function.types:
        raise ModelError(f"{given.node.op_type} of these types")
    return _elementwise(given.node.op_type, function.compute, operands, operands[0].data_type)


def _cast(given: Given, _: int) -> Expression:
    (operand,), target = given.present, int_attribute(given.node, "to")
    if operand.data_type == target:
        return operand
    return _elementwise(f"Cast {target}", cast(operand.data_type, target), [operand], target)


def _clip(given: Given, _: int) -> Expression:
    operands = given.present
    bounds = [given.inputs[at] if at < len(given.inputs) else None for at in (1, 2)]
    is_scalar = all(bound is None or bound.shape in _SINGLE for bound in bounds)
    if given.node.attribute or not is_scalar or len({operand.data_type for operand in operands}) != 1:
        raise ModelError("Clip of these operands")
    has = [bound is not None for bound in bounds]
    return _elementwise(f"Clip {has}", clip(*has), operands, operands[0].data_type)


def _spread(source: Expression, shape: tuple[int, ...], axis: int, block: int) -> Expression:
    """Scales or zero points of a tensor of this shape, so that they broadcast to it."""
    if not block and source.shape in _SINGLE:
        return Reshaped(source, ())
    if not -len(shape) <= axis < len(shape):
        raise ModelError(f"axis {axis} of {len(shape)} dimensions")
    axis %= len(shape)
    blocks = -(-shape[axis] // block) if block > 0 else 0
    if block > 0 and source.shape == (*shape[:axis], blocks, *shape[axis + 1 :]):
        return Spread(source, axis, block, shape)
    if block or source.shape != (shape[axis],):
        raise ModelError("scales or zero points that do not fit")
    return Reshaped(source, (shape[axis], *(1,) * (len(shape) - axis - 1)))


def _linear(given: Given) -> list[Expression]:
    """The operands of a QuantizeLinear or a DequantizeLinear, which broadcast to each other."""
    operands = given.present
    if len(operands) < 2 or len(operands) < len(given.inputs):
        raise ModelError(f"{given.node.op_type} with {len(operands)} operands")
    axis, block = int_attribute(given.node, "axis", _DEFAULT_AXIS), int_attribute(given.node, "block_size")
    values, *others = operands
    return [values, *(_spread(other, values.shape, axis, block) for other in others)]


def _quantize(given: Given, _: int) -> Expression:
    operands = _linear(given)
    wanted = int_attribute(given.node, "output_dtype")
    target = operands[2].data_type if len(operands) > 2 else wanted or UINT8
    floats = {operand.data_type for operand in operands[:2]}
    if not floats <= {FLOAT, FLOAT16} or len(floats) != 1 or target not in DEQUANTIZED_TYPES or wanted not in (0, target):
        raise ModelError("QuantizeLinear of these types")
    return _elementwise(f"QuantizeLinear {target}", quantize(target), operands, target)


def _dequantize(given: Given, _: int) -> Expression:
    operands = _linear(given)
    source, target = operands[0].data_type, int_attribute(given.node, "output_dtype") or operands[1].data_type
    if source not in DEQUANTIZED_TYPES or not {operands[1].data_type, target} <= {FLOAT, FLOAT16}:
        raise ModelError("DequantizeLinear of these types")
    if len(operands) > 2 and operands[2].data_type != source:
        raise ModelError("zero points of another type")
    return _elementwise(f"DequantizeLinear {source} {target}", dequantize(source, target), operands, target)


def _transpose(given: Given, _: int) -> Expression:
    source, perm = given.present[0], attribute(given.node, "perm")
    order = tuple(perm.ints) if perm is not None else tuple(reversed(range(len(source.shape))))
    if sorted(order) != list(range(len(source.shape))):
        raise ModelError("perm is no permutation")
    return Transposed(source, order)


def _reshape(given: Given, _: int) -> Expression:
    source = given.present[0]
    if given.node.op_type == "Flatten":
        axis = int_attribute(given.node, "axis", 1)
        shape: tuple[int, ...] = (math.prod(source.shape[:axis]), math.prod(source.shape[axis:]))
    elif given.node.op_type == "Squeeze" and len(given.present) == 1 and attribute(given.node, "axes") is None:
        shape = tuple(size for size in source.shape if size != 1)
    else:
        found = reshaped_by(given.node, source.shape, given.numbers)
        sizes = [size for size in found or () if size is not None]
        if found is None or len(sizes) < len(found):
            raise ModelError(f"{given.node.op_type} to a shape that is not known")
        shape = tuple(sizes)
    if math.prod(shape) != math.prod(source.shape):
        raise ModelError(f"{given.node.op_type} to a shape of other elements")
    return Reshaped(source, shape)


def _concat(given: Given, _: int) -> Expression:
    parts, axis = given.present, int_attribute(given.node, "axis")
    rank = len(parts[0].shape)
    if not -rank <= axis < rank:
        raise ModelError("Concat along an axis that is not there")
    axis %= rank
    around = {(part.data_type, part.shape[:axis], part.shape[axis + 1 :]) for part in parts}
    if len(around) != 1 or len(parts) < len(given.inputs):
        raise ModelError("Concat of what does not fit together")
    return Concatenated(tuple(parts), axis)


_RESULTS: dict[str, Callable[[Given, int], Expression]] = {
    **dict.fromkeys(FUNCTIONS, _binary),
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "DequantizeLinear": _dequantize,
    "Flatten": _reshape,
    "Identity": lambda given, _: given.present[0],
    "QuantizeLinear": _quantize,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
