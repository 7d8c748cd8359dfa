"""Gathers of quantized tables: which are fused, in which form, and which are left."""

from typing import Any

import pytest
from onnx import TensorProto

from conformance.drawing.draft import Draft
from conformance.drawing.elements import Dim
from ort_qdq_plugin.fusion.gather_block_quantized import QuantizedLookup
from ort_qdq_plugin.fusion.gathered_rows import GatheredRows
from ort_qdq_plugin.fusion.lookups import Form
from ort_qdq_plugin.model.elements import BFLOAT16, FLOAT16
from ort_qdq_plugin.report.weights import Reason
from tests.fusion.support import drawn, emitted, refused
from tests.fusion.tables import SCALES, fused, gather_of

UNKNOWN: list[Dim] = ["s"]
ONE_AXIS: list[Dim] = [5]


def form_of(draft: Draft) -> Form:
    fusion = fused(draft)
    if isinstance(fusion, GatheredRows):
        return fusion.form
    assert isinstance(fusion, QuantizedLookup)
    return Form.QUANTIZED


@pytest.mark.parametrize("gather_axis", [None, 0, -2])
@pytest.mark.parametrize(
    ("element", "scales", "more", "form"),
    [
        ("int8", "one", {}, Form.DEQUANTIZED),
        ("uint8", "one", {}, Form.DEQUANTIZED),
        ("uint8", "one", {"scale": "float16"}, Form.QUANTIZED),
        ("int8", "rows", {"zero": "default"}, Form.QUANTIZED),
        ("int8", "rows", {}, Form.QUANTIZED),
        ("uint8", "rows", {}, Form.QUANTIZED),
        ("uint8", "rows", {"indices": ONE_AXIS}, Form.DEQUANTIZED),
        ("uint8", "rows", {"indices": ONE_AXIS, "scale": "float16"}, Form.QUANTIZED),
        ("int8", "columns", {"zero": "none"}, Form.SCALED),
        ("uint8", "columns", {}, Form.SHIFTED),
        ("uint8", "blocks", {}, Form.QUANTIZED),
        ("int8", "blocks", {}, Form.QUANTIZED),
        ("uint8", "blocks", {"block": 10}, Form.DEQUANTIZED),
        ("uint4", "one", {}, Form.QUANTIZED),
        ("int4", "rows", {}, Form.QUANTIZED),
        ("uint4", "blocks", {"zero": "none"}, Form.QUANTIZED),
    ],
)
def test_each_table_gets_its_form(
    element: str, scales: str, more: dict[str, Any], form: Form, gather_axis: int | None
) -> None:
    """What the table of choices says, where the form takes the table."""
    assert form_of(gather_of(element=element, gather_axis=gather_axis, **{**SCALES[scales], **more})) is form


@pytest.mark.parametrize("shape", [(50,), (50, 4, 64)])
@pytest.mark.parametrize(("scales", "form"), [("one", Form.DEQUANTIZED), ("rows", Form.SHIFTED)])
def test_tables_of_bytes_may_have_any_rank(shape: tuple[int, ...], scales: str, form: Form) -> None:
    assert form_of(gather_of(shape, element="uint8", **SCALES[scales])) is form


def test_a_large_table_is_not_copied_if_another_form_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ort_qdq_plugin.fusion.gather.MAX_COPY", 50 * 64 - 1)
    rows, in_blocks = SCALES["rows"], SCALES["blocks"]
    assert form_of(gather_of(element="int8", zero="none", **rows)) is Form.SCALED
    assert form_of(gather_of(element="int8", **rows)) is Form.SHIFTED
    assert form_of(gather_of(element="int8", **in_blocks)) is Form.DEQUANTIZED
    assert form_of(gather_of(element="uint8", **rows)) is Form.QUANTIZED  # where it is stored
    assert form_of(gather_of((100, 64), element="int4", **rows)) is Form.QUANTIZED  # as nothing else takes it
    monkeypatch.setattr("ort_qdq_plugin.fusion.gather.MAX_COPY", 50 * 64)
    assert form_of(gather_of(element="int8", zero="none", **rows)) is Form.QUANTIZED


@pytest.mark.parametrize("gather_axis", [0, -2])
@pytest.mark.parametrize("block", [16, 32])
def test_blocks_that_are_an_axis_are_joined_to_rows(gather_axis: int, block: int) -> None:
    draft = gather_of((50, 2, 32), axis=2, block=block, gather_axis=gather_axis)
    fusion = fused(draft, lambda view: view.reshaped((50, 64)))
    assert isinstance(fusion, QuantizedLookup)
    assert (fusion.rows.shape, fusion.block_size) == ((50, 64), block)
    source = fusion.operands["data"].source
    assert source is not None
    assert source.source.is_stored


def test_axes_of_one_index_may_be_in_between() -> None:
    fusion = fused(gather_of(), lambda view: view.reshaped((50, 1, 64)))
    assert isinstance(fusion, QuantizedLookup)
    assert fusion.rows.shape == (50, 1, 64)


def test_matrices_may_be_seen_transposed() -> None:
    draft = gather_of((50, 32, 64), axis=2, indices=[1])
    for perm, op_types in (((0, 1, 2), []), ((0, 2, 1), ["Transpose"])):
        nodes, _ = emitted(fused(draft, lambda view, perm=perm: view.transposed(perm)))  # type: ignore[misc]
        assert [node.op_type for node in nodes[3:]] == op_types
    bytes_of_rows = gather_of((50, 32, 64), element="uint8", indices=[1], **SCALES["rows"])
    with refused(Reason.GATHER):
        fused(bytes_of_rows, lambda view: view.transposed((0, 2, 1)))
    with refused(Reason.GATHER):
        fused(draft, lambda view: view.transposed((1, 0, 2)))


SQUEEZES: dict[str, tuple[Any, ...]] = {
    "of-an-axis": ("s", [("ints", "1", "axes"), ("Squeeze", "y axes", "s")]),
    "of-both": ("s", [("ints", "0 1", "axes"), ("Squeeze", "y axes", "s")]),
    "of-rows": ("y", [("ints", "2", "axes"), ("Squeeze", "y axes", "s")]),
    "from-the-end": ("y", [("ints", "-1", "axes"), ("Squeeze", "y axes", "s")]),
    "of-no-axis": ("y", [("ints", "", "axes"), ("Squeeze", "y axes", "s")]),
    "of-axes-that-are-not-known": ("y", [("Squeeze", "y i", "s")]),
    "of-all": ("y", [("Squeeze", "y", "s")]),
    "not-alone": ("y", [("ints", "1", "axes"), ("Squeeze", "y axes", "s"), ("Relu", "y", "r")]),
    "beside-an-output": ("y", [("ints", "1", "axes"), ("Squeeze", "y axes", "s"), ("output", "1 1 64 32", "y")]),
    "another-node": ("y", [("ints", "1", "axes"), ("Unsqueeze", "y axes", "s")]),
}  # fmt: skip


@pytest.mark.parametrize("name", SQUEEZES)
def test_a_squeeze_of_axes_of_the_indices_is_taken_along(name: str) -> None:
    output, nodes = SQUEEZES[name]
    draft = drawn(gather_of((50, 32, 64), axis=2, indices=[1, 1]), *nodes)
    draft.nodes.sort(key=lambda node: node.op_type == "Gather")  # the node that is looked at comes last
    fusion = fused(draft, lambda view: view.transposed((0, 2, 1)))
    assert fusion.site.output == output
    assert len(fusion.site.replaced) == (2 if output == "s" else 1)


def test_where_axes_are_an_attribute_a_squeeze_is_left() -> None:
    draft = drawn(
        gather_of((50, 32, 64), opset=12, indices=[1], **SCALES["one"], element="uint8"),
        ("Squeeze", "y", "s", {"axes": [0]}),
    )
    draft.nodes.sort(key=lambda node: node.op_type == "Gather")
    assert fused(draft, lambda view: view.transposed((0, 2, 1))).site.output == "y"


SIZES: list[tuple[int, list[Dim], Reason | None]] = [
    (50, UNKNOWN, Reason.SMALL_TABLE), (50, [500], Reason.SMALL_TABLE), (50, [5], None), (70_000, UNKNOWN, None),
    (70_000, ["s", 3], None),
]  # fmt: skip


def test_a_table_that_may_be_read_often_in_a_run_has_to_have_many_rows() -> None:
    for rows, indices, reason in SIZES:
        with refused(reason):
            fused(gather_of((rows, 16), block=16, indices=indices))


def test_another_type_is_cast_to() -> None:
    nodes, _ = emitted(fused(gather_of(), lambda view: view._replace(data_type=FLOAT16)))
    assert [node.op_type for node in nodes] == ["Gather", "GatherBlockQuantized", "Cast"]


# What is refused

REFUSED: dict[str, tuple[Any, ...]] = {
    "one-input": (gather_of(inputs=["w_d"]), Reason.CONSUMER),
    "three-inputs": (gather_of(inputs=["w_d", "i", "i"]), Reason.CONSUMER),
    "no-output": (gather_of(outputs=0), Reason.CONSUMER),
    "the-weight-as-indices": (gather_of(inputs=["i", "w_d"]), Reason.CONSUMER),
    "the-weight-by-the-weight": (gather_of(inputs=["w_d", "w_d"]), Reason.CONSUMER),
    "columns": (gather_of(gather_axis=1), Reason.GATHER),
    "columns-from-the-end": (gather_of(gather_axis=-1), Reason.GATHER),
    "blocks-of-matrices": (gather_of((50, 10, 64), axis=0, block=16), Reason.GATHER),
    "half-bytes-in-a-vector": (gather_of((64,), axis=0), Reason.GATHER),
    "bfloat16": (gather_of(scale="bfloat16"), Reason.PRODUCT_TYPE),
    "blocks-of-8": (gather_of(block=8), Reason.GATHER),
    "blocks-of-40": (gather_of((50, 96), block=40), Reason.GATHER),
    "blocks-along-columns": (gather_of(axis=0, block=16), Reason.GATHER),
    "a-scale-for-each-column": (gather_of(**SCALES["columns"]), Reason.GATHER),
    "seen-in-bfloat16": (gather_of(), Reason.PRODUCT_TYPE, lambda view: view._replace(data_type=BFLOAT16)),
    "seen-in-double": (gather_of(), Reason.PRODUCT_TYPE, lambda view: view._replace(data_type=TensorProto.DOUBLE)),
    "made-in-bfloat16": (gather_of(output_dtype=BFLOAT16, opset=23), Reason.PRODUCT_TYPE),
    "transposed": (gather_of((64, 64)), Reason.GATHER, lambda view: view.transposed((1, 0))),
    "rows-of-a-part-of-each": (gather_of((50, 2, 64), axis=2), Reason.GATHER, lambda view: view.transposed((1, 0, 2))),
    "columns-of-what-is-joined": (
        gather_of((50, 2, 32), axis=2, gather_axis=1),
        Reason.GATHER,
        lambda view: view.reshaped((50, 64)),
    ),
    "rows-of-which-each-has-several": (
        gather_of((2, 50, 64), axis=1, block=50),
        Reason.GATHER,
        lambda view: view.reshaped((100, 64)),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_fused_is_refused(name: str) -> None:
    draft, reason, *seen = REFUSED[name]
    with refused(reason):
        fused(draft, *seen)
