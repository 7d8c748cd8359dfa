"""Views against NumPy: chains of nodes are applied to an array of different numbers, and the view says which is where."""

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.fusion.view import View, follow, view_of
from ort_qdq_plugin.model.graph import Scope
from ort_qdq_plugin.model.shapes import whole_numbers
from ort_qdq_plugin.model.tensors import MAX_RANK
from ort_qdq_plugin.report.weights import Reason
from tests.fusion.support import locate, missing, refused

Array = NDArray[np.int64]

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16


def scope_of(node: NodeProto, **constants: Sequence[int] | TensorProto) -> Scope:
    """A graph of one node, with initializers that are int64 lists or tensors."""
    tensors = [
        value if isinstance(value, TensorProto) else numpy_helper.from_array(np.array(value, np.int64), name)
        for name, value in constants.items()
    ]
    return Scope(helper.make_graph([node], "g", [], [], tensors), None, 10)


def followed(view: View, node: NodeProto, **constants: Sequence[int] | TensorProto) -> View | None:
    """What `follow` makes of the view behind `node`."""
    return follow(view, scope_of(node, **constants), node, locate)


def numbered(shape: Sequence[int]) -> Array:
    """An array of that shape, whose elements are all different."""
    return np.arange(math.prod(shape), dtype=np.int64).reshape(tuple(shape))


def claimed(view: View) -> Array:
    """What the view says that a numbered array looks like: its stored axes in this order, each group of them as one."""
    listed = [axis for axes in view.axes for axis in axes]
    left_out = [axis for axis in range(len(view.stored_shape)) if axis not in listed]
    assert all(view.stored_shape[axis] == 1 for axis in left_out)
    transposed: Array = numbered(view.stored_shape).transpose([*listed, *left_out])
    return transposed.reshape(tuple(view.size(axes) for axes in view.axes))


def is_a_view(value: Array, stored_shape: Sequence[int]) -> bool:
    """Whether any order of the stored axes, cut into groups, gives the value: all of them are tried."""
    sizes = [size for size in stored_shape if size != 1]
    stored, ends = numbered(sizes), set(itertools.accumulate(value.shape, operator.mul, initial=1))
    for order in itertools.permutations(range(len(sizes))):
        cuts = set(itertools.accumulate((sizes[axis] for axis in order), operator.mul, initial=1))
        if ends <= cuts and np.array_equal(stored.transpose(order).ravel(), value.ravel()):
            return True
    return False


def is_split_into(shape: Sequence[int], finer: Sequence[int]) -> bool:
    """Whether the second shape has the axes of the first, or parts of these of more than one index in their place."""
    left = list(finer)
    for size in shape:
        parts = [left.pop(0)] if left else [0]
        while math.prod(parts) < size and left:
            parts.append(left.pop(0))
        if math.prod(parts) != size or (len(parts) > 1 and 1 in parts):
            return False
    return not left


# Chains of nodes


@dataclass(frozen=True)
class Step:
    """A node with its constants, and the value behind it as NumPy has it."""

    node: NodeProto
    constants: dict[str, list[int]]
    value: Array
    data_type: int | None = None


def integers_of(draw: st.DrawFn, op: str, axes: list[int], rank: int) -> tuple[NodeProto, dict[str, list[int]]]:
    """A node with these axes, some counted from the end, as an attribute or as an input."""
    said = [axis - rank if draw(st.booleans()) else axis for axis in axes]
    if draw(st.booleans()):
        return helper.make_node(op, ["v"], ["o"], axes=said), {}
    return helper.make_node(op, ["v", "axes"], ["o"]), {"axes": said}


def transpose(draw: st.DrawFn, value: Array) -> Step:
    if draw(st.integers(0, 3)) == 0:
        return Step(helper.make_node("Transpose", ["v"], ["o"]), {}, value.transpose())
    perm = draw(st.permutations(range(value.ndim)))
    node = helper.make_node("Transpose", ["v"], ["o"])
    node.attribute.add(name="perm", type=7, ints=perm)
    return Step(node, {}, value.transpose(perm))


def factors(size: int) -> list[int]:
    return [divisor for divisor in range(1, size + 1) if size % divisor == 0]


def reshape(draw: st.DrawFn, value: Array) -> Step:
    """To any shape of as many elements, or to one that merges axes as they are and adds some of size 1."""
    shape: list[int] = []
    if draw(st.booleans()):
        left = value.size
        while left > 1 and len(shape) < 4:
            shape.append(draw(st.sampled_from(factors(left))))
            left //= shape[-1]
        shape.append(left)
    else:
        for size in value.shape:
            if len(shape) > 0 and draw(st.booleans()):
                shape[-1] *= size
            else:
                shape.append(size)
        for _ in range(draw(st.integers(0, 2))):
            shape.insert(draw(st.integers(0, len(shape))), 1)
    said = [
        0 if at < value.ndim and value.shape[at] == size and draw(st.booleans()) else size for at, size in enumerate(shape)
    ]
    if len(said) > 0 and draw(st.booleans()):
        said[draw(st.integers(0, len(said) - 1))] = -1
    return Step(helper.make_node("Reshape", ["v", "shape"], ["o"]), {"shape": said}, value.reshape(shape))


def flatten(draw: st.DrawFn, value: Array) -> Step:
    if value.ndim >= 1 and draw(st.booleans()):
        axis, node = 1, helper.make_node("Flatten", ["v"], ["o"])
    else:
        axis = draw(st.integers(0, value.ndim))
        from_the_end = axis < value.ndim and draw(st.booleans())
        node = helper.make_node("Flatten", ["v"], ["o"], axis=axis - value.ndim if from_the_end else axis)
    return Step(node, {}, value.reshape(math.prod(value.shape[:axis]), -1))


def squeeze(draw: st.DrawFn, value: Array) -> Step:
    ones = [axis for axis, size in enumerate(value.shape) if size == 1]
    if not ones or draw(st.booleans()):
        return Step(helper.make_node("Squeeze", ["v"], ["o"]), {}, value.squeeze())
    axes = draw(st.lists(st.sampled_from(ones), min_size=1, unique=True))
    node, constants = integers_of(draw, "Squeeze", axes, value.ndim)
    return Step(node, constants, value.squeeze(tuple(axes)))


def unsqueeze(draw: st.DrawFn, value: Array) -> Step:
    count = draw(st.integers(1, 2))
    rank = value.ndim + count
    axes = draw(st.lists(st.integers(0, rank - 1), min_size=count, max_size=count, unique=True))
    node, constants = integers_of(draw, "Unsqueeze", axes, rank)
    return Step(node, constants, np.expand_dims(value, tuple(axes)))


def identity(draw: st.DrawFn, value: Array) -> Step:
    return Step(helper.make_node("Identity", ["v"], ["o"]), {}, value)


def cast(draw: st.DrawFn, value: Array) -> Step:
    to = draw(st.sampled_from([FLOAT, FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE]))
    return Step(helper.make_node("Cast", ["v"], ["o"], to=to), {}, value, to)


KINDS = (transpose, transpose, reshape, reshape, flatten, squeeze, unsqueeze, identity, cast)


def followed_or_refused(view: View, step: Step) -> View | Reason | None:
    """The view behind the step's node, or why there is none."""
    try:
        return followed(view, step.node, **step.constants)
    except NotFusable as refused:
        return refused.reason


@pytest.mark.slow
@settings(max_examples=700, deadline=None)
@given(data=st.data(), stored_shape=st.lists(st.sampled_from([1, 1, 2, 2, 3, 4, 6]), max_size=4))
def test_a_view_says_what_numpy_does(data: st.DataObject, stored_shape: list[int]) -> None:
    """And where it can say nothing, no order of the axes is what NumPy gives, as they are split by then."""
    view, value = view_of(stored_shape, FLOAT), numbered(stored_shape)
    data_type: int = FLOAT
    steps = st.composite(lambda draw, value: draw(st.sampled_from(KINDS))(draw, value))
    for _ in range(data.draw(st.integers(1, 6))):
        step: Step = data.draw(steps(value))
        value, data_type = step.value, step.data_type or data_type
        behind = followed_or_refused(view, step)
        if behind is Reason.RESHAPE:
            event(f"{step.node.op_type} is refused")
            assert not is_a_view(value, view.stored_shape)
            return
        assert isinstance(behind, View)
        assert is_split_into(view.stored_shape, behind.stored_shape)
        view = behind
        assert (view.shape, view.data_type) == (value.shape, data_type)
        np.testing.assert_array_equal(claimed(view), value)
    event("followed to the end")


@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 1), (4, 1, 3), (0,), (2, 0, 3)])
def test_the_view_of_a_stored_tensor_is_the_tensor(shape: tuple[int, ...]) -> None:
    view = view_of(shape, FLOAT16)
    assert (view.shape, view.data_type) == (shape, FLOAT16)
    np.testing.assert_array_equal(claimed(view), numbered(shape))


@pytest.mark.parametrize(("stored", "shape"), [
    ((4, 6), (6, 4)), ((4, 6), (3, 8)), ((4, 6), (24, 2)), ((4, 6), (4,)), ((4,), (4, 0)), ((0, 3), (0, 5)),
    ((0, 3), (5, 0)), ((0, 3), (5, 2)), ((2,) * 60 + (64,), (2,) * 60 + (2,) * 6),
])  # fmt: skip
def test_a_reshape_that_has_no_axes_is_refused(stored: tuple[int, ...], shape: tuple[int, ...]) -> None:
    with refused(Reason.RESHAPE):
        view_of(stored, FLOAT).reshaped(shape)


@pytest.mark.parametrize(("stored", "shape", "finer", "axes"), [
    ((4, 6), (2, 12), (2, 2, 6), ((0,), (1, 2))),
    ((4, 6), (4, 2, 3), (4, 2, 3), ((0,), (1,), (2,))),
    ((4, 6), (8, 3), (4, 2, 3), ((0, 1), (2,))),
    ((4, 1, 6), (2, 1, 4, 3), (2, 2, 1, 2, 3), ((0,), (), (1, 3), (4,))),
    ((12,), (2, 3, 2), (2, 3, 2), ((0,), (1,), (2,))),
])  # fmt: skip
def test_a_reshape_splits_axes(stored: tuple[int, ...], shape: tuple[int, ...], finer: Any, axes: Any) -> None:
    assert view_of(stored, FLOAT).reshaped(shape) == View(finer, axes, FLOAT)


def test_an_axis_is_cut_where_it_was_joined() -> None:
    """[4, 6] -> [24] -> [4, 6] cuts nothing that is stored, nor does [2, 12] where axes of 2 and 12 are stored."""
    assert view_of([4, 6], FLOAT).reshaped([24]).reshaped([4, 6]) == view_of([4, 6], FLOAT)
    assert view_of([2, 3, 4], FLOAT).reshaped([6, 4]).reshaped([2, 12]).axes == ((0,), (1, 2))


# What is refused, and what is none of these nodes


def node(op: str, *inputs: str, **attributes: Any) -> NodeProto:
    made: NodeProto = helper.make_node(op, ["v", *inputs], ["o"], **attributes)
    return made


def int32(values: Sequence[int]) -> TensorProto:
    made: TensorProto = numpy_helper.from_array(np.array(values, np.int32), "axes")
    return made


REFUSED: dict[str, tuple[NodeProto, dict[str, Sequence[int] | TensorProto], Reason]] = {
    "permutation-too-short": (node("Transpose", perm=[1, 0]), {}, Reason.INVALID),
    "permutation-too-long": (node("Transpose", perm=[1, 0, 2, 3]), {}, Reason.INVALID),
    "permutation-with-an-axis-twice": (node("Transpose", perm=[0, 0, 1]), {}, Reason.INVALID),
    "permutation-with-a-negative-axis": (node("Transpose", perm=[0, 1, -1]), {}, Reason.INVALID),
    "flatten-axis-too-large": (node("Flatten", axis=4), {}, Reason.INVALID),
    "flatten-axis-too-small": (node("Flatten", axis=-4), {}, Reason.INVALID),
    "squeeze-axis-outside": (node("Squeeze", axes=[3]), {}, Reason.INVALID),
    "squeeze-axis-outside-from-the-end": (node("Squeeze", "axes"), {"axes": [-4]}, Reason.INVALID),
    "squeeze-axis-twice": (node("Squeeze", axes=[0, -3]), {}, Reason.INVALID),
    "squeeze-of-an-axis-that-is-not-1": (node("Squeeze", axes=[1]), {}, Reason.RESHAPE),
    "squeeze-axes-without-a-name": (node("Squeeze", ""), {}, Reason.RESHAPE),
    "squeeze-axes-not-constant": (node("Squeeze", "axes"), {}, Reason.RESHAPE),
    "squeeze-axes-of-another-type": (node("Squeeze", "axes"), {"axes": int32([0])}, Reason.RESHAPE),
    "unsqueeze-without-axes": (node("Unsqueeze"), {}, Reason.INVALID),
    "unsqueeze-axis-outside": (node("Unsqueeze", axes=[4]), {}, Reason.INVALID),
    "unsqueeze-axis-outside-from-the-end": (node("Unsqueeze", axes=[-5]), {}, Reason.INVALID),
    "unsqueeze-axis-twice": (node("Unsqueeze", axes=[0, -5]), {}, Reason.INVALID),
    "unsqueeze-beyond-what-numpy-allows": (node("Unsqueeze", axes=list(range(62))), {}, Reason.INVALID),
    **{
        f"cast-to-type-{to}": (node("Cast", to=to), {}, Reason.ROUNDED)
        for to in (TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT8E4M3FN, TensorProto.INT4, 0, 99)
    },
    "reshape-without-a-shape": (node("Reshape"), {}, Reason.RESHAPE),
    "reshape-shape-not-constant": (node("Reshape", "shape"), {}, Reason.RESHAPE),
    "reshape-to-zero": (node("Reshape", "shape", allowzero=1), {"shape": [0, 4, 6]}, Reason.RESHAPE),
    "reshape-with-two-unknown-axes": (node("Reshape", "shape"), {"shape": [-1, -1]}, Reason.INVALID),
    "reshape-that-does-not-divide": (node("Reshape", "shape"), {"shape": [5, -1]}, Reason.INVALID),
    "reshape-to-negative-sizes": (node("Reshape", "shape"), {"shape": [-2, 12]}, Reason.INVALID),
    "reshape-that-copies-an-axis-that-is-not-there": (node("Reshape", "shape"), {"shape": [1, 4, 6, 0]}, Reason.INVALID),
    "reshape-to-fewer-elements": (node("Reshape", "shape"), {"shape": [4, 3]}, Reason.RESHAPE),
    "reshape-to-more-axes-than-numpy-allows": (node("Reshape", "shape"), {"shape": [1] * MAX_RANK}, Reason.RESHAPE),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused(name: str) -> None:
    made, constants, reason = REFUSED[name]
    with refused(reason):
        followed(view_of([1, 4, 6], FLOAT), made, **constants)


def test_as_many_axes_as_numpy_allows_are_followed() -> None:
    shape = [1] * (MAX_RANK - 2) + [4, 6]
    behind = followed(view_of([4, 6], FLOAT), node("Reshape", "shape"), shape=shape)
    assert behind is not None
    assert behind.shape == tuple(shape)
    with refused(Reason.RESHAPE):
        view_of([4, 6], FLOAT).reshaped([1, *shape])


def test_allowzero_means_nothing_where_no_size_is_zero() -> None:
    """torch's exporter gives it to every Reshape."""
    behind = followed(view_of([1, 4, 6], FLOAT), node("Reshape", "shape", allowzero=1), shape=[4, -1])
    assert behind is not None
    assert behind.shape == (4, 6)


@pytest.mark.parametrize("other", [
    node("Relu"), node("MatMul", "w"), node("Transpose", domain="local"), node("Cast"),
    helper.make_node("Identity", ["v"], ["o", "p"]), helper.make_node("Identity", ["v"], []),
])  # fmt: skip
def test_other_nodes_are_no_views(other: NodeProto) -> None:
    assert followed(view_of([4, 6], FLOAT), other) is None


# Shapes and axes that are given as tensors


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=MAX_RANK))
def test_integers_as_raw_and_as_typed_data(values: list[int]) -> None:
    raw = numpy_helper.from_array(np.array(values, np.int64), "i")
    typed = helper.make_tensor("i", TensorProto.INT64, [len(values)], values)
    assert whole_numbers(raw, locate) == whole_numbers(typed, locate) == values


@pytest.mark.parametrize("tensor", [
    # Of another type, a scalar, a matrix, too long, and with more values than its shape says.
    int32([1]), *(numpy_helper.from_array(np.ones(shape, np.int64), "i") for shape in [(), (1, 1), (MAX_RANK + 1,)]),
    TensorProto(name="i", data_type=TensorProto.INT64, dims=[2], int64_data=[1] * (MAX_RANK + 1)),
])  # fmt: skip
def test_what_is_no_list_of_integers(tensor: TensorProto) -> None:
    assert whole_numbers(tensor, locate) is None


def test_integers_that_cannot_be_read_are_none() -> None:
    tensor = numpy_helper.from_array(np.array([1], np.int64), "i")
    tensor.data_location = TensorProto.EXTERNAL
    assert whole_numbers(tensor) is None
    assert whole_numbers(tensor, missing) is None
    assert whole_numbers(None, locate) is None
