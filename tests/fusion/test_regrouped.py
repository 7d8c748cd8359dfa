"""Axes that a Reshape behind a weight splits and merges, against unoptimized ONNX Runtime."""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from conformance.drawing.draft import Draft
from ort_qdq_plugin import Options, Reason, create_session
from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.folding.computed import as_expression
from ort_qdq_plugin.folding.expression import Stored
from ort_qdq_plugin.fusion.dequantize import Dequantized, Seen
from ort_qdq_plugin.fusion.regrouped import merged, split
from ort_qdq_plugin.fusion.view import view_of
from ort_qdq_plugin.model.elements import FLOAT
from ort_qdq_plugin.model.graph import model_scope
from tests.fusion.support import read, refused
from tests.fusion.values import computed, followed, seen_values
from tests.support import made_report, quiet, result, stock

PER_TENSOR, PER_CHANNEL = -1, 0


def weight_of(shape: list[int], axis: int, block: int, element: str = "int8", zero: Any = "random") -> Draft:
    draft = Draft(f"regrouped {shape} {axis} {block} {element} {zero}")
    draft.dequantize("w", shape, axis=axis, block=block, element=element, zero=zero)
    return draft


def dequantized(*how: Any) -> Dequantized:
    return read(model_scope(weight_of(*how).model()))


@st.composite
def drawn_parts(draw: st.DrawFn, size: int) -> list[int]:
    """Sizes of more than one index, with this product."""
    parts = [part for part in range(2, size) if not size % part]
    if not parts or draw(st.booleans()):
        return [size]
    part = draw(st.sampled_from(parts))
    return [part, *draw(drawn_parts(size // part))]


@settings(max_examples=400, deadline=None)
@given(data=st.data(), shape=st.lists(st.sampled_from((1, 2, 3, 4, 6, 8, 12)), min_size=1, max_size=3))
def test_values_are_the_same(data: st.DataObject, shape: list[int]) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    block = data.draw(st.sampled_from((PER_TENSOR, PER_CHANNEL, 1, 2, 3, 4, 6, 16)))
    weight = dequantized(shape, axis, block, "uint4", data.draw(st.sampled_from(("none", "random"))))
    finer_shape = tuple(part for size in shape for part in data.draw(drawn_parts(size)))
    wanted = seen_values(Seen(weight, weight.view))
    try:
        finer = split(weight, finer_shape)
    except NotFusable as refusal:
        event("not split")
        # Several axes have a scale for each index then, and not exactly one has none.
        assert (refusal.reason, block) == (Reason.RESHAPE, PER_CHANNEL)  # noqa: PT017
        return
    found = seen_values(Seen(finer, finer.view))
    assert found.shape == finer_shape
    np.testing.assert_array_equal(found.reshape(shape), wanted)
    # And back: it is what it was, or seen as that.
    back, view = merged(finer, finer.view.reshaped(shape))
    event(f"merged {view == back.view}")
    np.testing.assert_array_equal(seen_values(Seen(back, view)), wanted)
    if view == back.view:
        assert isinstance(as_expression(back.weight), Stored)


@pytest.mark.parametrize(("how", "shape", "axis", "block"), [
    # Groups as rows, with a scale for each row, or blocks along it.
    (([12, 32], 0, PER_CHANNEL), (4, 3, 32), 2, 32),
    (([12, 32], 1, 32), (4, 3, 32), 2, 32),
    (([12, 32], 1, 16), (4, 3, 32), 2, 16),
    (([4, 12, 32], 2, 32), (4, 3, 4, 32), 3, 32),
    # The axis of the blocks: on their borders, and within them.
    (([4, 96], 1, 16), (4, 3, 32), 2, 16),
    (([4, 96], 1, 48), (4, 3, 32), 2, 16),
    (([4, 96], 1, 64), (4, 12, 8), 2, 8),
    # What shares a scale goes on doing so.
    (([4, 96], 0, PER_CHANNEL), (4, 3, 32), 0, 0),
    (([4, 96], 1, 96), (4, 3, 32), 0, 0),
    (([4, 96], 1, 128), (2, 2, 3, 32), 3, 32),
    (([1, 96], 1, 96), (1, 3, 32), None, 0),
    (([4, 96], 0, PER_TENSOR), (2, 2, 3, 32), None, 0),
    (([4, 96], 0, PER_CHANNEL), (2, 2, 96), 2, 96),
])  # fmt: skip
def test_where_the_scales_are(how: Any, shape: tuple[int, ...], axis: int | None, block: int) -> None:
    weight = dequantized(*how)
    finer = split(weight, shape)
    assert (finer.weight.shape, finer.axis, finer.block) == (shape, axis, block)
    assert isinstance(as_expression(finer.weight), Stored)  # where it was
    np.testing.assert_array_equal(
        seen_values(Seen(finer, finer.view)).ravel(), seen_values(Seen(weight, weight.view)).ravel()
    )


@pytest.mark.parametrize(("how", "shape"), [(([12, 4, 4], 0, PER_CHANNEL), (3, 4, 4, 4)), (([12], 0, PER_CHANNEL), (3, 4))])
def test_scales_that_no_axis_has(how: Any, shape: tuple[int, ...]) -> None:
    with refused(Reason.RESHAPE):
        split(dequantized(*how), shape)


@pytest.mark.parametrize(("how", "seen_as", "axis", "block"), [
    (([4, 3, 32], 2, 32), (4, 96), 1, 32),
    (([4, 3, 32], 2, 64), (4, 96), 1, 32),
    (([4, 3, 32], 2, 16), (4, 96), 1, 16),
    (([4, 3, 32], 2, 32), (12, 32), 1, 32),
    (([4, 3, 33], 2, 32), (12, 33), 1, 32),
    (([4, 3, 32], 0, PER_CHANNEL), (4, 96), 0, 0),
    (([4, 3, 32], 0, PER_TENSOR), (4, 96), None, 0),
    (([1, 12, 32], 1, PER_CHANNEL), (12, 32), 0, 0),
    (([4, 12, 1], 1, 4), (4, 12), 1, 4),
])  # fmt: skip
def test_where_the_scales_are_of_what_is_merged(how: Any, seen_as: tuple[int, ...], axis: int | None, block: int) -> None:
    weight = dequantized(*how)
    coarser, view = merged(weight, weight.view.reshaped(seen_as))
    assert view == view_of(seen_as, FLOAT)
    assert (coarser.weight.shape, coarser.axis, coarser.block) == (seen_as, axis, block)
    assert isinstance(as_expression(coarser.weight), Stored)


@pytest.mark.parametrize(("how", "seen_as"), [
    (([4, 3, 33], 2, 32), (4, 99)),  # the last block of a row is shorter
    (([4, 3, 32], 1, PER_CHANNEL), (4, 96)),
    (([4, 3, 32], 1, PER_CHANNEL), (12, 32)),
    (([4, 4, 32], 1, 2), (4, 128)),
    (([4, 1, 32], 1, 2), (4, 32)),
])  # fmt: skip
def test_what_cannot_be_merged_stays(how: Any, seen_as: tuple[int, ...]) -> None:
    weight = dequantized(*how)
    view = weight.view.reshaped(seen_as)
    assert merged(weight, view) == (weight, view)


def test_views_that_do_more_stay() -> None:
    weight = dequantized([4, 3, 32], 2, 32)
    for view in (weight.view, weight.view.transposed((1, 0, 2)).reshaped((12, 32))):
        assert merged(weight, view) == (weight, view)
    with_factor = weight._replace(factors=(as_expression(weight.scales),))
    assert merged(with_factor, weight.view.reshaped((4, 96)))[0] is with_factor


def test_factors_are_split() -> None:
    draft = weight_of([12, 32], 0, PER_CHANNEL)
    product = draft.node("Mul", ["w_d", draft.floats("f", [12, 1], low=0.5, high=2)])
    value = draft.node("Reshape", [product, draft.ints("shape", [4, 96])])
    np.testing.assert_allclose(seen_values(followed(draft, value)), computed(draft, value)[0], rtol=1e-6)


# Whole models


def of_groups(n: int, groups: int, size: int, element: str, axis: int, zero: Any, k_major: bool) -> onnx.ModelProto:
    """Groups as rows: [n * groups, size], or for K-major weights [groups * n, size] of what is [n, k] before a Transpose."""
    draft = weight_of([n * groups, size], axis, size if axis == 1 else PER_CHANNEL, element, zero)
    draft.input("x", ["m", groups * size])
    draft.output("y", ["m", n])
    value = draft.node("Reshape", ["w_d", draft.ints("whole", [n, groups * size])])
    if k_major:
        draft.node("MatMul", ["x", draft.node("Transpose", [value], perm=[1, 0])], "y")
    else:
        draft.node("Gemm", ["x", value], "y", transB=1)
    return draft.model()


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 20), groups=st.integers(1, 5), size=st.sampled_from((16, 32, 48, 64)),
    element=st.sampled_from(("int4", "uint4")), axis=st.integers(0, 1), zero=st.sampled_from(("none", "random")),
    k_major=st.booleans(),
)  # fmt: skip
@example(n=7, groups=3, size=32, element="uint4", axis=1, zero="random", k_major=True)
def test_groups_as_rows_are_fused(**how: Any) -> None:
    model = of_groups(**how).SerializeToString()
    plain = quiet()
    plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = create_session(model, options=Options(accuracy_level=0, cache_dir=None))
    report = made_report(session)
    (fused,) = report.fused
    assert not report.unfused
    event(f"{fused.layout}, block {fused.block_size}")
    wanted = result(stock(model, plain))
    np.testing.assert_allclose(result(session), wanted, rtol=1e-5, atol=1e-5 * float(np.abs(wanted).max()))
