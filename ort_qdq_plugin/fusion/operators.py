"""The operators that a fusion may take away, as each opset of the ONNX specification has them.

The onnx package has all this as well; but loading its library takes longer than loading a small model. A test compares every
line with it. Beyond the last opset stated here, the installed package is asked.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from ort_qdq_plugin.model.messages import AttributeProto, onnx_library

__all__ = ["LAST_OPSET", "OPERATORS", "Operator", "newest_opset", "operator_at"]

LAST_OPSET = 28
"""The last opset that is stated here."""

_MAX_OPSET = 2**31 - 1  # as ONNX Runtime takes it

# Opset -> the last TensorProto.DataType that was there by then. Types got their numbers in the order of the opsets.
_LAST_TYPE = {1: 15, 13: 16, 19: 20, 21: 22, 23: 23, 24: 24, 25: 26, 28: 28}

_STRING, _COMPLEX, _E8M0 = 8, {14, 15}, 24
_FLOATS = frozenset({1, 10, 11})
_NUMBERS = _FLOATS | {6, 7, 12, 13}

# Attribute types by the field of AttributeProto that has the value.
_TYPES = {
    "f": AttributeProto.FLOAT, "i": AttributeProto.INT, "s": AttributeProto.STRING, "t": AttributeProto.TENSOR,
    "floats": AttributeProto.FLOATS, "ints": AttributeProto.INTS, "strings": AttributeProto.STRINGS,
    "sparse_tensor": AttributeProto.SPARSE_TENSOR,
}  # fmt: skip


class Operator(NamedTuple):
    """One operator at one opset. All of these have one output.

    Attributes:
        types: The element types that each input may have.
        required: How many inputs there must be.
        attributes: Name -> AttributeProto.AttributeType.
    """

    types: tuple[frozenset[int], ...]
    required: int
    attributes: dict[str, int]


def _operator(types: list[frozenset[int]], attributes: str = "", required: int | None = None) -> Operator:
    """`attributes`: "name:field" for each, with a space between."""
    fields = dict(entry.split(":") for entry in attributes.split())
    named = {name: int(_TYPES[field]) for name, field in fields.items()}
    return Operator(tuple(types), len(types) if required is None else required, named)


def _any(opset: int) -> frozenset[int]:
    return frozenset(range(1, _LAST_TYPE[max(since for since in _LAST_TYPE if since <= opset)] + 1))


def _castable(opset: int) -> frozenset[int]:
    return _any(opset) - _COMPLEX - ({_STRING} if opset < 9 else set())


def _quantized(opset: int) -> frozenset[int]:
    below_a_byte = {4, 5} | {code for code in _any(opset) if code > 20} - {_E8M0} if opset >= 21 else set()
    return frozenset({2, 3, 6} | ({17, 18, 19, 20} if opset >= 19 else set()) | below_a_byte)


def _scales(opset: int) -> frozenset[int]:
    return frozenset({1} | ({10, 16} if opset >= 19 else set()) | ({_E8M0} if opset >= 24 else set()))


_LENGTHS = frozenset({7})
_INDICES = frozenset({6, 7})
_GEMM = "alpha:f beta:f transA:i transB:i"
_DEQUANTIZE = {10: "", 13: "axis:i", 19: "axis:i", 21: "axis:i block_size:i"}
_CONSTANT = {1: "value:t", 11: "value:t sparse_value:sparse_tensor"}
_ANY_CONSTANT = (
    f"{_CONSTANT[11]} value_float:f value_floats:floats value_int:i value_ints:ints value_string:s value_strings:strings"
)
_CAST = {1: "to:s", 6: "to:i", 19: "to:i saturate:i", 24: "to:i saturate:i round_mode:s"}


def _since(by_opset: dict[int, str], opset: int) -> str:
    return by_opset[max(since for since in by_opset if since <= opset)]


# Operator -> the opset since which it is so -> what it is.
OPERATORS: dict[str, dict[int, Operator]] = {
    "Add": {
        1: _operator([_FLOATS] * 2, "axis:i broadcast:i consumed_inputs:ints"),
        6: _operator([_NUMBERS] * 2, "axis:i broadcast:i"),
        7: _operator([_NUMBERS] * 2),
        13: _operator([_NUMBERS | {16}] * 2),
        14: _operator([_NUMBERS | {2, 3, 4, 5, 16}] * 2),
    },
    "Cast": {at: _operator([_castable(at)], _since(_CAST, at)) for at in (1, 6, 9, 13, 19, 21, 23, 24, 25, 28)},
    "Constant": {
        **{at: _operator([], attributes) for at, attributes in _CONSTANT.items()},
        12: _operator([], _ANY_CONSTANT),
    },
    "DequantizeLinear": {
        at: _operator(
            [_quantized(at), _scales(at), _quantized(at)],
            _since({**_DEQUANTIZE, 23: f"{_DEQUANTIZE[21]} output_dtype:i"}, at),
            required=2,
        )
        for at in (10, 13, 19, 21, 23, 24, 25, 28)
    },
    "Flatten": {
        1: _operator([_FLOATS], "axis:i"),
        **{at: _operator([_any(at)], "axis:i") for at in (9, 13, 21, 23, 24, 25)},
    },
    "Gather": {at: _operator([_any(at), _INDICES], "axis:i") for at in (1, 13)},
    "Gemm": {
        1: _operator([_FLOATS] * 3, f"{_GEMM} broadcast:i"),
        7: _operator([_FLOATS] * 3, _GEMM),
        9: _operator([_NUMBERS] * 3, _GEMM),
        11: _operator([_NUMBERS] * 3, _GEMM, required=2),
        13: _operator([_NUMBERS | {16}] * 3, _GEMM, required=2),
    },
    "Identity": {at: _operator([_any(at)]) for at in (1, 13, 19, 21, 23, 24, 25)},
    "MatMul": {1: _operator([_FLOATS] * 2), 9: _operator([_NUMBERS] * 2), 13: _operator([_NUMBERS | {16}] * 2)},
    "Reshape": {
        1: _operator([_FLOATS], "consumed_inputs:ints shape:ints"),
        **{at: _operator([_any(at), _LENGTHS]) for at in (5, 13)},
        **{at: _operator([_any(13 if at < 19 else at), _LENGTHS], "allowzero:i") for at in (14, 19, 21, 23, 24, 25)},
    },
    "Squeeze": {
        1: _operator([_any(1)], "axes:ints"),
        **{at: _operator([_any(at), _LENGTHS], required=1) for at in (13, 21, 23, 24, 25)},
    },
    "Transpose": {at: _operator([_any(at)], "perm:ints") for at in (1, 13, 21, 23, 24, 25)},
    "Unsqueeze": {
        1: _operator([_any(1)], "axes:ints"),
        **{at: _operator([_any(at), _LENGTHS]) for at in (13, 21, 23, 24, 25)},
    },
}


@cache
def operator_at(op_type: str, opset: int) -> Operator | None:
    """The operator as that opset has it, or the last one that is known; None if none is."""
    if opset > _MAX_OPSET:
        return None
    if opset > LAST_OPSET:
        return _installed(op_type, opset)
    known = [since for since in OPERATORS.get(op_type, ()) if since <= opset]
    return OPERATORS[op_type][max(known)] if known else None


def newest_opset() -> int:
    """The newest opset that the installed onnx package knows."""
    return int(onnx_library("onnx.defs").onnx_opset_version())


def _installed(op_type: str, opset: int) -> Operator | None:
    """As the installed onnx package has it."""
    defs = onnx_library("onnx.defs")
    try:
        schema = defs.get_schema(op_type, min(opset, newest_opset()))
    except defs.SchemaError:
        return None
    codes = {f"tensor({name.lower()})": code for name, code in onnx_library("onnx").TensorProto.DataType.items()}
    types = [frozenset(codes[name] for name in given.types if name in codes) for given in schema.inputs]
    attributes = {name: int(getattr(given.type, "value", -1)) for name, given in schema.attributes.items()}
    return Operator(tuple(types), schema.min_input, attributes)
