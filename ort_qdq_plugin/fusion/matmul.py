"""DequantizeLinear -> [Transpose]* -> MatMul | Gemm | FusedMatMul, as one MatMulNBits.

Format facts: MatMul and Gemm of the ONNX specification; FusedMatMul and MatMulNBits of ONNX Runtime's contrib operators.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ort_qdq_plugin.fusion.dequantize import Dequantized, Locate, has_constant_weight, read_dequantize
from ort_qdq_plugin.fusion.reason import NotFusable, Reason
from ort_qdq_plugin.model.graph import Scope, attribute, attributes, scopes
from ort_qdq_plugin.model.quantized import QuantizedMatrix

if TYPE_CHECKING:
    from onnx import NodeProto

__all__ = ["LeftAlone", "MatMulFusion", "Matches", "match_matmuls", "product_block_size"]

# Limits of MatMulNBits' CPU kernel.
_MIN_BLOCK_SIZE, _MAX_BLOCK_SIZE = 16, 256
_DEFAULT_BLOCK_SIZE = 32  # what ONNX Runtime takes for weights without blocks
_LEAST_PADDING = -1  # session.qdq_matmulnbits_block_size: choose by padding

Location = tuple[Scope, int]
"""A node: its scope and its index there."""


@dataclass(frozen=True)
class MatMulFusion:
    """One product that becomes a MatMulNBits node.

    `product`: the node replaced; `bias_add`: the Add that folds into it. `activation`, `output`, `bias`: names of values.
    """

    product: Location
    bias_add: Location | None
    dequantize: str
    matrix: QuantizedMatrix
    block_size: int
    activation: str
    output: str
    bias: str | None

    @property
    def node(self) -> NodeProto:
        """The node replaced."""
        return self.product[0].nodes[self.product[1]]


@dataclass(frozen=True)
class LeftAlone:
    """A DequantizeLinear that stays, with what it dequantizes on every run."""

    dequantize: str
    weight: str
    reason: Reason
    bytes_per_run: int


@dataclass(frozen=True)
class Matches:
    """What was decided for every DequantizeLinear of a constant weight."""

    fusions: tuple[MatMulFusion, ...]
    left_alone: tuple[LeftAlone, ...]


def match_matmuls(scope: Scope, locate: Locate, block_size: int) -> Matches:
    """Decide every DequantizeLinear of a constant weight in `scope` and its subgraphs.

    `block_size` is for weights without blocks, as in ``session.qdq_matmulnbits_block_size``: a power of two from 16 to 256,
    0 for ONNX Runtime's default of 32, or -1 for the one that pads K least.
    """
    fusions: list[MatMulFusion] = []
    left_alone: list[LeftAlone] = []
    for inner in scopes(scope):
        for node in inner.nodes:
            if node.op_type == "DequantizeLinear" and has_constant_weight(inner, node):
                reason = _match_one(inner, node, locate, block_size, fusions)
                if reason is not None:
                    left_alone.append(_left_alone(inner, node, reason))
    return Matches(tuple(fusions), tuple(left_alone))


def product_block_size(wanted: int, k: int) -> int:
    """The block size MatMulNBits gets for a weight of K = `k` rows without blocks of its own."""
    if wanted > 0:
        return wanted
    if wanted == _LEAST_PADDING:
        sizes = [_MIN_BLOCK_SIZE]
        while sizes[-1] * 2 <= min(k, _MAX_BLOCK_SIZE):
            sizes.append(sizes[-1] * 2)
        return min(reversed(sizes), key=lambda size: -k % size)
    return _DEFAULT_BLOCK_SIZE


def _match_one(scope: Scope, node: NodeProto, locate: Locate, block_size: int, fusions: list[MatMulFusion]) -> Reason | None:
    """Append a fusion for every product that `node` feeds; the reason when one of its readers needs it to stay."""
    output = node.output[0] if node.output else ""
    uses = list(_uses_through_transposes(scope, output, 0))
    if not uses:
        return Reason.CONSUMER if scope.is_output(output) else Reason.UNUSED
    try:
        dequantized = read_dequantize(scope, node, locate)
    except NotFusable as refusal:
        return refusal.reason
    left: Reason | None = None
    for use in uses:
        try:
            fusions.append(_fuse(node.name or output, dequantized, use, block_size))
        except NotFusable as refusal:
            left = left or refusal.reason
    return left


@dataclass(frozen=True)
class _Use:
    """A node that reads the weight under `name`; `k_axis` of the stored weight runs along the first axis it sees."""

    scope: Scope
    index: int
    name: str
    k_axis: int
    refused: Reason | None = None


def _uses_through_transposes(scope: Scope, name: str, k_axis: int) -> Iterator[_Use]:
    for user, index in dict.fromkeys(scope.uses(name)):
        node = user.nodes[index]
        if node.op_type == "Transpose" and node.domain in ("", "ai.onnx") and node.output:
            perm = attribute(node, "perm")
            swaps = perm is None or list(perm.ints) == [1, 0]
            keeps = perm is not None and list(perm.ints) == [0, 1]
            if swaps or keeps:
                yield from _uses_through_transposes(user, node.output[0], 1 - k_axis if swaps else k_axis)
            else:
                yield _Use(user, index, name, k_axis, Reason.TRANSPOSE)
        else:
            yield _Use(user, index, name, k_axis)


def _fuse(dequantize: str, dequantized: Dequantized, use: _Use, block_size: int) -> MatMulFusion:
    if use.refused is not None:
        raise NotFusable(use.refused)
    node = use.scope.nodes[use.index]
    transposed, gemm_bias = _product(use.scope, node, use.name)
    matrix = dequantized.matrix(1 - use.k_axis if transposed else use.k_axis)
    if (matrix.block and not _MIN_BLOCK_SIZE <= matrix.block <= _MAX_BLOCK_SIZE) or matrix.block & (matrix.block - 1):
        raise NotFusable(Reason.BLOCK_SIZE)
    if matrix.bits == 8 and not matrix.block and _is_from_bytes(use.scope, node.input[0]):
        raise NotFusable(Reason.INTEGER_KERNEL)
    if gemm_bias and not _is_bias(use.scope, gemm_bias, matrix):
        raise NotFusable(Reason.BIAS)
    product = (use.scope, use.index)
    output, bias, bias_add = node.output[0], gemm_bias or None, None
    if bias is None:
        bias, bias_add = _following_bias(use.scope, output, matrix)
    if bias_add is not None:
        output = bias_add[0].nodes[bias_add[1]].output[0]
    return MatMulFusion(
        product=product,
        bias_add=bias_add,
        dequantize=dequantize,
        matrix=matrix,
        block_size=matrix.block or product_block_size(block_size, matrix.k),
        activation=node.input[0],
        output=output,
        bias=bias,
    )


def _product(scope: Scope, node: NodeProto, weight: str) -> tuple[bool, str]:
    """(whether the weight is transposed, name of Gemm's bias) of a product with `weight` as its right operand."""
    if (node.op_type, node.domain) not in _PRODUCTS:
        raise NotFusable(Reason.CONSUMER)
    if len(node.input) < 2 or not node.output:
        raise NotFusable(Reason.INVALID)
    if node.input[1] != weight or node.input[0] == weight or weight in node.input[2:]:
        raise NotFusable(Reason.LEFT_OPERAND)
    given = attributes(node)
    neutral = all(name not in given or given[name].i == 0 for name in ("transA", "transBatchA", "transBatchB"))
    bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""
    scaled = ("alpha", "beta") if bias else ("alpha",)
    if not neutral or any(name in given and given[name].f != 1.0 for name in scaled):
        raise NotFusable(Reason.PRODUCT_ATTRIBUTES)
    return "transB" in given and given["transB"].i != 0, bias


_PRODUCTS = {("MatMul", ""), ("MatMul", "ai.onnx"), ("Gemm", ""), ("Gemm", "ai.onnx"), ("FusedMatMul", "com.microsoft")}


_UINT8, _INT8 = 2, 3  # TensorProto.DataType


def _is_from_bytes(scope: Scope, name: str) -> bool:
    """Whether the value is dequantized from 8-bit integers, which ONNX Runtime multiplies as such."""
    found = scope.producer(name)
    if found is None or found[2].op_type != "DequantizeLinear":
        return False
    where, _, node = found
    zero_point = where.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    return zero_point is None or zero_point.data_type in (_UINT8, _INT8)


def _is_bias(scope: Scope, name: str, matrix: QuantizedMatrix) -> bool:
    tensor = scope.constant(name)
    return tensor is not None and list(tensor.dims) == [matrix.n] and tensor.data_type == matrix.scales.data_type


def _following_bias(scope: Scope, output: str, matrix: QuantizedMatrix) -> tuple[str | None, Location | None]:
    """(bias, Add node) when the product's only reader adds a constant of shape [N] to it."""
    uses = scope.uses(output)
    if len(uses) != 1 or scope.is_output(output) or uses[0][0] is not scope:
        return None, None
    add = scope.nodes[uses[0][1]]
    if add.op_type != "Add" or add.domain not in ("", "ai.onnx") or len(add.input) != 2 or not add.output:
        return None, None
    bias = add.input[1] if add.input[0] == output else add.input[0]
    return (bias, uses[0]) if _is_bias(scope, bias, matrix) else (None, None)


def _left_alone(scope: Scope, node: NodeProto, reason: Reason) -> LeftAlone:
    tensor = scope.constant(node.input[0])
    count = 1
    for dim in tensor.dims if tensor is not None else ():
        count *= max(dim, 0)
    scales = scope.constant(node.input[1])
    element = 2 if scales is not None and scales.data_type != 1 else 4
    return LeftAlone(node.name or node.output[0], node.input[0], reason, count * element)
