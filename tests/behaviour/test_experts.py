"""Experts in whole models: the numbers of the unoptimized model, whatever their shapes and however they are stored."""

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from conformance.drawing.draft import Draft
from conformance.drawing.weight import PER_TENSOR
from ort_qdq_plugin import Options, create_session
from tests.support import CPU, Array, made_report, quiet, stock

ELEMENTS = st.sampled_from(["uint4", "int4", "uint8", "int8"])
BLOCKS = st.sampled_from([16, 32, 48, PER_TENSOR])
ZEROS = st.sampled_from(["none", "default", "random"])


def ours(draft: Draft) -> ort.InferenceSession:
    """A session at level 0."""
    return create_session(draft.model().SerializeToString(), quiet(), CPU, options=Options(accuracy_level=0, strict=True))


def unoptimized(draft: Draft) -> ort.InferenceSession:
    options = quiet()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return stock(draft.model().SerializeToString(), options)


def check(draft: Draft, feeds: dict[str, Array]) -> ort.InferenceSession:
    """Our session, which gives the numbers of the unoptimized model."""
    session = ours(draft)
    event(f"{len(made_report(session).fused)} fused")
    (wanted,), (given,) = unoptimized(draft).run(None, feeds), session.run(None, feeds)
    assert given.shape == wanted.shape
    np.testing.assert_allclose(given, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    return session


def drawn_weight(draft: Draft, experts: int, k: int, n: int, in_rows: bool, **how: Any) -> str:
    shape = (experts, n, k) if in_rows else (experts, k, n)
    return draft.dequantize("w", shape, axis=2 if in_rows else 1, **how)


@settings(max_examples=60, deadline=None)
@given(
    k=st.integers(1, 130), n=st.integers(1, 70), experts=st.integers(1, 9), element=ELEMENTS, block=BLOCKS, zero=ZEROS,
    in_rows=st.booleans(), swapped_before=st.booleans(), indices=st.sampled_from([(), (1,), (2,), (1, 1), (2, 3)]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_experts_that_are_looked_up(
    k: int, n: int, experts: int, element: str, block: int, zero: Any, in_rows: bool, swapped_before: bool,
    indices: tuple[int, ...], seed: int,
) -> None:  # fmt: skip
    draft, rng = Draft("experts"), np.random.default_rng(seed)
    draft.input("e", indices, "int64")
    value, last = drawn_weight(draft, experts, k, n, in_rows, element=element, block=block, zero=zero), in_rows
    if swapped_before:
        value, last = draft.node("Transpose", [value], perm=[0, 2, 1]), not in_rows
    value, rank = draft.node("Gather", [value, "e"]), len(indices) + 2
    if indices == (1,):
        value, rank = draft.node("Squeeze", [value, draft.ints("first", [0])]), 2
    if last:
        value = draft.node("Transpose", [value], perm=[*range(rank - 2), rank - 1, rank - 2])
    draft.node("MatMul", [draft.input("x", ["m", k]), value], "y")
    draft.output("y", ["m", n] if rank == 2 else [*indices, "m", n])
    x, numbers = rng.standard_normal((3, k)).astype(np.float32), np.asarray(rng.integers(-experts, experts, indices))
    session = check(draft, {"x": x, "e": numbers})
    for outside in (experts, -experts - 1):
        with pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidArgument, match="out of data bounds"):
            session.run(None, {"x": x, "e": np.full(indices, outside)})


@settings(max_examples=40, deadline=None)
@given(
    k=st.integers(1, 130), n=st.integers(1, 70), experts=st.integers(1, 9), element=ELEMENTS, block=BLOCKS, zero=ZEROS,
    in_rows=st.booleans(), batch=st.sampled_from([(), (1,), ("experts",), (2, "experts"), (2, 1)]),
)  # fmt: skip
def test_all_experts(
    k: int, n: int, experts: int, element: str, block: int, zero: Any, in_rows: bool, batch: tuple[int | str, ...]
) -> None:
    draft = Draft("experts")
    value = drawn_weight(draft, experts, k, n, in_rows, element=element, block=block, zero=zero)
    if in_rows:
        value = draft.node("Transpose", [value], perm=[0, 2, 1])
    shape = [experts if size == "experts" else int(size) for size in batch]
    draft.node("MatMul", [draft.input("x", [*shape, "m", k]), value], "y")
    draft.output("y", [*shape[:-1], experts, "m", n])
    check(draft, {"x": np.random.default_rng(k).standard_normal((*shape, 3, k)).astype(np.float32)})


@settings(max_examples=40, deadline=None)
@given(
    hidden=st.integers(1, 6), inner=st.integers(1, 6), experts=st.integers(1, 6), element=ELEMENTS, zero=ZEROS,
    block=st.sampled_from([16, 32, PER_TENSOR]), in_rows=st.booleans(), best=st.integers(1, 6), normalized=st.booleans(),
    activation=st.sampled_from(["relu", "gelu", "silu", "identity", "swiglu"]), has_bias=st.booleans(),
)  # fmt: skip
def test_mixtures_of_experts(
    hidden: int, inner: int, experts: int, element: str, zero: Any, block: int, in_rows: bool, best: int, normalized: bool,
    activation: str, has_bias: bool,
) -> None:  # fmt: skip
    hidden, inner, draft = 16 * hidden, 16 * inner, Draft("mixture")
    gate = 2 if activation == "swiglu" else 1
    values = []
    for name, (n, k) in (("w", (gate * inner, hidden)), ("v", (hidden, inner))):
        shape = (experts, n, k) if in_rows else (experts, k, n)
        value = draft.dequantize(name, shape, axis=2 if in_rows else 1, element=element, block=block, zero=zero)
        values.append(value if in_rows else draft.node("Transpose", [value], perm=[0, 2, 1]))
    biases = [draft.floats("b1", (experts, gate * inner)), draft.floats("b2", (experts, hidden))] if has_bias else ["", ""]
    inputs = [draft.input("x", ["m", hidden]), draft.input("p", ["m", experts]), values[0], biases[0], values[1], biases[1]]
    attributes = {"swiglu_fusion": 1} if gate == 2 else {}
    draft.node(
        "MoE", inputs if has_bias else inputs[:5], "y", domain="com.microsoft", k=min(best, experts),
        activation_type=activation, normalize_routing_weights=int(normalized), **attributes,
    )  # fmt: skip
    draft.output("y", ["m", hidden])
    rng = np.random.default_rng(hidden)
    check(draft, {name: rng.standard_normal((5, size)).astype(np.float32) for name, size in (("x", hidden), ("p", experts))})
