"""Parts of weights: what Split, Slice and Gather take, as ONNX Runtime and NumPy do; where a part lies; what is none."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from conformance.drawing.draft import Draft
from conformance.drawing.elements import ELEMENTS
from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.fusion.dequantize import Seen
from ort_qdq_plugin.fusion.parts import sliced, taken, taken_tensor
from ort_qdq_plugin.model.sources import MemorySource
from ort_qdq_plugin.model.tensors import StoredTensor
from ort_qdq_plugin.report.weights import Reason
from tests.fusion.support import drawn, refused
from tests.fusion.values import computed, followed, numbers, seen_values
from tests.packing.plain import raw_bytes

READER = ("MatMul", "x p", "y")
"""Parts are taken for products; others are lookups."""


def draft_of(shape: tuple[int, ...] = (8, 64), opset: int = 21, **weight: Any) -> Draft:
    draft = Draft("parts", opset=opset)
    draft.dequantize("w", shape, **{"axis": 1, "block": 16, **weight})
    return draft


# Where a part lies


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_parts_of_tensors(data: st.DataObject) -> None:
    kind = ELEMENTS[data.draw(st.sampled_from(("uint2", "int4", "uint4", "int8")))]
    shape = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    axis = data.draw(st.integers(0, len(shape) - 1))
    bounds = sorted(data.draw(st.tuples(*[st.integers(0, shape[axis])] * 2)))
    indices: Any = range(*bounds) if data.draw(st.booleans()) else range(shape[axis])[:: data.draw(st.sampled_from((-1, 2)))]
    if not indices:
        indices = range(1)
    elements = np.random.default_rng(len(indices)).integers(kind.low, kind.low + (1 << kind.bits), shape)
    raw = raw_bytes(elements, kind.bits)
    tensor = StoredTensor("w", kind.code, tuple(shape), MemorySource(b"\x5a" * 3 + raw), 3, len(raw))
    part = taken_tensor(tensor, axis, indices)
    np.testing.assert_array_equal(numbers(part), np.take(elements, list(indices), axis))
    if part.source is tensor.source:
        assert tensor.offset <= part.offset <= part.offset + part.nbytes <= tensor.offset + tensor.nbytes


@pytest.mark.parametrize(("shape", "axis", "indices", "offset"), [
    ((8, 64), 0, range(2, 4), 64), ((1, 8, 64), 1, range(2, 4), 64), ((6, 3), 0, range(2, 4), 3),
    ((3, 3), 0, range(2), 0), ((3, 3), 0, range(1), None), ((64,), 0, range(7), None), ((8, 64), 1, range(16), None),
    ((8, 64), 0, range(0, 4, 2), None), ((8, 64), 0, (1, 0), None),
])  # fmt: skip
def test_what_lies_in_one_piece_stays_where_it_is(
    shape: tuple[int, ...], axis: int, indices: Any, offset: int | None
) -> None:
    code, nbytes = ELEMENTS["uint4"].code, (int(np.prod(shape)) + 1) // 2
    tensor = StoredTensor("w", code, shape, MemorySource(bytes(nbytes)), 0, nbytes)
    part = taken_tensor(tensor, axis, indices)
    assert (part.offset if part.source is tensor.source else None) == offset


# Blocks


@pytest.mark.parametrize(("axis", "indices", "fits"), [
    (1, range(16, 48), True), (1, range(16, 40), True), (1, range(8, 16), True), (1, range(20, 31, 3), True),
    (1, (*range(48, 64), *range(16)), True), (1, (5,), True), (1, range(8, 40), False), (1, range(63, -1, -1), True),
    (1, range(0, 64, 2), False), (0, range(7, -1, -3), True), (0, (3, 1, 3), True), (0, (0,) * 9, False), (0, (), False),
])  # fmt: skip
def test_a_part_is_made_of_blocks(axis: int, indices: Any, fits: bool) -> None:
    whole = followed(draft_of(), "w_d")
    with refused(None if fits else Reason.PART):
        part = taken(whole, axis, indices)
        np.testing.assert_array_equal(seen_values(part), np.take(seen_values(whole), list(indices), axis))


@pytest.mark.parametrize("block", [-1, 0, 32])
@pytest.mark.parametrize(("indices", "fits"), [
    (range(32, 96), True), (range(40, 60), True), (range(64, 65), True), ((33, 40, 35), True), (range(16, 80), False),
    ((33, 65), False),
])  # fmt: skip
def test_an_axis_of_several_stored_ones(block: int, indices: Any, fits: bool) -> None:
    draft = draft_of((4, 32, 6), axis=1, block=block)
    draft.node("Reshape", ["w_d", draft.ints("to", [128, 6])], "p")
    whole = followed(draft, "p")
    with refused(None if fits else Reason.PART):
        part = taken(whole, 0, indices)
        np.testing.assert_array_equal(seen_values(part), np.take(seen_values(whole), list(indices), 0))


# Nodes

INT = ("ints", "0", "zero")
FOLLOWED: dict[str, tuple[int, list[Any]]] = {
    "split-in-equal-parts": (13, [("Split", "w_d", "p")]),
    "split-as-even-as-can-be": (18, [("Split", "w_d", "p", {"num_outputs": 3})]),
    "split-by-an-attribute": (11, [("Split", "w_d", "p", {"split": [3, 1, 4]})]),
    "split-by-an-input": (21, [("ints", "3 1 4", "n"), ("Split", "w_d n", "p", {"axis": -2})]),
    "slice-without-axes": (21, [("ints", "2 16", "b"), ("ints", "7 48", "e"), ("Slice", "w_d b e", "p")]),
    "slice-without-steps": (21, [INT, ("ints", "4", "e"), ("Slice", "w_d zero e zero", "p")]),
    "slice-backwards": (21, [
        INT, ("ints", "-1", "b"), ("ints", "-9999", "e"), ("ints", "-2", "s"), ("Slice", "w_d b e zero s", "p"),
    ]),
    "gather-a-vector": (21, [("ints", "-1 3 0", "i"), ("Gather", "w_d i", "p")]),
}  # fmt: skip
SHAPES = {"split-as-even-as-can-be": 3, "split-in-equal-parts": 2}


@pytest.mark.parametrize("name", FOLLOWED)
def test_nodes_that_take_a_part(name: str) -> None:
    opset, nodes = FOLLOWED[name]
    old: dict[str, Any] = {"block": -1, "element": "uint8", "zero": "none"} if opset < 21 else {}
    draft = drawn(draft_of(opset=opset, **old), *nodes)
    names = ["p"]
    if draft.nodes[-1].op_type == "Split":
        names += [f"p{at}" for at in range(1, SHAPES.get(name, 3))]
        draft.nodes[-1].output.extend(names[1:])
    wanted = computed(draft, *names)
    drawn(draft, READER)
    for part, values in zip(names, wanted, strict=True):
        np.testing.assert_allclose(seen_values(followed(draft, part)), values, rtol=1e-6)


def test_a_slice_by_attributes() -> None:
    """Older than any DequantizeLinear of the ONNX specification; ONNX Runtime's own may stand before it."""
    whole = followed(draft_of(), "w_d")
    node = helper.make_node("Slice", ["w_d"], ["p"], starts=[1, 16], ends=[-2, 9999], axes=[0, 1])
    part = sliced(whole, node, 9, lambda name: pytest.fail(name))
    np.testing.assert_array_equal(seen_values(part), seen_values(whole)[1:-2, 16:])


REFUSED: dict[str, tuple[list[Any], Reason]] = {
    "lengths-that-are-not-all": ([("ints", "3 1", "n"), ("Split", "w_d n", "p")], Reason.INVALID),
    "no-such-axis": ([("Split", "w_d", "p", {"axis": 2, "num_outputs": 1})], Reason.INVALID),
    "no-lengths-at-all": ([("Split", "w_d", "p")], Reason.INVALID),
    "lengths-and-a-number": ([("ints", "8", "n"), ("Split", "w_d n", "p", {"num_outputs": 1})], Reason.INVALID),
    "more-outputs-than-there-are": ([("Split", "w_d", "p", {"num_outputs": 2})], Reason.INVALID),
    "steps-of-none": ([INT, ("ints", "4", "e"), ("Slice", "w_d zero e zero zero", "p")], Reason.INVALID),
    "an-axis-twice": ([
        ("ints", "0 0", "b"), ("ints", "4 4", "e"), ("Slice", "w_d b e b", "p")
    ], Reason.INVALID),
    "fewer-ends": ([("ints", "0 0", "b"), ("ints", "4", "e"), ("Slice", "w_d b e", "p")], Reason.INVALID),
    "nothing": ([INT, ("Slice", "w_d zero zero", "p")], Reason.PART),
    "an-index-that-is-not-there": ([("ints", "8", "i"), ("Gather", "w_d i", "p")], Reason.INVALID),
    "bounds-of-run-time": ([INT, ("Slice", "w_d x zero", "p")], Reason.PART),
    "bounds-of-another-type": ([("floats", "1", "f"), ("Slice", "w_d f f", "p")], Reason.OPSET),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_nodes_that_take_no_part(name: str) -> None:
    nodes, reason = REFUSED[name]
    draft = draft_of()
    draft.input("x", [1], "int64")
    with refused(reason):
        followed(drawn(draft, *nodes, READER), "p")


def test_indices_of_more_axes_are_left_to_lookups() -> None:
    draft = draft_of()
    draft.node("Reshape", [draft.ints("i", [1, 2]), draft.ints("to", [1, 2])], "j")
    with refused(Reason.PART):
        followed(drawn(draft, ("Gather", "w_d j", "p"), READER), "p")


def test_a_value_of_no_axes_has_no_parts() -> None:
    whole = followed(draft_of(), "w_d")
    with pytest.raises(NotFusable):
        taken(Seen(whole.dequantized, whole.view._replace(axes=((), *whole.view.axes))), 0, (0, 0))
