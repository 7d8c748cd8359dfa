"""Bytes of weights: each counts once, whatever reads it, and through however many nodes."""

import pytest

from conformance.drawing.draft import Draft
from conformance.drawing.weight import Weight
from ort_qdq_plugin.fusion.match import Matches, match
from ort_qdq_plugin.model.graph import model_scope
from tests.fusion.support import SETTINGS, locate

# Of 4 bits, with float scales and zero points of 4 bits for blocks of 32.
STORED = 128 * 192 // 2 + 4 * 192 * 4 + 4 * 192 // 2
IN_FLOAT = 128 * 192 * 4


def counted(text: str, n_major: bool = False) -> Matches:
    draft = Draft("counted")
    draft.input("x", ["m", 128])
    draft.weight(Weight(n=192, n_major=n_major))
    draft.write(text)
    return match(model_scope(draft.model()), locate, SETTINGS)


@pytest.mark.parametrize(
    "text",
    [
        "y = MatMul(x, w_d)",
        "y = MatMul(x, w_d)  z = MatMul(x, w_d)",
        "v_d = DequantizeLinear <axis = 0, block_size = 32> (w, w_s, w_z)  y = MatMul(x, w_d)  z = MatMul(x, v_d)",
        "a, b, c = Split <axis = 1, num_outputs = 3> (w_d)  p = MatMul(x, a)  q = MatMul(x, b)  r = MatMul(x, c)",
    ],
)
def test_a_weight_counts_once(text: str) -> None:
    matches = counted(text)
    assert (matches.unfused, matches.stored_bytes, matches.float_bytes) == ((), STORED, IN_FLOAT)
    assert {fusion.entry().weight for fusion in matches.fusions} == {"w"}
    assert {fusion.entry().stored_bytes for fusion in matches.fusions} == {STORED}


def test_parts_that_are_stored_apart_are_of_one_weight() -> None:
    parts = "  ".join(f"{name}t = Transpose({name})  {name}y = MatMul(x, {name}t)" for name in "abc")
    matches = counted(f"a, b, c = Split <axis = 0, num_outputs = 3> (w_d)  {parts}", n_major=True)
    assert [fusion.entry().stored_bytes for fusion in matches.fusions] == [STORED] * 3
    assert (matches.stored_bytes, matches.float_bytes) == (STORED, IN_FLOAT)


@pytest.mark.parametrize("table", ["w_d", "v_d"])
def test_tied_embeddings_are_one_weight(table: str) -> None:
    """A lookup and a product, through one DequantizeLinear or two. The lookup of so small a table is not fused."""
    again = "v_d = DequantizeLinear <axis = 1, block_size = 32> (w, w_s, w_z)  i = Constant <value_ints = [3]> ()"
    matches = counted(f"{again}  e = Gather({table}, i)  t = Transpose(w_d)  y = MatMul(x, t)", n_major=True)
    assert [len(matches.fusions), len(matches.unfused)] == [1, 2 if table == "w_d" else 1]
    assert (matches.stored_bytes, matches.float_bytes) == (STORED, IN_FLOAT)


def test_what_stays_is_stored_and_takes_nothing_in_float() -> None:
    matches = counted("n = Neg(w_d)")
    assert (matches.stored_bytes, matches.float_bytes, matches.unfused[0].stored_bytes) == (STORED, 0, STORED)
    computed = counted("s = Abs(x)  u = DequantizeLinear <axis = 0, block_size = 32> (w, s)  n = Neg(u)  y = MatMul(x, w_d)")
    assert ([*map(len, computed[:2])], computed.stored_bytes, computed.float_bytes) == ([1, 1], STORED, IN_FLOAT)


def test_vectors_are_no_weights() -> None:
    draft = Draft("vector")
    draft.weight(Weight(k=1, n=64, block=-1, element="int8"), "b")
    draft.quantized("v", "int8", (64,))
    draft.write("d = DequantizeLinear(v, b_s)  n = Neg(d)")
    draft.weight(Weight(), "w")
    draft.node("MatMul", [draft.input("x", ["m", 128]), "w_d"], "y")
    matches = match(model_scope(draft.model()), locate, SETTINGS)
    of_b = 64 + 4 + 1
    assert matches.stored_bytes == of_b + 128 * 64 // 2 + 4 * 64 * 4 + 4 * 64 // 2
