"""Reading DequantizeLinear: operands checked against each other, and W[K, N]."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from conformance.drawing.draft import Draft
from conformance.drawing.elements import ELEMENTS
from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.fusion.centred import Centred
from ort_qdq_plugin.fusion.constants import Constants
from ort_qdq_plugin.fusion.dequantize import Dequantized, has_constant_weight, read_dequantize
from ort_qdq_plugin.fusion.view import View
from ort_qdq_plugin.model.graph import model_scope
from ort_qdq_plugin.model.tensors import MAX_RANK, StoredTensor
from ort_qdq_plugin.report.weights import Reason
from tests.fusion.support import locate, read, refused

Shape = tuple[int, ...]
FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16
WEIGHTS = ["uint2", "int2", "uint4", "int4", "uint8", "int8"]


def draft_of(shape: Shape = (64, 32), **rest: Any) -> Draft:
    draft = Draft("dequantize", opset=25)
    draft.dequantize("w", shape, **{"axis": 0, **rest})
    return draft


def read_from(draft: Draft) -> Dequantized:
    return read(model_scope(draft.model()))


def test_weights_that_the_model_holds() -> None:
    draft = draft_of()
    draft.input("overridable", [64, 32], "uint4")
    draft.quantized("overridable", "uint4", (64, 32))
    scope = model_scope(draft.model())
    for inputs, wanted in ((["w", "w_s"], True), (["overridable", "w_s"], True), (["x", "w_s"], False), (["w"], False)):
        node = helper.make_node("DequantizeLinear", inputs, ["d"])
        assert has_constant_weight(scope, node, Constants(locate)) == wanted


# What is read


@pytest.mark.parametrize("element", WEIGHTS)
@pytest.mark.parametrize("scale", ["float", "float16", "bfloat16"])
def test_operands_and_types(element: str, scale: str) -> None:
    draft = draft_of(element=element, scale=scale)
    found = read_from(draft)
    raw = {tensor.name: tensor.raw_data for tensor in draft.initializers}
    assert found.zero_points is not None
    for stored, name in ((found.weight, "w"), (found.scales, "w_s"), (found.zero_points, "w_z")):
        assert (stored.name, stored.read().tobytes()) == (name, raw[name])
    assert (found.weight.data_type, found.zero_points.data_type) == (ELEMENTS[element].code,) * 2
    assert (found.output_type, found.view.data_type) == (found.scales.data_type,) * 2
    matrix = found.matrix(found.view, False)
    assert (matrix.bits, matrix.signed) == (ELEMENTS[element].bits, ELEMENTS[element].signed)


@pytest.mark.parametrize("given", [{}, {"output_dtype": 0}, {"output_dtype": FLOAT16}])
def test_the_type_of_the_result(given: dict[str, Any]) -> None:
    assert read_from(draft_of(**given)).output_type == (given.get("output_dtype") or FLOAT)


@pytest.mark.parametrize(("shape", "axis", "block", "scale_shape", "wanted"), [
    ((64, 32), 0, 16, None, (0, 16)), ((64, 32), -2, 16, None, (0, 16)), ((64, 32), -1, 16, None, (1, 16)),
    ((65, 32), 0, 16, None, (0, 16)), ((64, 32), 0, 100, None, (0, 100)), ((1, 32), 0, 16, None, (0, 16)),
    ((4, 64, 3), 1, 32, None, (1, 32)), ((64,), 0, 16, None, (0, 16)), ((64, 32), 1, 0, None, (1, 0)),
    ((64, 32), -2, 0, None, (0, 0)), ((64, 32), 0, -1, None, (None, 0)), ((64, 32), 7, 0, [], (None, 0)),
    ((64, 32), 0, 0, [1], (None, 0)),
])  # fmt: skip
def test_axes_and_blocks(shape: Shape, axis: int, block: int, scale_shape: Any, wanted: tuple[int | None, int]) -> None:
    found = read_from(draft_of(shape, axis=axis, block=block, scale_shape=scale_shape))
    assert (found.axis, found.block) == wanted


def test_the_axis_is_1_where_none_is_given() -> None:
    draft = draft_of(axis=1, block=0)
    del draft.nodes[-1].attribute[:]
    assert read_from(draft).axis == 1


@pytest.mark.parametrize(("of_scale", "of_zero_point"), [([], [1]), ([1], [])])
def test_a_single_scale_and_its_zero_point_may_be_a_scalar_and_a_vector(of_scale: Shape, of_zero_point: Shape) -> None:
    draft = draft_of(block=-1, scale_shape=of_scale)
    but("w_z", dims=of_zero_point)(draft)
    found = read_from(draft)
    assert found.zero_points is not None
    assert (found.scales.shape, found.zero_points.shape) == (tuple(of_scale), tuple(of_zero_point))
    assert (found.axis, found.block) == (None, 0)


def test_a_zero_point_without_a_name_is_none() -> None:
    draft = draft_of(zero="none", element="int4")
    draft.nodes[-1].input.append("")
    assert read_from(draft).zero_points is None


# What is refused


def overridable(name: str) -> Callable[[Draft], None]:
    return lambda draft: draft.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def without(name: str) -> Callable[[Draft], None]:
    return lambda draft: draft.initializers.remove(initializer(draft, name))


def initializer(draft: Draft, name: str) -> TensorProto:
    return next(tensor for tensor in draft.initializers if tensor.name == name)


def but(name: str, **fields: Any) -> Callable[[Draft], None]:
    """The tensor of that name with these fields in place of its own."""

    def change(draft: Draft) -> None:
        for field in fields:
            initializer(draft, name).ClearField(field)
        initializer(draft, name).MergeFrom(TensorProto(**fields))

    return change


def with_attribute(name: str, value: int) -> Callable[[Draft], None]:
    return lambda draft: setattr(next(made for made in draft.nodes[-1].attribute if made.name == name), "i", value)


def with_output(data_type: int) -> Callable[[Draft], None]:
    return lambda draft: draft.nodes[-1].attribute.append(helper.make_attribute("output_dtype", data_type))


INVALID: dict[str, Callable[[Draft], None]] = {
    "four-inputs": lambda draft: draft.nodes[-1].input.append("w_s"),
    "four-inputs-one-without-a-name": lambda draft: draft.nodes[-1].input.append(""),
    "zero-points-of-another-type": but("w_z", data_type=TensorProto.INT4),
    "zero-points-of-another-shape": but("w_z", dims=[32, 4]),
    "zero-points-of-other-size": but("w_z", dims=[1]),
    "a-single-zero-point": but("w_z", dims=[]),
    "output-dtype-of-a-type-that-is-no-float": with_output(TensorProto.INT32),
    "output-dtype-of-a-type-that-scales-never-have": with_output(TensorProto.DOUBLE),
    "scales-of-another-shape": but("w_s", dims=[32, 4]),
    "scales-of-more-blocks": but("w", dims=[64 - 16, 32]),
    "scales-of-fewer-axes": but("w_s", dims=[128]),
    "axis-too-large": with_attribute("axis", 2),
    "axis-too-small": with_attribute("axis", -3),
    "another-axis": with_attribute("axis", 1),
    "block-negative": with_attribute("block_size", -16),
    "no-block-but-scales-of-blocks": with_attribute("block_size", 0),
    "weight-of-nothing": but("w", dims=[0, 32]),
    "weight-of-negative-size": but("w", dims=[-64, 32]),
    "weight-without-axes": but("w", dims=[]),
    "weight-of-too-many-axes": but("w", dims=[1] * (MAX_RANK + 1)),
    "weight-too-short": but("w", raw_data=b"short"),
    "zero-points-too-short": but("w_z", raw_data=b"short"),
}
REFUSED: dict[str, tuple[Callable[[Draft], None], Reason]] = {
    **{name: (change, Reason.INVALID) for name, change in INVALID.items()},
    **{f"{name}-overridable": (overridable(name), Reason.OVERRIDABLE) for name in ("w", "w_s", "w_z")},
    **{f"{name}-computed": (without(name), Reason.NOT_CONSTANT) for name in ("w_s", "w_z")},
    **{f"weight-of-{code}": (but("w", data_type=TensorProto.DataType.Value(code)), Reason.WEIGHT_TYPE)
       for code in ("INT64", "FLOAT8E4M3FN", "FLOAT4E2M1")},
    **{f"scales-of-{code}": (but("w_s", data_type=TensorProto.DataType.Value(code)), Reason.SCALE_TYPE)
       for code in ("DOUBLE", "FLOAT8E8M0")},
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name: str) -> None:
    draft = draft_of(block=16)
    read_from(draft)
    change, reason = REFUSED[name]
    change(draft)
    with refused(reason):
        read_from(draft)


@pytest.mark.parametrize("error", [ModelError("not there"), FileNotFoundError("no file")])
def test_bytes_that_cannot_be_found_make_it_invalid(error: Exception) -> None:
    def missing(_: TensorProto) -> StoredTensor:
        raise error

    scope = model_scope(draft_of().model())
    with refused(Reason.INVALID):
        read_dequantize(scope, scope.nodes[0], Constants(missing), Centred())


# W[K, N]


@pytest.mark.parametrize(("shape", "axis", "block", "perm", "into", "transposed", "wanted"), [
    ((64, 32), 0, 16, None, None, False, (64, 32, True, 16)), ((32, 64), 1, 16, None, None, True, (64, 32, False, 16)),
    ((32, 64), 1, 16, (1, 0), None, False, (64, 32, False, 16)), ((64, 32), 0, 16, (1, 0), None, True, (64, 32, True, 16)),
    ((1, 64, 32), 1, 16, None, None, False, (64, 32, True, 16)),
    ((32, 4, 16), 2, 16, None, (32, 64), True, (64, 32, False, 16)),
    ((32, 4, 16), 2, 8, None, (32, 64), True, (64, 32, False, 8)),
    ((32, 4, 16), 2, 64, None, (32, 64), True, (64, 32, False, 16)),
    ((4, 16, 32), 1, 16, None, (64, 32), False, (64, 32, True, 16)), ((64, 32), 1, 0, None, None, False, (64, 32, True, 0)),
    ((32, 64), 0, 0, None, None, True, (64, 32, False, 0)), ((64, 32), 0, -1, None, None, False, (64, 32, True, 0)),
    ((4, 16, 32), 0, -1, None, (64, 32), False, (64, 32, True, 0)),
    ((64, 32), 0, 100, None, None, False, (64, 32, True, 100)),
])  # fmt: skip
def test_the_matrix_that_a_product_sees(
    shape: Shape, axis: int, block: int, perm: Shape | None, into: Shape | None, transposed: bool, wanted: tuple[Any, ...]
) -> None:
    found = read_from(draft_of(shape, axis=axis, block=block))
    numbers = np.arange(math.prod(shape))
    view, seen = found.view, numbers.reshape(shape)
    if perm is not None:
        view, seen = view.transposed(perm), seen.transpose(perm)
    if into is not None:
        view, seen = view.reshaped(into), seen.reshape(into)
    matrix = found.matrix(view, transposed)
    k, n, k_major, _ = wanted
    assert (matrix.k, matrix.n, matrix.k_major, matrix.block) == wanted
    product_sees = np.squeeze(seen).T if transposed else np.squeeze(seen)
    np.testing.assert_array_equal(numbers.reshape(k, n) if k_major else numbers.reshape(n, k).T, product_sees)
    assert matrix.zero_points is found.zero_points


def same(view: View) -> View:
    return view


NO_MATRIX: dict[str, tuple[Shape, int, int, Callable[[View], View], Reason]] = {
    "a-vector": ((64,), 0, 16, same, Reason.RANK),
    "a-batch": ((2, 64, 32), 1, 16, same, Reason.BATCHED),
    "interleaved": ((4, 32, 16), 2, 16, lambda view: view.transposed((0, 2, 1)).reshaped((64, 32)), Reason.INTERLEAVED),
    "blocks-along-n": ((64, 32), 1, 16, same, Reason.BLOCKS_ALONG_N),
    "a-scale-for-each-row": ((64, 32), 0, 0, same, Reason.BLOCKS_ALONG_N),
    "blocks-along-the-outer-part-of-k": ((4, 16, 32), 0, 2, lambda view: view.reshaped((64, 32)), Reason.BLOCKS_ALONG_N),
    "blocks-that-end-within-a-part-of-k": ((4, 24, 32), 1, 16, lambda view: view.reshaped((96, 32)), Reason.BLOCK_SIZE),
}


@pytest.mark.parametrize("name", NO_MATRIX)
def test_what_is_no_matrix_with_blocks_along_k(name: str) -> None:
    shape, axis, block, seen, reason = NO_MATRIX[name]
    found = read_from(draft_of(shape, axis=axis, block=block))
    with refused(reason):
        found.matrix(seen(found.view), False)


@pytest.mark.parametrize(
    ("zero", "centred", "kept"), [("default", True, False), ("random", False, True), ("none", False, False)]
)
def test_zero_points_that_are_not_needed_are_left_out(zero: str, centred: bool, kept: bool) -> None:
    found = read_from(draft_of(zero=zero))
    matrix = found.matrix(found.view, False)
    assert (matrix.centred, matrix.zero_points is not None) == (centred, kept)
    assert (found.zero_points is None) == (zero == "none")


def test_locating_is_asked_for_each_operand_once() -> None:
    asked: list[str] = []

    def noting(tensor: TensorProto) -> StoredTensor:
        asked.append(tensor.name)
        return locate(tensor)

    scope = model_scope(draft_of().model())
    read_dequantize(scope, scope.nodes[0], Constants(noting), Centred())
    assert asked == ["w", "w_s", "w_z"]


# Scales that are computed


def scaled(opset: int, scale: str, stated: str) -> Dequantized:
    """With scales behind Transpose, where the model states the result's type."""
    draft = Draft("dequantize", opset=opset)
    draft.quantized("w", "int8", [64, 32])
    draft.node("Transpose", [draft.floats("s", [32], scale)], "same")
    draft.node("DequantizeLinear", ["w", "same"], "w_d", axis=1)
    if stated:
        draft.declare("w_d", [64, 32], stated)
    return read_from(draft)


@pytest.mark.parametrize("scale", ["float", "float16"])
@pytest.mark.parametrize("is_stated", [False, True])
def test_the_type_of_the_result_may_be_stated(scale: str, is_stated: bool) -> None:
    assert scaled(21, scale, scale if is_stated else "").scales.shape == (32,)


@pytest.mark.parametrize(("opset", "scale", "stated"), [
    (21, "float", "float16"), (21, "float16", "float"), (17, "float16", ""), (17, "float16", "float16"),
])  # fmt: skip
def test_computed_scales_of_a_type_that_onnx_runtime_would_refuse(opset: int, scale: str, stated: str) -> None:
    with refused(Reason.OPSET):
        scaled(opset, scale, stated)
