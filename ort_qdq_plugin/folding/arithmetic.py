"""What operators make of elements that lie in the same place: each as ONNX Runtime's kernel has it, to the last bit.

Where kernels differ between machines, as for integers made of what is too large for them or no number, nothing is computed
(NotComputedError). Operators that do so for ordinary numbers too, as Exp, are not here. Of zeros of both signs, Max, Min and
Clip may take another one than a kernel does: what quantizes or scales by it makes the same of both.

Format facts: the operators of the ONNX specification that the rows name. The types are those that ONNX Runtime has kernels
for; a test asks it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

import numpy as np

from ort_qdq_plugin.errors import ModelError, NotComputedError
from ort_qdq_plugin.folding.elements import numpy_type
from ort_qdq_plugin.model.elements import CODES, ELEMENTS, FLOAT, FLOAT16
from ort_qdq_plugin.values import NamedTuple

__all__ = [
    "CLIPPED",
    "FLOATS",
    "FUNCTIONS",
    "UNSIGNED",
    "Function",
    "cast",
    "clip",
    "dequantize",
    "power_of_two",
    "quantize",
    "shift",
]

FLOATS = frozenset((FLOAT, FLOAT16, CODES["double"]))
UNSIGNED = frozenset(CODES[f"uint{bits}"] for bits in (8, 16, 32, 64))
_SIGNED = frozenset(CODES[f"int{bits}"] for bits in (8, 16, 32, 64))
_INTEGERS = UNSIGNED | _SIGNED
_NUMBERS = FLOATS | _INTEGERS
CLIPPED = _NUMBERS - {CODES["int16"], CODES["uint16"]}
_CAST = _NUMBERS | {code for code, element in ELEMENTS.items() if element.weight}

# Larger quotients overflow the 32-bit integers that some kernels make of them before they saturate.
_MOST_QUOTIENT = float(1 << 30)

Values = Callable[..., np.ndarray]


class Function(NamedTuple):
    """An operator whose operands and result are of one type."""

    types: frozenset[int]  # that its operands may have
    compute: Values
    most: int = 2  # operands


def _of_numbers(compute: Values) -> Values:
    """For operators whose kernels differ in what they make of no number."""

    def computed(*operands: np.ndarray) -> np.ndarray:
        result = compute(*operands)
        if result.dtype.kind == "f" and np.isnan(result).any():
            raise NotComputedError("the greater or the smaller one of numbers, where one is none")
        return result

    return computed


def _divided(values: np.ndarray, divisors: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        quotient: np.ndarray = np.divide(values, divisors)
        return quotient
    if not divisors.all():
        raise NotComputedError("an integer divided by 0")
    if values.dtype.kind == "u":
        return np.asarray(np.floor_divide(values, divisors))
    # Towards zero. There is none for the smallest integer divided by -1.
    low = np.iinfo(values.dtype).min
    if ((values == low) & (divisors == -1)).any():
        raise NotComputedError("the smallest integer divided by -1")
    rounded = np.floor_divide(values, divisors)
    return np.asarray(rounded + ((rounded < 0) & (rounded * divisors != values)).astype(values.dtype))


def _remainder(values: np.ndarray, divisors: np.ndarray) -> np.ndarray:
    if not divisors.all():
        raise NotComputedError("the remainder of an integer divided by 0")
    return np.asarray(np.remainder(values, divisors))


def _reciprocal(values: np.ndarray) -> np.ndarray:
    return np.asarray(values.dtype.type(1) / values)


FUNCTIONS: Mapping[str, Function] = {
    "Abs": Function(_NUMBERS, np.abs, 1),
    "Add": Function(_NUMBERS, np.add),
    "BitwiseAnd": Function(_INTEGERS, np.bitwise_and),
    "BitwiseNot": Function(_INTEGERS, np.bitwise_not, 1),
    "BitwiseOr": Function(_INTEGERS, np.bitwise_or),
    "BitwiseXor": Function(_INTEGERS, np.bitwise_xor),
    "Ceil": Function(FLOATS, np.ceil, 1),
    "Div": Function(_NUMBERS, _divided),
    "Floor": Function(FLOATS, np.floor, 1),
    "Max": Function(CLIPPED, _of_numbers(lambda *given: reduce(np.maximum, given)), 1 << 10),
    "Min": Function(CLIPPED, _of_numbers(lambda *given: reduce(np.minimum, given)), 1 << 10),
    "Mod": Function(_INTEGERS, _remainder),
    "Mul": Function(_NUMBERS, np.multiply),
    "Neg": Function(FLOATS | _SIGNED, np.negative, 1),
    "Reciprocal": Function(FLOATS, _reciprocal, 1),
    "Round": Function(FLOATS, np.rint, 1),
    "Sqrt": Function(FLOATS, np.sqrt, 1),
    "Sub": Function(_NUMBERS, np.subtract),
}


def shift(left: bool) -> Values:
    """BitShift of unsigned integers: (values, bits)."""

    def computed(values: np.ndarray, bits: np.ndarray) -> np.ndarray:
        if (bits >= values.dtype.itemsize * 8).any():
            raise NotComputedError("a BitShift by all bits")
        return np.asarray(np.left_shift(values, bits) if left else np.right_shift(values, bits))

    return computed


def power_of_two(data_type: int) -> Values:
    """Pow of 2 to a floating-point type: (whole exponents) -> powers. Others differ between libraries in the last bit."""

    def computed(exponents: np.ndarray) -> np.ndarray:
        whole = exponents.astype(np.float64)
        if not ((whole == np.rint(whole)) & (np.abs(whole) < 1 << 12)).all():
            raise NotComputedError("2 to the power of what is no whole number")
        return np.asarray(np.ldexp(1.0, whole.astype(np.int32)).astype(numpy_type(data_type)))

    return computed


def cast(source: int, target: int) -> Values:
    """Cast from one type to another; raises ModelError for types that are not computed here."""
    from_type, to_type = ELEMENTS[source], ELEMENTS.get(target)
    if to_type is None or not {source, target} <= _CAST:
        raise ModelError(f"Cast from {from_type.name} to type {target}")
    low, high = _range_of(target)

    def computed(values: np.ndarray) -> np.ndarray:
        if target not in FLOATS and (source in FLOATS or to_type.bits < 8):
            values = np.trunc(values) if source in FLOATS else values
            # Both bounds are exact in every type.
            if not ((values >= low) & (values < high + 1)).all():
                raise NotComputedError(f"a Cast to {to_type.name} of what is out of its range")
        return values.astype(numpy_type(target))

    return computed


def clip(has_low: bool, has_high: bool) -> Values:
    """Clip to the bounds that there are: (values, low, high). Others are the largest finite numbers."""

    def computed(values: np.ndarray, *bounds: np.ndarray) -> np.ndarray:
        ends = np.finfo(values.dtype) if values.dtype.kind == "f" else np.iinfo(values.dtype)
        low = bounds[0] if has_low else values.dtype.type(ends.min)
        high = bounds[-1] if has_high else values.dtype.type(ends.max)
        return np.asarray(np.minimum(np.maximum(values, low), high))

    return _of_numbers(computed)


def quantize(target: int, in_half: bool = False) -> Values:
    """QuantizeLinear to a type: (values, scales, zero points) -> integers. In float, rounding half to even, saturating.

    `in_half`: the quotient is rounded to float16 first.
    """
    low, high = _range_of(target)

    def computed(values: np.ndarray, scales: np.ndarray, *zero_points: np.ndarray) -> np.ndarray:
        quotient = np.divide(values, scales, dtype=np.float32)
        if in_half:
            quotient = quotient.astype(np.float16).astype(np.float32)
        # What is no number is the greatest and the smallest one.
        if not (quotient.max() <= _MOST_QUOTIENT and quotient.min() >= -_MOST_QUOTIENT):
            raise NotComputedError("a QuantizeLinear of what is no number or far too large, or by a scale that is none")
        np.rint(quotient, out=quotient)
        if zero_points:
            quotient += zero_points[0]
        np.clip(quotient, low, high, out=quotient)
        return np.asarray(quotient.astype(numpy_type(target)))

    return computed


def dequantize(source: int, target: int) -> Values:
    """DequantizeLinear to a floating-point type: (integers, scales, zero points) -> values, computed in float."""

    def computed(values: np.ndarray, scales: np.ndarray, *zero_points: np.ndarray) -> np.ndarray:
        result = values.astype(np.float32)
        if zero_points:
            # Exact: differences of 16-bit integers are. Those of 32 bits have no zero points but 0.
            result -= zero_points[0]
        if np.broadcast_shapes(result.shape, scales.shape) == result.shape:
            result *= scales.astype(np.float32, copy=False)
        else:
            result = result * scales.astype(np.float32)
        return result.astype(numpy_type(target), copy=False)

    return computed


def _range_of(data_type: int) -> tuple[int, int]:
    """The smallest and the largest integer of a type; of floating-point types, none."""
    element = ELEMENTS[data_type]
    if data_type in FLOATS:
        return 0, 0
    signed = element.name.startswith("int")
    return (-(1 << element.bits - 1), (1 << element.bits - 1) - 1) if signed else (0, (1 << element.bits) - 1)
