"""DequantizeLinear of a stack of matrices -> MatMul | FusedMatMul: a MatMulNBits for each matrix.

So are layers written that compute all of their experts. Experts that are looked up at run time are a Gather (`gather`).

Format facts: MatMul of the ONNX specification: leading axes are batches, in which those of size 1 stand for all of the other
operand's; Split and Concat; FusedMatMul and MatMulNBits of ONNX Runtime's contrib operators.
"""

from __future__ import annotations

from collections.abc import Mapping

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.fusion.choice import form_of
from ort_qdq_plugin.fusion.dequantize import Dequantized, QuantizedMatrix
from ort_qdq_plugin.fusion.emit import NodeEmitter
from ort_qdq_plugin.fusion.kind import FusionSettings, Site, report_entry
from ort_qdq_plugin.fusion.matmul_nbits import kernel_type, operands_of
from ort_qdq_plugin.fusion.view import View
from ort_qdq_plugin.model.messages import NodeProto, attributes
from ort_qdq_plugin.model.operands import Operands
from ort_qdq_plugin.model.tensors import StoredTensor
from ort_qdq_plugin.report.weights import FusedWeight, Reason
from ort_qdq_plugin.values import NamedTuple

__all__ = ["StackFusion", "fused_stack", "is_stack", "part_of_stack", "view_of_part"]

_STACK = 3  # the rank of a stack of matrices
# Each becomes a node. Of the models that are known, none has more experts in a layer.
_MAX_MATRICES = 256


class StackFusion(NamedTuple):
    """A product with a stack of matrices that becomes a MatMulNBits node for each of them."""

    site: Site
    matrix: QuantizedMatrix  # the first of the stack; the others are like it
    size: int  # how many matrices there are
    operands: Operands  # "B.0", "scales.0" and so on: those of each matrix, as far as they are needed
    bits: int  # of an element of the fused nodes
    block_size: int  # of the fused nodes
    kernel_type: int  # TensorProto.DataType that they compute in
    casts_from: int | None  # the product's own type, if that is another one: casts go first and last
    accuracy_level: int  # MatMulNBits' attribute
    activation: str  # the name of the other operand
    rank: int  # of the activation
    is_shared: bool  # whether all matrices are multiplied by the whole of it

    @property
    def operator(self) -> str:
        """The type of the fused nodes."""
        return "MatMulNBits"

    def emit(self, emitter: NodeEmitter, operands: Mapping[str, str]) -> None:
        """Cast and split the activation, multiply its parts, put the results together, and cast back."""
        value = self.activation
        if self.casts_from is not None:
            value = emitter.node("Cast", [value], to=self.kernel_type)
        if self.rank < _STACK:
            value = emitter.unsqueezed(value, _STACK - self.rank)
        axis = max(self.rank, _STACK) - _STACK
        parts = [value] * self.size if self.is_shared else emitter.split(value, self.size, axis)
        results = [
            emitter.fused(
                self.operator, self._inputs(part, at, operands), K=self.matrix.k, N=self.matrix.n, bits=self.bits,
                block_size=self.block_size, accuracy_level=self.accuracy_level,
            )
            for at, part in enumerate(parts)
        ]  # fmt: skip
        value = emitter.node("Concat", results, axis=axis)
        if self.casts_from is not None:
            emitter.node("Cast", [value], to=self.casts_from)

    def entry(self) -> FusedWeight:
        """What the report says of it."""
        matrix = self.matrix
        return report_entry(
            self,
            k=matrix.k,
            n=matrix.n * self.size,
            bits=self.bits,
            stored_bits=matrix.bits,
            block_size=self.block_size,
            layout="K-major" if matrix.k_major else "N-major",
        )

    def _inputs(self, part: str, at: int, operands: Mapping[str, str]) -> list[str]:
        given = (operands.get(f"{name}.{at}") for name in ("B", "scales", "zero_points"))
        return [part, *filter(None, given)]


def is_stack(view: View) -> bool:
    """Whether a weight is seen as several matrices."""
    return len(view.axes) >= _STACK and any(view.axes[:-2])


def fused_stack(site: Site, dequantized: Dequantized, view: View, settings: FusionSettings) -> StackFusion:
    """Fuse the product at a site with a weight that is a stack as it sees it (`is_stack`).

    Raises:
        NotFusable: The weight is more than a list of matrices, or which parts of the activation they take is not known.
    """
    scope, index = site.replaced[0]
    node, count = scope.nodes[index], dequantized.weight.shape[0]
    if len(view.axes) != _STACK or view.axes[0] != (0,) or count > _MAX_MATRICES:
        raise NotFusable(Reason.BATCHED)
    transposes_weight = _transposes_weight(node, site.weight)
    shape = scope.shape(node.input[0])
    if shape is None or len(shape) < _STACK - 1:
        raise NotFusable(Reason.BATCHED)
    batch = shape[-_STACK] if len(shape) >= _STACK else 1
    if batch not in (1, count):
        raise NotFusable(Reason.BATCHED)
    matrices = [part_of_stack(dequantized, at).matrix(view_of_part(view), transposes_weight) for at in range(count)]
    # ONNX Runtime fuses no stacks, in whichever order they are stored.
    form = form_of(matrices[0]._replace(k_major=False), view.data_type, settings)
    computed_in, casts_from = kernel_type(view.data_type, form.matrix, form.bits, settings)
    parts = [
        operands_of(matrix._replace(block=form.matrix.block), form.bits, form.block_size, computed_in) for matrix in matrices
    ]
    return StackFusion(
        site=site,
        matrix=matrices[0],
        size=count,
        operands={f"{name}.{at}": operand for at, part in enumerate(parts) for name, operand in part.items()},
        bits=form.bits,
        block_size=form.block_size,
        kernel_type=computed_in,
        casts_from=casts_from,
        accuracy_level=settings.accuracy_level,
        activation=node.input[0],
        rank=len(shape),
        is_shared=batch == 1,
    )


def _transposes_weight(node: NodeProto, weight: str) -> bool:
    """Whether a product transposes the matrices, which are on its right; raises NotFusable if it does anything else."""
    if len(node.input) != 2 or not node.output or node.input[0] == weight or node.input[1] != weight:
        raise NotFusable(Reason.BATCHED)
    given = attributes(node)
    changes = [given[name].i != 0 for name in ("transA", "transBatchA", "transBatchB") if name in given]
    if any(changes) or ("alpha" in given and given["alpha"].f != 1.0):
        raise NotFusable(Reason.BATCHED)
    return "transB" in given and given["transB"].i != 0


def view_of_part(view: View) -> View:
    """How a matrix of the stack is seen."""
    axes = tuple(tuple(axis - 1 for axis in axes) for axes in view.axes[1:])
    return View(view.stored_shape[1:], axes, view.data_type)


def part_of_stack(stack: Dequantized, at: int) -> Dequantized:
    """One matrix of a stack; raises NotFusable where it is stored from within a byte on."""
    if stack.axis == 0 and stack.block:
        raise NotFusable(Reason.BLOCKS_ALONG_N)
    # Along another axis without blocks, all matrices have the same scales.
    has_own_scales = stack.axis is not None and (stack.axis == 0 or stack.block > 0)

    def part(tensor: StoredTensor, is_own: bool = has_own_scales) -> StoredTensor:
        if not is_own:
            return tensor
        if not tensor.has_parts:
            raise NotFusable(Reason.BATCHED)
        return tensor.part(at)

    return stack._replace(
        weight=part(stack.weight, is_own=True),
        scales=part(stack.scales),
        zero_points=None if stack.zero_points is None else part(stack.zero_points),
        axis=stack.axis - 1 if stack.axis else None,
    )
