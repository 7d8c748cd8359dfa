"""Rows of integers, gathered and then dequantized: which nodes that takes, and where ONNX Runtime would change them."""

from typing import Any

import pytest

from conformance.drawing.draft import Draft
from ort_qdq_plugin.fusion.gathered_rows import GatheredRows, gathered_rows
from ort_qdq_plugin.fusion.lookups import Form
from ort_qdq_plugin.model.elements import FLOAT, FLOAT16
from ort_qdq_plugin.report.weights import Reason
from tests.fusion.support import drawn, emitted, integers_of, read, refused, scope_and_site
from tests.fusion.tables import SCALES, gather_of, lookup_of


def rows(form: Form, shape: tuple[int, ...] = (50, 64), *, element: str = "uint8", **table: Any) -> GatheredRows:
    return gathered_rows(lookup_of(gather_of(shape, element=element, **table)), form)


def written(fusion: GatheredRows) -> list[tuple[str, ...]]:
    """The nodes: each operator, and the operands among its inputs."""
    return [(node.op_type, *(name for name in node.input if name in (*fusion.operands, "i"))) for node in emitted(fusion)[0]]


ONCE = [("Gather", "data", "i")]
SCALES_TOO = [*ONCE, ("Gather", "scales", "i")]
ALL = [*SCALES_TOO, ("Gather", "zero_points", "i")]


@pytest.mark.parametrize(
    ("table", "nodes", "attributes"),
    [
        (SCALES["one"], [*ONCE, ("DequantizeLinear", "scales", "zero_points")], {}),
        ({**SCALES["one"], "zero": "none"}, [*ONCE, ("DequantizeLinear", "scales")], {}),
        (SCALES["columns"], [*ONCE, ("DequantizeLinear", "scales", "zero_points")], {"axis": -1}),
        ({**SCALES["rows"], "indices": ["s"]}, [*ALL, ("DequantizeLinear",)], {"axis": 0}),
        ({**SCALES["blocks"], "block": 6}, [*ALL, ("DequantizeLinear",)], {"axis": -1, "block_size": 6}),
        ({"shape": (50, 4, 64), "axis": 1, "block": 2, "zero": "none"}, [*SCALES_TOO, ("DequantizeLinear",)],
         {"axis": -2, "block_size": 2}),
        ({**SCALES["one"], "scale": "float16", "output_dtype": FLOAT, "opset": 23, "zero": "none"},
         [*ONCE, ("DequantizeLinear", "scales")], {"output_dtype": FLOAT}),
    ],
)  # fmt: skip
def test_what_was_gathered_is_dequantized(
    table: dict[str, Any], nodes: list[tuple[str, ...]], attributes: dict[str, int]
) -> None:
    fusion = rows(Form.DEQUANTIZED, **table)
    assert written(fusion) == nodes
    (*_, last), constants = emitted(fusion)
    assert (integers_of(last), list(last.output), constants) == (attributes, ["y"], [])
    assert all(operand.in_place is not None for operand in fusion.operands.values())


@pytest.mark.parametrize(
    ("form", "table", "nodes", "shape"),
    [
        (Form.SCALED, {**SCALES["one"], "zero": "none"}, [*ONCE, ("Cast",), ("Mul", "scales")], ()),
        (Form.SCALED, {**SCALES["columns"], "zero": "none"}, [*ONCE, ("Cast",), ("Mul", "scales")], (64,)),
        (Form.SCALED, {**SCALES["rows"], "zero": "none"}, [*SCALES_TOO, ("Cast",), ("Mul",)], (50, 1)),
        (Form.SHIFTED, SCALES["one"], [*ONCE, ("Cast",), ("Cast", "zero_points"), ("Sub",), ("Mul", "scales")], ()),
        (Form.SHIFTED, SCALES["rows"], [*ALL, ("Cast",), ("Cast",), ("Sub",), ("Mul",)], (50, 1)),
        (Form.SHIFTED, {"shape": (50, 4, 64), **SCALES["rows"]},
         [*ALL, ("Cast",), ("Cast",), ("Sub",), ("Mul",)], (50, 1, 1)),
        (Form.SHIFTED, {"shape": (50, 4, 64), **SCALES["columns"]},
         [*ONCE, ("Cast",), ("Cast", "zero_points"), ("Sub",), ("Mul", "scales")], (4, 1)),
    ],
)  # fmt: skip
def test_what_was_gathered_is_shifted_and_multiplied(
    form: Form, table: dict[str, Any], nodes: list[tuple[str, ...]], shape: tuple[int, ...]
) -> None:
    fusion = rows(form, **table)
    assert written(fusion) == nodes
    for name in ("scales", "zero_points"):
        assert name not in fusion.operands or fusion.operands[name].shape == shape


def test_float16_scales_are_multiplied_as_floats() -> None:
    fusion = rows(Form.SCALED, **SCALES["rows"], scale="float16", zero="none")
    scales = fusion.operands["scales"]
    assert (scales.data_type, scales.nbytes, scales.in_place) == (FLOAT, 50 * 4, None)
    nodes, _ = emitted(fusion)
    assert [integers_of(node) for node in nodes if node.op_type == "Cast"] == [{"to": FLOAT}, {"to": FLOAT16}]
    assert nodes[-1].output[0] == "y"


def test_what_the_report_says() -> None:
    for name, block_size in (("one", 64), ("columns", 1), ("blocks", 32)):
        entry = rows(Form.DEQUANTIZED, **SCALES[name]).entry()
        assert (entry.node, entry.dequantize, entry.kind) == ("y_node", "w_d_node", "Gather")
        assert (entry.k, entry.n, entry.bits, entry.block_size, entry.layout) == (64, 50, 8, block_size, "N-major")
        assert (entry.packed_bytes, entry.borrowed_bytes) == (0, entry.stored_bytes)
    entry = rows(Form.SHIFTED, (50, 4, 16), **SCALES["rows"]).entry()
    assert (entry.k, entry.n, entry.block_size, entry.borrowed_bytes) == (64, 50, 64, 50 * 64 + 50 * 4 + 50)
    assert rows(Form.SHIFTED, **SCALES["rows"]).operator == "Gather"


REFUSED: dict[str, tuple[Form, dict[str, Any]]] = {
    "elements-of-less-than-a-byte": (Form.DEQUANTIZED, {"element": "uint4", **SCALES["one"]}),
    "rows-by-indices-of-two-axes": (Form.DEQUANTIZED, SCALES["rows"]),
    "a-block-that-is-a-row": (Form.DEQUANTIZED, {"block": 64, "indices": ["s"]}),
    "an-axis-before-there-were-any": (Form.DEQUANTIZED, {**SCALES["columns"], "lookup": {"opset": 12}}),
    "float16-before-it-was-taken": (Form.DEQUANTIZED, {**SCALES["one"], "scale": "float16", "lookup": {"opset": 18}}),
    "blocks-to-multiply": (Form.SHIFTED, SCALES["blocks"]),
    "zero-points-and-no-place-for-them": (Form.SCALED, SCALES["one"]),
    "no-zero-points": (Form.SHIFTED, {**SCALES["one"], "zero": "none"}),
    "operands-of-other-shapes-before-they-were-broadcast": (Form.SHIFTED, {**SCALES["one"], "lookup": {"opset": 6}}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_form_does_not_take_is_refused(name: str) -> None:
    form, table = REFUSED[name]
    changed, drawing = table.get("lookup", {}), {key: value for key, value in table.items() if key != "lookup"}
    with refused(Reason.GATHER):
        gathered_rows(lookup_of(gather_of(**{"element": "uint8", **drawing}), **changed), form)


@pytest.mark.parametrize("opset", [10, 12, 18])
def test_a_single_float_scale_is_taken_by_every_dequantize_linear(opset: int) -> None:
    gathered_rows(lookup_of(gather_of(element="uint8", **SCALES["one"]), opset=opset), Form.DEQUANTIZED)


# What ONNX Runtime makes integer kernels of

Nodes = list[tuple[Any, ...]]
MEETS: dict[str, tuple[Nodes, bool]] = {
    "nothing": ([], False), "a sum": ([("Add", "y k", "z")], False), "a product of it": ([("MatMul", "y k", "z")], True),
    "a product on the other side": ([("Gemm", "k y", "z")], True),
    "a product of it transposed": ([("Transpose", "y", "t"), ("MatMul", "t k", "z")], True),
    "a product of a part": ([("Slice", "y a b", "t"), ("Reshape", "t s", "u"), ("MatMul", "u k", "z")], True),
    "a product of a sum": ([("Add", "y k", "t"), ("MatMul", "t k", "z")], False),
    "a product of something else": ([("MatMul", "k k", "z")], False),
    "anything that is quantized": ([("QuantizeLinear", "k q", "z")], True),
}  # fmt: skip


@pytest.mark.parametrize("name", MEETS)
def test_dequantize_linear_is_kept_away_from_integer_kernels(name: str) -> None:
    nodes, meets = MEETS[name]
    draft: Draft = gather_of(element="uint8", **SCALES["one"])
    drawn(draft, *nodes)
    scope, site = scope_and_site(draft)
    index = next(index for index, node in enumerate(scope.nodes) if node.op_type == "Gather")
    site = site._replace(output="y", replaced=((scope, index),))
    lookup = lookup_of(gather_of(element="uint8", **SCALES["one"]), site=site, table=read(scope))
    with refused(Reason.GATHER if meets else None):
        gathered_rows(lookup, Form.DEQUANTIZED)
    assert gathered_rows(lookup, Form.SHIFTED).form is Form.SHIFTED


def test_a_branch_that_multiplies_the_rows_is_seen() -> None:
    draft = gather_of(element="uint8", **SCALES["one"])
    branch = drawn(Draft(parent=draft), ("MatMul", "y k", "z"))
    branch.output("z", None)
    draft.input("c", [], "bool")
    draft.node("If", ["c"], "v", then_branch=branch.graph("then"), else_branch=branch.graph("else"))
    scope, site = scope_and_site(draft)
    site = site._replace(output="y", replaced=((scope, 1),))
    with refused(Reason.GATHER):
        gathered_rows(lookup_of(gather_of(element="uint8", **SCALES["one"]), site=site), Form.DEQUANTIZED)
