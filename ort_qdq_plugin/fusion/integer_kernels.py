"""Which nodes ONNX Runtime computes on integers, so that it dequantizes nothing for them.

Where a node's inputs come from DequantizeLinear, and its result goes to QuantizeLinear or need not, ONNX Runtime's selectors
(qdq_selectors.cc) make one operator on integers of them all. `OPERATORS` says which operators have one, and the function
beside each says when. `quantized` has what other optimizers do before.

Running those optimizers on the model without its weights would say the same, but takes two thirds of the time that loading
the whole model takes. So a test compares these rules with them, operator by operator, and ``conformance.claims`` compares
what follows from them for the models of quantizers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ort_qdq_plugin.fusion.constants import Constants
from ort_qdq_plugin.fusion.quantized import Integers, Operand, Result, is_scalar, same_settings
from ort_qdq_plugin.model.elements import CODES, INT8, UINT8
from ort_qdq_plugin.model.graph import NodeRef, Scope
from ort_qdq_plugin.model.messages import NodeProto, attribute, int_attribute, is_standard
from ort_qdq_plugin.model.shapes import Shape
from ort_qdq_plugin.model.tensors import MAX_RANK
from ort_qdq_plugin.report.weights import Reason
from ort_qdq_plugin.values import NamedTuple

__all__ = ["OPERATORS", "IntegerKernels"]

_BYTES = (UINT8, INT8)
_INT32 = CODES["int32"]
_MATRIX = 2  # its rank

# By how much the scale of a QLinearConv's bias may differ from the product of the other two.
_BIAS_SCALE_TOLERANCE = 0.0125


class _Product(NamedTuple):
    """A Conv, a Gemm, or a MatMul."""

    left: Operand
    right: Operand
    bias: str  # its name; "" if there is none
    result: Result


class IntegerKernels:
    """Answers for one model. `int8_activations`: whether the kernels take activations of int8."""

    def __init__(self, constants: Constants, int8_activations: bool) -> None:
        self.integers = Integers(constants, int8_activations)
        self.int8_activations = int8_activations
        self._known: dict[NodeRef, Reason | None] = {}

    def reason(self, node_ref: NodeRef) -> Reason | None:
        """Why ONNX Runtime dequantizes no input of a node on a run; None if it does."""
        if node_ref not in self._known:
            self._known[node_ref] = self._reason(*node_ref)
        return self._known[node_ref]

    def _reason(self, scope: Scope, index: int) -> Reason | None:
        node = scope.nodes[index]
        if not is_standard(node) or len(node.output) != 1:
            return None
        rule = OPERATORS.get(node.op_type)
        if rule is not None and rule(self, scope, node):
            return Reason.INTEGER_KERNEL
        return Reason.FOLDED if _is_folded(self, scope, node) else None


def _conv(kernels: IntegerKernels, scope: Scope, node: NodeProto) -> bool:
    """QLinearConv: the result is quantized, and the bias by the product of the other scales."""
    product = _product(kernels, scope, node)
    return (
        product is not None
        and product.result.quantize is not None
        and _takes_int8(kernels, product)
        and _takes_bias(kernels, scope, product, channels=0, is_scaled=True)
    )


def _matmul(kernels: IntegerKernels, scope: Scope, node: NodeProto) -> bool:
    """QLinearMatMul or MatMulIntegerToFloat; with the Add behind it a Gemm."""
    if not kernels.integers.operands(scope, node.input[:1]):
        return False  # as of most products: what else decides need not be looked for
    add = _joined_add(kernels, scope, node)
    if add is None:
        product = _product(kernels, scope, node)
        if product is None or not _takes_int8(kernels, product):
            return False
        return product.result.quantize is None or not product.right.has_blocks
    output = add.output[0]
    bias = next(name for name in add.input if name != node.output[0])
    right = _before_transpose(scope, node.input[1])
    operands = kernels.integers.operands(scope, (node.input[0], right))
    if scope.rank(node.input[0]) == _MATRIX:
        result = kernels.integers.result(scope, output)
    else:
        # A Reshape comes before the Gemm, and another one behind it.
        result = kernels.integers.quantized(scope, output, behind=True)
        operands = operands and (kernels.integers.moved(operands[0]), *operands[1:])
    product = _typed_product(operands, bias, result)
    return product is not None and _is_qgemm(kernels, scope, product, channels=int(right == node.input[1]))


def _gemm(kernels: IntegerKernels, scope: Scope, node: NodeProto) -> bool:
    """QGemm, which has no factor for a bias. It takes Transpose nodes around it into itself (gemm_transpose_fusion.cc)."""
    names = [_before_transpose(scope, name) for name in node.input[:2]]
    is_turned = bool(int_attribute(node, "transB")) != (names[1:] != node.input[1:2])
    bias = node.input[2] if len(node.input) > 2 else ""
    operands = kernels.integers.operands(scope, names)
    readers = kernels.integers.readers(scope, node.output[0])
    output = node.output[0]
    turned = readers[0] if [reader.op_type for reader in readers] == ["Transpose"] else None
    if turned is not None and turned.output and not bias and not scope.is_output(output):
        # It is the product of the transposed operands then, the other way round.
        operands, output = operands and operands[::-1], turned.output[0]
    product = _typed_product(operands, bias, kernels.integers.result(scope, output))
    if product is None or not _is_qgemm(kernels, scope, product, channels=int(not is_turned)):
        return False
    factors = [found.f for key in ("alpha", "beta") if (found := attribute(node, key)) is not None]
    return not product.bias or all(factor == 1.0 for factor in factors)


def _alike(kernels: IntegerKernels, scope: Scope, node: NodeProto) -> bool:
    """QLinearAdd and others: all inputs and the result are of one type, of 8 bits."""
    return _are_alike(kernels, scope, node, 0)


def _where(kernels: IntegerKernels, scope: Scope, node: NodeProto) -> bool:
    """QLinearWhere, whose first input is the condition."""
    return _are_alike(kernels, scope, node, 1)


def _moves(kernels: IntegerKernels, scope: Scope, node: NodeProto) -> bool:
    """An operator that moves elements, as it is: the result is quantized as the first input was."""
    operand = kernels.integers.operand(scope, node.input[0]) if node.input else None
    result = kernels.integers.quantized(scope, node.output[0])
    if operand is None or result is None or result.quantize is None or result.data_type != operand.data_type:
        return False
    return same_settings(kernels.integers, scope, operand.dequantize, result.quantize)


def _picks(kernels: IntegerKernels, scope: Scope, node: NodeProto) -> bool:
    """As `_moves`, where elements are compared: they are of 8 bits, and their scale keeps their order."""
    operand = kernels.integers.operand(scope, node.input[0]) if node.input else None
    scale = None if operand is None or operand.data_type not in _BYTES else kernels.integers.values(operand.scale)
    return scale is not None and bool((scale > 0).all()) and _moves(kernels, scope, node)


def _index(kernels: IntegerKernels, scope: Scope, node: NodeProto) -> bool:
    """ArgMax, whose result has no scale."""
    operand = kernels.integers.operand(scope, node.input[0]) if node.input else None
    return operand is not None and operand.data_type in _BYTES and is_scalar(operand.scale)


OPERATORS: Mapping[str, Callable[[IntegerKernels, Scope, NodeProto], bool]] = {
    "Conv": _conv,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Add": _alike,
    "AveragePool": _alike,
    "Concat": _alike,
    "GlobalAveragePool": _alike,
    "LeakyRelu": _alike,
    "Mul": _alike,
    "Sigmoid": _alike,
    "Softmax": _alike,
    "Where": _where,
    "Expand": _moves,
    "Flatten": _moves,
    "Gather": _moves,
    "GatherElements": _moves,
    "Reshape": _moves,
    "Slice": _moves,
    "Squeeze": _moves,
    "Tile": _moves,
    "Transpose": _moves,
    "Unsqueeze": _moves,
    "MaxPool": _picks,
    "ReduceMax": _picks,
    "ReduceMin": _picks,
    "ArgMax": _index,
}
"""Operators that the CPU computes on integers (qdq_selector_action_transformer.cc), and when it does."""


def _is_folded(kernels: IntegerKernels, scope: Scope, node: NodeProto) -> bool:
    """Whether a node's only input is dequantized from a constant, and its result quantized (constant_folding.cc)."""
    operand = kernels.integers.operand(scope, node.input[0]) if len(node.input) == 1 and node.op_type != "Cast" else None
    if operand is None or not kernels.integers.is_constant(scope, operand.dequantize.input[0]):
        return False
    result = kernels.integers.quantized(scope, node.output[0])
    return result is not None and result.quantize is not None


def _product(kernels: IntegerKernels, scope: Scope, node: NodeProto) -> _Product | None:
    """A Conv or a MatMul as it stands."""
    operands = kernels.integers.operands(scope, node.input[:2])
    result = None if operands is None else kernels.integers.result(scope, node.output[0])
    return _typed_product(operands, node.input[2] if len(node.input) > 2 else "", result)


def _typed_product(operands: tuple[Operand, ...] | None, bias: str, result: Result | None) -> _Product | None:
    """A product of 8-bit integers whose result is of the left one's type, if it is quantized; None for others."""
    if operands is None or result is None or len(operands) != 2:
        return None
    left, right = operands
    fits = left.data_type in _BYTES and right.data_type in _BYTES
    return _Product(left, right, bias, result) if fits and result.data_type in (0, left.data_type) else None


def _before_transpose(scope: Scope, name: str) -> str:
    """What a Transpose makes the value called `name` of; the name itself, if it is made otherwise."""
    found = scope.producer(name)
    is_transposed = found is not None and found[0] is scope and found[2].op_type == "Transpose" and is_standard(found[2])
    return found[2].input[0] if found is not None and is_transposed and found[2].input else name


def _takes_int8(kernels: IntegerKernels, product: _Product) -> bool:
    return product.left.data_type != INT8 or (kernels.int8_activations and product.right.data_type == INT8)


def _is_qgemm(kernels: IntegerKernels, scope: Scope, product: _Product, channels: int) -> bool:
    left, right = product.left, product.right
    has_kernel = left.zero_point and right.zero_point and (left.data_type != INT8 or right.data_type == INT8)
    return (
        bool(has_kernel)
        and is_scalar(left.scale)
        and not right.has_blocks
        and _takes_bias(kernels, scope, product, channels, is_scaled=False)
    )


def _takes_bias(kernels: IntegerKernels, scope: Scope, product: _Product, channels: int, is_scaled: bool) -> bool:
    """Whether there is no bias, or one of int32. `channels`: the axis of the right operand along which it lies."""
    if not product.bias:
        return True
    bias = kernels.integers.operand(scope, product.bias)
    if bias is not None:
        return bias.data_type == _INT32 and (not is_scaled or _is_scaled_as(kernels, scope, bias, product))
    # ONNX Runtime quantizes a constant of floats (weight_bias_quantization.cc).
    constant = scope.constant(product.bias)
    if constant is None or len(constant.dims) != 1 or product.result.quantize is None or product.left.scale.dims:
        return False
    if is_scalar(product.right.scale):
        return True
    weight = scope.constant(product.right.dequantize.input[0])
    axis = int_attribute(product.right.dequantize, "axis", 1)
    from_front = axis + len(weight.dims) if axis < 0 and weight is not None else axis
    return from_front == channels and list(product.right.scale.dims) == list(constant.dims)


def _is_scaled_as(kernels: IntegerKernels, scope: Scope, bias: Operand, product: _Product) -> bool:
    """Whether a bias has the scale of the products that it is added to, and no zero point."""
    scale, left, right = (kernels.integers.values(operand.scale) for operand in (bias, product.left, product.right))
    zero_point = kernels.integers.values(scope.constant(bias.zero_point)) if bias.zero_point else np.zeros(1)
    if scale is None or left is None or right is None or zero_point is None or zero_point.any():
        return False
    with np.errstate(all="ignore"):
        expected = left * right
        return scale.shape == expected.shape and bool(np.allclose(scale, expected, rtol=_BIAS_SCALE_TOLERANCE, atol=0))


def _are_alike(kernels: IntegerKernels, scope: Scope, node: NodeProto, first: int) -> bool:
    """Whether the inputs from the first one on, and the result, are quantized to one type of 8 bits."""
    operands = kernels.integers.operands(scope, node.input[first:])
    result = None if operands is None else kernels.integers.result(scope, node.output[0])
    if operands is None or result is None or result.quantize is None or result.data_type not in _BYTES:
        return False
    return all(operand.data_type == result.data_type for operand in operands)


def _joined_add(kernels: IntegerKernels, scope: Scope, node: NodeProto) -> NodeProto | None:
    """The Add behind a MatMul, if ONNX Runtime makes one Gemm of the two (matmul_add_fusion.cc).

    A dimension that is not fixed is taken to be the same as another one: then the product is fused.
    """
    output = node.output[0]
    readers = kernels.integers.readers(scope, output)
    add = readers[0] if len(readers) == 1 and not scope.is_output(output) else None
    if add is None or add.op_type != "Add" or not is_standard(add) or list(add.input).count(output) != 1:
        return None
    if len(add.input) != 2 or len(node.input) != 2 or not add.output:
        return None
    left, right = node.input[0], node.input[1]
    bias = next(name for name in add.input if name != output)
    # Ranks first: of them more is known without ONNX's inference.
    ranks = [_rank(scope, name) for name in (left, right, bias)]
    if None in ranks or ranks[1] != _MATRIX or ranks[2] not in (1, _MATRIX):
        return None
    right_shape, bias_shape = _shape(scope, right), _shape(scope, bias)
    n = None if right_shape is None else right_shape[1]
    if ranks[0] != _MATRIX:
        return add if n is not None and bias_shape == (n,) and scope.is_fixed(left) else None
    if bias_shape in ((n,), (1, n)):
        return add
    left_shape = _shape(scope, left)
    rows = None if left_shape is None else left_shape[0]
    return add if bias_shape in ((rows, 1), (rows, n)) else None


def _rank(scope: Scope, name: str) -> int | None:
    constant = scope.constant(name)
    return scope.rank(name) if constant is None else len(constant.dims)


def _shape(scope: Scope, name: str) -> Shape | None:
    constant = scope.constant(name)
    if constant is None:
        return scope.shape(name)
    return tuple(constant.dims) if len(constant.dims) <= MAX_RANK else None
