"""Nodes that fusion takes away, checked against the specification: what ONNX Runtime refuses must not disappear unseen."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from onnx import AttributeProto, TensorProto, defs

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.graph import Scope, is_standard
from ort_qdq_plugin.model.quantized import SCALE_TYPES

if TYPE_CHECKING:
    from onnx import NodeProto
    from onnx.defs import OpSchema

__all__ = ["check_removed"]

# AttributeProto.AttributeType -> the field that has the value, and whether it may be empty
_VALUE_FIELDS = {
    AttributeProto.FLOAT: ("f", False), AttributeProto.INT: ("i", False), AttributeProto.STRING: ("s", False),
    AttributeProto.TENSOR: ("t", False), AttributeProto.FLOATS: ("floats", True), AttributeProto.INTS: ("ints", True),
    AttributeProto.STRINGS: ("strings", True), AttributeProto.SPARSE_TENSOR: ("sparse_tensor", False),
}  # fmt: skip
_MATRIX = 2  # its rank
_MAX_OPSET = 2**31 - 1  # as ONNX Runtime takes it
_FIELDS = {name for name, _ in _VALUE_FIELDS.values()} | {"g", "graphs", "tensors", "type_protos", "tp", "sparse_tensors"}

# Of ONNX Runtime's contrib operators, which the specification does not have.
_CONTRIB_INPUTS = {"DequantizeLinear": (2, 3), "FusedMatMul": (2,)}
_CONTRIB_ATTRIBUTES: dict[str, dict[str, int]] = {
    "DequantizeLinear": {"axis": AttributeProto.INT},
    "FusedMatMul": {
        **dict.fromkeys(("transA", "transB", "transBatchA", "transBatchB"), AttributeProto.INT),
        "alpha": AttributeProto.FLOAT,
    },
}


def check_removed(scope: Scope, index: int, opset: int) -> None:
    """Raise ModelError where a node of `scope` that a fusion replaces is not as that opset of the specification has it.

    Checked are its attributes, how many inputs and outputs it has, whether the inputs are there, and types and ranks where
    they are known.
    """
    node = scope.nodes[index]
    schema = _schema(node.op_type, opset) if is_standard(node) else None
    if schema is None:
        known = _CONTRIB_ATTRIBUTES.get(node.op_type, {})
        fits = not is_standard(node) and len(node.input) in _CONTRIB_INPUTS.get(node.op_type, ()) and len(node.output) == 1
    else:
        known = {name: _code(attribute.type) for name, attribute in schema.attributes.items()}
        fits = (
            schema.min_input <= len(node.input) <= schema.max_input
            and schema.min_output <= len(node.output) <= schema.max_output
            and all(_takes(schema, at, scope.constant(name)) for at, name in enumerate(node.input) if name)
        )
    names = {attr.name for attr in node.attribute}
    fits = fits and len(names) == len(node.attribute) and all(_fits(attr, known) for attr in node.attribute)
    fits = fits and all(scope.has_before(name, index) and _is_as_stated(scope, name) for name in node.input if name)
    if node.op_type == "Gemm":
        fits = fits and all(len(scope.shape(name) or "mn") == _MATRIX for name in node.input[:2])
    fits = fits and all(scope.stated_type(name) in (None, *_types(scope, node)) for name in node.output)
    if not fits:
        raise ModelError(f"{node.op_type} {node.name[:100]!r} is not as opset {opset} has it")


@cache
def _schema(op_type: str, opset: int) -> OpSchema | None:
    """The operator as that opset has it, or the latest that the installed specification knows; None where it knows none."""
    if opset > _MAX_OPSET:
        return None
    try:
        return defs.get_schema(op_type, min(opset, defs.onnx_opset_version()))
    except defs.SchemaError:
        return None


def _is_as_stated(scope: Scope, name: str) -> bool:
    """Whether a constant has the type that the model states for the value."""
    tensor = scope.constant(name)
    return tensor is None or scope.stated_type(name) in (None, tensor.data_type)


def _types(scope: Scope, node: NodeProto) -> tuple[int, ...]:
    """Types that the output of `node` may have, as far as its own operands tell."""
    given = {attr.name: attr.i for attr in node.attribute}
    if node.op_type == "Cast":
        return (given.get("to", 0),)
    if node.op_type == "DequantizeLinear":
        scales = scope.constant(node.input[1])
        return (given.get("output_dtype") or (0 if scales is None else scales.data_type),)
    if node.op_type == "Constant":
        value = scope.constant(node.output[0]) if node.output else None
        return SCALE_TYPES if value is None else (value.data_type,)
    found = scope.producer(node.input[0]) if node.input else None
    if found is not None and found[2].op_type in ("Cast", "DequantizeLinear"):
        return _types(found[0], found[2])
    constant = scope.constant(node.input[0]) if node.input else None
    return SCALE_TYPES if constant is None else (constant.data_type,)


def _code(kind: object) -> int:
    """The AttributeProto.AttributeType of a schema's own enum."""
    return int(getattr(kind, "value", -1))


def _takes(schema: OpSchema, at: int, tensor: TensorProto | None) -> bool:
    """Whether input `at` may be of the constant's type; types of variadic inputs are left alone."""
    if tensor is None or at >= len(schema.inputs):
        return True
    types = schema.inputs[at].types
    return tensor.data_type not in TensorProto.DataType.values() or _type_name(tensor) in types


def _type_name(tensor: TensorProto) -> str:
    return f"tensor({TensorProto.DataType.Name(tensor.data_type).lower()})"


def _fits(attr: AttributeProto, known: dict[str, int]) -> bool:
    field, may_be_empty = _VALUE_FIELDS.get(attr.type, ("", False))
    used = [descriptor.name for descriptor, _ in attr.ListFields() if descriptor.name in _FIELDS]
    return known.get(attr.name) == attr.type and (used == [field] or (may_be_empty and not used))
