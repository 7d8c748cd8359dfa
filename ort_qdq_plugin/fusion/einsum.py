"""DequantizeLinear -> ... -> Einsum that is a product of an activation and the weight, as one MatMulNBits.

Labels that both have are the product's K, those that only the weight has its N; any number of each, in any order. What the
activation has besides is rows.

Format facts: Einsum of the ONNX specification (``equation``; the order of labels that an equation leaves to alphabet).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.fusion.dequantize import Dequantized
from ort_qdq_plugin.fusion.kind import FusionSettings, Site
from ort_qdq_plugin.fusion.matmul import MatMulFusion, OuterNodes, Product, fused_product
from ort_qdq_plugin.fusion.view import View
from ort_qdq_plugin.model.elements import FLOAT, FLOAT16
from ort_qdq_plugin.model.graph import Scope
from ort_qdq_plugin.model.messages import NodeProto, attribute
from ort_qdq_plugin.model.tensors import MAX_RANK, Locate
from ort_qdq_plugin.report.weights import Reason
from ort_qdq_plugin.values import NamedTuple

__all__ = ["TAKES_FACTORS", "fuse"]

TAKES_FACTORS = True
"""As for other products."""

_ELLIPSIS = "..."


class _Equation(NamedTuple):
    """The labels of the activation, of the weight, and of the result; an ellipsis is one of them."""

    activation: list[str]
    weight: list[str]
    result: list[str]


def fuse(site: Site, dequantized: Dequantized, view: View, settings: FusionSettings, locate: Locate) -> MatMulFusion:
    """Fuse the Einsum at a site (`kind.Fuse`)."""
    scope, index = site.replaced[0]
    node = scope.nodes[index]
    if len(node.input) != 2 or list(node.input).count(site.weight) != 1 or not node.output:
        raise NotFusable(Reason.CONSUMER)
    activation = node.input[int(node.input[0] == site.weight)]
    if view.data_type not in (FLOAT, FLOAT16):
        raise NotFusable(Reason.PRODUCT_TYPE)  # before opset 28 it takes no bfloat16
    equation = _read_equation(node, site.weight, len(view.axes))
    if len(view.axes) < 2:
        raise NotFusable(Reason.RANK)
    stored = dict(zip(equation.weight, view.axes, strict=True))
    # As they are stored, so that nothing of the weight has to move.
    in_order = sorted(equation.weight, key=stored.__getitem__)
    summed = [label for label in in_order if label in equation.activation]
    columns = [label for label in in_order if label not in summed]
    _check(equation, summed, columns)
    matrix_view = view._replace(axes=tuple(sum((stored[label] for label in part), ()) for part in (summed, columns)))
    matrix = dequantized.matrix(matrix_view, False, rows_may_differ=True)
    sizes = dict(zip(equation.weight, view.shape, strict=True))
    outer = _outer_nodes(scope, activation, equation, summed, columns, sizes)
    return fused_product(site, Product(activation), matrix, outer, view.data_type, settings, locate)


def _read_equation(node: NodeProto, weight: str, rank: int) -> _Equation:
    """The equation of an Einsum of two operands, of which the weight has so many axes."""
    found = attribute(node, "equation")
    text = b"" if found is None else found.s.replace(b" ", b"")
    left, arrow, right = text.decode("ascii", "replace").partition("->")
    terms = [_labels(term) for term in left.split(",")]
    if len(terms) != 2:
        raise NotFusable(Reason.INVALID)
    once = sorted(label for label in {*terms[0], *terms[1]} - {_ELLIPSIS} if (terms[0] + terms[1]).count(label) == 1)
    if not arrow and len({label.isupper() for label in once}) > 1:
        raise NotFusable(Reason.EINSUM)  # libraries disagree about which come first
    has_ellipsis = any(_ELLIPSIS in term for term in terms)
    result = _labels(right) if arrow else [_ELLIPSIS] * has_ellipsis + once
    of_weight, of_activation = terms if node.input[0] == weight else terms[::-1]
    if _ELLIPSIS in of_weight:
        if len(of_weight) - 1 < rank:
            raise NotFusable(Reason.BATCHED)
        of_weight.remove(_ELLIPSIS)  # it stands for nothing
    if len(of_weight) != rank or (_ELLIPSIS in result) > has_ellipsis:
        raise NotFusable(Reason.INVALID)
    if _ELLIPSIS in result and _ELLIPSIS not in of_activation:
        result.remove(_ELLIPSIS)
    return _Equation(of_activation, of_weight, result)


def _labels(term: str) -> list[str]:
    before, dots, after = term.partition(_ELLIPSIS)
    labels = [*before, *([_ELLIPSIS] if dots else []), *after]
    if not all(label.isalpha() or label == _ELLIPSIS for label in labels):
        raise NotFusable(Reason.INVALID)
    return labels


def _check(equation: _Equation, summed: Sequence[str], columns: Sequence[str]) -> None:
    """Raise NotFusable for what is no product of the weight."""
    activation, weight, result = equation
    if any(len(set(labels)) != len(labels) for labels in equation):
        raise NotFusable(Reason.EINSUM)
    if not set(result).isdisjoint(summed):
        raise NotFusable(Reason.BATCHED)
    rows = [label for label in activation if label not in weight]
    if not summed or set(result) != {*rows, *columns}:
        raise NotFusable(Reason.EINSUM)


def _outer_nodes(
    scope: Scope, name: str, equation: _Equation, summed: list[str], columns: list[str], sizes: dict[str, int]
) -> OuterNodes:
    """What makes the activation [rows, K], and of [rows, N] the result; raises NotFusable if its rank has to be known."""
    shape = scope.known_shape(name)
    rows = [label for label in equation.activation if label not in summed]
    moves = (
        equation.activation != rows + summed
        or equation.result != rows + columns
        or len(summed) != 1
        or len(columns) != 1
    )  # fmt: skip
    has_ellipsis = _ELLIPSIS in rows
    if shape is None and has_ellipsis and moves:
        shape = scope.shape(name)
        if shape is None:
            raise NotFusable(Reason.ACTIVATION_RANK)
    activation, result = equation.activation, equation.result
    if shape is not None:
        count = len(shape) - (len(activation) - has_ellipsis)
        if count < 0 or (count and not has_ellipsis) or len(shape) > MAX_RANK:
            raise NotFusable(Reason.INVALID)
        activation, result, rows = (_expanded(labels, count) for labels in (activation, result, rows))
        of_activation = dict(zip(activation, shape, strict=True))
        # A size of 1 would be repeated.
        if any(of_activation[label] not in (None, sizes[label]) for label in summed):
            raise NotFusable(Reason.EINSUM)
    if not moves:
        return OuterNodes()
    wanted, given = rows + summed, rows + columns
    copied = (0,) * len(rows)  # the sizes that are there
    return OuterNodes(
        before=None if activation == wanted else tuple(map(activation.index, wanted)),
        joined=None if len(summed) == 1 else (*copied, _product(sizes, summed)),
        split=None if len(columns) == 1 else (*copied, *(sizes[label] for label in columns)),
        after=None if result == given else tuple(map(given.index, result)),
    )


def _expanded(labels: Sequence[str], count: int) -> list[str]:
    """Labels of their own for the axes that an ellipsis stands for."""
    axes = [f"{_ELLIPSIS}{at}" for at in range(count)]
    return [each for label in labels for each in (axes if label == _ELLIPSIS else [label])]


def _product(sizes: dict[str, int], labels: Sequence[str]) -> int:
    return math.prod(sizes[label] for label in labels)
