"""What is added to a product: Gemm's third input, or a following Add, as MatMulNBits' own bias where that is possible."""

from __future__ import annotations

import math

import numpy as np

from ort_qdq_plugin.errors import ModelError, NotFusable
from ort_qdq_plugin.fusion.dequantize import is_dequantize
from ort_qdq_plugin.model.elements import ELEMENTS, FLOAT16, bits_of
from ort_qdq_plugin.model.graph import NodeRef, Scope
from ort_qdq_plugin.model.messages import NodeProto, TensorProto, int_attribute, is_standard, made_tensor
from ort_qdq_plugin.model.tensors import MAX_RANK, Locate
from ort_qdq_plugin.report.weights import Reason
from ort_qdq_plugin.values import NamedTuple

__all__ = ["Addend", "Bias", "check_bias", "following_bias", "own_bias"]

_MATRIX = 2  # its rank

# A bias that has to be scaled or repeated is made anew for each product that reads it, and thousands may. So those that are
# larger than this are added by a node of their own.
_MAX_NEW_BIAS_BYTES = 4096


class Addend(NamedTuple):
    """Something added to a product: `beta` times the value called `name`."""

    name: str
    beta: float


class Bias(NamedTuple):
    """What is added to a product, in one of two ways."""

    # MatMulNBits' own bias: the name of a value of shape [N], or a new constant. None: it has none.
    own: str | TensorProto | None = None
    addend: Addend | None = None  # what a node of its own adds to the result. None: nothing
    add: NodeRef | None = None  # the Add node whose constant became `own`. None: no node did


def check_bias(scope: Scope, node: NodeProto, weight_on_left: bool, n: int, locate: Locate) -> None:
    """Check a Gemm's bias: one that is broken or does not fit could pass an Add unnoticed, or vanish by a beta of 0.

    With the weight on the left, the result has a row, not a column, for each of the weight's N. Other products have no bias.

    Raises:
        NotFusable: The bias is incomplete, or it does not fit the result as far as shapes are known.
    """
    if node.op_type != "Gemm" or len(node.input) < 3 or not node.input[2]:
        return
    tensor = scope.constant(node.input[2])
    try:
        shape = (scope.shape(node.input[2]) or ()) if tensor is None else locate(tensor).shape
    except (ModelError, OSError):
        raise NotFusable(Reason.INVALID) from None
    rows, columns = (1, 1, *shape)[-2:]
    along_n, along_other = (rows, columns) if weight_on_left else (columns, rows)
    fits = len(shape) <= 2 and along_n in (1, n, None)
    # Last, since a shape may need inference.
    if not fits or (along_other not in (1, None) and along_other != _activation_size(scope, node, weight_on_left)):
        raise NotFusable(Reason.INVALID)


def own_bias(scope: Scope, bias: Addend | None, n: int, data_type: int, locate: Locate) -> Bias:
    """A Gemm's bias as MatMulNBits' own where that is one row of the same values, else as something to add.

    Raises:
        NotFusable: The bias is incomplete.
    """
    if bias is None:
        return Bias()
    tensor = scope.constant(bias.name)
    if tensor is None:
        is_row = bias.beta == 1.0 and _is_dequantized_row(scope, bias.name, n)
        return Bias(own=bias.name) if is_row else Bias(addend=bias)
    shape = tuple(tensor.dims) if len(tensor.dims) <= MAX_RANK else (0,)
    elements = math.prod(shape)
    if tensor.data_type != data_type or elements not in (1, n) or any(size != 1 for size in shape[:-1]):
        return Bias(addend=bias)
    if bias.beta == 1.0 and shape == (n,):
        return Bias(own=bias.name)
    if n * bits_of(data_type) > _MAX_NEW_BIAS_BYTES * 8:
        return Bias(addend=bias)
    try:
        stored = locate(tensor)
    except (ModelError, OSError):
        raise NotFusable(Reason.INVALID) from None
    values = stored.read().view(ELEMENTS[data_type].numpy)
    # What beta makes of them in float is what the Gemm adds; in float16 they may become others, or infinite.
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = values.astype(np.float32) * np.float32(bias.beta)
        made = np.broadcast_to(scaled.astype(values.dtype), n)
    if not np.array_equal(made, np.broadcast_to(scaled, n), equal_nan=True):
        return Bias(addend=bias)
    return Bias(own=made_tensor(data_type, (n,), made.tobytes()))


def following_bias(scope: Scope, product: NodeProto, activation: str, n: int, data_type: int) -> Bias:
    """The constant of shape [N] that the product's only reader adds, if ONNX Runtime too would put it into the product."""
    output = product.output[0]
    uses = scope.uses(output)
    if len(uses) != 1 or scope.is_output(output) or uses[0][0] is not scope:
        return Bias()
    add = scope.nodes[uses[0][1]]
    if add.op_type != "Add" or not is_standard(add) or len(add.input) != 2 or not add.output:
        return Bias()
    bias = add.input[1] if add.input[0] == output else add.input[0]
    tensor = scope.constant(bias)
    fits = tensor is not None and _is_row(tensor, n) and tensor.data_type == data_type
    # Last, since it may need shape inference.
    return Bias(own=bias, add=uses[0]) if fits and _takes_bias_first(scope, product, activation, data_type) else Bias()


def _activation_size(scope: Scope, node: NodeProto, weight_on_left: bool) -> int | None:
    """What the result of a Gemm has along the axis that is not the weight's; None where that is not known."""
    axis = int(weight_on_left != bool(int_attribute(node, "transB" if weight_on_left else "transA")))
    shape = scope.shape(node.input[int(weight_on_left)])
    return shape[axis] if shape is not None and len(shape) == 2 else None


def _is_dequantized_row(scope: Scope, name: str, n: int) -> bool:
    """Whether the value is a dequantized constant of shape [N] (a bias stored as integers)."""
    found = scope.producer(name)
    if found is None or not is_dequantize(found[2]) or not found[2].input:
        return False
    tensor = found[0].constant(found[2].input[0])
    return tensor is not None and _is_row(tensor, n)


def _is_row(tensor: TensorProto, n: int) -> bool:
    return len(tensor.dims) == 1 and tensor.dims[0] == n


def _takes_bias_first(scope: Scope, product: NodeProto, activation: str, data_type: int) -> bool:
    """Whether ONNX Runtime puts a bias that is added to this product into it, whatever comes then.

    Its MatMulAddFusion makes a Gemm of the two if all is of rank 2 or of a fixed shape. Otherwise it first tries to join the
    Add with what follows it (BiasGelu, say), and puts it into MatMulNBits if it is still there. In float16 it always is:
    the CPU has no such joint operators.
    """
    if data_type == FLOAT16:
        return True
    return product.op_type == "MatMul" and (scope.rank(activation) == _MATRIX or scope.is_fixed(activation))
