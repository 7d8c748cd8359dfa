"""Weights that are joined, with ONNX Runtime's Concat as the reference; and those that cannot be."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from conformance.drawing.draft import Draft
from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.report.weights import Reason
from tests.fusion.support import refused
from tests.fusion.values import computed, followed, seen_values


def draft_of(axis: int, *weights: dict[str, Any]) -> Draft:
    """A Concat c along that axis of weights, each of shape [8, 32] unless it says otherwise."""
    draft = Draft("joined", opset=25)
    names = [
        draft.dequantize(f"w{at}", given.pop("shape", [8, 32]), **{"axis": 1, "block": 16, **given})
        for at, given in enumerate(dict(weight) for weight in weights)
    ]
    draft.node("Concat", names, "c", axis=axis)
    return draft


def check(draft: Draft, centred: bool | None = None) -> None:
    (wanted,) = computed(draft, "c")
    found = followed(draft, "c")
    np.testing.assert_allclose(seen_values(found), wanted, rtol=1e-3 if wanted.dtype == np.float16 else 1e-6)
    if centred is not None:
        assert found.dequantized.centred == centred


NONE, ZEROS, RANDOM = {"zero": "none"}, {"zero": "default"}, {"zero": "random"}
CHANNEL, TENSOR = {"axis": 0, "block": 0}, {"block": -1}
JOINED: dict[str, tuple[int, list[dict[str, Any]], bool | None]] = {
    "blocks-side-by-side": (0, [{}, {"shape": [3, 32]}, {}], False),
    "blocks-one-after-another": (-1, [{}, {"shape": [8, 16]}, {"shape": [8, 5]}], False),
    "one-block-each": (1, [{"block": 64}, {"block": 64}], False),
    "zero-points-in-one-of-them": (0, [NONE, {}], False),
    "centred-ones": (0, [ZEROS, ZEROS], True),
    "signed-without-zero-points": (0, [NONE | {"element": "int4"}, ZEROS | {"element": "int4"}], True),
    "signed-with-some": (0, [NONE | {"element": "int4"}, RANDOM | {"element": "int4"}], False),
    "no-zero-points-at-all": (0, [NONE, NONE], False),
    "channels": (0, [CHANNEL, CHANNEL | {"shape": [1, 32]}], None),
    "tensors": (0, [TENSOR, TENSOR | {"shape": [3, 32]}], None),
    "tensors-along-the-other-axis": (1, [TENSOR, TENSOR | {"shape": [8, 3]}], None),
    "tensors-and-channels": (0, [TENSOR, CHANNEL], None),
    "channels-one-after-another": (1, [CHANNEL, CHANNEL], None),
    "one": (0, [{}], None),
    "half-precision": (0, [{"scale": "float16"}, {"scale": "float16"}], None),
}


@pytest.mark.parametrize("name", JOINED)
def test_weights_that_are_joined(name: str) -> None:
    axis, weights, centred = JOINED[name]
    check(draft_of(axis, *weights), centred)


REFUSED: dict[str, tuple[int, list[dict[str, Any]], Reason]] = {
    "other-elements": (0, [{}, {"element": "int4"}], Reason.JOINED),
    "other-scales": (0, [{}, {"scale": "float16"}], Reason.JOINED),
    "other-blocks": (0, [{}, {"block": 32}], Reason.JOINED),
    "blocks-that-do-not-end": (1, [{"shape": [8, 24]}, {}], Reason.JOINED),
    "channels-of-other-lengths": (1, [CHANNEL, CHANNEL | {"shape": [8, 16]}], Reason.JOINED),
    "other-sizes": (0, [{}, {"shape": [8, 48]}], Reason.JOINED),
    "another-rank": (0, [{}, {"shape": [8, 2, 32], "axis": 2}], Reason.JOINED),
    "no-such-axis": (2, [{}, {}], Reason.INVALID),
    "an-axis-that-none-has": (0, [{"shape": [1, 8, 32]}] * 2, Reason.JOINED),
}


@pytest.mark.parametrize("name", REFUSED)
def test_weights_that_are_not(name: str) -> None:
    axis, weights, reason = REFUSED[name]
    with refused(reason):
        followed(draft_of(axis, *weights), "c")


def test_what_is_no_weight_is_not_joined() -> None:
    draft = draft_of(0, {})
    draft.nodes[-1].input.append(draft.floats("f", [8, 32]))
    with refused(Reason.JOINED):
        followed(draft, "c")


@pytest.mark.parametrize("wrong", ["Transpose", "DequantizeLinear", "Concat"])
def test_what_no_opset_has_is_not_joined(wrong: str) -> None:
    """Neither on its own way, nor on that of another weight."""
    draft = draft_of(0, {})
    draft.dequantize("v", [8, 32], axis=1, block=16)
    draft.node("Transpose", [draft.node("Transpose", ["v_d"])], "t")
    draft.node("Concat", ["w0_d", draft.node("Concat", ["t"], axis=0)], "d", axis=0)
    followed(draft, "d")
    at = max(at for at, node in enumerate(draft.nodes[:-1]) if node.op_type == wrong)
    draft.nodes[at].attribute.extend([helper.make_attribute("unknown", 1)])
    with refused(Reason.OPSET):
        followed(draft, "d")


def test_those_that_are_multiplied_are_not_joined() -> None:
    draft = draft_of(0, {}, {})
    draft.node("Concat", [draft.node("Mul", ["w0_d", draft.scalar("f", 2.0)]), "w1_d"], "d", axis=0)
    with refused(Reason.JOINED):
        followed(draft, "d")


def test_a_joint_of_joints() -> None:
    draft = draft_of(0, {}, {})
    draft.node("Concat", ["c", draft.node("Concat", ["w1_d", "c"], axis=0)], "d", axis=0)
    (wanted,) = computed(draft, "d")
    np.testing.assert_allclose(seen_values(followed(draft, "d")), wanted, rtol=1e-6)


def test_joints_that_double_end_soon() -> None:
    draft = draft_of(0, {}, {})
    value = "c"
    for _ in range(40):
        value = draft.node("Concat", [value, value], axis=0)
    draft.node("Concat", [value], "d", axis=0)
    with refused(Reason.COMPUTED):
        followed(draft, "d")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_weights(data: st.DataObject) -> None:
    """Whatever is joined is right."""
    shape, axis = data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=3)), data.draw(st.integers(0, 1))
    alike = data.draw(st.booleans())
    first: dict[str, Any] = {}
    weights = []
    for _ in range(data.draw(st.integers(1, 3))):
        given = {
            "shape": [data.draw(st.integers(1, 6)) if at == axis else size for at, size in enumerate(shape)],
            "axis": data.draw(st.integers(0, len(shape) - 1)),
            "block": data.draw(st.sampled_from((-1, 0, 2, 4))),
            "element": data.draw(st.sampled_from(("uint2", "int4", "uint8"))),
        }
        first = first or given
        kept = {"axis": first["axis"], "block": first["block"], "element": first["element"]} if alike else {}
        weights.append(given | kept | {"zero": data.draw(st.sampled_from(("none", "random", "default")))})
    draft = draft_of(axis, *weights)
    try:
        followed(draft, "c")
    except NotFusable as refusal:
        assert refusal.reason is Reason.JOINED  # noqa: PT017
        return
    check(draft)
