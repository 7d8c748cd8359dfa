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
    return match(model_scope(draft.model()), locate, SETTINGS._replace(once_bytes=most))


def once(draft: Draft, most: int = ALL) -> list[str]:
    """The values that are computed once."""
    return [chosen.output for chosen in matched(draft, most).once]


def test_what_feeds_no_product() -> None:
    matches = matched(drawn(draft_of(), ("Sum", "w_d x", "y")))
    (chosen,), (entry,) = matches.once, matches.unfused
    assert (chosen.output, chosen.operand.data_type, chosen.operand.shape) == ("w_d", FLOAT, (K, N))
    assert (entry.reason, entry.bytes_added, entry.bytes_per_run) == (Reason.CONSUMER, K * N * 4, 0)


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


QUANTIZED = ("QuantizeLinear", "x s", "xq")
LEFT: dict[str, tuple[tuple[Any, ...], ...]] = {
    "all-fused": (("MatMul", "x w_d", "y"),),
    "nothing-reads-it": (),
    "returned": (("output", f"{K} {N}", "w_d"), ("Sum", "w_d x", "y")),
    "returned-by-a-view": (("Transpose", "w_d", "t"), ("output", f"{N} {K}", "t"), ("Sum", "w_d x", "y")),
    "integer-product": (("Sum", "w_d x", "z"), ("DequantizeLinear", "q s", "d"), ("MatMul", "d w8_d", "y")),
}  # fmt: skip
# With activations that are quantized too, or a result that is; but ONNX Runtime has no operator on such integers.
NOT_OF_INTEGERS: dict[str, tuple[tuple[Any, ...], ...]] = {
    "activation-of-bytes": (("DequantizeLinear", "q s", "d"), ("Conv", "d w_d", "y")),
    "activation-of-words": (QUANTIZED, ("DequantizeLinear", "xq s", "d"), ("Conv", "d w_d", "y")),
    "result-quantized": (("Conv", "x w_d", "y"), ("QuantizeLinear", "y s", "z")),
    "behind-a-view": (("Transpose", "w_d", "t"), ("DequantizeLinear", "q s", "d"), ("Conv", "d t", "y")),
}  # fmt: skip


@pytest.mark.parametrize("nodes", NOT_OF_INTEGERS.values(), ids=NOT_OF_INTEGERS)
def test_what_no_integer_kernel_takes(nodes: tuple[tuple[Any, ...], ...]) -> None:
    draft = draft_of()
    draft.scalar("s", 0.1)
    assert [chosen.output for chosen in matched(drawn(draft, *nodes)).once] == ["w_d"]


def test_not_for_one_reader_beside_an_integer_kernel() -> None:
    draft = draft_of()
    draft.scalar("s", 0.1)
    draft.weight(Weight(element="int8", block=PER_CHANNEL, k=N), "w8")
    nodes = (("DequantizeLinear", "q s", "d"), ("MatMul", "d w8_d", "y"), ("Sum", "w8_d x", "z"))
    assert not matched(drawn(draft, *nodes)).once


@pytest.mark.parametrize("nodes", LEFT.values(), ids=LEFT)
def test_what_is_left(nodes: tuple[tuple[Any, ...], ...]) -> None:
    draft = draft_of()
    draft.scalar("s", 0.1)
    draft.weight(Weight(element="int8", block=PER_CHANNEL, k=N), "w8")
    matches = matched(drawn(draft, *nodes))
    told = {entry.dequantize: entry for entry in matches.unfused}
    if "w8_d" in str(nodes):
        assert [chosen.output for chosen in matches.once] == ["w_d"]
        assert told["w8_d_node"].reason is Reason.INTEGER_KERNEL
    else:
        assert not matches.once
        assert all(entry.bytes_added == 0 for entry in matches.unfused)


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
    for size, taken in ((16, []), (17, ["w_d"])):
        draft = Draft("once")
        draft.dequantize("w", [size], axis=0, block=16)
        assert once(drawn(draft, ("Sum", "w_d w_d", "y"))) == taken


def test_what_the_caller_may_replace_is_left() -> None:
    draft = draft_of()
    draft.input("w", [K, N], "uint4")
    assert once(drawn(draft, ("Sum", "w_d x", "y"))) == []


def test_readers_that_onnx_runtime_would_refuse() -> None:
    assert once(drawn(draft_of(), ("MatMul", "x w_d", "y", {"unknown": 1}))) == []


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
