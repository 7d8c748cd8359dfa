"""Shapes that follow from those that a model states, through its nodes and its subgraphs.

ONNX's own shape inference answers everything, but importing it takes longer than loading a small model. So the operators
that surround matrix products are followed here, and ONNX's inference is asked only where that does not settle the question.

Format facts: If, Loop and Scan of the ONNX specification.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ort_qdq_plugin.model.contrib_shapes import CONTRIB_OPERATORS
from ort_qdq_plugin.model.elements import INT64
from ort_qdq_plugin.model.messages import attribute, int_attribute, is_standard, made_tensor, subgraphs
from ort_qdq_plugin.model.operators import CONTRIB_DOMAIN
from ort_qdq_plugin.model.seen import ALL, NOTHING, Seen
from ort_qdq_plugin.model.shape_rules import OPERATORS
from ort_qdq_plugin.model.shapes import UNKNOWN, Shape
from ort_qdq_plugin.model.tensors import MAX_RANK
from ort_qdq_plugin.values import NamedTuple

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto

__all__ = ["Known", "followed_shapes"]

Known = dict[str, "Shape | None"]
"""Name -> shape, as far as it is known; None for a value of which ONNX's inference says none. Others are not there."""

# The first one with DequantizeLinear. In earlier ones shapes follow by other rules in part.
_FIRST_OPSET = 10
_MAX_DIM = 2**63 - 1  # as TensorShapeProto has it

_Results = Mapping[int, "Shape | None"]  # place among the outputs or inputs -> what is known, as in `Known`


class _Model(NamedTuple):
    """What is the same for all graphs of a model."""

    opset: int
    has_functions: bool  # of its own, which ONNX's inference looks into
    has_subgraphs: bool
    stated: Iterator[Mapping[str, Shape]]
    found: list[Known]


def followed_shapes(
    graph: GraphProto, opset: int, stated: Iterable[Mapping[str, Shape]], *, has_functions: bool = False
) -> list[Known]:
    """Follow shapes through a main graph and its subgraphs.

    `stated` has the shapes that each of these graphs states, the outermost first; `has_functions` says whether the model has
    functions of its own.

    Returns:
        What is known in each graph, the outermost first: only what ONNX's inference would say as well, except of values
        behind operators that it does not know and ONNX Runtime does. Dimensions may be UNKNOWN.
    """
    of_graphs = list(stated)
    model = _Model(opset, has_functions, len(of_graphs) > 1, iter(of_graphs), [])
    _follow(graph, dict.fromkeys(range(len(graph.input))), (), model)
    return model.found


def _follow(graph: GraphProto, entering: _Results, outer: tuple[Known, ...], model: _Model) -> Known:
    """Follow shapes through one graph, whose inputs have those in `entering`. `outer`: what is known in graphs around it."""
    own: Known = {}
    model.found.append(own)
    stated, constants = next(model.stated), dict(_constants(graph))
    _settle(own, [value.name for value in graph.input], entering, stated)
    for tensor in graph.initializer:
        if len(tensor.dims) <= MAX_RANK and own.get(tensor.name) is None:
            own[tensor.name] = tuple(tensor.dims)
    for node in graph.node:
        _settle(own, node.output, _results(node, (own, *outer), constants, model), stated)
    return own


def _settle(own: Known, names: Sequence[str], results: _Results, stated: Mapping[str, Shape]) -> None:
    """Note what is known of these values, some of whose shapes are stated as well."""
    for at, name in enumerate(names):
        followed, said = results.get(at), stated.get(name)
        if name and (at in results or said is not None):
            is_sure = at in results and (followed is None or said is None or len(followed) == len(said))
            own[name] = _merged(followed, said) if is_sure else _open(said or ())


def _open(stated: Shape) -> Shape:
    """What is stated of a value of which ONNX's inference may say more."""
    return tuple(UNKNOWN if dim is None else dim for dim in stated)


def _merged(followed: Shape | None, stated: Shape | None) -> Shape | None:
    if followed is None or stated is None:
        return stated if followed is None else followed
    return tuple(other if dim is None else dim for dim, other in zip(stated, followed, strict=True))


def _constants(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """The constants of a graph whose values ONNX's inference knows."""
    yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for node in graph.node:
        if node.op_type == "Constant" and is_standard(node) and node.output:
            tensor, numbers = attribute(node, "value"), attribute(node, "value_ints")
            if tensor is not None and tensor.HasField("t"):
                yield node.output[0], tensor.t
            elif numbers is not None:
                yield node.output[0], made_tensor(INT64, (len(numbers.ints),), np.array(numbers.ints, "<i8").tobytes())


def _results(node: NodeProto, around: tuple[Known, ...], constants: Mapping[str, TensorProto], model: _Model) -> _Results:
    """What is known of a node's outputs."""
    if model.has_subgraphs and any(attr.HasField("g") or attr.graphs for attr in node.attribute):
        return _controlled(node, around, model)
    known = around[0] if len(around) == 1 else ChainMap(*around)
    row = None
    if is_standard(node):
        row = OPERATORS.get(node.op_type) if model.opset >= _FIRST_OPSET else None
    elif node.domain == CONTRIB_DOMAIN:
        row = CONTRIB_OPERATORS.get(node.op_type)
    if row is None:
        # The domains of ONNX's own have operators that are not in the table.
        is_foreign = not node.domain.startswith("ai.onnx") and bool(node.domain) and not model.has_functions
        return dict.fromkeys(range(len(node.output))) if is_foreign else {}
    needed = node.input if row.needs == ALL else node.input[: row.needs]
    if any(name in known and known[name] is None for name in needed):
        return dict.fromkeys(range(len(node.output)))
    if len(needed) < row.needs or not all(name in known for name in needed):
        return {}
    shapes = row.rule(Seen(node, [_seen(known, name) for name in node.input], constants, model.opset))
    return {at: None if shape is NOTHING else shape for at, shape in enumerate(shapes) if shape is not None and _fits(shape)}


def _fits(shape: Shape) -> bool:
    """Whether a tensor can have this shape. A few nodes could make one whose rank or whose dimensions take all memory."""
    return shape is NOTHING or (len(shape) <= MAX_RANK and all(dim is None or UNKNOWN <= dim <= _MAX_DIM for dim in shape))


def _seen(known: Mapping[str, Shape | None], name: str) -> Shape | None:
    shape = known.get(name)
    return NOTHING if shape is None and name in known else shape


def _controlled(node: NodeProto, around: tuple[Known, ...], model: _Model) -> _Results:
    """What is known of the outputs of a node that has graphs inside, which are followed."""
    known = ChainMap(*around)
    of_inputs = {at: known[name] for at, name in enumerate(node.input) if name in known}
    kind = node.op_type if is_standard(node) and model.opset >= _FIRST_OPSET else ""
    entering: _Results = {}
    if kind == "Loop":
        # The shapes of what goes round may change on the way.
        entering = {**dict.fromkeys(range(len(node.input))), **{at: shape for at, shape in of_inputs.items() if at == 1}}
    elif kind == "Scan":
        entering = _scanned(node, of_inputs)
    leaving = []
    for graph in subgraphs(node):
        inside = _follow(graph, entering, around, model)
        # Of an outer value that leaves a graph as it is, ONNX's inference says what is stated there.
        leaving.append({at: inside[value.name] for at, value in enumerate(graph.output) if value.name in inside})
    if kind == "If" and len(leaving) == 2:
        then, other = leaving
        return {at: _union([then[at], other[at]]) for at in then.keys() & other.keys()}
    if kind == "Loop" and len(leaving) == 1:
        states = len(node.input) - 2
        turns = {at - 1: None if shape is None else (None, *shape) for at, shape in leaving[0].items() if at > states}
        return {**dict.fromkeys(range(states)), **turns}
    if kind == "Scan" and entering and len(leaving) == 1:
        return _collected(node, of_inputs, leaving[0])
    return {}


def _union(shapes: Sequence[Shape | None]) -> Shape | None:
    """What is known of a value that has one of these shapes."""
    given = [shape for shape in shapes if shape is not None]
    if len(given) < len(shapes) or len({len(shape) for shape in given}) > 1:
        return None
    return tuple(_common(dims) for dims in zip(*given, strict=True))


def _common(dims: Sequence[int | None]) -> int | None:
    if None in dims:
        return None
    if UNKNOWN in dims:
        return UNKNOWN
    return dims[0] if len(set(dims)) == 1 else None


def _scanned(node: NodeProto, of_inputs: _Results) -> _Results:
    """What is known of the inputs of a Scan's body: states as they are, and parts of what is scanned."""
    states, axes = _scan_inputs(node)
    entering: dict[int, Shape | None] = {}
    for at, shape in of_inputs.items():
        axis = None if at < states or shape is None else _from_the_front(axes[at - states], len(shape))
        if shape is None or at < states:
            entering[at] = shape
        elif axis is not None:
            entering[at] = (*shape[:axis], *shape[axis + 1 :])
    return entering


def _collected(node: NodeProto, of_inputs: _Results, leaving: _Results) -> _Results:
    """What is known of a Scan's outputs: the last states, and what its body gave on every turn."""
    states = _scan_inputs(node)[0]
    count = len(node.output) - states
    places = attribute(node, "scan_output_axes")
    axes = [0] * count if places is None else list(places.ints)
    results: dict[int, Shape | None] = {}
    for at, shape in leaving.items():
        before = of_inputs.get(at)
        if shape is None and at >= states:
            results[at] = None
        elif shape is not None and at < states and before is not None and len(before) == len(shape):
            results[at] = _merged(before, shape)
        elif shape is not None and at >= states and len(axes) == count:
            axis = _from_the_front(axes[at - states], len(shape) + 1)
            if axis is not None:
                # How many turns there are is what several inputs have in common.
                results[at] = (*shape[:axis], UNKNOWN, *shape[axis:])
    return results


def _scan_inputs(node: NodeProto) -> tuple[int, list[int]]:
    """How many states a Scan has, and along which axis it scans each input that comes then."""
    count = min(max(0, int_attribute(node, "num_scan_inputs")), len(node.input))
    given = attribute(node, "scan_input_axes")
    axes = [] if given is None else list(given.ints)
    return len(node.input) - count, axes if len(axes) == count else [0] * count


def _from_the_front(axis: int, rank: int) -> int | None:
    return axis % rank if -rank <= axis < rank else None
