"""What weights are multiplied by: on each row and each column of the matrix that a product sees."""

from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from conformance.drawing.draft import Draft
from conformance.drawing.elements import FLOATS, raw_float, raw_tensor
from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.folding.computed import as_tensor
from ort_qdq_plugin.folding.expression import Expression, Stored
from ort_qdq_plugin.fusion.factors import as_floats, constant, vector, with_factor
from ort_qdq_plugin.fusion.matmul import fuse
from ort_qdq_plugin.report.weights import Reason
from tests.fusion.support import SETTINGS, emitted, locate, refused, scope_and_site
from tests.fusion.values import computed, followed, matrix_values, seen_values


def draft_of(shape: list[int], factor: list[int], kind: str = "Mul", **weight: Any) -> Draft:
    """A weight, multiplied by random numbers of that shape."""
    draft = Draft("factors")
    draft.dequantize("w", shape, **{"axis": 0, "block": 16, **weight})
    draft.node(kind, ["w_d", draft.floats("f", factor, low=0.5, high=2)], "v")
    return draft


def check(draft: Draft, rows: bool | None = None) -> None:
    (wanted,) = computed(draft, "v")
    seen = followed(draft, "v")
    matrix = seen.dequantized.matrix(seen.view, False, rows_may_differ=True)
    np.testing.assert_allclose(matrix_values(matrix), wanted, rtol=1e-6)
    if rows is not None:
        assert (matrix.rows is not None) == rows


@pytest.mark.parametrize("kind", ["Mul", "Div"])
@pytest.mark.parametrize("block", [-1, 0, 16])
@pytest.mark.parametrize("n_major", [False, True])
@pytest.mark.parametrize(("k", "n"), [(1, 12), (48, 1), (1, 1), (None, 12), (None, 1), (None, None)])
def test_rows_and_columns(kind: str, block: int, n_major: bool, k: int | None, n: int | None) -> None:
    """A factor [k, n], [n] or a scalar of W[48, 12]."""
    k_axis = int(n_major)
    draft = draft_of([12, 48] if n_major else [48, 12], [], kind, axis=k_axis if block > 0 else 1 - k_axis, block=block)
    draft.node("Transpose" if n_major else "Identity", ["w_d"], "t")
    shape = [size for size in (k, n) if size is not None]
    draft.node(kind, ["t", draft.floats("g", shape, low=0.5, high=2)], "v2")
    draft.nodes[-1].output[0], draft.nodes[-3].output[0] = "v", "unused"
    check(draft, rows=k == 48)


def test_there_are_no_more_than_axes_allow() -> None:
    shapes = [(), (1, 4), (3, 1), (1, 4), (), (3, 1), (1, 4)]
    given = [np.random.default_rng(at).uniform(0.5, 2, shape or (1, 1)) for at, shape in enumerate(shapes)]
    factors: tuple[Expression, ...] = ()
    for values in given:
        tensor = raw_tensor("f", TensorProto.FLOAT, values.shape, values.astype("<f4").tobytes())
        factors = with_factor(factors, Stored(locate(tensor)))
    assert len(factors) == 2
    found = [as_tensor(factor, "f").read().view("<f4").reshape(factor.shape) for factor in factors]
    np.testing.assert_allclose(found[0] * found[1], reduce(np.multiply, given), rtol=1e-6)


def test_several() -> None:
    draft = draft_of([48, 12], [12])
    draft.node("Mul", ["v", draft.floats("g", [48, 1], low=0.5, high=2)], "a")
    draft.node("Div", ["a", draft.floats("h", [48, 1], low=0.5, high=2)], "b")
    draft.nodes[-1].output[0], draft.nodes[1].output[0], draft.nodes[2].input[0] = "v", "first", "first"
    check(draft, rows=True)


@pytest.mark.parametrize("scale", ["float16", "bfloat16"])
def test_half_precision_is_multiplied_in_float(scale: str) -> None:
    """2**-20 times 2**-10 is no float16; times 100 it is."""
    draft = Draft("factors")
    draft.dequantize("w", [32, 8], axis=0, element="uint8", zero="none", scale=scale, scale_range=(2.0**-20, 2.0**-20))
    values = raw_float(np.full(8, 2.0**-10), scale)
    draft.node("Mul", ["w_d", draft.constant(raw_tensor("f", FLOATS[scale], [8], values))], "v")
    seen = followed(draft, "v")
    matrix = seen.dequantized.matrix(seen.view, False)
    assert matrix.scales.data_type == FLOATS["float"]
    assert matrix.scales.read().view("<f4").tolist() == [2.0**-30] * 8


def test_factors_of_a_type_that_no_product_has() -> None:
    draft = Draft("factors")
    draft.dequantize("w", [32, 8], axis=0)
    draft.node("Cast", ["w_d"], "c", to=TensorProto.DOUBLE)
    draft.node("Mul", ["c", draft.constant(numpy_helper.from_array(np.ones(8), "f"))], "v")
    with refused(Reason.PRODUCT_TYPE):
        followed(draft, "v")


@pytest.mark.parametrize(("scale", "opset", "operators"), [
    ("float", 21, ["Mul", "MatMulNBits"]), ("float", 6, None), ("float16", 21, ["Cast", "Mul", "MatMulNBits", "Cast"]),
])  # fmt: skip
def test_rows_are_multiplied_onto_the_activation(scale: str, opset: int, operators: list[str] | None) -> None:
    """In float; the first opsets have no Mul that does it."""
    draft = Draft("factors")
    draft.dequantize("w", [48, 12], axis=0, block=16, scale=scale)
    draft.node("Mul", ["w_d", draft.floats("f", [48, 1], scale)], "v")
    draft.node("MatMul", ["x", "v"], "y")
    seen = followed(draft, "v")
    draft.opset = opset
    _, site = scope_and_site(draft, "v")
    with refused(None if operators else Reason.FACTOR):
        fusion = fuse(site, seen.dequantized, seen.view, SETTINGS, locate)
        assert [node.op_type for node in emitted(fusion)[0]] == operators
        rows = fusion.operands["rows"]
        assert (rows.data_type, rows.shape) == (FLOATS["float"], (48,))


REFUSED: dict[str, tuple[list[int], list[int], dict[str, Any], Reason]] = {
    "one-for-each-element": ([48, 12], [48, 12], {}, Reason.FACTOR),
    "one-for-a-part-of-the-columns": ([48, 4, 3], [48, 1, 3], {}, Reason.FACTOR),
    "one-that-repeats-the-weight": ([1, 12], [48, 12], {}, Reason.FACTOR),
    "one-of-more-axes": ([48, 12], [1, 1, 12], {}, Reason.FACTOR),
}


@pytest.mark.parametrize("name", REFUSED)
def test_factors_that_belong_nowhere(name: str) -> None:
    shape, factor, weight, reason = REFUSED[name]
    draft = draft_of(shape, factor, **weight)
    with refused(reason):
        seen = followed(draft, "v")
        view = seen.view.reshaped([shape[0], int(np.prod(shape[1:]))])
        seen.dequantized.matrix(view, False, rows_may_differ=True)


def test_rows_that_may_not_differ() -> None:
    seen = followed(draft_of([48, 12], [48, 1]), "v")
    with refused(Reason.FACTOR):
        seen.dequantized.matrix(seen.view, False)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_matrix(data: st.DataObject) -> None:
    """Scales of all kinds, factors of all kinds, axes in any order: whatever a product can take is right."""
    shape = data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=4))
    draft = Draft("matrix")
    axis, block = data.draw(st.integers(0, len(shape) - 1)), data.draw(st.sampled_from((-1, 0, 1, 2, 4, 16)))
    zero: Any = data.draw(st.sampled_from(("none", "random", "default")))
    value = draft.dequantize("w", shape, axis=axis, block=block, zero=zero, element="int8")
    for _ in range(data.draw(st.integers(0, 2))):
        sizes = [size if data.draw(st.booleans()) else 1 for size in shape]
        value = draft.node("Mul", [value, draft.floats(f"f{len(draft.nodes)}", sizes, low=0.5, high=2)])
    (wanted,) = computed(draft, value)
    seen = followed(draft, value)
    cut, turned = data.draw(st.integers(1, len(shape) - 1)), data.draw(st.booleans())
    view = seen.view.reshaped([int(np.prod(shape[:cut])), int(np.prod(shape[cut:]))])
    wanted = wanted.reshape(view.shape)
    try:
        matrix = seen.dequantized.matrix(view, turned, rows_may_differ=True)
    except NotFusable as refusal:
        event(refusal.reason.name)
        assert refusal.reason in (Reason.FACTOR, Reason.BLOCKS_ALONG_N, Reason.BLOCK_SIZE)  # noqa: PT017
        return
    event("rows" if matrix.rows is not None else "a matrix")
    assert (matrix.k, matrix.n) == (wanted.T if turned else wanted).shape
    np.testing.assert_allclose(matrix_values(matrix), wanted.T if turned else wanted, rtol=1e-5)


def test_expressions() -> None:
    assert constant(7, FLOATS["float"], [2]).values(((0, 2),)).tolist() == [7, 7]
    halves = raw_tensor("h", FLOATS["bfloat16"], [2], raw_float(np.array([1.5, -2.0]), "bfloat16"))
    assert as_floats(Stored(locate(halves))).values(((0, 2),)).tolist() == [1.5, -2.0]
    rows = vector(constant(3, FLOATS["float"], (2, 1, 1)), (0, 2), (2, 5, 3))
    assert rows.shape == (6,)
    assert seen_values(followed(draft_of([16, 2], [2]), "w_d")).shape == (16, 2)
