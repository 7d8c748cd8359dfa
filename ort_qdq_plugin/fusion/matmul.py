"""DequantizeLinear -> [Transpose | Reshape | Cast | ...]* -> MatMul | Gemm | FusedMatMul, as one MatMulNBits.

Format facts: MatMul and Gemm of the ONNX specification; FusedMatMul and MatMulNBits of ONNX Runtime's contrib operators.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.fusion.bias import Addend, Bias, check_bias, following_bias, own_bias
from ort_qdq_plugin.fusion.choice import form_of
from ort_qdq_plugin.fusion.dequantize import Dequantized, QuantizedMatrix, is_dequantize
from ort_qdq_plugin.fusion.emit import NodeEmitter
from ort_qdq_plugin.fusion.experts import StackFusion, fused_stack, is_stack
from ort_qdq_plugin.fusion.kind import FusionSettings, Site, report_entry
from ort_qdq_plugin.fusion.matmul_nbits import kernel_type, operands_of
from ort_qdq_plugin.fusion.view import View
from ort_qdq_plugin.model.elements import FLOAT, FLOAT16, INT8
from ort_qdq_plugin.model.graph import Scope
from ort_qdq_plugin.model.messages import NodeProto, attributes, made_tensor
from ort_qdq_plugin.model.operands import Operands, as_stored
from ort_qdq_plugin.model.tensors import Locate
from ort_qdq_plugin.report.weights import FusedWeight, Reason
from ort_qdq_plugin.values import NamedTuple

__all__ = ["TAKES_FACTORS", "MatMulFusion", "OuterNodes", "Product", "check_moves", "fuse", "fused_product"]

TAKES_FACTORS = True
"""Those of columns go into the scales, those of rows onto the activation."""

_BROADCAST_SINCE = 7  # the opset since which Mul broadcasts a row
_WRITES_OUTPUT_TYPES_SINCE = 21  # the opset since which QuantizeLinear has `output_dtype`


class OuterNodes(NamedTuple):
    """What has to stand before and after a fused node whose weight was not the plain right operand."""

    before: tuple[int, ...] | None = None  # the permutation of the activation's axes, or None
    joined: tuple[int, ...] | None = None  # the Reshape of the activation then, or None
    split: tuple[int, ...] | None = None  # the Reshape of the result, or None
    after: tuple[int, ...] | None = None  # the permutation of the result's axes then, or None
    new_axes: int = 0  # leading axes of size 1 that the result gets

    @property
    def moves_result(self) -> bool:
        """Whether the result of the fused node is not that of the product."""
        return self.split is not None or self.after is not None or self.new_axes > 0


class MatMulFusion(NamedTuple):
    """One product that becomes a MatMulNBits node."""

    site: Site
    matrix: QuantizedMatrix
    # B, scales and zero points, as far as they are needed, and rows: what the activation is multiplied by.
    operands: Operands
    bits: int  # of an element of the fused node
    block_size: int  # of the fused node
    kernel_type: int  # TensorProto.DataType that the fused node computes in
    casts_from: int | None  # the product's own type, if that is another one: casts go first and last
    accuracy_level: int  # MatMulNBits' attribute
    activation: str  # the name of the other operand
    alpha: float  # what the result is multiplied by, before anything is added to it
    bias: Bias
    outer: OuterNodes  # what else stands before and after the fused node

    @property
    def operator(self) -> str:
        """The type of the fused node."""
        return "MatMulNBits"

    def emit(self, emitter: NodeEmitter, operands: Mapping[str, str]) -> None:
        """Transpose, cast and scale the activation, multiply, add what is not a bias, and cast back.

        Alpha and beta are factors of their own, as in ONNX Runtime's Gemm. In the scales they could leave the range of the
        scales' type, or make sums overflow that do not without them: that depends on the activation.
        """
        value, outer = self.activation, self.outer
        if outer.before is not None:
            value = emitter.node("Transpose", [value], perm=outer.before)
        if outer.joined is not None:
            value = emitter.reshaped(value, outer.joined)
        if self.casts_from is not None:
            value = emitter.node("Cast", [value], to=self.kernel_type)
        if "rows" in operands:
            value = emitter.node("Mul", [value, operands["rows"]])
        bias = self.bias.own or ""
        if not isinstance(bias, str):
            bias = emitter.constant(bias, f"{self.site.name}.bias")
        # The fifth input is g_idx, the order of the rows.
        inputs = [value, operands["B"], operands["scales"], operands.get("zero_points", ""), "", bias]
        while not inputs[-1]:
            inputs.pop()
        value = emitter.fused(
            self.operator, inputs, K=self.matrix.k, N=self.matrix.n, bits=self.bits, block_size=self.block_size,
            accuracy_level=self.accuracy_level,
        )  # fmt: skip
        if self.alpha != 1.0:
            value = self._times(value, self.alpha, "alpha", emitter)
        if outer.split is not None:
            value = emitter.reshaped(value, outer.split)
        if outer.after is not None:
            value = emitter.node("Transpose", [value], perm=outer.after)
        if outer.new_axes:
            value = emitter.unsqueezed(value, outer.new_axes)
        if self.bias.addend is not None:
            value = emitter.node("Add", [value, self._scaled(self.bias.addend, emitter)])
        if self.casts_from is not None:
            emitter.node("Cast", [value], to=self.casts_from)

    def entry(self) -> FusedWeight:
        """What the report says of it."""
        matrix = self.matrix
        return report_entry(
            self,
            k=matrix.k,
            n=matrix.n,
            bits=self.bits,
            stored_bits=matrix.bits,
            block_size=self.block_size,
            layout="K-major" if matrix.k_major else "N-major",
            has_bias=self.bias.own is not None,
        )

    def _scaled(self, addend: Addend, emitter: NodeEmitter) -> str:
        value = addend.name
        if self.casts_from is not None:
            value = emitter.node("Cast", [value], to=self.kernel_type)
        return value if addend.beta == 1.0 else self._times(value, addend.beta, "beta", emitter)

    def _times(self, value: str, factor: float, name: str, emitter: NodeEmitter) -> str:
        """The value, which is of float, times a factor."""
        constant = made_tensor(FLOAT, (), np.array(factor, "<f4").tobytes())
        return emitter.node("Mul", [value, emitter.constant(constant, f"{self.site.name}.{name}")])


class Product(NamedTuple):
    """alpha * op(activation) x op(weight) + bias; with the weight on the left, the factors the other way round."""

    activation: str
    weight_on_left: bool = False
    transposes_activation: bool = False
    transposes_weight: bool = False
    alpha: float = 1.0
    bias: Addend | None = None


def fuse(
    site: Site, dequantized: Dequantized, view: View, settings: FusionSettings, locate: Locate
) -> MatMulFusion | StackFusion:
    """Fuse the product at a site (`kind.Fuse`)."""
    if is_stack(view):
        if dequantized.factors:
            raise NotFusable(Reason.FACTOR)
        return fused_stack(site, dequantized, view, settings)
    scope, index = site.replaced[0]
    node = scope.nodes[index]
    product = _read_product(node, site.weight)
    matrix = dequantized.matrix(view, product.transposes_weight != product.weight_on_left, rows_may_differ=True)
    outer = _outer_nodes(scope, product, len(view.axes))
    return fused_product(site, product, matrix, outer, view.data_type, settings, locate)


def fused_product(
    site: Site,
    product: Product,
    matrix: QuantizedMatrix,
    outer: OuterNodes,
    data_type: int,
    settings: FusionSettings,
    locate: Locate,
) -> MatMulFusion:
    """The fusion of a product that is computed in this type (TensorProto.DataType), with these nodes around it.

    Raises:
        NotFusable: No form of MatMulNBits is right, or the bias does not fit.
    """
    scope, index = site.replaced[0]
    node = scope.nodes[index]
    if matrix.rows is not None and scope.opset < _BROADCAST_SINCE:
        raise NotFusable(Reason.FACTOR)
    check_moves(scope, product.activation, outer)
    matrix, bits, block_size = form_of(matrix, data_type, settings)
    computed_in, casts_from = kernel_type(data_type, matrix, bits, settings)
    check_bias(scope, node, product.weight_on_left, matrix.n, locate)
    plain = casts_from is None and product.alpha == 1.0 and not outer.moves_result
    bias = own_bias(scope, product.bias, matrix.n, data_type, locate) if plain else Bias(addend=product.bias)
    if plain and product.bias is None:
        bias = following_bias(scope, node, product.activation, matrix.n, data_type)
    if computed_in == FLOAT16 and (product.alpha != 1.0 or bias.addend is not None or matrix.rows is not None):
        # What is multiplied and added belongs to one operator, which rounds only its result to float16.
        computed_in, casts_from = FLOAT, FLOAT16
    if bias.add is not None:
        adding, at = bias.add
        site = site._replace(replaced=(*site.replaced, bias.add), output=adding.nodes[at].output[0])
    operands = dict(operands_of(matrix, bits, block_size, computed_in, settings.accuracy_level))
    if matrix.rows is not None:
        operands["rows"] = as_stored(matrix.rows, (matrix.k,))
    return MatMulFusion(
        site=site,
        matrix=matrix,
        operands=operands,
        bits=bits,
        block_size=block_size,
        kernel_type=computed_in,
        casts_from=casts_from,
        accuracy_level=settings.accuracy_level,
        activation=product.activation,
        alpha=product.alpha,
        bias=bias,
        outer=outer,
    )


def check_moves(scope: Scope, activation: str, outer: OuterNodes) -> None:
    """Raise NotFusable where a Transpose or a Reshape would stand between a pair of nodes, which make int8, and a fused one.

    ONNX Runtime's optimizer moves the pair past that as uint8, with the `output_dtype` of int8 that it has written itself:
    such a QuantizeLinear is invalid (1.32, from opset 21 on).
    """
    if (outer.before is None and outer.joined is None) or scope.opset < _WRITES_OUTPUT_TYPES_SINCE:
        return
    found = scope.producer(activation)
    if found is None or not is_dequantize(found[2]) or len(found[2].input) < 3:
        return
    zero_point = found[0].constant(found[2].input[2])
    made = found[0].producer(found[2].input[0])
    if zero_point is not None and zero_point.data_type == INT8 and made is not None and made[2].op_type == "QuantizeLinear":
        raise NotFusable(Reason.MOVED_INT8)


def _read_product(node: NodeProto, weight: str) -> Product:
    if len(node.input) < 2 or not node.output:
        raise NotFusable(Reason.INVALID)
    if list(node.input).count(weight) != 1 or weight in node.input[2:]:
        raise NotFusable(Reason.CONSUMER)
    given = attributes(node)
    if any(given[key].i not in (0, 1) for key in ("transA", "transB") if key in given):
        raise NotFusable(Reason.INVALID)
    flags = {key: key in given and given[key].i != 0 for key in ("transA", "transB", "transBatchA", "transBatchB")}
    if flags["transBatchA"] or flags["transBatchB"]:
        raise NotFusable(Reason.TRANSPOSED_ACTIVATION)
    on_left = node.input[0] == weight
    bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""
    beta = given["beta"].f if "beta" in given else 1.0
    alpha = given["alpha"].f if "alpha" in given else 1.0
    return Product(
        activation=node.input[1] if on_left else node.input[0],
        weight_on_left=on_left,
        transposes_activation=flags["transB" if on_left else "transA"],
        transposes_weight=flags["transA" if on_left else "transB"],
        alpha=alpha,
        bias=Addend(bias, beta) if bias and beta != 0 else None,
    )


def _outer_nodes(scope: Scope, product: Product, weight_rank: int) -> OuterNodes:
    """What has to stand before and after the fused node when the weight is made its right operand.

    With the weight on the left, ``W x`` is computed as the transpose of ``x' W'``.
    """
    swaps = product.transposes_activation != product.weight_on_left
    swaps_result = product.weight_on_left
    if not swaps and not swaps_result and weight_rank == 2:
        return OuterNodes()
    rank = scope.rank(product.activation)
    if rank is None:
        unknown = Reason.TRANSPOSED_ACTIVATION if swaps else Reason.ACTIVATION_RANK
        raise NotFusable(Reason.LEFT_OPERAND if swaps_result else unknown)
    if rank < 1:
        raise NotFusable(Reason.INVALID)
    # A vector is a row on the left and a column on the right: x and W x have the same axes whichever side x is on.
    swap = (*range(rank - 2), rank - 1, rank - 2) if rank >= 2 else None
    new_axes = max(0, weight_rank - max(rank, 2))
    return OuterNodes(before=swap if swaps else None, after=swap if swaps_result else None, new_axes=new_axes)
