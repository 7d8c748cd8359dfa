"""What nodes make of constants: the expression of a node's output, from those of its inputs.

`_RESULTS` is the table of operators that can be folded: a function for each.

Format facts: these operators of the ONNX specification.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.folding.arithmetic import (
    CLIPPED,
    FLOATS,
    FUNCTIONS,
    UNSIGNED,
    cast,
    clip,
    dequantize,
    power_of_two,
    quantize,
    shift,
)
from ort_qdq_plugin.folding.boxes import whole
from ort_qdq_plugin.folding.building import elementwise, reshaped, spread
from ort_qdq_plugin.folding.expression import Expression
from ort_qdq_plugin.fusion.rearranging import (
    Given,
    concat,
    constant_of_shape,
    expand,
    gather,
    reshape,
    slice_,
    split,
    tile,
    transpose,
)
from ort_qdq_plugin.model.elements import (
    BFLOAT16,
    CODES,
    DEQUANTIZED_TYPES,
    FLOAT,
    FLOAT16,
    INT32,
    INT64,
    UINT8,
    WEIGHT_TYPES,
)
from ort_qdq_plugin.model.messages import attribute, int_attribute, is_standard

__all__ = ["dequantized", "result_of"]

_SINGLE = ((), (1,))
_IN_SCALE_TYPE = 23  # opset
_DEFAULT_AXIS = 1  # of QuantizeLinear and DequantizeLinear
# Elements of less than a byte are none that ONNX Runtime moves, but for Transpose.
_MOVED = frozenset(CODES.values()) - {code for code in WEIGHT_TYPES if code > BFLOAT16}
_EXPONENTS = frozenset((FLOAT, CODES["double"], INT32, INT64))


def result_of(given: Given, output: int) -> Expression:
    """The expression of a node's output number `output`.

    Raises:
        ModelError: The node is not followed, or its operands do not fit together.
        OSError: Numbers that it needs cannot be read.
    """
    compute = _RESULTS.get(given.node.op_type) if is_standard(given.node) else None
    if compute is None:
        raise ModelError(f"{given.node.op_type} is not followed")
    moved = _TYPES.get(given.node.op_type)
    if moved is not None and given.first.data_type not in moved:
        raise ModelError(f"{given.node.op_type} of type {given.first.data_type}")
    return compute(given, output)


def _function(given: Given, _: int) -> Expression:
    kind, operands = given.node.op_type, given.present
    function, types = FUNCTIONS[kind], {operand.data_type for operand in operands}
    is_all = len(operands) == len(given.inputs) and (
        len(operands) == function.most or 1 <= len(operands) < function.most > 2
    )
    # Attributes are those of the first opsets, which broadcast in another way; and of Mod, which has another sign.
    if given.node.attribute or not is_all or len(types) != 1 or not types <= function.types:
        raise ModelError(f"{kind} of these operands")
    if len(operands) == 1 and function.most > 1:
        return operands[0]
    return elementwise(kind, function.compute, operands, operands[0].data_type)


def _shift(given: Given, _: int) -> Expression:
    direction = attribute(given.node, "direction")
    operands = given.present
    if direction is None or direction.s not in (b"LEFT", b"RIGHT") or len({one.data_type for one in operands}) != 1:
        raise ModelError("BitShift of these operands")
    is_left = direction.s == b"LEFT"
    return elementwise(f"BitShift {is_left}", shift(is_left), operands, operands[0].data_type)


def _power(given: Given, _: int) -> Expression:
    base, exponents = given.present
    is_known = base.data_type in FLOATS and exponents.data_type in _EXPONENTS | {base.data_type}
    if given.node.attribute or not is_known or math.prod(base.shape) != 1 or len(base.shape) > len(exponents.shape):
        raise ModelError("Pow of these operands")
    if base.values(whole(base.shape)).item() != 2:
        raise ModelError("powers of other numbers than 2")
    return elementwise(f"Pow {base.data_type}", power_of_two(base.data_type), [exponents], base.data_type)


def _cast(given: Given, _: int) -> Expression:
    operand, target = given.first, int_attribute(given.node, "to")
    if operand.data_type == target:
        return operand
    return elementwise(f"Cast {target}", cast(operand.data_type, target), [operand], target)


def _clip(given: Given, _: int) -> Expression:
    operands = given.present
    bounds = [given.inputs[at] if at < len(given.inputs) else None for at in (1, 2)]
    is_scalar = all(bound is None or bound.shape == () for bound in bounds)
    if given.node.attribute or not is_scalar or len({operand.data_type for operand in operands}) != 1:
        raise ModelError("Clip of these operands")
    has = [bound is not None for bound in bounds]
    return elementwise(f"Clip {has}", clip(*has), operands, operands[0].data_type)


def _spread(source: Expression, shape: tuple[int, ...], axis: int, block: int) -> Expression:
    """Scales or zero points of a tensor of this shape, so that they broadcast to it."""
    if not block and source.shape in _SINGLE:
        return reshaped(source, ())
    if not -len(shape) <= axis < len(shape):
        raise ModelError(f"axis {axis} of {len(shape)} dimensions")
    axis %= len(shape)
    blocks = -(-shape[axis] // block) if block > 0 else 0
    # A single block of a vector is for ONNX Runtime's kernel a single scale, to which blocks do not belong.
    if block > 0 and source.shape != (1,) and source.shape == (*shape[:axis], blocks, *shape[axis + 1 :]):
        return spread(source, axis, block, shape)
    if block or source.shape != (shape[axis],):
        raise ModelError("scales or zero points that do not fit")
    return reshaped(source, (shape[axis], *(1,) * (len(shape) - axis - 1)))


def _quantize(given: Given, _: int) -> Expression:
    axis, block = int_attribute(given.node, "axis", _DEFAULT_AXIS), int_attribute(given.node, "block_size")
    values, *others = given.present
    if not 1 <= len(others) == len(given.inputs) - 1:
        raise ModelError(f"QuantizeLinear with {len(given.present)} operands")
    operands = [values, *(_spread(other, values.shape, axis, block) for other in others)]
    wanted = int_attribute(given.node, "output_dtype")
    target = operands[2].data_type if len(operands) > 2 else wanted or UINT8
    floats = {operand.data_type for operand in operands[:2]}
    if not floats <= {FLOAT, FLOAT16} or len(floats) != 1 or target not in DEQUANTIZED_TYPES or wanted not in (0, target):
        raise ModelError("QuantizeLinear of these types")
    # In what the quotient is: since opset 23 in the type of the scales, unless the node says otherwise.
    precision = int_attribute(given.node, "precision") or (operands[1].data_type if given.opset >= _IN_SCALE_TYPE else FLOAT)
    if precision not in (FLOAT, operands[1].data_type):
        raise ModelError("QuantizeLinear in another precision")
    in_half = precision == FLOAT16
    return elementwise(f"QuantizeLinear {target} {in_half}", quantize(target, in_half), operands, target)


def _dequantize(given: Given, _: int) -> Expression:
    axis, block = int_attribute(given.node, "axis", _DEFAULT_AXIS), int_attribute(given.node, "block_size")
    if not 2 <= len(given.present) == len(given.inputs):
        raise ModelError(f"DequantizeLinear with {len(given.present)} operands")
    values, scales, *zero_points = given.present
    target = int_attribute(given.node, "output_dtype") or scales.data_type
    return dequantized(values, scales, zero_points[0] if zero_points else None, axis, block, target)


def dequantized(
    values: Expression, scales: Expression, zero_points: Expression | None, axis: int, block: int, target: int
) -> Expression:
    """What a DequantizeLinear with this axis and block size gives, in this floating-point type.

    Raises:
        ModelError: ONNX Runtime has no kernel for it, or the operands do not fit together.
    """
    source = values.data_type
    if source not in DEQUANTIZED_TYPES or not {scales.data_type, target} <= {FLOAT, FLOAT16}:
        raise ModelError("DequantizeLinear of these types")
    # ONNX Runtime's kernel wants those of 32 bits to be 0.
    if zero_points is not None and (zero_points.data_type != source or source == INT32):
        raise ModelError("DequantizeLinear with zero points of such a type")
    others = [scales] if zero_points is None else [scales, zero_points]
    operands = [values, *(_spread(other, values.shape, axis, block) for other in others)]
    return elementwise(f"DequantizeLinear {source} {target}", dequantize(source, target), operands, target)


_RESULTS: dict[str, Callable[[Given, int], Expression]] = {
    **dict.fromkeys(FUNCTIONS, _function),
    "BitShift": _shift,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "DequantizeLinear": _dequantize,
    "Expand": expand,
    "Flatten": reshape,
    "Gather": gather,
    "Identity": lambda given, _: given.first,
    "Pow": _power,
    "QuantizeLinear": _quantize,
    "Reshape": reshape,
    "Slice": slice_,
    "Split": split,
    "Squeeze": reshape,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": reshape,
}

# Of operators that take more types in the specification than ONNX Runtime has kernels for: those it has.
_TYPES = {
    "BitShift": UNSIGNED,
    "Clip": CLIPPED,
    **dict.fromkeys(
        ("Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze"), _MOVED
    ),
    **dict.fromkeys(("Expand", "Tile"), _MOVED - {BFLOAT16}),
}
