"""DequantizeLinear -> [Reshape | ...]* -> Conv whose kernel has one element, as Transpose -> MatMulNBits -> Transpose.

At every position such a convolution multiplies the channels by one matrix. The product is computed in float, whatever the
session's accuracy level: that level is for products, and ONNX Runtime rounds the activations of no Conv in float.

Format facts: Conv of the ONNX specification.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.fusion.bias import Addend, own_bias
from ort_qdq_plugin.fusion.choice import form_of
from ort_qdq_plugin.fusion.dequantize import Dequantized
from ort_qdq_plugin.fusion.kind import FusionSettings, Site
from ort_qdq_plugin.fusion.matmul import MatMulFusion, OuterNodes, check_moves
from ort_qdq_plugin.fusion.matmul_nbits import operands_of
from ort_qdq_plugin.fusion.view import View
from ort_qdq_plugin.model.elements import FLOAT
from ort_qdq_plugin.model.graph import Scope
from ort_qdq_plugin.model.messages import NodeProto, attributes, int_attribute, is_standard
from ort_qdq_plugin.model.shapes import Shape
from ort_qdq_plugin.model.tensors import Locate
from ort_qdq_plugin.report.weights import Reason
from ort_qdq_plugin.values import NamedTuple

__all__ = ["RULES", "Rule", "fuse"]

_FLOAT_LEVEL = 0  # of MatMulNBits: nothing is rounded
_RANK = 3  # at least, of what a Conv reads: batch, channels and one axis of positions
_BYTE = 8  # bits
_PADDINGS = (b"NOTSET", b"SAME_UPPER", b"SAME_LOWER", b"VALID")


class _Place(NamedTuple):
    """What is known of a convolution at load, and decides whether the product is faster."""

    k: int  # channels of the input
    n: int  # channels of the result
    is_single: bool  # there is one position in each element of the batch, as behind a pooling of everything
    positions: int | None  # of all the batch; None where that is not known
    transposes: int  # sides, 0 to 2, on which a Transpose changes between channels in front and channels last
    once: bool  # whether weights may be dequantized once; ONNX Runtime does it on every run otherwise


class Rule(NamedTuple):
    """Where the product is the fastest form."""

    only_single: bool = False
    most_positions: int | None = None
    least_transposes: int = 0
    least_k: int = 0
    least_elements: int = 0  # K * N
    even_if_once: bool = True  # also where the weight may be dequantized once instead

    def holds(self, place: _Place) -> bool:
        """Whether it is for such a convolution."""
        return (
            (place.is_single or not self.only_single)
            and (self.most_positions is None or (place.positions is not None and place.positions <= self.most_positions))
            and place.transposes >= self.least_transposes
            and place.k >= self.least_k
            and place.k * place.n >= self.least_elements
            and (self.even_if_once or not place.once)
        )


# Times are those of `python -m conformance.choices_conv` with ONNX Runtime 1.32.0, over those of the weight in float, which
# takes 8 times the memory: for 4 bits. 8 bits are dequantized in every run where nothing is rounded, up to 50 times slower.
# Elsewhere the two Transpose nodes make the product slower, by a tenth and up to twice; patches, whose kernel is as long as
# its strides, by 1.1 to 2.1 times.
RULES: tuple[Rule, ...] = (
    # 0.5 to 1.0, the less the larger the weight and the batch are. Small ones stay in the cache: nothing is gained.
    Rule(only_single=True, least_elements=1 << 16),
    # There the product saves two Transpose nodes. 0.75 to 1.0 with both sides; 0.9 to 1.1, so that memory is what is gained,
    # with one side and so many channels, and up to 1.9 with fewer.
    Rule(least_transposes=2, least_elements=1 << 16),
    Rule(least_transposes=1, least_k=512, least_elements=1 << 16),
    # 1.0 to 1.3, where stock's time, which dequantizes on every run, is 1.2 to 3.5.
    Rule(most_positions=400, even_if_once=False),
)


def fuse(site: Site, dequantized: Dequantized, view: View, settings: FusionSettings, locate: Locate) -> MatMulFusion:
    """Fuse the convolution at a site (`kind.Fuse`)."""
    scope, index = site.replaced[0]
    node, rank = scope.nodes[index], len(view.shape)
    reads_it = list(node.input[1:2]) == [site.weight] and list(node.input).count(site.weight) == 1
    if not reads_it or not node.output or rank < _RANK or not _is_pointwise(node, view.shape):
        raise NotFusable(Reason.CONSUMER)
    n, k = view.shape[:2]
    shape = scope.known_shape(node.input[0])
    if shape is not None and (len(shape) != rank or shape[1] not in (None, k)):
        raise NotFusable(Reason.INVALID)
    if view.data_type != FLOAT or dequantized.bits >= _BYTE:
        # In float, 8 bits are dequantized in every run.
        raise NotFusable(Reason.CONVOLUTION)
    place = _place(scope, node, shape, (k, n), settings.once_bytes() > 0)
    if not any(rule.holds(place) for rule in RULES):
        raise NotFusable(Reason.CONVOLUTION)
    outer = OuterNodes(before=_to_last(rank), after=_to_front(rank))
    check_moves(scope, node.input[0], outer)
    matrix = dequantized.matrix(view.reshaped((n, k)), transposed=True)
    matrix, bits, block_size = form_of(matrix, FLOAT, settings._replace(accuracy_level=_FLOAT_LEVEL))
    addend = Addend(node.input[2], 1.0) if len(node.input) > 2 and node.input[2] else None
    bias = own_bias(scope, addend, n, FLOAT, locate)
    if addend is not None and bias.own != addend.name:
        # A row of N, or nothing that a Conv takes.
        raise NotFusable(Reason.CONVOLUTION)
    return MatMulFusion(
        site=site,
        matrix=matrix,
        operands=operands_of(matrix, bits, block_size, FLOAT),
        bits=bits,
        block_size=block_size,
        kernel_type=FLOAT,
        casts_from=None,
        accuracy_level=_FLOAT_LEVEL,
        activation=node.input[0],
        alpha=1.0,
        bias=bias,
        outer=outer,
    )


def _is_pointwise(node: NodeProto, weight: tuple[int, ...]) -> bool:
    """Whether a Conv has a kernel of one element and reads every position once, whatever the sizes are.

    How far the elements of a kernel are apart does not matter to one, and ``auto_pad`` pads nothing for it.
    """
    given, axes = attributes(node), len(weight) - 2
    fixed = {"kernel_shape": [1] * axes, "strides": [1] * axes, "pads": [0] * 2 * axes}
    is_fixed = all(list(given[name].ints) == numbers for name, numbers in fixed.items() if name in given)
    padding = given["auto_pad"].s if "auto_pad" in given else b"NOTSET"
    dilations = list(given["dilations"].ints) if "dilations" in given else [1] * axes
    is_dilated = len(dilations) == axes and min(dilations) > 0
    is_valid = padding in _PADDINGS and is_dilated and int_attribute(node, "group", 1) == 1
    return is_fixed and is_valid and set(weight[2:]) == {1}


def _place(scope: Scope, node: NodeProto, shape: Shape | None, channels: tuple[int, int], once: bool) -> _Place:
    """What decides. `shape`: of the input, as far as it is known; `channels`: K and N; `once`: as in `_Place`."""
    sizes = [] if shape is None else [shape[0], *shape[2:]]
    found, output = scope.producer(node.input[0]), node.output[0]
    readers = [inner.nodes[index] for inner, index in scope.uses(output)]
    before = found is not None and _is_transpose(found[2], _to_front)
    behind = bool(readers) and not scope.is_output(output) and all(_is_transpose(reader, _to_last) for reader in readers)
    k, n = channels
    return _Place(
        k=k,
        n=n,
        is_single=bool(sizes) and set(sizes[1:]) == {1},
        positions=None if not sizes or None in sizes else math.prod(size for size in sizes if size is not None),
        transposes=before + behind,
        once=once,
    )


def _is_transpose(node: NodeProto, order: Callable[[int], tuple[int, ...]]) -> bool:
    """Whether a node is a Transpose to this order of the axes."""
    given = attributes(node)
    numbers = tuple(given["perm"].ints) if "perm" in given else ()
    return node.op_type == "Transpose" and is_standard(node) and numbers == order(len(numbers))


def _to_last(rank: int) -> tuple[int, ...]:
    """The permutation that puts the channels behind the positions."""
    return (0, *range(2, rank), 1)


def _to_front(rank: int) -> tuple[int, ...]:
    """The permutation that puts them back."""
    return (0, rank - 1, *range(1, rank - 1))
