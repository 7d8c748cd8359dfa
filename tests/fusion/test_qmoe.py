"""Mixtures of experts: which are fused, and the operands and attributes that their weights become."""

from typing import Any

import numpy as np
import pytest

from conformance.drawing.draft import Draft
from conformance.drawing.elements import MS
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR
from ort_qdq_plugin.fusion import qmoe
from ort_qdq_plugin.fusion.kind import FusionSettings
from ort_qdq_plugin.fusion.match import Matches, match
from ort_qdq_plugin.fusion.qmoe import MoEFusion, fuse
from ort_qdq_plugin.model.elements import FLOAT, FLOAT16
from ort_qdq_plugin.model.graph import model_scope
from ort_qdq_plugin.report.weights import Reason
from tests.fusion.support import SETTINGS, emitted, locate, read, refused, scope_and_site
from tests.packing.plain import elements_of, packed_lines, packed_rows

E, H, INNER = 4, 64, 32
IN_FLOAT = FusionSettings(block_size=0, accuracy_level=0)
USUAL: dict[str, Any] = {"activation_type": "silu", "normalize_routing_weights": 1, "k": 2}
INPUTS = ("x", "p", "w_d", "b1", "v_d", "b2")


def mixture_of(
    inputs: tuple[str, ...] = INPUTS,
    attributes: dict[str, Any] = USUAL,
    opset: int = 21,
    w: tuple[int, ...] = (E, INNER, H),
    v: tuple[int, ...] = (E, H, INNER),
    second: dict[str, Any] | None = None,
    transposed: bool = False,
    **how: Any,
) -> Draft:
    """A MoE of x with the weights `w` and `v`, quantized as `how` says; `second`: what is otherwise for `v`."""
    draft = Draft("mixture", opset=opset)
    for name, shape, changed in (("w", w, {}), ("v", v, second or {})):
        draft.dequantize(name, shape, **{"axis": 2, "block": 32, **how, **changed})
    draft.input("x", ("m", H))
    draft.input("p", ("m", E))
    draft.floats("b1", (E, w[1]))
    draft.floats("b2", (E, H))
    if transposed:
        for name in ("w", "v"):
            draft.node("Transpose", [f"{name}_d"], f"{name}_t", perm=[0, 2, 1])
        inputs = tuple(name.replace("_d", "_t") for name in inputs)
    draft.node("MoE", list(inputs), "y", domain=MS, **attributes)
    return draft


def fused(draft: Draft, settings: FusionSettings = SETTINGS, weight: str = "w_d") -> MoEFusion:
    scope, site = scope_and_site(draft, weight)
    found = read(scope)
    return fuse(site, found, found.view, settings, locate)


def matched(draft: Draft) -> Matches:
    return match(model_scope(draft.model()), locate, SETTINGS)


def given(fusion: MoEFusion) -> dict[str, Any]:
    """The attributes of the fused node."""
    node = next(node for node in emitted(fusion)[0] if node.op_type == "QMoE")
    return {attr.name: attr.s.decode() or attr.i or round(attr.f, 4) for attr in node.attribute}


def test_both_weights_go_into_one_node() -> None:
    draft = mixture_of()
    matches = matched(draft)
    (fusion,) = matches.fusions
    assert not matches.unfused
    assert isinstance(fusion, MoEFusion)
    (node,), constants = emitted(fusion)
    assert (node.op_type, node.domain, node.name, list(node.output)) == ("QMoE", MS, "y_node", ["y"])
    one, two = ([f"{name}_experts_weights", f"{name}_scales"] for name in ("fc1", "fc2"))
    assert list(node.input) == ["x", "p", *one, "b1", *two, "b2", "", "", "", "fc1_zero_points", "fc2_zero_points"]
    assert not constants
    assert given(fusion) == {
        **USUAL, "expert_weight_bits": 4, "weights_prepacked": 0, "accuracy_level": 4, "block_size": 32,
    }  # fmt: skip
    shapes = {name: operand.shape for name, operand in fusion.operands.items()}
    assert shapes == {
        "fc1_experts_weights": (E, INNER, H // 2), "fc1_scales": (E, INNER, 2), "fc1_zero_points": (E, INNER, 1),
        "fc2_experts_weights": (E, H, INNER // 2), "fc2_scales": (E, H, 1), "fc2_zero_points": (E, H, 1),
    }  # fmt: skip
    stored = {tensor.name: tensor.raw_data for tensor in draft.initializers}
    for name, weight in (("fc1", "w"), ("fc2", "v")):
        in_place = fusion.operands[f"{name}_experts_weights"].in_place
        assert in_place is not None
        assert in_place.read().tobytes() == stored[weight]


def test_either_weight_takes_in_the_other_one() -> None:
    assert fused(mixture_of()).site.joined == ("v_d",)
    assert fused(mixture_of(), weight="v_d").site.joined == ("w_d",)


def test_a_bias_that_is_dequantized_is_no_weight_of_it() -> None:
    draft = mixture_of(("x", "p", "w_d", "c_d", "v_d", "b2"))
    draft.dequantize("c", (E, INNER), axis=1, block=PER_TENSOR, element="int8")
    draft.nodes.sort(key=lambda node: node.op_type == "MoE")
    matches = matched(draft)
    assert len(matches.fusions) == 1
    assert [(entry.weight, entry.reason) for entry in matches.unfused] == [("c", Reason.CONSUMER)]


def test_what_else_reads_a_weight_keeps_it() -> None:
    draft = mixture_of()
    draft.node("Abs", ["v_d"], "a")
    matches = matched(draft)
    assert len(matches.fusions) == 1
    assert [(entry.weight, entry.reason) for entry in matches.unfused] == [("v", Reason.CONSUMER)]


def test_a_mixture_that_is_left_is_left_for_both_weights() -> None:
    matches = matched(mixture_of(second={"block": 8}))
    assert not matches.fusions
    assert [entry.reason for entry in matches.unfused] == [Reason.EXPERTS] * 2


def test_all_probabilities_are_weights_where_they_are_not_those_of_the_largest() -> None:
    softmax, node = emitted(fused(mixture_of(attributes={"k": 2})))[0]
    assert (softmax.op_type, list(softmax.input), softmax.attribute[0].i) == ("Softmax", ["p"], -1)
    assert list(node.input[13:]) == ["", softmax.output[0]]
    assert len(node.input) == 15
    with refused(Reason.EXPERTS):
        fused(mixture_of(attributes={"k": 2}, opset=12, element="uint8", block=PER_TENSOR))


@pytest.mark.parametrize("element", ["uint4", "int4", "uint8", "int8", "uint2"])
@pytest.mark.parametrize("transposed", [False, True])
def test_weights_are_rows_of_unsigned_elements(element: str, transposed: bool) -> None:
    shapes: dict[str, Any] = {"w": (E, H, INNER), "v": (E, INNER, H), "axis": 1} if transposed else {}
    fusion = fused(
        mixture_of(element=element, transposed=transposed, opset=25, **shapes), weight="w_t" if transposed else "w_d"
    )
    bits = int(element[-1])
    for name, n, k in (("fc1", INNER, H), ("fc2", H, INNER)):
        for operand, last in (("experts_weights", k), ("zero_points", k // 32)):
            made = fusion.operands[f"{name}_{operand}"]
            assert made.source is not None
            elements = elements_of(made.source.read().tobytes(), bits, E * n * last)
            rows = elements.reshape(E, last, n).transpose(0, 2, 1) if transposed else elements
            flipped = rows.reshape(E * n, last) ^ (1 << bits - 1 if element.startswith("int") else 0)
            np.testing.assert_array_equal(packed_lines(made), packed_rows(flipped, bits, -(-last * bits // 8)))
    assert fusion.entry().layout == ("K-major" if transposed else "N-major")


def test_2_bits_become_4_where_activations_must_not_be_rounded() -> None:
    draft = mixture_of(element="uint2", opset=25)
    assert (given(fused(draft))["expert_weight_bits"], given(fused(draft, IN_FLOAT))["expert_weight_bits"]) == (2, 4)
    fusion = fused(draft, IN_FLOAT)
    stored = fusion.operands["fc1_experts_weights"].source
    assert stored is not None
    elements = elements_of(stored.read().tobytes(), 2, E * INNER * H).reshape(E * INNER, H)
    np.testing.assert_array_equal(packed_lines(fusion.operands["fc1_experts_weights"]), packed_rows(elements, 4, H // 2))
    centred = fused(mixture_of(element="int2", zero="none", opset=25), IN_FLOAT)
    assert "fc1_zero_points" not in centred.operands
    made = packed_lines(centred.operands["fc1_experts_weights"])
    source = centred.operands["fc1_experts_weights"].source
    assert source is not None
    signed = elements_of(source.read().tobytes(), 2, E * INNER * H).reshape(E * INNER, H) ^ 2
    np.testing.assert_array_equal(made, packed_rows(signed - 2 + 8, 4, H // 2))


def test_8_bits_in_float_want_one_scale_for_a_row() -> None:
    with refused(Reason.EXPERTS):
        fused(mixture_of(element="uint8"), IN_FLOAT)
    one_scale: dict[str, Any] = {"element": "uint8", "block": 64, "w": (E, 64, H), "v": (E, H, 64)}
    for zero in ("random", "none"):
        fusion = fused(mixture_of(zero=zero, **one_scale), IN_FLOAT)
        assert "block_size" not in given(fusion)
        assert fusion.operands["fc1_scales"].shape == fusion.operands["fc1_zero_points"].shape == (E, 64)
        assert fusion.entry().block_size == H
    assert given(fused(mixture_of(**one_scale)))["block_size"] == 64


def test_blocks_are_those_that_both_weights_have() -> None:
    fusion = fused(mixture_of(second={"block": 16}))
    assert given(fusion)["block_size"] == 16
    scales = fusion.operands["fc1_scales"]
    assert scales.source is not None
    stored = scales.source.read().view(np.float32)
    np.testing.assert_array_equal(packed_lines(scales).view(np.float32).ravel(), stored.repeat(2))
    assert given(fused(mixture_of(block=PER_TENSOR)))["block_size"] == 32
    wide: dict[str, Any] = {"w": (E, 1024, H), "v": (E, H, 1024)}
    assert given(fused(mixture_of(**wide, block=64, second={"block": 512})))["block_size"] == 64


@pytest.mark.parametrize(("zero", "element", "wanted"), [
    ("none", "int4", None), ("default", "uint4", None), ("none", "uint4", "zeros"), ("random", "uint4", "stored"),
])  # fmt: skip
def test_zero_points_are_given_unless_they_are_in_the_middle(zero: str, element: str, wanted: str | None) -> None:
    operand = fused(mixture_of(zero=zero, element=element)).operands.get("fc2_zero_points")
    assert (None if operand is None else "zeros" if operand.source is None else "stored") == wanted


def test_scales_are_widened_never_narrowed() -> None:
    draft = mixture_of(scale="float16", output_dtype=FLOAT, opset=23)
    assert fused(draft).operands["fc1_scales"].data_type == FLOAT
    assert fused(mixture_of(scale="float16")).operands["fc1_scales"].data_type == FLOAT16
    with refused(Reason.EXPERTS):
        fused(mixture_of(output_dtype=FLOAT16, opset=23))
    with refused(Reason.EXPERTS):
        fused(mixture_of(second={"scale": "float16"}))


def test_attributes_are_passed_on() -> None:
    swiglu = {**USUAL, "activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.5, "swiglu_limit": 7.0}
    fusion = fused(mixture_of(attributes=swiglu, w=(E, 2 * INNER, H)))
    assert given(fusion).items() >= swiglu.items()
    assert given(fused(mixture_of(attributes={"normalize_routing_weights": 1}))).get("activation_type") is None


def test_what_the_report_says() -> None:
    entry = fused(mixture_of()).entry()
    assert (entry.node, entry.kind, entry.k, entry.n, entry.bits) == ("y_node", "MoE", H, E * INNER, 4)
    assert (entry.has_bias, entry.block_size, entry.packed_bytes) == (True, 32, E * H)
    assert not fused(mixture_of(("x", "p", "w_d", "", "v_d"))).entry().has_bias
    assert fused(mixture_of()).operator == "QMoE"


def but(**attributes: Any) -> dict[str, Any]:
    return {**USUAL, **attributes}


REFUSED: dict[str, tuple[Draft, Reason]] = {
    "no-second-weight": (mixture_of(("x", "p", "w_d", "b1")), Reason.CONSUMER),
    "a-weight-twice": (mixture_of(("x", "p", "w_d", "b1", "w_d", "b2")), Reason.CONSUMER),
    "not-as-a-weight": (mixture_of(("w_d", "p", "x", "b1", "v_d", "b2")), Reason.CONSUMER),
    "a-third-layer": (mixture_of((*INPUTS, "w_d2")), Reason.EXPERTS),
    "an-unknown-activation": (mixture_of(attributes=but(activation_type="geglu")), Reason.EXPERTS),
    "values-apart": (mixture_of(attributes=but(activation_type="swiglu", swiglu_fusion=2)), Reason.EXPERTS),
    "values-of-no-gate": (mixture_of(attributes=but(swiglu_fusion=1)), Reason.EXPERTS),
    "a-sparse-mixer": (mixture_of(attributes=but(use_sparse_mixer=1)), Reason.EXPERTS),
    "limits-afterwards": (mixture_of(attributes=but(swiglu_limit_after_activation=1)), Reason.EXPERTS),
    "more-than-all-experts": (mixture_of(attributes=but(k=E + 1)), Reason.INVALID),
    "no-expert": (mixture_of(attributes=but(k=0)), Reason.INVALID),
    "weights-that-do-not-fit": (mixture_of(v=(E, H, 2 * INNER)), Reason.INVALID),
    "other-experts": (mixture_of(v=(E + 1, H, INNER)), Reason.INVALID),
    "matrices": (mixture_of(w=(INNER, H), v=(H, INNER), axis=1), Reason.EXPERTS),
    "a-weight-that-is-computed": (mixture_of(("x", "p", "w_d", "b1", "x", "b2")), Reason.EXPERTS),
    "other-bits": (mixture_of(second={"element": "uint8"}), Reason.EXPERTS),
    "blocks-of-8": (mixture_of(block=8), Reason.EXPERTS),
    "blocks-along-n": (mixture_of(axis=1), Reason.EXPERTS),
    "a-scale-for-each-expert": (mixture_of(axis=0, block=PER_CHANNEL), Reason.EXPERTS),
    "a-scale-for-each-row-of-all": (mixture_of(axis=1, block=PER_CHANNEL), Reason.EXPERTS),
    "bfloat16": (mixture_of(scale="bfloat16"), Reason.EXPERTS),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_fused_is_refused(name: str) -> None:
    draft, reason = REFUSED[name]
    with refused(reason):
        fused(draft)


def test_views_without_an_end_are_not_followed() -> None:
    draft = mixture_of(("x", "p", "w_d", "b1", "r1", "b2"))
    draft.node("Identity", ["r1"], "r1")
    draft.nodes.sort(key=lambda node: node.op_type == "MoE")
    with refused(Reason.OPSET):
        fused(draft)
    for value in range(70):
        draft.node("Identity", ["v_d" if not value else f"i{value - 1}"], f"i{value}")
    draft.nodes[-71].input[4] = "i69"
    draft.nodes.sort(key=lambda node: node.op_type == "MoE")
    with refused(Reason.EXPERTS):
        fused(draft)


def test_older_releases_have_no_such_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmoe, "SPARSE_EXPERTS", (1, 1000))
    with refused(Reason.EXPERTS):
        fused(mixture_of())
