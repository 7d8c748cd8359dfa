"""Gathers of quantized tables: which are fused, and what GatherBlockQuantized is told of them."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from onnx import TensorProto

from conformance.drawing.draft import Draft
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR
from ort_qdq_plugin.fusion.gather import GatherFusion, fuse
from ort_qdq_plugin.fusion.view import View
from ort_qdq_plugin.model.elements import BFLOAT16, FLOAT, FLOAT16
from ort_qdq_plugin.report.weights import Reason
from tests.fusion.support import SETTINGS, emitted, integers_of, locate, read, refused, scope_and_site


def gather_of(
    shape: Sequence[int] = (50, 64),
    inputs: Sequence[str] = ("w_d", "i"),
    *,
    outputs: int = 1,
    gather_axis: int | None = None,
    **table: Any,
) -> Draft:
    """A Gather of rows of a table."""
    draft = Draft("gather")
    draft.dequantize("w", shape, **{"axis": 1, "block": 32, **table})
    draft.input("i", ["b", "s"], "int64")
    draft.node("Gather", inputs, "y", axis=gather_axis)
    if not outputs:
        del draft.nodes[-1].output[:]
    return draft


def fused(draft: Draft, seen: Callable[[View], View] = lambda view: view) -> GatherFusion:
    scope, site = scope_and_site(draft)
    found = read(scope)
    return fuse(site, found, seen(found.view), SETTINGS, locate)


# What is written


@pytest.mark.parametrize(("element", "bits"), [("uint4", 4), ("int4", 4), ("uint8", 8)])
@pytest.mark.parametrize(("gather_axis", "block"), [(None, 32), (0, 16), (-2, 64), (None, 128)])
def test_a_gather_is_one_node_on_the_bytes_as_they_are_stored(
    element: str, bits: int, gather_axis: int | None, block: int
) -> None:
    draft = gather_of(element=element, gather_axis=gather_axis, block=block)
    fusion = fused(draft)
    (node,), constants = emitted(fusion)
    assert (node.op_type, node.domain, node.name) == ("GatherBlockQuantized", "com.microsoft", "y_node")
    assert (list(node.input), list(node.output)) == (["data", "i", "scales", "zero_points"], ["y"])
    assert integers_of(node) == {"gather_axis": 0, "quantize_axis": 1, "block_size": block, "bits": bits}
    assert not constants
    raw = {tensor.name: tensor for tensor in draft.initializers}
    for operand, name in (("data", "w"), ("scales", "w_s"), ("zero_points", "w_z")):
        stored = fusion.operands[operand].in_place
        assert stored is not None
        assert stored.read().tobytes() == raw[name].raw_data
        assert fusion.operands[operand].data_type == raw[name].data_type
        assert fusion.operands[operand].shape == tuple(raw[name].dims)


@pytest.mark.parametrize(
    ("element", "zero"), [("int4", "none"), ("uint4", "default"), ("uint4", "random"), ("uint8", "default")]
)
def test_zero_points_are_an_operand_where_there_are_any(element: str, zero: str) -> None:
    """Those that a product would not need as well: the operator takes 0 for 4 bits by itself, whatever the sign."""
    fusion = fused(gather_of(element=element, zero=zero))
    rest = [] if zero == "none" else ["zero_points"]
    assert [*fusion.operands] == ["data", "scales", *rest]
    assert list(emitted(fusion)[0][0].input) == ["data", "i", "scales", *rest]
    assert all(operand.source is not None for operand in fusion.operands.values())


@pytest.mark.parametrize(
    ("columns", "block_size"), [(1, 16), (15, 16), (16, 16), (17, 32), (64, 64), (65, 128), (1000, 1024)]
)
def test_a_scale_for_each_row_is_a_block_of_at_least_the_row(columns: int, block_size: int) -> None:
    fusion = fused(gather_of((50, columns), axis=0, block=PER_CHANNEL))
    assert fusion.block_size == block_size
    assert fusion.operands["data"].shape == (50, columns)
    assert fusion.operands["scales"].shape == fusion.operands["zero_points"].shape == (50, 1)
    assert 2 * columns > block_size >= columns or block_size == 16


@pytest.mark.parametrize(
    ("scale", "seen", "cast"),
    [("float", FLOAT, []), ("float16", FLOAT16, []), ("float16", FLOAT, [FLOAT]), ("float", FLOAT16, [FLOAT16])],
)
def test_another_type_is_cast_to(scale: str, seen: int, cast: list[int]) -> None:
    nodes, _ = emitted(fused(gather_of(scale=scale), lambda view: view._replace(data_type=seen)))
    assert [node.op_type for node in nodes] == ["GatherBlockQuantized", *(["Cast"] * len(cast))]
    assert nodes[-1].output[0] == "y"
    assert [integers_of(node) for node in nodes[1:]] == [{"to": to} for to in cast]
    assert [list(node.input) for node in nodes[1:]] == [list(node.output) for node in nodes[:-1]]


def test_what_the_report_says() -> None:
    entry = fused(gather_of()).entry()
    assert (entry.node, entry.dequantize, entry.kind) == ("y_node", "w_d_node", "Gather")
    assert (entry.k, entry.n, entry.bits, entry.block_size, entry.layout) == (64, 50, 4, 32, "N-major")
    assert (entry.packed_bytes, entry.borrowed_bytes, entry.has_bias) == (0, 50 * 32 + 50 * 2 * 4 + 50, False)
    assert fused(gather_of()).operator == "GatherBlockQuantized"


# What is refused

REFUSED: dict[str, tuple[Any, ...]] = {
    "one-input": (gather_of(inputs=["w_d"]), Reason.CONSUMER),
    "three-inputs": (gather_of(inputs=["w_d", "i", "i"]), Reason.CONSUMER),
    "no-output": (gather_of(outputs=0), Reason.CONSUMER),
    "the-weight-as-indices": (gather_of(inputs=["i", "w_d"]), Reason.CONSUMER),
    "the-weight-by-the-weight": (gather_of(inputs=["w_d", "w_d"]), Reason.CONSUMER),
    "columns": (gather_of(gather_axis=1), Reason.GATHER),
    "columns-from-the-end": (gather_of(gather_axis=-1), Reason.GATHER),
    "rows-of-a-cube": (gather_of((5, 10, 64), axis=2), Reason.GATHER),
    "elements": (gather_of((64,), axis=0), Reason.GATHER),
    "int8": (gather_of(element="int8"), Reason.GATHER),
    "uint2": (gather_of(element="uint2"), Reason.GATHER),
    "uint8-with-zeros-of-0": (gather_of(element="uint8", zero="none"), Reason.GATHER),
    "bfloat16": (gather_of(scale="bfloat16"), Reason.PRODUCT_TYPE),
    "blocks-of-8": (gather_of(block=8), Reason.GATHER),
    "blocks-of-48": (gather_of((50, 96), block=48), Reason.GATHER),
    "blocks-along-columns": (gather_of(axis=0, block=16), Reason.GATHER),
    "a-scale-for-each-column": (gather_of(axis=1, block=PER_CHANNEL), Reason.GATHER),
    "one-scale": (gather_of(block=PER_TENSOR), Reason.GATHER),
    "seen-in-bfloat16": (gather_of(), Reason.PRODUCT_TYPE, lambda view: view._replace(data_type=BFLOAT16)),
    "seen-in-double": (gather_of(), Reason.PRODUCT_TYPE, lambda view: view._replace(data_type=TensorProto.DOUBLE)),
    "transposed": (gather_of((64, 64)), Reason.GATHER, lambda view: view.transposed((1, 0))),
    "with-an-axis-in-between": (gather_of(), Reason.GATHER, lambda view: view.reshaped((50, 1, 64))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_fused_is_refused(name: str) -> None:
    draft, reason, *seen = REFUSED[name]
    with refused(reason):
        fused(draft, *seen)
