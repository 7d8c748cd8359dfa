"""What nodes make of constants that they take apart, put together or order anew, as ONNX Runtime's own kernels do."""

from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, helper

from ort_qdq_plugin.fusion.computing import _TYPES
from ort_qdq_plugin.report.weights import Reason
from tests.folding.support import (
    FLOATS,
    NUMPY,
    SMALL,
    check_folding,
    check_left,
    code_of,
    expression_of,
    folding,
    refused_by_onnx_runtime,
    values_of,
)

INTEGERS = tuple(kind for kind in NUMPY if kind not in FLOATS)
node = helper.make_node

# What takes constants apart, puts them together, or orders them anew

MOVING: dict[str, tuple[list[NodeProto], dict[str, Any], int]] = {
    "Concat": ([node("Concat", ["a", "a", "a"], ["y"], axis=-1)], {}, 25),
    "Concat-of-one": ([node("Concat", ["a"], ["y"], axis=0)], {}, 25),
    "ConstantOfShape": (
        [node("ConstantOfShape", ["n"], ["c"], value=None), node("Concat", ["a", "c"], ["y"], axis=0)],
        {"n": [2, 6, 4]},
        25,
    ),
    "Expand": ([node("Expand", ["a", "n"], ["y"])], {"n": [2, 4, 6, 1]}, 25),
    "Expand-to-less": (
        [node("Slice", ["a", "o", "z"], ["b"]), node("Expand", ["b", "n"], ["y"])],
        {"o": [0], "z": [1], "n": [1]},
        25,
    ),
    "Flatten": ([node("Flatten", ["a"], ["y"], axis=2)], {}, 25),
    "Flatten-from-behind": ([node("Flatten", ["a"], ["y"], axis=-1)], {}, 25),
    "Flatten-nothing": ([node("Flatten", ["a"], ["y"], axis=0)], {}, 25),
    "Gather": ([node("Gather", ["a", "n"], ["y"], axis=1)], {"n": [[0, 5], [-1, 3], [3, 3]]}, 25),
    "Gather-one": ([node("Gather", ["a", "n"], ["y"], axis=-1)], {"n": 2}, 25),
    "Identity": ([node("Identity", ["a"], ["y"])], {}, 25),
    "Reshape": ([node("Reshape", ["a", "n"], ["y"])], {"n": [0, -1, 3]}, 25),
    "Slice": (
        [node("Slice", ["a", "o", "z", "x", "s"], ["y"])],
        {"o": [1, -1], "z": [9, -9], "x": [2, 1], "s": [2, -1]},
        25,
    ),
    "Slice-of-all-axes": ([node("Slice", ["a", "o", "z"], ["y"])], {"o": [1, 2, 0], "z": [4, -1, 1]}, 25),
    "Slice-without-axes": ([node("Slice", ["a", "o", "z", "", "s"], ["y"])], {"o": [0, 0], "z": [4, 6], "s": [1, 3]}, 25),
    "Slice-by-attributes": ([node("Slice", ["a"], ["y"], starts=[1, -2], ends=[9, 9], axes=[0, 1])], {}, 9),
    "Split": ([node("Split", ["a", "n"], ["x", "y"], axis=1)], {"n": [2, 4]}, 25),
    "Split-in-equal-parts": ([node("Split", ["a"], ["x", "y", "z"], axis=1)], {}, 13),
    "Split-in-a-number-of-parts": ([node("Split", ["a"], ["x", "z", "y"], axis=0, num_outputs=3)], {}, 18),
    "Split-by-an-attribute": ([node("Split", ["a"], ["y", "x"], axis=-1, split=[1, 2])], {}, 11),
    "Squeeze": ([node("Unsqueeze", ["a", "n"], ["b"]), node("Squeeze", ["b", "n"], ["y"])], {"n": [0]}, 25),
    "Squeeze-all": ([node("Unsqueeze", ["a", "n"], ["b"]), node("Squeeze", ["b"], ["y"])], {"n": [0, 2, -1]}, 25),
    "Tile": ([node("Tile", ["a", "n"], ["y"])], {"n": [2, 1, 3]}, 25),
    "Transpose": ([node("Transpose", ["a"], ["y"], perm=[2, 0, 1])], {}, 25),
    "Transpose-without-perm": ([node("Transpose", ["a"], ["y"])], {}, 25),
    "Unsqueeze": ([node("Unsqueeze", ["a", "n"], ["y"])], {"n": [1, -1]}, 25),
    "Unsqueeze-by-an-attribute": ([node("Unsqueeze", ["a"], ["y"], axes=[1, 3])], {}, 12),
}
MOVING["ConstantOfShape"][0][0].attribute.append(
    helper.make_attribute("value", helper.make_tensor("v", code_of("float"), [1], [2.5]))
)
SHAPE = {
    "ConstantOfShape": (3, 6, 4),
    "Expand": (4, 1, 3),
    "Slice-by-attributes": (4, 6),
    "Split-in-a-number-of-parts": (8, 2),
}


@pytest.mark.parametrize("form", MOVING)
def test_moving(form: str) -> None:
    nodes, numbers, opset = MOVING[form]
    shape = SHAPE.get(form, (4, 6, 3))
    tensors = {"a": ("float", values_of("float", shape, 1)), **{name: ("int64", np.array(n)) for name, n in numbers.items()}}
    check_folding(nodes, tensors, opset)


@pytest.mark.parametrize("op", sorted(_TYPES))
@pytest.mark.parametrize("kind", [*NUMPY, "bool", *SMALL])
def test_what_is_moved_is_of_types_that_onnx_runtime_moves(op: str, kind: str) -> None:
    nodes, numbers, opset = next(
        (MOVING[form] for form in MOVING if form.split("-")[0] == op and MOVING[form][2] == 25),
        (
            [node("BitShift", ["a", "a"], ["y"], direction="LEFT")]
            if op == "BitShift"
            else [node("Clip", ["a", "a"], ["y"])],
            {},
            25,
        ),
    )
    if op == "Identity" and kind in SMALL:
        return  # it is seen through before anything is computed
    shape = {**SHAPE, "Clip": ()}.get(op, (4, 6, 3))
    tensors = {"a": (kind, np.ones(shape)), **{name: ("int64", np.array(n)) for name, n in numbers.items()}}
    model = folding(nodes, tensors, opset)
    assert isinstance(expression_of(model), Reason) == refused_by_onnx_runtime(model, code_of(kind))


def test_numbers_may_be_computed_or_constant_nodes() -> None:
    nodes = [
        node("Constant", [], ["one"], value_ints=[1]),
        node("Constant", [], ["rest"], value_int=-1),
        node("Constant", [], ["axis"], value_ints=[0]),
        node("Unsqueeze", ["rest", "axis"], ["rests"]),
        node("Concat", ["one", "rests"], ["shape"], axis=0),
        node("Reshape", ["a", "shape"], ["r"]),
        node("Constant", [], ["f"], value_float=2.5),
        node("Constant", [], ["fs"], value_floats=[1.0] * 24),
        node("Mul", ["r", "f"], ["m"]),
        node("Add", ["m", "fs"], ["y"]),
    ]
    check_folding(nodes, {"a": ("float", values_of("float", (4, 6), 0))})


@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_numbers_of_32_bits(kind: str) -> None:
    tensors = {"a": ("float", np.arange(12)), "o": (kind, np.array([2])), "z": (kind, np.array([7]))}
    check_folding([node("Slice", ["a", "o", "z"], ["y"])], tensors)
    check_folding([node("Gather", ["a", "z"], ["y"])], tensors)


LEFT: dict[str, tuple[list[NodeProto], dict[str, tuple[str, Any]]]] = {
    "an operator that differs between machines": ([node("Exp", ["a"], ["y"])], {}),
    "shapes that do not fit": ([node("Add", ["a", "b"], ["y"])], {"b": ("float", np.ones(5))}),
    "types that do not fit": ([node("Add", ["a", "b"], ["y"])], {"b": ("double", np.ones(3))}),
    "a permutation that is none": ([node("Transpose", ["a"], ["y"], perm=[0, 0])], {}),
    "a shape of other elements": ([node("Reshape", ["a", "b"], ["y"])], {"b": ("int64", [7, 2])}),
    "a shape with two unknowns": ([node("Reshape", ["a", "b"], ["y"])], {"b": ("int64", [-1, -1])}),
    "a negative shape": ([node("Expand", ["a", "b"], ["y"])], {"b": ("int64", [-2, 3])}),
    "a shape of nothing": ([node("Expand", ["a", "b"], ["y"])], {"b": ("int64", [0, 2, 3])}),
    "a huge shape": ([node("Expand", ["a", "b"], ["y"])], {"b": ("int64", [1 << 20, 1 << 20, 2, 3])}),
    "a shape beyond counting": ([node("Expand", ["a", "b"], ["y"])], {"b": ("int64", [1 << 62, 1 << 62, 2, 3])}),
    "repeated beyond counting": ([node("Tile", ["a", "b"], ["y"])], {"b": ("int64", [1 << 62, 1])}),
    "repeated less than once": ([node("Tile", ["a", "b"], ["y"])], {"b": ("int64", [0, 1])}),
    "a slice of nothing": ([node("Slice", ["a", "b", "b"], ["y"])], {"b": ("int64", [1])}),
    "a slice by no step": ([node("Slice", ["a", "b", "c", "b", "b"], ["y"])], {"b": ("int64", [0]), "c": ("int64", [1])}),
    "a slice of one axis twice": (
        [node("Slice", ["a", "b", "c", "b"], ["y"])],
        {"b": ("int64", [0, 0]), "c": ("int64", [1, 1])},
    ),
    "an index that is not there": ([node("Gather", ["a", "b"], ["y"])], {"b": ("int64", [2])}),
    "parts that do not fit": ([node("Split", ["a", "b"], ["x", "y"])], {"b": ("int64", [1, 2])}),
    "unequal parts": ([node("Split", ["a"], ["x", "y"], axis=1)], {}),
    "an axis that is not there": ([node("Concat", ["a", "a"], ["y"], axis=2)], {}),
    "other ranks put together": ([node("Concat", ["a", "b"], ["y"], axis=0)], {"b": ("float", np.ones(3))}),
    "an axis to drop that is none": ([node("Squeeze", ["a", "b"], ["y"])], {"b": ("int64", [0])}),
    "quantized along nothing": ([node("QuantizeLinear", ["a", "b"], ["y"], axis=2)], {"b": ("float", np.ones(3))}),
    "quantized in a single block of a vector": (
        [node("Reshape", ["a", "n"], ["v"]), node("QuantizeLinear", ["v", "b"], ["y"], axis=0, block_size=6)],
        {"b": ("float", np.ones(1)), "n": ("int64", [6])},
    ),
    "quantized in another precision": (
        [node("QuantizeLinear", ["a", "b"], ["y"], precision=10)],
        {"b": ("float", np.ones(()))},
    ),
}


@pytest.mark.parametrize("form", LEFT)
def test_what_is_left(form: str) -> None:
    nodes, tensors = LEFT[form]
    check_left(nodes, {"a": ("float", np.ones((2, 3))), **tensors})


def test_a_cast_to_no_type_is_left() -> None:
    for target in (0, 99, 8, 9, 17):
        check_left([node("Cast", ["a"], ["y"], to=target)], {"a": ("float", np.ones(3))})
