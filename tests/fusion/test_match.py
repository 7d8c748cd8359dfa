"""Walking from every DequantizeLinear of a constant weight to what reads it: one decision each, and why."""

from typing import Any

import pytest
from onnx import TensorProto, helper

from conformance.drawing.draft import Draft
from conformance.drawing.elements import ELEMENTS, raw_tensor
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR, Weight
from ort_qdq_plugin.fusion.match import Matches, match
from ort_qdq_plugin.model.graph import model_scope
from ort_qdq_plugin.model.tensors import MAX_RANK
from ort_qdq_plugin.report.weights import Reason
from tests.fusion.support import SETTINGS, drawn, locate


def matched(draft: Draft) -> Matches:
    return match(model_scope(draft.model()), locate, SETTINGS)


def draft_of(**weight: Any) -> Draft:
    """Inputs x [m, 128], i and k, and a dequantized weight w_d [128, 64]."""
    draft = Draft("match")
    draft.input("x", ["m", 128])
    draft.input("i", [5], "int64")
    draft.input("k", [], "bool")
    draft.weight(Weight(), **weight)
    return draft


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
    ((fusion,), unfused, *_) = matched(draft)
    site = fusion.site
    assert (site.dequantize, site.kind, site.name, site.weight, site.output) == ("w_d_node", "MatMul", "y_node", "u", "y")
    assert [scope.nodes[index].output[0] for scope, index in site.replaced] == ["y"]
    assert not unfused


def test_nodes_without_names_are_called_by_their_outputs() -> None:
    draft = draft_of()
    draft.node("MatMul", ["x", "w_d"], "y")
    for node in draft.nodes:
        node.ClearField("name")
    ((fusion,), *_) = matched(draft)
    assert (fusion.site.dequantize, fusion.site.name) == ("w_d", "y")


def test_every_reader_is_a_fusion_of_its_own() -> None:
    draft = draft_of()
    for name in ("a", "b"):
        draft.node("MatMul", ["x", "w_d"], name)
    draft.node("Gather", [draft.dequantize("e", [50, 64], axis=1), "i"], "c")
    draft.node("MatMul", ["x", draft.node("Identity", ["w_d"], "v")], "d")
    matches = matched(draft)
    assert {fusion.site.output: fusion.operator for fusion in matches.fusions} == {
        **dict.fromkeys("abd", "MatMulNBits"), "c": "GatherBlockQuantized"
    }  # fmt: skip
    assert not matches.unfused


# Weights on their way together, or in parts


def test_weights_that_are_joined_are_one_fusion() -> None:
    """It belongs to the first of them; the others are taken, too, and nothing is left of either."""
    draft = draft_of()
    draft.weight(Weight(), "v")
    draft.node("MatMul", ["x", draft.node("Concat", ["w_d", "v_d"], "c", axis=1)], "y")
    matches = matched(draft)
    (fusion,) = matches.fusions
    assert (fusion.site.dequantize, fusion.site.weight) == ("w_d_node", "c")
    assert (fusion.entry().k, fusion.entry().n) == (128, 128)
    assert (matches.unfused, matches.once) == ((), ())


def test_each_of_joined_weights_says_why_it_stays() -> None:
    draft = draft_of()
    draft.weight(Weight(), "v")
    draft.node("Mul", ["x", draft.node("Concat", ["w_d", "v_d"], "c", axis=1)], "y")
    assert decided(matched(draft)) == ([], [Reason.CONSUMER] * 2)


def test_every_part_has_its_readers() -> None:
    draft = draft_of()
    draft.node("Split", ["w_d"], "p", axis=1, num_outputs=2)
    draft.nodes[-1].output.append("q")
    for name, part in (("a", "p"), ("b", "q"), ("c", "p")):
        draft.node("MatMul", ["x", part], name)
    assert decided(matched(draft)) == (["a", "c", "b"], [])
    draft.node("Neg", ["q"], "d")
    assert decided(matched(draft)) == (["a", "c", "b"], [Reason.CONSUMER])


@pytest.mark.parametrize("behind", ["", "Neg", "Gather"])
@pytest.mark.parametrize("is_first", [False, True])
def test_a_product_of_two_weights_belongs_to_the_right_one(is_first: bool, behind: str) -> None:
    """The left one, positions for instance, stands for an activation."""
    draft = Draft("match")
    for name in "wv" if is_first else "vw":
        draft.dequantize(
            name, [128, 64] if name == "w" else [20000 if behind == "Gather" else 3, 128], axis=int(name == "v")
        )
    left = draft.node("Gather", ["v_d", draft.ints("i", [0, 1])], "g") if behind == "Gather" else "v_d"
    draft.node("MatMul", [draft.node("Neg", [left]) if behind == "Neg" else left, "w_d"], "y")
    matches = matched(draft)
    lookups = ["v_d_node"] if behind == "Gather" else []
    found = [fusion.site.dequantize for fusion in matches.fusions]
    assert sorted(found) == sorted([*lookups, "w_d_node"])
    assert [(entry.weight, entry.reason) for entry in matches.unfused] == [("v", Reason.CONSUMER)][len(lookups) :]


@pytest.mark.parametrize("axis", [0, 1])
def test_constant_indices_take_parts_of_products_alone(axis: int) -> None:
    """What no product reads is a lookup."""
    draft = Draft("match")
    draft.input("x", ["m", 64])
    draft.node("Gather", [draft.dequantize("w", [20000, 64], axis=1), draft.ints("i", [0, 2, 1])], "g", axis=axis)
    draft.node("Neg", ["g"], "y")
    fused, reasons = decided(matched(draft))
    assert (fused, reasons) == ((["g"], []) if axis == 0 else ([], [Reason.GATHER]))
    if axis == 0:
        draft.node("MatMul", ["x", draft.node("Transpose", ["g"])], "z")
        assert decided(matched(draft)) == (["z"], [Reason.CONSUMER])


# Reasons

UNKNOWN: dict[str, Any] = {"unknown": 1}  # as an attribute, it is one that no opset has
RETURNS_THE_WEIGHT = helper.make_graph([], "branch", [], [helper.make_empty_tensor_value_info("w_d")])
VIEWED: list[Any] = [("Identity", "w_d", "v"), ("MatMul", "x v", "y")]

# What is drawn (operator, inputs, output, attributes) behind a weight, which of it is fused, and why the weight stays.
REASONS: dict[str, tuple[list[Any], str, Reason]] = {
    "unused": ([], "", Reason.UNUSED),
    "another-consumer": ([("Mul", "x w_d", "y")], "", Reason.CONSUMER),
    "a-lookup-of-what-is-multiplied": (
        [("floats", "64", "f"), ("Mul", "f w_d", "s"), ("Gather", "s i", "y")], "", Reason.FACTOR,
    ),
    "a-part-that-is-an-output": (
        [("Split", "w_d", "v", {"num_outputs": 1}), ("MatMul", "x v", "y"), ("output", "128 64", "v")],
        "y",
        Reason.GRAPH_OUTPUT,
    ),
    "a-split-that-no-opset-has": ([("Split", "w_d", "v", {"unknown": 1}), ("MatMul", "x v", "y")], "", Reason.OPSET),
    "a-product-of-another-domain": ([("MatMul", "x w_d", "y", {"domain": "local"})], "", Reason.CONSUMER),
    "a-product-of-the-weight-with-itself": ([("MatMul", "w_d w_d", "y")], "", Reason.CONSUMER),
    "a-view-of-another-input": ([("Reshape", "x w_d", "y")], "", Reason.CONSUMER),
    "a-reshape-through-blocks": (
        [("ints", "64 128", "to"), ("Reshape", "w_d to", "r"), ("MatMul", "x r", "y")], "", Reason.BLOCKS_ALONG_N,
    ),
    "an-output": ([*VIEWED, ("output", "128 64", "w_d")], "y", Reason.GRAPH_OUTPUT),
    "a-view-that-is-an-output": ([*VIEWED, ("output", "128 64", "v")], "y", Reason.GRAPH_OUTPUT),
    "an-output-that-nothing-reads": ([("output", "128 64", "w_d")], "", Reason.GRAPH_OUTPUT),
    "a-reader-says-more-than-an-output": ([("output", "128 64", "w_d"), ("Mul", "x w_d", "y")], "", Reason.CONSUMER),
    "returned-by-a-branch": (
        [("If", "k", "z", {"then_branch": RETURNS_THE_WEIGHT}), ("MatMul", "x w_d", "y")], "y", Reason.GRAPH_OUTPUT,
    ),
    "the-first-of-several": (
        [("MatMul", "x w_d", "a"), ("Gather", "w_d i", "b"), ("Mul", "x w_d", "c")], "a", Reason.GATHER,
    ),
    "types-follow-casts": (
        [("Cast", "w_d", "c", {"to": TensorProto.DOUBLE}), ("MatMul", "x c", "y")], "", Reason.PRODUCT_TYPE,
    ),
    "a-view-that-no-opset-has": (
        [("Identity", "w_d", "v", UNKNOWN), ("MatMul", "x v", "y"), ("MatMul", "x w_d", "z")], "z", Reason.OPSET,
    ),
    "a-product-that-no-opset-has": (
        [("Identity", "w_d", "v"), ("MatMul", "x v", "y", UNKNOWN), ("MatMul", "x w_d", "z")], "z", Reason.OPSET,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REASONS)
def test_why_a_weight_stays(name: str) -> None:
    nodes, fused, reason = REASONS[name]
    assert decided(matched(drawn(draft_of(), *nodes))) == (fused.split(), [reason])


@pytest.mark.parametrize(("given", "reason"), [(UNKNOWN, Reason.OPSET), ({"block_size": 7}, Reason.INVALID)])
def test_what_is_wrong_with_a_dequantize_is_said_once_for_all_readers(given: dict[str, Any], reason: Reason) -> None:
    draft = draft_of(**given)
    draft.node("MatMul", ["x", draft.node("Identity", ["w_d"], "v")], "a")
    draft.node("MatMul", ["x", "w_d"], "b")
    assert decided(matched(draft)) == ([], [reason])


def test_a_dequantize_without_an_output_is_unused() -> None:
    draft = draft_of()
    draft.nodes[-1].output[0] = ""
    assert decided(matched(draft)) == ([], [Reason.UNUSED])


def test_each_weight_is_told_of_in_order() -> None:
    draft = draft_of()
    draft.weight(Weight(), "v")
    draft.node("Mul", ["v_d", "x"], "y")
    entries = matched(draft).unfused
    told = [(entry.dequantize, entry.weight, entry.reason) for entry in entries]
    assert told == [("w_d_node", "w", Reason.UNUSED), ("v_d_node", "v", Reason.CONSUMER)]


@pytest.mark.parametrize(("scale", "element_bytes"), [("float", 4), ("float16", 2), ("bfloat16", 2)])
def test_what_a_weight_that_stays_costs_for_each_run(scale: str, element_bytes: int) -> None:
    draft = Draft("match")
    draft.weight(Weight(scale=scale), "v")
    (entry,) = matched(draft).unfused
    assert entry.bytes_per_run == 128 * 64 * element_bytes  # nothing reads it, and it is computed all the same
    for name in "yz":
        draft.node("Mul", ["v_d", "x"], name)
        (entry,) = matched(draft).unfused
    assert entry.bytes_per_run == 2 * 128 * 64 * element_bytes  # once for each reader


@pytest.mark.parametrize(
    ("dims", "nbytes"), [([2**62, 2**62], 2**63 - 1), ([-1, 64], 0), ([1] * MAX_RANK, 4), ([2] * (MAX_RANK + 1), 0)]
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


# Activations that are quantized too


def quantized_input(kind: str, zero: int) -> Draft:
    """`x_d`, dequantized from integers that are quantized from the input x."""
    draft = Draft("activations")
    code = ELEMENTS[kind].code
    operands = [draft.scalar("s", 0.03), draft.constant(raw_tensor("z", code, [], zero.to_bytes(1, "little")))]
    draft.node("QuantizeLinear", [draft.input("x", ["m", 128]), *operands], "x_q")
    draft.node("DequantizeLinear", ["x_q", *operands], "x_d")
    return draft


CHANNEL = Weight("int8", block=PER_CHANNEL)


@pytest.mark.parametrize(("kind", "readers", "fused"), [("uint8", 3, 0), ("int8", 1, 0), ("int8", 3, 3)])
def test_products_that_an_integer_kernel_takes_stay(kind: str, readers: int, fused: int) -> None:
    draft = quantized_input(kind, 128 if kind == "uint8" else 0)
    for number in range(readers):
        draft.node("MatMul", ["x_d", draft.weight(CHANNEL, f"w{number}")], f"y{number}")
    matches = matched(draft)
    assert len(matches.fusions) == fused
    told = [(entry.reason, entry.bytes_per_run) for entry in matches.unfused]
    assert told == [(Reason.INTEGER_KERNEL, 0)] * (readers - fused)


@pytest.mark.parametrize(("block", "reason"), [(64, []), (128, [Reason.INTEGER_KERNEL]), (256, [Reason.INTEGER_KERNEL])])
def test_no_integer_kernel_knows_several_blocks(block: int, reason: list[Reason]) -> None:
    draft = quantized_input("uint8", 128)
    draft.node("MatMul", ["x_d", draft.weight(Weight("int8", block=block))], "y")
    assert decided(matched(draft))[1] == reason


def test_what_several_readers_make_of_a_weight() -> None:
    """Of one of them nothing is dequantized, and another one is fused; for the others it is dequantized each time."""
    draft = quantized_input("uint8", 128)
    draft.weight(CHANNEL)
    draft.node("MatMul", ["x_d", "w_d"], "y")
    ((), (entry,), *_) = matched(draft)
    assert (entry.reason, entry.bytes_per_run) == (Reason.INTEGER_KERNEL, 0)
    draft.node("MatMul", ["x", "w_d"], "u")
    ((fusion,), (entry,), *_) = matched(draft)
    assert (fusion.site.output, entry.reason, entry.bytes_per_run) == ("u", Reason.INTEGER_KERNEL, 0)
    draft.output("w_d", [128, 64])
    (_, (entry,), *_) = matched(draft)
    assert (entry.reason, entry.bytes_per_run) == (Reason.GRAPH_OUTPUT, 4 * 128 * 64)
    draft.node("Tanh", [draft.node("Transpose", ["w_d"], "t")], "a")
    draft.node("Exp", ["t"], "b")
    (_, (entry,), *_) = matched(draft)
    assert (entry.reason, entry.bytes_per_run) == (Reason.CONSUMER, 2 * 4 * 128 * 64)
    draft.node("Mul", ["w_d", "w_d"], "c")
    (_, (entry,), *_) = matched(draft)
    assert entry.bytes_per_run == 4 * 4 * 128 * 64


def test_a_constant_that_is_quantized_again_costs_nothing() -> None:
    draft = quantized_input("uint8", 128)
    draft.node("QuantizeLinear", [draft.node("Tanh", [draft.weight(CHANNEL)], "t"), "s", "z"], "y")
    ((), (entry,), *_) = matched(draft)
    assert (entry.reason, entry.bytes_per_run) == (Reason.FOLDED, 0)


@pytest.mark.parametrize("element", ["int32", "int8"])
def test_vectors_are_not_told_of(element: str) -> None:
    draft = Draft("vectors")
    draft.node(
        "Add", [draft.input("x", ["m", 8]), draft.dequantize("b", [8], axis=0, block=PER_TENSOR, element=element)], "y"
    )
    assert matched(draft) == Matches()


def test_matrices_of_stacks_become_a_thousand_nodes_and_more_where_the_model_is_large() -> None:
    for size, fused in ((16, 4), (128, 6)):
        draft = Draft("stacks")
        draft.input("x", [256, "m", size])
        draft.dequantize("w", [256, size, size], axis=1, block=16)
        for _ in range(6):
            draft.node("MatMul", ["x", "w_d"])
        outputs, reasons = decided(matched(draft))
        assert (len(outputs), reasons) == (fused, [Reason.BATCHED] * (fused < 6))
