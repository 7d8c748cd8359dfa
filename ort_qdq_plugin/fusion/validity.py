"""Nodes that fusion takes away, checked against the specification: what ONNX Runtime refuses must not disappear unseen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from ort_qdq_plugin.model.elements import CODES, SCALE_TYPES
from ort_qdq_plugin.model.graph import Scope
from ort_qdq_plugin.model.messages import AttributeProto, NodeProto, onnx_library
from ort_qdq_plugin.model.operators import LAST_OPSET, Operator, operator_of, role_of
from ort_qdq_plugin.values import NamedTuple

__all__ = ["Schema", "is_as_specified", "newest_opset", "schema_at"]

_MAX_OPSET = 2**31 - 1  # as ONNX Runtime takes it
_MATRIX = 2  # its rank
_MAX_DEPTH = 8  # nodes that are asked for a type: scales may be dequantized themselves, for instance

# Of these roles a node's result has the type of its first input, if it is none of these, or the type that it says.
_KEEP_TYPES, _MAKE_TYPES = ("dequantize", "view", "folded"), ("ConstantOfShape", "QuantizeLinear")

# Field of AttributeProto that holds a value -> the attribute's type. Lists may be empty.
_LISTS = {"floats": AttributeProto.FLOATS, "ints": AttributeProto.INTS, "strings": AttributeProto.STRINGS}
_ATTRIBUTE_TYPES = {
    "f": AttributeProto.FLOAT, "i": AttributeProto.INT, "s": AttributeProto.STRING, "t": AttributeProto.TENSOR,
    "sparse_tensor": AttributeProto.SPARSE_TENSOR, **_LISTS,
}  # fmt: skip
_VALUE_FIELDS = {*_ATTRIBUTE_TYPES, "g", "graphs", "tensors", "type_protos", "tp", "sparse_tensors"}

# Opset -> the last TensorProto.DataType that was there by then. Types got their numbers in the order of the opsets.
_LAST_TYPE = {1: 15, 13: 16, 19: 20, 21: 22, 23: 23, 24: 24, 25: 26, LAST_OPSET: 28}
_STRING = 8  # which has no fixed size, and so no row among the element types


class Schema(NamedTuple):
    """One operator at one opset."""

    types: tuple[frozenset[int], ...]  # the element types that each input may have
    required: int  # how many inputs there must be
    attributes: dict[str, int]  # name -> AttributeProto.AttributeType
    any_inputs: bool = False  # whether there may be any number of inputs like the last one


@cache
def schema_at(operator: Operator, opset: int) -> Schema | None:
    """An operator as an opset has it, or as the last known opset does; None if it is not in it."""
    if operator.domain:
        opset = LAST_OPSET  # contrib operators have a version of their own
    if opset > LAST_OPSET:
        return _installed(operator.op_type, opset) if opset <= _MAX_OPSET else None
    since, stated = 0, [""]
    for version in operator.versions.split("|"):
        first, *given = version.split()
        if int(first) <= opset:
            since, stated = int(first), given or stated
    if not since:
        return None
    inputs, any_inputs = stated[0].replace("-", "").replace("*", ""), stated[0].endswith("*")
    attributes = dict(attribute.split(":") for attribute in stated[1:])
    return Schema(
        tuple(_types(letter.upper(), since) for letter in inputs),
        sum(map(str.isupper, inputs)),
        {name: int(_ATTRIBUTE_TYPES[field]) for name, field in attributes.items()},
        any_inputs,
    )


def _types(letter: str, opset: int) -> frozenset[int]:
    """The element types that a letter in `Operator.versions` stands for in an operator of this opset."""
    if letter == "X":
        return frozenset(range(_LAST_TYPE[LAST_OPSET] + 1))
    there = frozenset(range(1, _LAST_TYPE[max(since for since in _LAST_TYPE if since <= opset)] + 1))
    numbers = _codes("float float16 double int32 int64 uint32 uint64") | (_codes("bfloat16") & there)
    small = {code for code in there if code > CODES["bfloat16"]} - _codes("float8e8m0")
    if letter == "Q":  # quantized
        return _codes("uint8 int8 int32") | small | (_codes("uint16 int16") if opset >= 21 else frozenset())
    if letter == "Z":  # what is quantized to
        return (_codes("uint8 int8") | small | (_codes("uint16 int16") if opset >= 21 else frozenset())) & there
    if letter == "S":  # scales
        return _codes("float") | (_codes("float16 bfloat16 float8e8m0") & there if opset >= 19 else frozenset())
    if letter == "C":  # what can be cast
        return there - _codes("complex64 complex128") - ({_STRING} if opset < 9 else set())
    floats = _codes("float float16 double")
    return {
        "D": _codes("int8 uint8 int16 uint16 int32 int4 uint4"),  # what ONNX Runtime's own operator dequantizes,
        "Y": _codes("float float16"),  # and by which scales
        "E": _codes("uint8 int8 uint16 int16") | (numbers - _codes("bfloat16")),  # exponents
        "M": floats | _codes("int8 int16 int32 int64") | (_codes("bfloat16") & there),  # what may be negative
        "P": floats | _codes("int32 int64") | (_codes("bfloat16") & there),  # what powers are of
        "U": _codes("uint8 uint16 uint32 uint64"),
        "V": floats | _codes("bfloat16"),
        "H": _codes("float int32") | (_codes("float16 bfloat16") if opset >= 19 else frozenset()),
        "G": _codes("float int32 float16 bfloat16 float8e8m0"),
        "B": _codes("int8 int16 int32 int64 uint8 uint16 uint32 uint64"),
        "T": there,
        "F": floats,
        "K": _codes("float float16 double bfloat16"),
        "N": numbers,
        "A": numbers | _codes("uint8 int8 uint16 int16"),
        "L": _codes("int64"),  # lengths and axes
        "I": _codes("int32 int64"),  # indices
    }[letter]


def _codes(names: str) -> frozenset[int]:
    return frozenset(CODES[name] for name in names.split())


def newest_opset() -> int:
    """The newest opset that the installed onnx package knows."""
    return int(onnx_library("onnx.defs").onnx_opset_version())


def _installed(op_type: str, opset: int) -> Schema | None:
    """An operator as the installed onnx package has it."""
    defs = onnx_library("onnx.defs")
    try:
        schema = defs.get_schema(op_type, min(opset, newest_opset()))
    except defs.SchemaError:
        return None
    codes = {f"tensor({name.lower()})": code for name, code in onnx_library("onnx").TensorProto.DataType.items()}
    types = [frozenset(codes[name] for name in given.types if name in codes) for given in schema.inputs]
    attributes = {name: int(getattr(given.type, "value", -1)) for name, given in schema.attributes.items()}
    return Schema(tuple(types), schema.min_input, attributes, schema.max_input > len(types))


def is_as_specified(scope: Scope, index: int, opset: int, types: Sequence[int] | None = None) -> bool:
    """Whether the node at `index` of a scope is as its operator is specified: its attributes, how many inputs and outputs it
    has, whether the inputs are there, and types and ranks as far as they are known. `types`: of all inputs that are given,
    where these are known; whoever knows them has to see that the type of the result is the one that the model states.

    False also for operators that are not in the table.
    """
    node = scope.nodes[index]
    operator = operator_of(node)
    schema = None if operator is None else schema_at(operator, opset)
    if operator is None or schema is None:
        return False
    allowed = list(schema.types)
    if schema.any_inputs:
        allowed += allowed[-1:] * (len(node.input) - len(allowed))
    given = [types_of_one for types_of_one, name in zip(allowed, node.input, strict=False) if name]
    names = {attr.name for attr in node.attribute}
    fits = (
        schema.required <= len(node.input) <= len(allowed)
        and (len(node.output) == 1 or (operator.splits and len(node.output) > 1))
        and all(_may_be(types_of_one, scope, name) for types_of_one, name in zip(allowed, node.input, strict=False))
        and (types is None or all(one in types_of_one for one, types_of_one in zip(types, given, strict=True)))
        and len(names) == len(node.attribute)
        and all(_is_attribute(attr, schema) for attr in node.attribute)
        and all(scope.has_before(name, index) for name in node.input if name)
    )
    if node.op_type == "Gemm":
        fits = fits and all(scope.rank(name) in (_MATRIX, None) for name in node.input[:2])
    if types is not None:
        return fits
    return fits and all(scope.stated_type(name) in (None, *_result_types(scope, node)) for name in node.output)


def _may_be(types: frozenset[int], scope: Scope, name: str) -> bool:
    """Whether an input may be of its type, which is only known of constants, and has the type that the model states."""
    tensor = scope.constant(name) if name else None
    if tensor is None:
        return True
    is_allowed = tensor.data_type > _LAST_TYPE[LAST_OPSET] or tensor.data_type in types
    return is_allowed and scope.stated_type(name) in (None, tensor.data_type)


def _is_attribute(attr: AttributeProto, schema: Schema) -> bool:
    """Whether the operator has such an attribute, and its value is where the type says."""
    used = [field.name for field, _ in attr.ListFields() if field.name in _VALUE_FIELDS]
    holds_it = _ATTRIBUTE_TYPES.get(used[0]) == attr.type if len(used) == 1 else not used and attr.type in _LISTS.values()
    return schema.attributes.get(attr.name) == attr.type and holds_it


def _result_types(scope: Scope, node: NodeProto, depth: int = _MAX_DEPTH) -> tuple[int, ...]:
    """Types that the output of `node` may have, as far as its own operands tell."""
    given = {attr.name: attr.i for attr in node.attribute}
    if node.op_type == "Cast":
        return (given.get("to", 0),)
    if node.op_type == "DequantizeLinear":
        scales = node.input[1] if len(node.input) > 1 else ""
        return (given["output_dtype"],) if given.get("output_dtype") else _types_of(scope, scales, depth)
    if node.op_type == "Constant":
        value = scope.constant(node.output[0]) if node.output else None
        return tuple(SCALE_TYPES) if value is None else (value.data_type,)
    return _types_of(scope, node.input[0], depth) if node.input else tuple(SCALE_TYPES)


def _types_of(scope: Scope, name: str, depth: int) -> tuple[int, ...]:
    """Types that a value may have: those of scales where nothing tells."""
    constant = scope.constant(name)
    if constant is not None:
        return (constant.data_type,)
    found = scope.producer(name)
    if not depth or found is None or role_of(found[2]) not in _KEEP_TYPES or found[2].op_type in _MAKE_TYPES:
        return tuple(SCALE_TYPES)
    return _result_types(found[0], found[2], depth - 1)
