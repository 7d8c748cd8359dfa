"""What operators make of elements that lie in the same place: each as ONNX Runtime's kernel has it, to the last bit.

Format facts: the operators of the ONNX specification that the rows name. Where their kernels differ between machines, as for
integers made of what is too large for them or no number, nothing is computed (ModelError).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.folding.elements import numpy_type
from ort_qdq_plugin.model.elements import CODES, ELEMENTS, FLOAT, FLOAT16

__all__ = ["FUNCTIONS", "Function", "cast", "clip", "dequantize", "quantize"]

_FLOATS = frozenset((FLOAT, FLOAT16, CODES["double"]))
_UNSIGNED = frozenset(CODES[f"uint{bits}"] for bits in (8, 16, 32, 64))
_INTEGERS = _UNSIGNED | {CODES[f"int{bits}"] for bits in (8, 16, 32, 64)}
_ARITHMETIC = frozenset((FLOAT, FLOAT16, CODES["double"], CODES["int32"], CODES["int64"]))

Values = Callable[..., np.ndarray]


class Function(NamedTuple):
    """An operator whose operands and result are of one type."""

    types: frozenset[int]  # that its operands may have
    compute: Values


def _in_float(compute: Values) -> Values:
    """For float16, of which ONNX Runtime computes in float."""

    def computed(*operands: np.ndarray) -> np.ndarray:
        if operands[0].dtype != np.float16:
            return compute(*operands)
        return compute(*(operand.astype(np.float32) for operand in operands)).astype(np.float16)

    return computed


FUNCTIONS: Mapping[str, Function] = {
    "Add": Function(_ARITHMETIC, np.add),
    "Sub": Function(_ARITHMETIC, np.subtract),
    "Mul": Function(_ARITHMETIC, np.multiply),
    "Div": Function(_FLOATS, np.divide),
    "BitwiseAnd": Function(_INTEGERS, np.bitwise_and),
    "BitwiseOr": Function(_INTEGERS, np.bitwise_or),
    "BitwiseXor": Function(_INTEGERS, np.bitwise_xor),
}


def cast(source: int, target: int) -> Values:
    """Cast from one type to another; raises ModelError for types that are not computed here."""
    from_type, to_type = ELEMENTS[source], ELEMENTS[target]
    known = _FLOATS | _INTEGERS | {code for code, element in ELEMENTS.items() if element.weight}
    if not {source, target} <= known:
        raise ModelError(f"Cast from {from_type.name} to {to_type.name}")
    low, high = _range_of(target)

    def computed(values: np.ndarray) -> np.ndarray:
        if target not in _FLOATS and (source in _FLOATS or to_type.bits < 8):
            values = np.trunc(values) if source in _FLOATS else values
            if not ((values >= low) & (values <= high)).all():
                raise ModelError(f"a Cast to {to_type.name} of what is out of its range")
        return values.astype(numpy_type(target))

    return computed


def clip(has_low: bool, has_high: bool) -> Values:
    """Clip to the bounds that there are: (values, low, high)."""

    def computed(values: np.ndarray, *bounds: np.ndarray) -> np.ndarray:
        if has_low:
            values = np.maximum(values, bounds[0])
        return np.minimum(values, bounds[-1]) if has_high else values

    return computed


def quantize(target: int) -> Values:
    """QuantizeLinear to a type: (values, scales, zero points) -> integers. In float, rounding half to even, saturating."""
    low, high = _range_of(target)

    def computed(values: np.ndarray, scales: np.ndarray, *zero_points: np.ndarray) -> np.ndarray:
        quotient = np.divide(values, scales, dtype=np.float32)
        if not np.isfinite(scales).all() or np.isnan(quotient).any():
            raise ModelError("a QuantizeLinear of what is no number, or by a scale that is none")
        np.rint(quotient, out=quotient)
        if zero_points:
            quotient += zero_points[0]
        integers: np.ndarray = np.clip(quotient, low, high, out=quotient).astype(numpy_type(target))
        return integers

    return computed


def dequantize(source: int, target: int) -> Values:
    """DequantizeLinear to a floating-point type: (integers, scales, zero points) -> values, computed in float."""

    def computed(values: np.ndarray, scales: np.ndarray, *zero_points: np.ndarray) -> np.ndarray:
        result = values.astype(np.float32)
        if zero_points:
            # Exact: differences of 16-bit integers are. Those of 32 bits have no zero points but 0.
            result -= zero_points[0]
        values = result * scales.astype(np.float32)
        return values.astype(numpy_type(target), copy=False)

    return computed


def _range_of(data_type: int) -> tuple[int, int]:
    """The smallest and the largest integer of a type; of floating-point types, none."""
    element = ELEMENTS[data_type]
    if data_type in _FLOATS:
        return 0, 0
    signed = element.name.startswith("int")
    return (-(1 << element.bits - 1), (1 << element.bits - 1) - 1) if signed else (0, (1 << element.bits) - 1)
