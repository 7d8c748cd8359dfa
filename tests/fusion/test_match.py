"""Walking from every DequantizeLinear of a constant weight to what reads it: one decision each, and why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from onnx import TensorProto, helper

from conformance.drawing.draft import Draft
from conformance.drawing.weight import Weight
from ort_qdq_plugin.fusion.match import Matches, match
from ort_qdq_plugin.model.graph import NodeRef, model_scope
from ort_qdq_plugin.model.tensors import MAX_RANK
from ort_qdq_plugin.report import Reason
from tests.fusion.support import SETTINGS, locate


def matched(draft: Draft) -> Matches:
    return match(model_scope(draft.model()), locate, SETTINGS)


def draft_of(element: str = "uint4") -> Draft:
    """An input x [m, 128] and a dequantized weight w_d [128, 64]."""
    draft = Draft("match")
    draft.input("x", ["m", 128])
    draft.weight(Weight(element=element))
    return draft


def outputs_of(replaced: tuple[NodeRef, ...]) -> list[str]:
    return [scope.nodes[index].output[0] for scope, index in replaced]


def decided(matches: Matches) -> tuple[list[str], list[Reason]]:
    """The values that fused nodes produce, and why others are not fused."""
    return [fusion.site.output for fusion in matches.fusions], [entry.reason for entry in matches.unfused]


def test_nothing_to_decide() -> None:
    draft = Draft("match")
    draft.input("q", ["m"], "int8")
    draft.node("DequantizeLinear", [draft.node("Relu", ["q"]), draft.scalar("s", 1.0)], "y")
    assert matched(draft) == Matches()


# Sites


def test_where_a_fusion_takes_place() -> None:
    draft = draft_of()
    draft.node("MatMul", ["x", draft.node("Transpose", [draft.node("Transpose", ["w_d"], "t")], "u")], "y")
    ((fusion,), unfused) = matched(draft)
    site = fusion.site
    assert (site.dequantize, site.kind, site.name, site.weight, site.output) == ("w_d_node", "MatMul", "y_node", "u", "y")
    assert outputs_of(site.replaced) == ["y"]
    assert not unfused


def test_nodes_without_names_are_called_by_their_outputs() -> None:
    draft = draft_of()
    draft.node("MatMul", ["x", "w_d"], "y")
    for node in draft.nodes:
        node.ClearField("name")
    ((fusion,), _) = matched(draft)
    assert (fusion.site.dequantize, fusion.site.name) == ("w_d", "y")


def test_every_reader_is_a_fusion_of_its_own() -> None:
    draft = draft_of()
    for name in ("a", "b"):
        draft.node("MatMul", ["x", "w_d"], name)
    draft.node("Gather", [draft.dequantize("e", [50, 64], axis=1), draft.input("i", ["s"], "int64")], "c")
    draft.node("MatMul", ["x", draft.node("Identity", ["w_d"], "v")], "d")
    matches = matched(draft)
    assert {fusion.site.output: fusion.operator for fusion in matches.fusions} == {
        "a": "MatMulNBits",
        "b": "MatMulNBits",
        "c": "GatherBlockQuantized",
        "d": "MatMulNBits",
    }
    assert not matches.unfused


def test_a_product_of_the_weight_with_itself_is_refused() -> None:
    draft = draft_of()
    draft.node("MatMul", ["w_d", "w_d"], "y")
    assert decided(matched(draft)) == ([], [Reason.CONSUMER])


def test_branches_are_looked_into() -> None:
    inner = Draft("inner")
    inner.weight(Weight(), "v")
    inner.node("MatMul", ["x", "v_d"], "b")
    inner.node("MatMul", ["x", "w_d"], "c")
    branch = inner.graph("branch")
    draft = draft_of()
    draft.node("If", [draft.input("k", [], "bool")], "y", then_branch=branch)
    matches = matched(draft)
    assert decided(matches) == (["c", "b"], [])
    assert [fusion.site.replaced[0][0].graph.name for fusion in matches.fusions] == ["branch", "branch"]


# Reasons


def reading(op: str, *inputs: str, output: str = "y", domain: str = "") -> Callable[[Draft], object]:
    return lambda draft: draft.node(op, list(inputs), output, domain=domain)


def nothing(_: Draft) -> None:
    pass


def through_a_bad_reshape(draft: Draft) -> None:
    draft.node("MatMul", ["x", draft.node("Reshape", ["w_d", draft.ints("to", [64, 128])], "r")], "y")


def with_an_output(name: str) -> Callable[[Draft], None]:
    """The weight's view is an output of the graph, beside the product that reads it."""

    def change(draft: Draft) -> None:
        draft.node("Identity", ["w_d"], "v")
        draft.node("MatMul", ["x", "v"], "y")
        draft.output(name, [128, 64])

    return change


def weight_as_shape(draft: Draft) -> None:
    draft.node("Reshape", ["x", "w_d"], "y")


def as_no_opset_has_it(at: int) -> Callable[[Draft], None]:
    """An attribute that its operator lacks, in DequantizeLinear, in a view of it or in the view's reader."""

    def change(draft: Draft) -> None:
        draft.node("MatMul", ["x", draft.node("Identity", ["w_d"], "v")], "y")
        draft.node("MatMul", ["x", "w_d"], "z")
        draft.nodes[at].attribute.add(name="unknown", type=2, i=1)

    return change


REASONS: dict[str, tuple[Callable[[Draft], object], list[str], Reason]] = {
    "unused": (nothing, [], Reason.UNUSED),
    "another-consumer": (reading("Mul", "x", "w_d"), [], Reason.CONSUMER),
    "a-product-of-another-domain": (reading("MatMul", "x", "w_d", domain="local"), [], Reason.CONSUMER),
    "a-view-of-another-input": (weight_as_shape, [], Reason.CONSUMER),
    "a-reshape-through-an-axis": (through_a_bad_reshape, [], Reason.RESHAPE),
    "an-output": (with_an_output("w_d"), ["y"], Reason.GRAPH_OUTPUT),
    "a-view-that-is-an-output": (with_an_output("v"), ["y"], Reason.GRAPH_OUTPUT),
    "a-dequantize-that-no-opset-has": (as_no_opset_has_it(0), [], Reason.OPSET),
    "a-view-that-no-opset-has": (as_no_opset_has_it(1), ["z"], Reason.OPSET),
    "a-product-that-no-opset-has": (as_no_opset_has_it(2), ["z"], Reason.OPSET),
}


@pytest.mark.parametrize("name", REASONS)
def test_why_a_weight_stays(name: str) -> None:
    change, fused, reason = REASONS[name]
    draft = draft_of()
    change(draft)
    assert decided(matched(draft)) == (fused, [reason])


def test_an_output_that_nothing_reads_is_one() -> None:
    draft = draft_of()
    draft.output("w_d", [128, 64])
    assert decided(matched(draft)) == ([], [Reason.GRAPH_OUTPUT])


def test_a_reader_that_cannot_be_fused_says_more_than_an_output() -> None:
    draft = draft_of()
    draft.output("w_d", [128, 64])
    draft.node("Mul", ["x", "w_d"], "y")
    assert decided(matched(draft)) == ([], [Reason.CONSUMER])


def test_of_several_reasons_the_first_is_told() -> None:
    draft = draft_of()
    draft.node("MatMul", ["x", "w_d"], "a")
    draft.node("Gather", ["w_d", draft.input("i", ["s"], "int64")], "b")
    draft.node("Mul", ["x", "w_d"], "c")
    assert decided(matched(draft)) == (["a"], [Reason.GATHER])


def test_operands_that_do_not_fit_are_told_once_for_all_readers() -> None:
    draft = draft_of()
    draft.nodes[-1].attribute[0].i = 7
    for name in ("a", "b"):
        draft.node("MatMul", ["x", "w_d"], name)
    assert decided(matched(draft)) == ([], [Reason.INVALID])


def test_a_dequantize_without_an_output_is_unused() -> None:
    draft = draft_of()
    draft.nodes[-1].output[0] = ""
    assert decided(matched(draft)) == ([], [Reason.UNUSED])


def test_each_weight_is_told_of_in_order() -> None:
    draft = draft_of()
    draft.weight(Weight(), "v")
    draft.node("Mul", ["v_d", "x"], "y")
    entries = matched(draft).unfused
    assert [(entry.dequantize, entry.weight, entry.reason) for entry in entries] == [
        ("w_d_node", "w", Reason.UNUSED),
        ("v_d_node", "v", Reason.CONSUMER),
    ]


@pytest.mark.parametrize(("scale", "element_bytes"), [("float", 4), ("float16", 2), ("bfloat16", 2)])
def test_what_a_weight_that_stays_costs_for_each_run(scale: str, element_bytes: int) -> None:
    draft = Draft("match")
    draft.weight(Weight(scale=scale), "v")
    (entry,) = matched(draft).unfused
    assert entry.bytes_per_run == 0  # nothing reads it
    draft.node("Mul", ["v_d", "x"], "y")
    (entry,) = matched(draft).unfused
    assert entry.bytes_per_run == 128 * 64 * element_bytes


@pytest.mark.parametrize(
    ("dims", "nbytes"),
    [([2**62, 2**62], 2**63 - 1), ([-1, 64], 0), ([1] * MAX_RANK, 4), ([2] * (MAX_RANK + 1), 0)],
)
def test_sizes_that_no_tensor_can_have_are_told_within_bounds(dims: list[int], nbytes: int) -> None:
    draft = draft_of()
    weight = next(tensor for tensor in draft.initializers if tensor.name == "w")
    del weight.dims[:]
    weight.dims.extend(dims)
    (entry,) = matched(draft).unfused
    assert (entry.reason, entry.bytes_per_run) == (Reason.INVALID, nbytes)


def test_a_weight_that_the_caller_may_replace_costs_nothing_that_is_known() -> None:
    draft = draft_of()
    draft.input("w", [128, 64], "uint4")
    draft.node("MatMul", ["x", "w_d"], "y")
    (entry,) = matched(draft).unfused
    assert (entry.reason, entry.bytes_per_run) == (Reason.OVERRIDABLE, 0)


def test_long_chains_of_views_cost_no_recursion() -> None:
    draft = draft_of()
    value = "w_d"
    for _ in range(3000):
        value = draft.node("Identity", [value])
    draft.node("MatMul", ["x", value], "y")
    assert decided(matched(draft)) == (["y"], [])


def test_types_follow_casts() -> None:
    draft = draft_of()
    draft.node("MatMul", ["x", draft.node("Cast", ["w_d"], "c", to=TensorProto.DOUBLE)], "y")
    assert decided(matched(draft)) == ([], [Reason.PRODUCT_TYPE])


def test_a_branch_that_returns_the_weight_needs_it() -> None:
    branch = helper.make_graph([], "branch", [], [helper.make_empty_tensor_value_info("w_d")])
    draft = draft_of()
    draft.node("If", [draft.input("k", [], "bool")], "z", then_branch=branch)
    draft.node("MatMul", ["x", "w_d"], "y")
    assert decided(matched(draft)) == (["y"], [Reason.GRAPH_OUTPUT])
