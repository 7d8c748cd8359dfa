"""Gathers of quantized tables: which are fused, and what GatherBlockQuantized is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from conformance.drawing.draft import Draft
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR
from ort_qdq_plugin.fusion.gather import GatherFusion, fuse
from ort_qdq_plugin.fusion.view import View
from ort_qdq_plugin.model.elements import BFLOAT16, FLOAT, FLOAT16
from ort_qdq_plugin.report import Reason
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
    attributes: dict[str, Any] = {} if gather_axis is None else {"axis": gather_axis}
    draft.node("Gather", list(inputs), "y", **attributes)
    if not outputs:
        del draft.nodes[-1].output[:]
    return draft


def fused(draft: Draft, seen: View | None = None) -> GatherFusion:
    scope, site = scope_and_site(draft)
    found = read(scope)
    return fuse(site, found, seen or found.view, SETTINGS, locate)


# What is written


@pytest.mark.parametrize(("element", "bits"), [("uint4", 4), ("int4", 4), ("uint8", 8)])
@pytest.mark.parametrize("gather_axis", [None, 0, -2])
def test_a_gather_is_one_node_on_the_bytes_as_they_are_stored(element: str, bits: int, gather_axis: int | None) -> None:
    draft = gather_of(element=element, gather_axis=gather_axis)
    fusion = fused(draft)
    (node,), constants = emitted(fusion)
    assert (node.op_type, node.domain, node.name) == ("GatherBlockQuantized", "com.microsoft", "y_node")
    assert (list(node.input), list(node.output)) == (["data", "i", "scales", "zero_points"], ["y"])
    assert integers_of(node) == {"gather_axis": 0, "quantize_axis": 1, "block_size": 32, "bits": bits}
    assert not constants
    raw = {tensor.name: tensor for tensor in draft.initializers}
    for operand, name in (("data", "w"), ("scales", "w_s"), ("zero_points", "w_z")):
        stored = fusion.operands[operand].in_place
        assert stored is not None
        assert stored.read().tobytes() == raw[name].raw_data
        assert fusion.operands[operand].data_type == raw[name].data_type
        assert fusion.operands[operand].shape == tuple(raw[name].dims)


def test_without_zero_points_there_are_two_operands() -> None:
    fusion = fused(gather_of(element="int4", zero="none"))
    assert fusion.operands.keys() == {"data", "scales"}
    assert list(emitted(fusion)[0][0].input) == ["data", "i", "scales"]


def test_zero_points_that_a_product_would_not_need_are_kept() -> None:
    """The operator takes 0 for 4 bits by itself, whatever the sign."""
    assert "zero_points" in fused(gather_of(element="uint4", zero="default")).operands


@pytest.mark.parametrize(
    ("columns", "block_size"), [(1, 16), (15, 16), (16, 16), (17, 32), (64, 64), (65, 128), (1000, 1024)]
)
def test_a_scale_for_each_row_is_a_block_of_at_least_the_row(columns: int, block_size: int) -> None:
    fusion = fused(gather_of((50, columns), axis=0, block=PER_CHANNEL))
    assert fusion.block_size == block_size
    assert fusion.operands["data"].shape == (50, columns)
    assert fusion.operands["scales"].shape == fusion.operands["zero_points"].shape == (50, 1)
    assert 2 * columns > block_size >= columns or block_size == 16


@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_blocks_along_the_row(block: int) -> None:
    fusion = fused(gather_of(block=block))
    assert (fusion.block_size, fusion.operands["scales"].shape) == (block, (50, -(-64 // block)))


@pytest.mark.parametrize(
    ("scale", "seen", "cast"),
    [("float", FLOAT, None), ("float16", FLOAT16, None), ("float16", FLOAT, FLOAT), ("float", FLOAT16, FLOAT16)],
)
def test_another_type_is_cast_to(scale: str, seen: int, cast: int | None) -> None:
    draft = gather_of(scale=scale)
    nodes, _ = emitted(fused(draft, read(scope_and_site(draft)[0]).view._replace(data_type=seen)))
    assert [node.op_type for node in nodes] == ["GatherBlockQuantized"] + ([] if cast is None else ["Cast"])
    assert nodes[-1].output[0] == "y"
    if cast is not None:
        assert list(nodes[1].input) == list(nodes[0].output)
        assert integers_of(nodes[1]) == {"to": cast}


def test_what_the_report_says() -> None:
    entry = fused(gather_of()).entry()
    assert (entry.node, entry.dequantize, entry.kind) == ("y_node", "w_d_node", "Gather")
    assert (entry.k, entry.n, entry.bits, entry.block_size, entry.layout) == (64, 50, 4, 32, "N-major")
    assert (entry.packed_bytes, entry.borrowed_bytes, entry.has_bias) == (0, 50 * 32 + 50 * 2 * 4 + 50, False)
    assert fused(gather_of()).operator == "GatherBlockQuantized"


# What is refused

REFUSED: dict[str, tuple[Draft, Reason]] = {
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
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_fused_is_refused(name: str) -> None:
    draft, reason = REFUSED[name]
    with refused(reason):
        fused(draft)


@pytest.mark.parametrize("data_type", [BFLOAT16, TensorProto.DOUBLE])
def test_other_types_of_the_result_are_refused(data_type: int) -> None:
    draft = gather_of()
    with refused(Reason.PRODUCT_TYPE):
        fused(draft, read(scope_and_site(draft)[0]).view._replace(data_type=data_type))


def test_a_table_that_was_moved_is_refused() -> None:
    draft = gather_of((64, 64))
    with refused(Reason.GATHER):
        fused(draft, read(scope_and_site(draft)[0]).view.transposed((1, 0)))


def test_a_table_with_an_axis_of_its_own_in_between_is_refused() -> None:
    draft = gather_of((50, 64))
    with refused(Reason.GATHER):
        fused(draft, read(scope_and_site(draft)[0]).view.reshaped((50, 1, 64)))


def test_an_8_bit_table_with_zero_points_needs_them_all() -> None:
    zero_points = fused(gather_of(element="uint8", zero="default")).operands["zero_points"]
    assert zero_points.source is not None
    np.testing.assert_array_equal(zero_points.source.read(), np.full(100, 128))
