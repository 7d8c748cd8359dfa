"""Which weights are dequantized once: those that no fused operator takes, and that no integer kernel may want."""

import sys
from typing import Any

import pytest

from conformance.drawing.draft import Draft
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR, Weight
from ort_qdq_plugin.fusion.match import Matches, match
from ort_qdq_plugin.fusion.once import choose
from ort_qdq_plugin.model.elements import FLOAT, FLOAT16
from ort_qdq_plugin.model.graph import model_scope
from ort_qdq_plugin.report.weights import Reason
from tests.fusion.support import SETTINGS, drawn, locate

K, N = 128, 64
ALL = sys.maxsize


def draft_of(**how: Any) -> Draft:
    """Inputs x [m, 128] and q of bytes, and a dequantized weight w_d [128, 64]."""
    draft = Draft("once")
    draft.input("x", ["m", K])
    draft.input("q", ["m", N], "uint8")
    draft.weight(Weight(), **how)
    return draft


def matched(draft: Draft, most: int = ALL) -> Matches:
    return match(model_scope(draft.model()), locate, SETTINGS._replace(once_bytes=lambda: most))


def once(draft: Draft, most: int = ALL) -> list[str]:
    """The values that are computed once."""
    return [chosen.output for chosen in matched(draft, most).once]


def test_what_feeds_no_product() -> None:
    matches = matched(drawn(draft_of(), ("Sum", "w_d x", "y")))
    (chosen,), (entry,) = matches.once, matches.unfused
    assert (chosen.output, chosen.operand.data_type, chosen.operand.shape) == ("w_d", FLOAT, (K, N))
    assert (entry.reason, entry.bytes_added, entry.bytes_per_run) == (Reason.CONSUMER, K * N * 4, 0)


def test_how_much_it_may_be_is_asked_where_there_is_something() -> None:
    asked = list[int]()

    def most() -> int:
        asked.append(1)
        return ALL

    for reader, inputs, times in (("MatMul", "x w_d", 0), ("Sum", "w_d x", 1)):
        draft = drawn(draft_of(), (reader, inputs, "y"))
        match(model_scope(draft.model()), locate, SETTINGS._replace(once_bytes=most))
        assert len(asked) == times


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"block": PER_CHANNEL, "axis": 0}, Reason.BLOCKS_ALONG_N),
        ({"block": 8}, Reason.BLOCK_SIZE),
        ({"element": "int16"}, Reason.WEIGHT_TYPE),
        ({"element": "uint16", "block": PER_TENSOR}, Reason.WEIGHT_TYPE),
        ({"element": "int32", "zero": "none"}, Reason.WEIGHT_TYPE),
        ({"element": "int32", "zero": "default"}, Reason.WEIGHT_TYPE),
    ],
)
def test_products_that_refuse_fusion(how: dict[str, Any], reason: Reason) -> None:
    matches = matched(drawn(draft_of(**how), ("MatMul", "x w_d", "y")))
    assert ([chosen.output for chosen in matches.once], [entry.reason for entry in matches.unfused]) == (["w_d"], [reason])


@pytest.mark.parametrize(
    ("scale", "to", "result"), [("float16", None, FLOAT16), ("float", 10, FLOAT16), ("float16", 1, FLOAT)]
)
def test_the_type_of_the_values(scale: str, to: int | None, result: int) -> None:
    draft = draft_of(scale=scale, **({} if to is None else {"output_dtype": to}))
    draft.opset = 23
    matches = matched(drawn(draft, ("Sum", "w_d x", "y")))
    assert [chosen.operand.data_type for chosen in matches.once] == [result]
    assert matches.unfused[0].bytes_added == K * N * (4 if result == FLOAT else 2)


def test_beside_readers_that_are_fused() -> None:
    matches = matched(drawn(draft_of(), ("MatMul", "x w_d", "y"), ("Transpose", "w_d", "t"), ("Sum", "t t", "z")))
    assert [fusion.site.output for fusion in matches.fusions] == ["y"]
    assert [chosen.output for chosen in matches.once] == ["w_d"]


LEFT: dict[str, tuple[tuple[Any, ...], ...]] = {
    "all-fused": (("MatMul", "x w_d", "y"),),
    "nothing-reads-it": (),
    "nothing-reads-its-view": (("Transpose", "w_d", "t"),),
    "returned": (("output", f"{K} {N}", "w_d"), ("Sum", "w_d x", "y")),
    "returned-by-a-view": (("Transpose", "w_d", "t"), ("output", f"{N} {K}", "t"), ("Sum", "w_d x", "y")),
}  # fmt: skip


@pytest.mark.parametrize("nodes", LEFT.values(), ids=LEFT)
def test_what_is_left(nodes: tuple[tuple[Any, ...], ...]) -> None:
    matches = matched(drawn(draft_of(), *nodes))
    assert not matches.once
    assert all(entry.bytes_added == 0 for entry in matches.unfused)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ((("Conv", "d c_d", "y"), ("QuantizeLinear", "y s z", "yq")), Reason.INTEGER_KERNEL),
        ((("Conv", "d c_d", "y"), ("QuantizeLinear", "y s z", "yq"), ("Sum", "c_d", "v")), Reason.CONSUMER),
        ((("Tanh", "c_d", "y"), ("QuantizeLinear", "y s z", "yq")), Reason.FOLDED),
    ],
)
def test_what_is_computed_in_integers_is_left(nodes: tuple[tuple[Any, ...], ...], reason: Reason) -> None:
    matches = matched(drawn(convolved(), *nodes))
    assert ([entry.reason for entry in matches.unfused], matches.once) == ([reason], ())


def test_what_is_not_for_all_its_integers() -> None:
    """Its activation is dequantized, its result stays in float: ONNX Runtime has no kernel for that."""
    assert once(drawn(convolved(), ("Conv", "d c_d", "y"))) == ["c_d"]


def convolved() -> Draft:
    """A quantized input, dequantized as d; and a weight c_d of bytes with zero points."""
    draft = Draft("convolved")
    draft.input("x", [1, 8, 6, 6])
    draft.scalar("s", 0.1)
    draft.quantized("z", "uint8", [])
    draft.dequantize("c", (4, 8, 3, 3), axis=0, block=PER_CHANNEL, element="int8", zero="default")
    return drawn(draft, ("QuantizeLinear", "x s z", "xq"), ("DequantizeLinear", "xq s z", "d"))


@pytest.mark.parametrize(
    "how",
    [
        {"scale": "bfloat16"},
        {"output_dtype": 16},
        {"element": "int32"},  # with zero points that are not 0
        {"scale_shape": [K, 1]},
        {"axis": 2, "scale_shape": [K // 32, N]},
        {"unknown": 1},
    ],
    ids=str,
)
def test_what_onnx_runtime_would_refuse_is_left(how: dict[str, Any]) -> None:
    draft = draft_of(**how)
    draft.opset = 23
    assert once(drawn(draft, ("Sum", "w_d x", "y"))) == []


def test_a_single_block_of_a_vector_is_left() -> None:
    """Which ONNX Runtime refuses when it runs the node."""
    for size, taken in ((16, ["w_d"]), (17, ["w_d", "v_d"])):
        draft = draft_of()
        draft.dequantize("v", [size], axis=0, block=16)
        assert sorted(once(drawn(draft, ("Sum", "v_d w_d", "y")))) == sorted(taken)


def test_vectors_come_along_and_are_not_told_of() -> None:
    draft = draft_of()
    draft.dequantize("v", [N], axis=0, block=PER_CHANNEL, element="int32", zero="none")
    assert once(drawn(draft, ("Sum", "v_d", "y"))) == []
    matches = matched(drawn(draft, ("Sum", "w_d", "z")))
    assert ([chosen.output for chosen in matches.once], len(matches.unfused)) == (["v_d", "w_d"], 1)


def test_what_the_caller_may_replace_is_left() -> None:
    draft = draft_of()
    draft.input("w", [K, N], "uint4")
    assert once(drawn(draft, ("Sum", "w_d x", "y"))) == []


def test_readers_that_onnx_runtime_would_refuse() -> None:
    assert once(drawn(draft_of(), ("MatMul", "x w_d", "y", {"unknown": 1}))) == []


@pytest.mark.parametrize(
    ("shape", "group", "taken"),
    [((8, 6), 1, True), ((8, 6), 2, True), ((4, 6), 1, False), ((8, 6), 4, False), (("c", 6), 1, True), ((), 1, True)],
)
def test_a_convolution_whose_weight_does_not_fit_is_left(shape: tuple[Any, ...], group: int, taken: bool) -> None:
    """ONNX Runtime refuses it, but not once the weight is a constant."""
    draft = Draft("convolution")
    draft.input("x", [1, *shape])
    draft.dequantize("w", (4, 8 // min(group, 2), 3), axis=0, block=PER_CHANNEL, element="int8")
    nodes = drawn(draft, ("Conv", "x w_d", "y", {"group": group}))
    assert once(nodes) == (["w_d"] if taken else [])


def test_the_smallest_first_within_the_bound() -> None:
    draft = Draft("once")
    for name, rows in (("a", 30), ("b", 10), ("c", 20)):
        draft.dequantize(name, [rows, 8], axis=0, block=PER_CHANNEL)
        draft.node("Sum", [f"{name}_d"], f"{name}_y")
    for most, chosen in (
        (0, []),
        (319, []),
        (320, ["b_d"]),
        (959, ["b_d"]),
        (960, ["b_d", "c_d"]),
        (1920, ["b_d", "c_d", "a_d"]),
    ):
        matches = matched(draft, most)
        assert [candidate.output for candidate in matches.once] == chosen
        # Without the permission to do so at all, nothing is said of memory.
        other = Reason.MEMORY if most else Reason.CONSUMER
        for entry in matches.unfused:
            is_chosen = f"{entry.weight}_d" in chosen
            assert entry.reason is (Reason.CONSUMER if is_chosen else other)
            assert (entry.bytes_added > 0, entry.bytes_per_run > 0) == (is_chosen, not is_chosen)


def test_what_is_the_same_is_paid_for_once() -> None:
    draft = draft_of()
    for name in "abc":
        draft.node("DequantizeLinear", ["w", "w_s", "w_z"], name, axis=0, block_size=32)
        draft.node("Sum", [name], f"{name}_y")
    matches = matched(draft, K * N * 4)
    assert [candidate.output for candidate in matches.once] == ["a", "b", "c"]
    assert len({candidate.operand.key for candidate in matches.once}) == 1
    assert choose(matches.once, K * N * 4 - 1) == []
