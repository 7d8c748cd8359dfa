"""Einsums that are products of a weight, with NumPy's einsum as the reference; and those that are none."""

from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from conformance.drawing.draft import Draft
from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.fusion.einsum import fuse
from ort_qdq_plugin.fusion.matmul import MatMulFusion
from ort_qdq_plugin.report.weights import Reason
from tests.fusion.support import SETTINGS, emitted, evaluated, locate, read, refused, scope_and_site
from tests.fusion.values import followed, matrix_values, seen_values

SIZES = dict(zip("abcdefgh", (2, 3, 4, 5, 6, 2, 3, 4), strict=True))


def shape_of(labels: str) -> list[int]:
    return [SIZES[label] for label in labels]


def fused(draft: Draft, node: str = "w_d") -> MatMulFusion:
    scope, site = scope_and_site(draft, node)
    weight = read(scope)
    return fuse(site, weight, weight.view, SETTINGS, locate)


def check(equation: str, activation: str, weight: str, x: Any = None, known: bool = True, **given: Any) -> list[str]:
    """Compare with NumPy; the operators of the nodes."""
    draft = Draft("einsum")
    values = np.random.default_rng(1).normal(size=shape_of(activation)).astype(np.float32) if x is None else x
    draft.input("x", values.shape if known else None)
    draft.dequantize("w", shape_of(weight), **{"axis": 0, "block": -1, "element": "int8", **given})
    left = equation.partition("->")[0].split(",")
    is_first = weight == left[0].replace("...", "") and activation != weight
    draft.node("Einsum", ["w_d", "x"] if is_first else ["x", "w_d"], "y", equation=equation)
    fusion = fused(draft)
    nodes, constants = emitted(fusion)
    w = seen_values(followed(draft, "w_d"))
    known_values = {"x": values, "B": matrix_values(fusion.matrix._replace(rows=None))}
    if fusion.matrix.rows is not None:
        known_values["rows"] = fusion.matrix.rows.read().view("<f4")
    result = evaluated(nodes, constants, known_values, "y")
    wanted = np.einsum(equation, *((w, values) if is_first else (values, w)))
    assert result.shape == wanted.shape
    np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-5)
    return [node.op_type for node in nodes]


PLAIN = ["MatMulNBits"]


@pytest.mark.parametrize(("equation", "activation", "weight", "operators"), [
    ("ab,bc->ac", "ab", "bc", PLAIN), ("ab,cb->ac", "ab", "cb", PLAIN), (" a b , b c -> a c ", "ab", "bc", PLAIN),
    ("bc,ab->ac", "ab", "bc", PLAIN), ("eab,bc->eac", "eab", "bc", PLAIN), ("...ab,bc->...ac", "deab", "bc", PLAIN),
    ("ab,bc", "ab", "bc", PLAIN), ("b,bc->c", "b", "bc", PLAIN), ("abd,bdc->ac", "abd", "bdc", ["Reshape", *PLAIN]),
    ("ab,bcd->acd", "ab", "bcd", [*PLAIN, "Reshape"]), ("ab,bc->ca", "ab", "bc", [*PLAIN, "Transpose"]),
    ("ba,bc->ac", "ba", "bc", ["Transpose", *PLAIN]), ("abd,cbd->ac", "abd", "cbd", ["Reshape", *PLAIN]),
    ("...b,bc->c...", "aeb", "bc", [*PLAIN, "Transpose"]), ("eabd,bdc->eac", "eabd", "bdc", ["Reshape", *PLAIN]),
    ("cb,ab->ca", "ab", "cb", None), ("bc,abd->dca", "abd", "bc", None),
    ("bd,bd->", "bd", "bd", ["Reshape", *PLAIN, "Reshape"]), ("ab...,bc", "abe", "bc", None),
    ("ab,bc...->ac...", "ab", "bc", PLAIN),
])  # fmt: skip
def test_products(equation: str, activation: str, weight: str, operators: list[str] | None) -> None:
    found = check(equation, activation, weight)
    assert operators is None or found == operators


def test_nothing_has_to_be_known_where_nothing_moves() -> None:
    x = np.random.default_rng(1).normal(size=(5, 2, 3))
    assert check("...b,bc->...c", "", "bc", x, known=False) == PLAIN
    with refused(Reason.ACTIVATION_RANK):
        check("...b,bc->c...", "", "bc", x, known=False)
    assert check("dab,bc->dca", "", "bc", x, known=False) == [*PLAIN, "Transpose"]  # labels say how many axes there are


def test_rows_of_no_elements() -> None:
    assert check("abd,bdc->ac", "", "bdc", np.zeros((0, 3, 5))) == ["Reshape", *PLAIN]


def test_scales_along_k_are_multiplied_onto_the_activation() -> None:
    found = check("ab,bc->ac", "ab", "bc", axis=0, block=0, zero="none")
    assert found == ["Mul", "MatMulNBits"]
    with refused(Reason.BLOCKS_ALONG_N):
        check("ab,bc->ac", "ab", "bc", axis=0, block=0, zero="random")


@pytest.mark.parametrize(("equation", "activation", "weight", "reason"), [
    ("aab,bc->ac", "aab", "bc", Reason.EINSUM), ("ab,bbc->ac", "ab", "bbc", Reason.EINSUM),
    ("ab,bc->a", "ab", "bc", Reason.EINSUM), ("ab,bc->c", "ab", "bc", Reason.EINSUM),
    ("ab,dc->abdc", "ab", "dc", Reason.EINSUM), ("ab,bc->aac", "ab", "bc", Reason.EINSUM),
    ("a...b,bc->ac", "aeb", "bc", Reason.EINSUM), ("Ab,bc", "ab", "bc", Reason.EINSUM),
    ("dab,dbc->dac", "dab", "dbc", Reason.BATCHED), ("ab,...bc->...ac", "ab", "dbc", Reason.BATCHED),
    ("ab,b->a", "ab", "b", Reason.RANK), ("ab,bcd->ac", "ab", "bc", Reason.INVALID),
    ("ab,bc->ac,", "ab", "bc", Reason.INVALID), ("ab->ab", "ab", "bc", Reason.INVALID), ("", "ab", "bc", Reason.INVALID),
    ("ab,bc->a?", "ab", "bc", Reason.INVALID), ("ab,bc->...ac", "ab", "bc", Reason.INVALID),
    ("eab,bc->eac", "ab", "bc", Reason.INVALID), ("abd,bcd->ac", "abd", "bcd", Reason.INTERLEAVED),
    ("abe,ecdb->acd", "abe", "ecdb", Reason.INTERLEAVED),
])  # fmt: skip
def test_what_is_no_product(equation: str, activation: str, weight: str, reason: Reason) -> None:
    draft = Draft("einsum")
    draft.input("x", shape_of(activation))
    draft.dequantize("w", shape_of(weight), axis=0, block=-1, element="int8")
    draft.node("Einsum", ["x", "w_d"], "y", equation=equation)
    with refused(reason):
        fused(draft)


@pytest.mark.parametrize(("scale", "reason"), [("float16", None), ("bfloat16", Reason.PRODUCT_TYPE)])
def test_types(scale: str, reason: Reason | None) -> None:
    draft = Draft("einsum")
    draft.input("x", ["m", 3], scale)
    draft.dequantize("w", [3, 4], axis=0, block=-1, scale=scale)
    draft.node("Einsum", ["x", "w_d"], "y", equation="ab,bc->ac")
    with refused(reason):
        fused(draft)


def test_a_size_of_one_would_be_repeated() -> None:
    draft = Draft("einsum")
    draft.input("x", ["m", 1])
    draft.dequantize("w", [3, 4], axis=0, block=-1)
    draft.node("Einsum", ["x", "w_d"], "y", equation="ab,bc->ac")
    with refused(Reason.EINSUM):
        fused(draft)


def test_other_numbers_of_operands() -> None:
    draft = Draft("einsum")
    draft.dequantize("w", [3, 3], axis=0, block=-1)
    for inputs in (["w_d"], ["w_d", "w_d"], ["x", "w_d", "x"]):
        draft.node("Einsum", inputs, f"y{len(inputs)}{len(draft.nodes)}", equation="ab,bc->ac")
        with refused(Reason.CONSUMER):
            fused(draft)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_equation(data: st.DataObject) -> None:
    labels = data.draw(st.permutations("abcdef"))
    counts = [data.draw(st.integers(low, 2)) for low in (1, 1, 0)]
    summed, columns, rows = (labels[2 * at : 2 * at + count] for at, count in enumerate(counts))
    weight = "".join(data.draw(st.permutations(summed + columns)))
    activation = "".join(data.draw(st.permutations(summed + rows)))
    result = "".join(data.draw(st.permutations(rows + columns)))
    event(f"{counts}")
    try:
        check(f"{activation},{weight}->{result}", activation, weight)
    except NotFusable as refusal:
        event(refusal.reason.name)
        assert refusal.reason is Reason.INTERLEAVED  # noqa: PT017
