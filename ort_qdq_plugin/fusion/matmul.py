"""DequantizeLinear -> [Transpose | Reshape | Cast | ...]* -> MatMul | Gemm | FusedMatMul, as one MatMulNBits.

Format facts: MatMul and Gemm of the ONNX specification; FusedMatMul and MatMulNBits of ONNX Runtime's contrib operators.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
from onnx import helper, numpy_helper

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.fusion.dequantize import Dequantized, Locate, is_dequantize
from ort_qdq_plugin.fusion.reason import NotFusable, Reason
from ort_qdq_plugin.fusion.view import View
from ort_qdq_plugin.model.graph import Location, Scope, attributes, is_standard
from ort_qdq_plugin.model.quantized import BFLOAT16, FLOAT, FLOAT16, FusedWeight, QuantizedMatrix
from ort_qdq_plugin.model.tensors import ELEMENT_BITS, MAX_RANK

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

__all__ = ["Addend", "MatMulFusion", "fuse_product", "is_product"]

# Block sizes that MatMulNBits' CPU kernel takes, all powers of two; larger ones for 4 and 8 bits since the version given.
_MIN_BLOCK_SIZE, _MAX_BLOCK_SIZE = 16, 256
_LARGE_BLOCKS_SINCE = (1, 32)
_DEFAULT_BLOCK_SIZE = 32  # what ONNX Runtime takes for weights without blocks
_LEAST_PADDING = -1  # session.qdq_matmulnbits_block_size: choose by padding

# An operand may grow to this multiple of its stored bytes by repeating scales, not further.
_MAX_GROWTH = 2

# A bias is made anew, scaled or repeated, for each of thousands of products that may share it: larger ones are added.
_MAX_NEW_BIAS_BYTES = 4096

# Of alpha and beta, with which scales and biases are multiplied: these must not overflow where the product would not, nor
# lose bits below their range.
_MAX_FACTOR = 2.0**16

_UINT8, _INT8 = 2, 3  # TensorProto.DataType


@dataclass(frozen=True)
class Addend:
    """Something added to a product: `beta` times the value called `name`."""

    name: str
    beta: float


@dataclass(frozen=True)
class MatMulFusion:
    """One product that becomes a MatMulNBits node, with the few cheap nodes that it may need around it.

    `location`: of the product; `replaced`: its node and, where a following Add folds into it, that Add's, in order.
    `activation`, `output`: names of values. `bias` is MatMulNBits' own: the name of a value of shape [N], or a new constant.
    `addend` is added to the result. `transposes`: of the activation, before, and of the result, after: permutations or None.
    `casts_from`: the type to cast from and back to, where the kernel does not take it. `new_axes`: leading axes of
    size 1 that the result gets.
    """

    dequantize: str
    kind: str
    name: str
    replaced: tuple[Location, ...]
    weight: FusedWeight
    activation: str
    output: str
    bias: str | TensorProto | None
    addend: Addend | None
    transposes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    casts_from: int | None
    new_axes: int


@dataclass(frozen=True)
class _Product:
    """alpha * op(activation) x op(weight) + beta * bias; with the weight on the left, the factors the other way round."""

    activation: str
    weight_on_left: bool
    transposes_activation: bool
    transposes_weight: bool
    alpha: float
    bias: Addend | None


def is_product(node: NodeProto) -> bool:
    """Whether `node` is a matrix product of a kind that can be fused."""
    standard = is_standard(node) and node.op_type in ("MatMul", "Gemm")
    return standard or (node.op_type == "FusedMatMul" and node.domain == "com.microsoft")


def fuse_product(
    dequantize: str, dequantized: Dequantized, view: View, use: Location, name: str, block_size: int, locate: Locate
) -> MatMulFusion:
    """The fusion of the product at `use`, which reads the weight, seen as `view`, under `name`; raises NotFusable.

    `block_size` is for weights without blocks, as in ``session.qdq_matmulnbits_block_size``: a power of two from 16 to 256,
    0 for ONNX Runtime's default of 32, or -1 for the one that pads K least.
    """
    scope, node = use[0], use[0].nodes[use[1]]
    product = _read_product(node, name)
    matrix = dequantized.matrix(view, product.transposes_weight != product.weight_on_left)
    if matrix.block >= matrix.k and not _kernel_takes(matrix.block, matrix.bits):
        # One block is one scale per column, of which there can be as many blocks as one likes.
        matrix = replace(matrix, block=0)
    if matrix.bits == 8 and not matrix.block and _is_from_bytes(scope, product.activation):
        raise NotFusable(Reason.INTEGER_KERNEL)
    kernel_type, casts_from = _kernel_type(view.data_type, matrix.scales.data_type)
    _check_bias(scope, node, matrix.n, locate)
    weight = FusedWeight(matrix, _block_size(matrix, block_size), kernel_type, product.alpha)
    transposes, new_axes = _around(scope, product, len(view.axes))
    plain = casts_from is None and transposes[1] is None and not new_axes
    bias, addend = _bias(scope, product.bias, matrix, view.data_type, locate) if plain else (None, product.bias)
    output, replaced = node.output[0], [use]
    if plain and product.bias is None:
        bias, add = _following_bias(scope, node, product.activation, matrix, view.data_type)
        if add is not None:
            replaced.append(add)
            output = add[0].nodes[add[1]].output[0]
    return MatMulFusion(
        dequantize=dequantize,
        kind=node.op_type,
        name=node.name or node.output[0],
        replaced=tuple(replaced),
        weight=weight,
        activation=product.activation,
        output=output,
        bias=bias,
        addend=addend,
        transposes=transposes,
        casts_from=casts_from,
        new_axes=new_axes,
    )


def _read_product(node: NodeProto, name: str) -> _Product:
    if len(node.input) < 2 or not node.output or list(node.input).count(name) != 1 or name in node.input[2:]:
        raise NotFusable(Reason.INVALID if len(node.input) < 2 or not node.output else Reason.CONSUMER)
    given = attributes(node)
    if any(given[key].i not in (0, 1) for key in ("transA", "transB") if key in given):
        raise NotFusable(Reason.INVALID)
    flags = {key: key in given and given[key].i != 0 for key in ("transA", "transB", "transBatchA", "transBatchB")}
    if flags["transBatchA"] or flags["transBatchB"]:
        raise NotFusable(Reason.TRANSPOSED_ACTIVATION)
    on_left = node.input[0] == name
    transposes = (flags["transA"], flags["transB"])
    bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""
    beta = given["beta"].f if "beta" in given else 1.0
    alpha = given["alpha"].f if "alpha" in given else 1.0
    if not math.isfinite(alpha) or not math.isfinite(beta):
        raise NotFusable(Reason.INVALID)
    if alpha and not 1 / _MAX_FACTOR <= abs(alpha) <= _MAX_FACTOR:
        raise NotFusable(Reason.ALPHA)
    return _Product(
        activation=node.input[1] if on_left else node.input[0],
        weight_on_left=on_left,
        transposes_activation=transposes[1 if on_left else 0],
        transposes_weight=transposes[0 if on_left else 1],
        alpha=alpha,
        bias=Addend(bias, beta) if bias and beta != 0 else None,
    )


def _around(
    scope: Scope, product: _Product, weight_rank: int
) -> tuple[tuple[tuple[int, ...] | None, tuple[int, ...] | None], int]:
    """(permutations of activation and result, leading axes the result lacks) when the weight is made the right operand.

    With the weight on the left, ``W x`` is computed as the transpose of ``x' W'``.
    """
    swaps = product.transposes_activation != product.weight_on_left
    swaps_result = product.weight_on_left
    if not swaps and not swaps_result and weight_rank == 2:
        return (None, None), 0
    shape = scope.shape(product.activation)
    if shape is None:
        unknown = Reason.TRANSPOSED_ACTIVATION if swaps and not swaps_result else Reason.ACTIVATION_RANK
        raise NotFusable(Reason.LEFT_OPERAND if swaps_result else unknown)
    rank = len(shape)
    if rank < 1:
        raise NotFusable(Reason.INVALID)
    # A vector is a row on the left and a column on the right: x and W x have the same axes whichever side x is on.
    swap = (*range(rank - 2), rank - 1, rank - 2) if rank >= 2 else None
    return (swap if swaps else None, swap if swaps_result else None), max(0, weight_rank - max(rank, 2))


def _kernel_type(product_type: int, scale_type: int) -> tuple[int, int | None]:
    """(type that MatMulNBits computes in, type to cast from where it is not the product's)."""
    if product_type == FLOAT:
        return FLOAT, None
    if product_type == FLOAT16:
        # Float scales may be too small for float16: better to widen the activations than to narrow the scales.
        return (FLOAT16, None) if scale_type == FLOAT16 else (FLOAT, FLOAT16)
    if product_type == BFLOAT16:
        return FLOAT, BFLOAT16
    raise NotFusable(Reason.PRODUCT_TYPE)


def _block_size(matrix: QuantizedMatrix, wanted: int) -> int:
    """The block size that MatMulNBits gets; raises NotFusable(BLOCK_SIZE)."""
    block = matrix.block
    if not block:
        return _chosen_block_size(wanted, matrix.k)
    if _kernel_takes(block, matrix.bits):
        return block
    divisor = min(block & -block, _MAX_BLOCK_SIZE)
    # A scale, and perhaps a zero point, for each block of so many elements.
    per_scale = {FLOAT: 32}.get(matrix.scales.data_type, 16) + (matrix.bits if matrix.zero_points is not None else 0)
    if divisor < _MIN_BLOCK_SIZE or matrix.bits + per_scale / divisor > _MAX_GROWTH * (matrix.bits + per_scale / block):
        raise NotFusable(Reason.BLOCK_SIZE)
    return divisor


def _kernel_takes(block: int, bits: int) -> bool:
    if block & (block - 1) or block < _MIN_BLOCK_SIZE:
        return False
    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    return block <= _MAX_BLOCK_SIZE or (bits > 2 and version >= _LARGE_BLOCKS_SINCE)


def _chosen_block_size(wanted: int, k: int) -> int:
    """The block size for a weight of K = `k` rows without blocks of its own."""
    if wanted > 0:
        return wanted
    if wanted == _LEAST_PADDING:
        sizes = [_MIN_BLOCK_SIZE]
        while sizes[-1] * 2 <= min(k, _MAX_BLOCK_SIZE):
            sizes.append(sizes[-1] * 2)
        return min(reversed(sizes), key=lambda size: -k % size)
    return _DEFAULT_BLOCK_SIZE


def _is_from_bytes(scope: Scope, name: str) -> bool:
    """Whether the value is dequantized from 8-bit integers, which ONNX Runtime multiplies as such."""
    found = scope.producer(name)
    if found is None or not is_dequantize(found[2]):
        return False
    where, _, node = found
    zero_point = where.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    return zero_point is None or zero_point.data_type in (_UINT8, _INT8)


def _bias(
    scope: Scope, bias: Addend | None, matrix: QuantizedMatrix, data_type: int, locate: Locate
) -> tuple[str | TensorProto | None, Addend | None]:
    """Gemm's bias as MatMulNBits' own where it is one row, else as something to add."""
    if bias is None:
        return None, None
    tensor = scope.constant(bias.name)
    if tensor is None:
        return (bias.name, None) if bias.beta == 1.0 and _is_dequantized_row(scope, bias.name, matrix.n) else (None, bias)
    shape = tuple(tensor.dims) if len(tensor.dims) <= MAX_RANK else (0,)
    elements = math.prod(shape)
    if tensor.data_type != data_type or elements not in (1, matrix.n) or any(size != 1 for size in shape[:-1]):
        return None, bias
    if bias.beta == 1.0 and shape == (matrix.n,):
        return bias.name, None
    if matrix.n * ELEMENT_BITS[data_type] > _MAX_NEW_BIAS_BYTES * 8 or abs(bias.beta) > _MAX_FACTOR:
        return None, bias
    try:
        stored = locate(tensor)
    except (ModelError, OSError):
        raise NotFusable(Reason.INVALID) from None
    values = stored.read().view(helper.tensor_dtype_to_np_dtype(data_type))
    scaled = np.broadcast_to(values * values.dtype.type(bias.beta), matrix.n)
    return numpy_helper.from_array(np.ascontiguousarray(scaled)), None


def _check_bias(scope: Scope, node: NodeProto, n: int, locate: Locate) -> None:
    """Raise NotFusable where Gemm's bias is broken or does not fit, which an Add would not mind, nor a beta of 0."""
    if node.op_type != "Gemm" or len(node.input) < 3 or not node.input[2]:
        return
    tensor = scope.constant(node.input[2])
    try:
        shape = (scope.shape(node.input[2]) or ()) if tensor is None else locate(tensor).shape
    except (ModelError, OSError):
        raise NotFusable(Reason.INVALID) from None
    if len(shape) > 2 or (shape and shape[-1] not in (1, n, None)):
        raise NotFusable(Reason.INVALID)


def _is_dequantized_row(scope: Scope, name: str, n: int) -> bool:
    """Whether the value is a dequantized constant of shape [N] (a bias stored as integers)."""
    found = scope.producer(name)
    if found is None or not is_dequantize(found[2]) or not found[2].input:
        return False
    tensor = found[0].constant(found[2].input[0])
    return tensor is not None and _is_row(tensor, n)


def _is_row(tensor: TensorProto, n: int) -> bool:
    return len(tensor.dims) == 1 and tensor.dims[0] == n


def _following_bias(
    scope: Scope, product: NodeProto, activation: str, matrix: QuantizedMatrix, data_type: int
) -> tuple[str | None, Location | None]:
    """(bias, Add node) when the product's only reader adds a constant of shape [N] that ONNX Runtime would put into it."""
    output = product.output[0]
    uses = scope.uses(output)
    if len(uses) != 1 or scope.is_output(output) or uses[0][0] is not scope:
        return None, None
    add = scope.nodes[uses[0][1]]
    if add.op_type != "Add" or not is_standard(add) or len(add.input) != 2 or not add.output:
        return None, None
    bias = add.input[1] if add.input[0] == output else add.input[0]
    tensor = scope.constant(bias)
    fits = tensor is not None and _is_row(tensor, matrix.n) and tensor.data_type == data_type
    # Last, for it may need shape inference.
    return (bias, uses[0]) if fits and _takes_bias_first(scope, product, activation, data_type) else (None, None)


def _takes_bias_first(scope: Scope, product: NodeProto, activation: str, data_type: int) -> bool:
    """Whether ONNX Runtime puts a bias that is added to this product into it, whatever comes then.

    Its MatMulAddFusion makes a Gemm of the two where all is of rank 2 or of a fixed shape. Elsewhere it prefers to join the
    Add with what follows it (BiasGelu, say), and puts it into MatMulNBits only if it is still there. In float16, where the
    CPU lacks those, it always is.
    """
    if data_type == FLOAT16:
        return True
    shape = scope.shape(activation) if product.op_type == "MatMul" else None
    return shape is not None and (len(shape) == 2 or None not in shape)
