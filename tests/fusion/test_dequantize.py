"""Reading DequantizeLinear: operands checked against each other, zero points that need not be given, and W[K, N]."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from conformance.drawing.draft import Draft
from conformance.drawing.elements import ELEMENTS
from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.fusion import dequantize as dequantize_module
from ort_qdq_plugin.fusion.dequantize import (
    Centred,
    Dequantized,
    has_constant_weight,
    is_dequantize,
    read_dequantize,
)
from ort_qdq_plugin.fusion.view import View
from ort_qdq_plugin.model.graph import model_scope
from ort_qdq_plugin.model.sources import MemorySource
from ort_qdq_plugin.model.tensors import MAX_RANK, StoredTensor
from ort_qdq_plugin.report import Reason
from tests.fusion.support import locate, read, refused
from tests.packing.plain import raw_bytes

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16


def draft_of(shape: tuple[int, ...] = (64, 32), **rest: Any) -> Draft:
    draft = Draft("dequantize", opset=25)
    draft.dequantize("w", shape, **{"axis": 0, **rest})
    return draft


def read_from(draft: Draft) -> Dequantized:
    return read(model_scope(draft.model()))


# Which nodes


@pytest.mark.parametrize(
    ("op_type", "domain", "wanted"),
    [
        ("DequantizeLinear", "", True),
        ("DequantizeLinear", "ai.onnx", True),
        ("DequantizeLinear", "com.microsoft", True),
        ("DequantizeLinear", "local", False),
        ("QuantizeLinear", "", False),
    ],
)
def test_which_nodes_dequantize(op_type: str, domain: str, wanted: bool) -> None:
    assert is_dequantize(helper.make_node(op_type, ["w"], ["d"], domain=domain)) == wanted


def test_weights_that_the_model_holds() -> None:
    draft = draft_of()
    draft.input("overridable", [64, 32], "uint4")
    draft.quantized("overridable", "uint4", (64, 32))
    scope = model_scope(draft.model())
    for inputs, wanted in ((["w", "w_s"], True), (["overridable", "w_s"], True), (["x", "w_s"], False), (["w"], False)):
        assert has_constant_weight(scope, helper.make_node("DequantizeLinear", inputs, ["d"])) == wanted


# What is read


@pytest.mark.parametrize("element", ["uint2", "int2", "uint4", "int4", "uint8", "int8"])
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


@pytest.mark.parametrize(
    ("given", "wanted"), [({}, FLOAT), ({"output_dtype": 0}, FLOAT), ({"output_dtype": FLOAT16}, FLOAT16)]
)
def test_the_type_of_the_result(given: dict[str, Any], wanted: int) -> None:
    assert read_from(draft_of(**given)).output_type == wanted


@pytest.mark.parametrize(
    ("shape", "given", "axis", "block"),
    [
        ((64, 32), {"axis": 0, "block": 16}, 0, 16),
        ((64, 32), {"axis": -2, "block": 16}, 0, 16),
        ((64, 32), {"axis": -1, "block": 16}, 1, 16),
        ((65, 32), {"axis": 0, "block": 16}, 0, 16),
        ((64, 32), {"axis": 0, "block": 100}, 0, 100),
        ((64, 32), {"axis": 1, "block": 0}, 1, 0),
        ((64, 32), {"axis": -2, "block": 0}, 0, 0),
        ((64, 32), {"axis": 0, "block": -1}, None, 0),
        ((64, 32), {"axis": 7, "block": 0, "scale_shape": []}, None, 0),
        ((64, 32), {"axis": 0, "block": 0, "scale_shape": [1]}, None, 0),
        ((1, 32), {"axis": 0, "block": 16}, 0, 16),
        ((4, 64, 3), {"axis": 1, "block": 32}, 1, 32),
        ((64,), {"axis": 0, "block": 16}, 0, 16),
    ],
)
def test_axes_and_blocks(shape: tuple[int, ...], given: dict[str, Any], axis: int | None, block: int) -> None:
    found = read_from(draft_of(shape, **given))
    assert (found.axis, found.block) == (axis, block)


def test_the_axis_is_1_where_none_is_given() -> None:
    draft = draft_of(axis=1, block=0)
    del draft.nodes[-1].attribute[:]
    assert read_from(draft).axis == 1


def test_a_zero_point_without_a_name_is_none() -> None:
    draft = draft_of(zero="none", element="int4")
    draft.nodes[-1].input.append("")
    assert read_from(draft).zero_points is None


# What is refused


def overridable(name: str) -> Callable[[Draft], None]:
    return lambda draft: draft.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def without(name: str) -> Callable[[Draft], None]:
    def change(draft: Draft) -> None:
        draft.initializers = [tensor for tensor in draft.initializers if tensor.name != name]

    return change


def initializer(draft: Draft, name: str) -> TensorProto:
    return next(tensor for tensor in draft.initializers if tensor.name == name)


def of_type(name: str, data_type: int) -> Callable[[Draft], None]:
    return lambda draft: setattr(initializer(draft, name), "data_type", data_type)


def of_shape(name: str, *shape: int) -> Callable[[Draft], None]:
    def change(draft: Draft) -> None:
        del initializer(draft, name).dims[:]
        initializer(draft, name).dims.extend(shape)

    return change


def with_attributes(**given: int) -> Callable[[Draft], None]:
    def change(draft: Draft) -> None:
        kept = {attr.name: attr.i for attr in draft.nodes[-1].attribute} | given
        del draft.nodes[-1].attribute[:]
        for name, value in kept.items():
            draft.nodes[-1].attribute.append(helper.make_attribute(name, value))

    return change


REFUSED: dict[str, tuple[Callable[[Draft], None], Reason]] = {
    "four-inputs": (lambda draft: draft.nodes[-1].input.append("w_s"), Reason.INVALID),
    "four-inputs-one-without-a-name": (lambda draft: draft.nodes[-1].input.append(""), Reason.INVALID),
    "overridable-weight": (overridable("w"), Reason.OVERRIDABLE),
    "overridable-scales": (overridable("w_s"), Reason.OVERRIDABLE),
    "overridable-zero-points": (overridable("w_z"), Reason.OVERRIDABLE),
    "scales-computed": (without("w_s"), Reason.NOT_CONSTANT),
    "zero-points-computed": (without("w_z"), Reason.NOT_CONSTANT),
    "weight-of-16-bits": (of_type("w", TensorProto.INT16), Reason.WEIGHT_TYPE),
    "weight-of-float8": (of_type("w", TensorProto.FLOAT8E4M3FN), Reason.WEIGHT_TYPE),
    "weight-of-float4": (of_type("w", TensorProto.FLOAT4E2M1), Reason.WEIGHT_TYPE),
    "scales-of-double": (of_type("w_s", TensorProto.DOUBLE), Reason.SCALE_TYPE),
    "scales-of-float8": (of_type("w_s", TensorProto.FLOAT8E8M0), Reason.SCALE_TYPE),
    "zero-points-of-another-type": (of_type("w_z", TensorProto.INT4), Reason.INVALID),
    "zero-points-of-another-shape": (of_shape("w_z", 32, 4), Reason.INVALID),
    "zero-points-of-other-size": (of_shape("w_z", 1), Reason.INVALID),
    "scales-of-another-shape": (of_shape("w_s", 32, 4), Reason.INVALID),
    "scales-of-more-blocks": (of_shape("w", 64 - 16, 32), Reason.INVALID),
    "scales-of-fewer-axes": (of_shape("w_s", 128), Reason.INVALID),
    "axis-too-large": (with_attributes(axis=2), Reason.INVALID),
    "axis-too-small": (with_attributes(axis=-3), Reason.INVALID),
    "another-axis": (with_attributes(axis=1), Reason.INVALID),
    "block-negative": (with_attributes(block_size=-16), Reason.INVALID),
    "no-block-but-scales-of-blocks": (with_attributes(block_size=0), Reason.INVALID),
    "weight-of-nothing": (of_shape("w", 0, 32), Reason.INVALID),
    "weight-of-negative-size": (of_shape("w", -64, 32), Reason.INVALID),
    "weight-without-axes": (of_shape("w"), Reason.INVALID),
    "weight-of-too-many-axes": (of_shape("w", *[1] * (MAX_RANK + 1)), Reason.INVALID),
    "weight-too-short": (lambda draft: setattr(initializer(draft, "w"), "raw_data", b"short"), Reason.INVALID),
    "zero-points-too-short": (lambda draft: setattr(initializer(draft, "w_z"), "raw_data", b"short"), Reason.INVALID),
}


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
        read_dequantize(scope, scope.nodes[0], missing, Centred())


# Zero points that need not be given


def zero_points(values: Any, element: str, dirty: bool = False, padding: int = 0) -> StoredTensor:
    """Zero points behind `padding` other bytes."""
    array, kind = np.asarray(values), ELEMENTS[element]
    raw = raw_bytes(array, kind.bits, dirty)
    return StoredTensor("z", kind.code, array.shape, MemorySource(b"\x5a" * padding + raw), padding, len(raw))


@settings(max_examples=200, deadline=None)
@given(
    element=st.sampled_from(["uint2", "int2", "uint4", "int4", "uint8", "int8"]),
    count=st.integers(1, 70),
    other=st.one_of(st.none(), st.tuples(st.integers(0, 69), st.integers(0, 255))),
    dirty=st.booleans(),
    head=st.sampled_from([1, 3, 4096]),
)
def test_centred_zero_points_are_all_the_middle(
    element: str, count: int, other: tuple[int, int] | None, dirty: bool, head: int
) -> None:
    kind = ELEMENTS[element]
    values = np.full(count, kind.default_zero)
    if other is not None:
        values[other[0] % count] = kind.low + other[1] % (1 << kind.bits)
    wanted = bool((values == kind.default_zero).all())
    with mock.patch.object(dequantize_module, "_HEAD_BYTES", head), mock.patch.object(dequantize_module, "_CHUNK_BYTES", 5):
        assert Centred()(kind.code, zero_points(values, element, dirty, padding=3)) == wanted


@pytest.mark.parametrize("element", ["uint2", "int2", "uint4", "int4", "uint8", "int8"])
def test_no_zero_points_are_zeros(element: str) -> None:
    assert Centred()(ELEMENTS[element].code, None) == ELEMENTS[element].signed


def test_zero_points_are_read_once() -> None:
    reads: list[int] = []

    class Counting(MemorySource):
        def read_into(self, offset: int, target: memoryview) -> None:
            reads.append(offset)
            super().read_into(offset, target)

    source, centred = Counting(bytes([0x88] * 8)), Centred()
    for name in ("one", "other"):
        assert centred(TensorProto.UINT4, StoredTensor(name, TensorProto.UINT4, (16,), source, 0, 8))
    seen = len(reads)
    assert centred(TensorProto.UINT4, StoredTensor("shape", TensorProto.UINT4, (4, 4), source, 0, 8))
    assert len(reads) == seen > 0
    # The same bytes are other numbers in another type.
    assert not centred(TensorProto.UINT8, StoredTensor("bytes", TensorProto.UINT8, (8,), source, 0, 8))
    assert not centred(TensorProto.INT4, StoredTensor("signed", TensorProto.INT4, (16,), source, 0, 8))


def test_so_many_bytes_are_read_and_no_more() -> None:
    with mock.patch.object(dequantize_module, "_MAX_READ_BYTES", 20):
        centred = Centred()
        # The last byte of each is compared apart, and not counted.
        answers = [
            centred(TensorProto.UINT8, StoredTensor(str(at), TensorProto.UINT8, (11,), MemorySource(data), 0, 11))
            for at, data in enumerate([b"\x80" * 11, b"\x80" * 11 + b"other", b"\x80" * 11 + b"third"])
        ]
    assert answers == [True, True, False]


# W[K, N]


def numbered(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(math.prod(shape)).reshape(shape)


@pytest.mark.parametrize(
    ("shape", "given", "perm", "into", "transposed", "wanted"),
    [
        ((64, 32), {"axis": 0, "block": 16}, None, None, False, (64, 32, True, 16)),
        ((32, 64), {"axis": 1, "block": 16}, None, None, True, (64, 32, False, 16)),
        ((32, 64), {"axis": 1, "block": 16}, (1, 0), None, False, (64, 32, False, 16)),
        ((64, 32), {"axis": 0, "block": 16}, (1, 0), None, True, (64, 32, True, 16)),
        ((1, 64, 32), {"axis": 1, "block": 16}, None, None, False, (64, 32, True, 16)),
        ((32, 4, 16), {"axis": 2, "block": 16}, None, (32, 64), True, (64, 32, False, 16)),
        ((32, 4, 16), {"axis": 2, "block": 8}, None, (32, 64), True, (64, 32, False, 8)),
        ((32, 4, 16), {"axis": 2, "block": 64}, None, (32, 64), True, (64, 32, False, 16)),
        ((4, 16, 32), {"axis": 1, "block": 16}, None, (64, 32), False, (64, 32, True, 16)),
        ((64, 32), {"axis": 1, "block": 0}, None, None, False, (64, 32, True, 0)),
        ((32, 64), {"axis": 0, "block": 0}, None, None, True, (64, 32, False, 0)),
        ((64, 32), {"axis": 0, "block": -1}, None, None, False, (64, 32, True, 0)),
        ((4, 16, 32), {"axis": 0, "block": -1}, None, (64, 32), False, (64, 32, True, 0)),
        ((64, 32), {"axis": 0, "block": 100}, None, None, False, (64, 32, True, 100)),
    ],
)
def test_the_matrix_that_a_product_sees(
    shape: tuple[int, ...],
    given: dict[str, int],
    perm: tuple[int, ...] | None,
    into: tuple[int, ...] | None,
    transposed: bool,
    wanted: tuple[int, int, bool, int],
) -> None:
    found = read_from(draft_of(shape, **given))
    view, seen = found.view, numbered(shape)
    if perm is not None:
        view, seen = view.transposed(perm), seen.transpose(perm)
    if into is not None:
        view, seen = view.reshaped(into), seen.reshape(into)
    matrix = found.matrix(view, transposed)
    k, n, k_major, _ = wanted
    assert (matrix.k, matrix.n, matrix.k_major, matrix.block) == wanted
    product_sees = np.squeeze(seen).T if transposed else np.squeeze(seen)
    by_storage = numbered(shape).reshape((k, n) if k_major else (n, k))
    np.testing.assert_array_equal(by_storage if k_major else by_storage.T, product_sees)
    assert matrix.zero_points is found.zero_points


NO_MATRIX: dict[str, tuple[tuple[int, ...], dict[str, int], Callable[[View], View], Reason]] = {
    "a-vector": ((64,), {"axis": 0, "block": 16}, lambda view: view, Reason.RANK),
    "a-batch": ((2, 64, 32), {"axis": 1, "block": 16}, lambda view: view, Reason.BATCHED),
    "interleaved": (
        (4, 32, 16), {"axis": 2, "block": 16}, lambda view: view.transposed((0, 2, 1)).reshaped((64, 32)),
        Reason.INTERLEAVED,
    ),
    "blocks-along-n": ((64, 32), {"axis": 1, "block": 16}, lambda view: view, Reason.BLOCKS_ALONG_N),
    "a-scale-for-each-row": ((64, 32), {"axis": 0, "block": 0}, lambda view: view, Reason.BLOCKS_ALONG_N),
    "a-scale-for-a-part-of-the-columns": (
        (64, 4, 8), {"axis": 2, "block": 0}, lambda view: view.reshaped((64, 32)), Reason.BLOCKS_ALONG_N,
    ),
    "blocks-along-the-outer-part-of-k": (
        (4, 16, 32), {"axis": 0, "block": 2}, lambda view: view.reshaped((64, 32)), Reason.BLOCKS_ALONG_N,
    ),
    "blocks-that-end-within-a-part-of-k": (
        (4, 24, 32), {"axis": 1, "block": 16}, lambda view: view.reshaped((96, 32)), Reason.BLOCK_SIZE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_MATRIX)
def test_what_is_no_matrix_with_blocks_along_k(name: str) -> None:
    shape, given, seen, reason = NO_MATRIX[name]
    found = read_from(draft_of(shape, **given))
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
    read_dequantize(scope, scope.nodes[0], noting, Centred())
    assert asked == ["w", "w_s", "w_z"]
