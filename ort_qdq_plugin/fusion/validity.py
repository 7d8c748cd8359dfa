"""Nodes that fusion takes away, checked against the specification: what ONNX Runtime refuses must not disappear unseen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.fusion.operators import Operator, operator_at
from ort_qdq_plugin.model.elements import SCALE_TYPES
from ort_qdq_plugin.model.graph import Scope
from ort_qdq_plugin.model.messages import AttributeProto, is_standard

if TYPE_CHECKING:
    from onnx import NodeProto

__all__ = ["check_removed"]

# AttributeProto.AttributeType -> the field that has the value, and whether it may be empty
_VALUE_FIELDS = {
    AttributeProto.FLOAT: ("f", False), AttributeProto.INT: ("i", False), AttributeProto.STRING: ("s", False),
    AttributeProto.TENSOR: ("t", False), AttributeProto.FLOATS: ("floats", True), AttributeProto.INTS: ("ints", True),
    AttributeProto.STRINGS: ("strings", True), AttributeProto.SPARSE_TENSOR: ("sparse_tensor", False),
}  # fmt: skip
_FIELDS = {name for name, _ in _VALUE_FIELDS.values()} | {"g", "graphs", "tensors", "type_protos", "tp", "sparse_tensors"}
_LAST_TYPE = 28  # TensorProto.DataType
_MATRIX = 2  # its rank

_ANY = frozenset(range(_LAST_TYPE + 1))
# ONNX Runtime's contrib operators, which the specification does not have.
_CONTRIB = {
    "DequantizeLinear": Operator((_ANY,) * 3, 2, {"axis": AttributeProto.INT}),
    "FusedMatMul": Operator(
        (_ANY,) * 2,
        2,
        {
            **dict.fromkeys(("transA", "transB", "transBatchA", "transBatchB"), AttributeProto.INT),
            "alpha": AttributeProto.FLOAT,
        },
    ),
}


def check_removed(scope: Scope, index: int, opset: int) -> None:
    """Check a node that a fusion replaces: its attributes, how many inputs and outputs it has, whether the inputs are there,
    and types and ranks as far as they are known.

    Args:
        scope: The node's scope.
        index: Its place there.
        opset: The opset of the standard domain that the model imports.

    Raises:
        ModelError: The node is not as that opset has it.
    """
    node = scope.nodes[index]
    operator = operator_at(node.op_type, opset) if is_standard(node) else _CONTRIB.get(node.op_type)
    names = {attr.name for attr in node.attribute}
    fits = (
        operator is not None
        and operator.required <= len(node.input) <= len(operator.types)
        and len(node.output) == 1
        and all(_may_be(operator.types[at], scope, name) for at, name in enumerate(node.input) if name)
        and len(names) == len(node.attribute)
        and all(_is_attribute(attr, operator) for attr in node.attribute)
        and all(scope.has_before(name, index) and _is_as_stated(scope, name) for name in node.input if name)
    )
    if node.op_type == "Gemm":
        fits = fits and all(len(scope.shape(name) or "mn") == _MATRIX for name in node.input[:2])
    fits = fits and all(scope.stated_type(name) in (None, *_types(scope, node)) for name in node.output)
    if not fits:
        raise ModelError(f"{node.op_type} {node.name[:100]!r} is not as opset {opset} has it")


def _may_be(types: frozenset[int], scope: Scope, name: str) -> bool:
    """Whether an input may be of its type, which is only known of constants."""
    tensor = scope.constant(name)
    return tensor is None or tensor.data_type > _LAST_TYPE or tensor.data_type in types


def _is_attribute(attr: AttributeProto, operator: Operator) -> bool:
    """Whether the operator has such an attribute, and its value is where the type says."""
    field, may_be_empty = _VALUE_FIELDS.get(attr.type, ("", False))
    used = [descriptor.name for descriptor, _ in attr.ListFields() if descriptor.name in _FIELDS]
    return operator.attributes.get(attr.name) == attr.type and (used == [field] or (may_be_empty and not used))


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
        return tuple(SCALE_TYPES) if value is None else (value.data_type,)
    found = scope.producer(node.input[0]) if node.input else None
    if found is not None and found[2].op_type in ("Cast", "DequantizeLinear"):
        return _types(found[0], found[2])
    constant = scope.constant(node.input[0]) if node.input else None
    return tuple(SCALE_TYPES) if constant is None else (constant.data_type,)
