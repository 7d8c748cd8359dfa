"""DequantizeLinear of a stack of matrices -> Gather of one -> [Squeeze | ...]* -> a product, as a branch for each matrix.

A matrix that is looked up is a value like any other, which no kernel can pre-pack. So each matrix gets a MatMulNBits of its
own, in a branch that is run if the index is the matrix's number: 10 to 20 times faster for a row than to dequantize it, and
as fast for 128 rows. The numbers of this module's limits are those of ONNX Runtime 1.32.0.

Format facts: Gather, Equal, If and Identity of the ONNX specification. ONNX Runtime pre-packs constants that are read in a
branch of the main graph, and no deeper.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.fusion.dequantize import Dequantized
from ort_qdq_plugin.fusion.emit import NodeEmitter
from ort_qdq_plugin.fusion.experts import part_of_stack, view_of_part
from ort_qdq_plugin.fusion.kind import FusionSettings, Site, report_entry
from ort_qdq_plugin.fusion.matmul import MatMulFusion
from ort_qdq_plugin.fusion.matmul import fuse as fuse_product
from ort_qdq_plugin.fusion.matmul_nbits import ROUNDS
from ort_qdq_plugin.fusion.view import View, follow
from ort_qdq_plugin.model.elements import INT32
from ort_qdq_plugin.model.graph import NodeRef, Scope
from ort_qdq_plugin.model.messages import made_tensor, text
from ort_qdq_plugin.model.operands import Operands
from ort_qdq_plugin.model.operators import operator_of
from ort_qdq_plugin.model.tensors import Locate
from ort_qdq_plugin.report.weights import FusedWeight, Reason
from ort_qdq_plugin.values import NamedTuple

__all__ = ["ChosenFusion", "chosen_product"]

_STACK = 3  # the rank of a stack of matrices
# Each becomes a branch, which takes a microsecond of a run and some milliseconds of a load.
_MAX_MATRICES = 64
_MAX_VIEWS = 64  # nodes between the Gather and the product
# The kernel for 8 bits has nothing pre-packed below the accuracy level from which on activations are rounded.
_DEQUANTIZED_BITS = 8
_EQUAL_SINCE = 7  # the opset since which Equal broadcasts


class ChosenFusion(NamedTuple):
    """A product with one of a stack's matrices that becomes a MatMulNBits in a branch for each of them."""

    site: Site
    products: tuple[MatMulFusion, ...]  # with each matrix
    operands: Operands  # "B.0", "scales.0" and so on: those of each matrix, as far as they are needed
    chosen_by: str  # the name of the number of the matrix
    data_type: int  # TensorProto.DataType of the result

    @property
    def operator(self) -> str:
        """The type of the fused nodes."""
        return "MatMulNBits"

    @property
    def size(self) -> int:
        """How many matrices there are."""
        return len(self.products)

    def emit(self, emitter: NodeEmitter, operands: Mapping[str, str]) -> None:
        """Choose: each branch multiplies, or passes on what those before it gave."""
        # Gather raises an error for an index out of range, and makes negative ones positive.
        numbers = np.arange(len(self.products), dtype="<i4")
        every = emitter.constant(made_tensor(INT32, numbers.shape, numbers.tobytes()), f"{self.site.name}.numbers")
        chosen = emitter.node("Gather", [every, self.chosen_by])
        value = emitter.constant(made_tensor(self.data_type, (0,), b""), f"{self.site.name}.none")
        for at, product in enumerate(self.products):
            number = emitter.constant(made_tensor(INT32, (), numbers[at].tobytes()), f"{self.site.name}.number")
            given = {name: operands[f"{name}.{at}"] for name in product.operands}
            value = emitter.node(
                "If", [emitter.node("Equal", [chosen, number])],
                then_branch=emitter.branch(self.data_type, partial(product.emit, operands=given)),
                else_branch=emitter.branch(self.data_type, partial(NodeEmitter.node, op_type="Identity", inputs=[value])),
            )  # fmt: skip

    def entry(self) -> FusedWeight:
        """What the report says of it."""
        first = self.products[0]
        return report_entry(
            self,
            k=first.matrix.k,
            n=first.matrix.n * len(self.products),
            bits=first.bits,
            stored_bits=first.matrix.bits,
            block_size=first.block_size,
            layout="K-major" if first.matrix.k_major else "N-major",
            has_bias=first.bias.own is not None,
        )


def chosen_product(
    site: Site, dequantized: Dequantized, view: View, settings: FusionSettings, locate: Locate
) -> ChosenFusion:
    """Fuse the Gather at a site, along the first axis of what it sees as `view`, with the one product that reads its result.

    Raises:
        NotFusable: The index may be several ones, the weight is no stack of few matrices, or there is no such product.
    """
    scope, index = site.replaced[0]
    indices = scope.stated_shape(scope.nodes[index].input[1])
    count = dequantized.weight.shape[0]
    is_stack = len(view.axes) == _STACK and view.axes[0] == (0,) and count <= _MAX_MATRICES
    if indices is None or any(size != 1 for size in indices) or not is_stack:
        raise NotFusable(Reason.GATHER)
    if scope.parent is not None or scope.opset < _EQUAL_SINCE:
        raise NotFusable(Reason.GATHER)
    part = view_of_part(view)
    replaced, seen = _way_to_product(scope, site, part._replace(axes=(*(() for _ in indices), *part.axes)), locate)
    at = replaced[-1][1]
    node, name = scope.nodes[at], scope.nodes[replaced[-2][1]].output[0]
    alone = site._replace(
        kind=node.op_type,
        name=text(node.name or node.output[0]),
        weight=name,
        output=node.output[0],
        replaced=replaced[-1:],
    )
    products: list[MatMulFusion] = []
    for number in range(count):
        product = fuse_product(alone, part_of_stack(dequantized, number), seen, settings, locate)
        if not isinstance(product, MatMulFusion):
            raise NotFusable(Reason.BATCHED)
        products.append(product)
    if products[0].bits == _DEQUANTIZED_BITS and settings.accuracy_level < ROUNDS:
        raise NotFusable(Reason.SLOWER)
    end = products[0].site
    return ChosenFusion(
        site=end._replace(kind=site.kind, replaced=(*replaced[:-1], *end.replaced)),
        products=tuple(products),
        operands={f"{name}.{at}": operand for at, one in enumerate(products) for name, operand in one.operands.items()},
        chosen_by=scope.nodes[index].input[1],
        data_type=seen.data_type,
    )


def _way_to_product(scope: Scope, site: Site, view: View, locate: Locate) -> tuple[tuple[NodeRef, ...], View]:
    """The nodes from a Gather to the product that reads its result, both included, and how that sees the matrix."""
    way, value = list(site.replaced), site.output
    while len(way) < _MAX_VIEWS:
        readers = scope.uses(value)
        if len(readers) != 1 or readers[0][0] is not scope or scope.is_output(value):
            break
        way.append(readers[0])
        node = scope.nodes[readers[0][1]]
        if not node.output or not node.output[0]:
            break
        operator = operator_of(node)
        if operator is not None and operator.fused_by == "matmul":
            return tuple(way), view
        after = follow(view, scope, node, locate) if node.input[0] == value else None
        if after is None:
            break
        view, value = after, node.output[0]
    raise NotFusable(Reason.CONSUMER)
