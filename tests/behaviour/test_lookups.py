"""Lookups in quantized tables by whole sessions, against unoptimized ONNX Runtime."""

from functools import partial
from typing import Any

import numpy as np
import onnx.parser
import onnxruntime as ort
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from conformance.drawing.draft import Draft
from conformance.drawing.elements import MS
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR, Zero
from ort_qdq_plugin import Options, Reason, create_session
from ort_qdq_plugin.fusion.lookups import CHOICES, Choice, Form, Scales
from ort_qdq_plugin.model.elements import CODES
from tests.support import CPU, Array, made_report, quiet, raised, stock

SCALES: dict[str, dict[str, Any]] = {
    "one": {"axis": 1, "block": PER_TENSOR}, "rows": {"axis": 0, "block": PER_CHANNEL},
    "columns": {"axis": 1, "block": PER_CHANNEL}, "blocks": {"axis": 1, "block": 16}, "odd blocks": {"axis": 1, "block": 6},
    "blocks of blocks": {"axis": 1, "block": 48},
}  # fmt: skip
INDICES: tuple[list[int], ...] = ([], [1], [5], [2, 3], [1, 2, 2])


def table(
    element: str,
    scales: str,
    zero: Zero,
    indices: list[int] | list[str],
    shape: tuple[int, ...],
    *,
    opset: int = 25,
    **more: Any,
) -> Draft:
    """y = rows of a table, in the type that its scales have."""
    draft = Draft(f"{element}-{scales}-{zero}-{shape}", opset=opset)
    draft.input("i", indices, "int64")
    draft.dequantize("w", shape, element=element, zero=zero, **{**SCALES[scales], **more})
    draft.node("Gather", ["w_d", "i"], "y")
    draft.output(
        "y", None, {1: "float", 10: "float16"}[more.get("output_dtype", {"float": 1, "float16": 10}[more["scale"]])]
    )
    return draft


def unoptimized(model: bytes) -> ort.InferenceSession:
    options = quiet()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return stock(model, options)


def ours(model: bytes) -> ort.InferenceSession:
    return create_session(model, quiet(), providers=CPU)


def some_indices(shape: list[int], rows: int) -> Array:
    """As many as that, negative ones, the first and the last row among them where there is room."""
    drawn = np.random.default_rng(rows).integers(-rows, rows, shape)
    ends = np.array([0, rows - 1, -1, -rows])[: drawn.size]
    return np.concatenate([ends, np.ravel(drawn)[ends.size :]]).reshape(shape).astype(np.int64)


@settings(max_examples=120, deadline=None)
@given(
    element=st.sampled_from(["uint2", "int2", "uint4", "int4", "uint8", "int8"]),
    scales=st.sampled_from(sorted(SCALES)),
    zero=st.sampled_from(["none", "random", "default"]),
    scale=st.sampled_from(["float", "float16"]),
    output=st.sampled_from([None, 1, 10]),
    indices=st.sampled_from(INDICES),
    rows=st.integers(60, 90),
    columns=st.integers(1, 70),
)
def test_a_lookup_is_what_it_was(
    element: str, scales: str, zero: Zero, scale: str, output: int | None, indices: list[int], rows: int, columns: int
) -> None:
    """To the last bit: the arithmetic is the same, whatever the form."""
    more = {} if output is None else {"output_dtype": output}
    model = bytes(table(element, scales, zero, indices, (rows, columns), scale=scale, **more).model().SerializeToString())
    feeds = {"i": some_indices(indices, rows)}
    session = ours(model)
    (expected,), (found,) = unoptimized(model).run(None, feeds), session.run(None, feeds)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)
    report = made_report(session)
    event(f"{element} {scales}: {'fused' if report.fused else 'left'}")
    # One column has one scale, and a block as long as a row is a row.
    is_odd = (scales == "columns" and columns > 1) or (scales == "odd blocks" and columns > 6)
    assert len(report.fused) == (element.endswith("8") or not is_odd), report


@settings(max_examples=40, deadline=None)
@given(
    element=st.sampled_from(["uint8", "int8"]),
    scales=st.sampled_from(sorted(SCALES)),
    zero=st.sampled_from(["none", "random"]),
    scale=st.sampled_from(["float", "float16"]),
    shape=st.sampled_from([(70,), (700, 3, 20), (70, 1, 1, 17)]),
    indices=st.sampled_from(INDICES),
)
def test_tables_of_bytes_may_have_any_rank(
    element: str, scales: str, zero: Zero, scale: str, shape: tuple[int, ...], indices: list[int]
) -> None:
    axis = min(SCALES[scales]["axis"], len(shape) - 1)
    more = {"axis": axis, "block": PER_CHANNEL} if not axis and SCALES[scales]["block"] > 0 else {"axis": axis}
    model = bytes(table(element, scales, zero, indices, shape, scale=scale, **more).model().SerializeToString())
    feeds = {"i": some_indices(indices, 70)}
    session = ours(model)
    np.testing.assert_array_equal(session.run(None, feeds)[0], unoptimized(model).run(None, feeds)[0])
    assert made_report(session).fused


@settings(max_examples=60, deadline=None)
@given(
    element=st.sampled_from(["uint4", "int4", "uint8", "int8"]),
    zero=st.sampled_from(["none", "random"]),
    form=st.sampled_from(["axis", "rows", "rows in blocks", "written out"]),
    indices=st.sampled_from(INDICES),
    rows=st.integers(60, 90),
    groups=st.integers(1, 5),
    size=st.sampled_from([16, 32, 64]),
)
def test_tables_of_groups(
    element: str, zero: Zero, form: str, indices: list[int], rows: int, groups: int, size: int
) -> None:
    """A Reshape makes rows of groups, which are an axis of their own, or rows themselves."""
    draft = Draft(f"{element}-{zero}-{form}-{rows}-{groups}-{size}")
    draft.input("i", indices, "int64")
    shape = (rows, groups, size) if form in ("axis", "written out") else (rows * groups, size)
    if form == "written out":
        draft.quantized("w", element, shape)
        value = draft.node("Cast", ["w"], to=TensorProto.FLOAT)
        if zero == "random":
            draft.quantized("z", element, (*shape[:-1], 1))
            value = draft.node("Sub", [value, draft.node("Cast", ["z"], to=TensorProto.FLOAT)])
        value = draft.node("Mul", [value, draft.floats("s", (*shape[:-1], 1))])
    else:
        axis, block = {"axis": (2, size), "rows": (0, PER_CHANNEL), "rows in blocks": (1, size)}[form]
        value = draft.dequantize("w", shape, axis=axis, block=block, element=element, zero=zero)
    value = draft.node("Reshape", [value, draft.ints("to", [rows, groups * size])])
    draft.output(draft.node("Gather", [value, "i"], "y"), None)
    model = bytes(draft.model().SerializeToString())
    feeds = {"i": some_indices(indices, rows)}
    session = ours(model)
    np.testing.assert_array_equal(session.run(None, feeds)[0], unoptimized(model).run(None, feeds)[0])
    report = made_report(session)
    event(f"{form}: {'fused' if report.fused else report.unfused[0].reason.name}")
    assert len(report.fused) + (report.unfused[0].reason is Reason.SMALL_TABLE if report.unfused else 0) == 1, report


OPSETS: list[tuple[int, str, str, dict[str, Any]]] = [
    (10, "uint8", "one", {}), (11, "int8", "one", {"zero": "none"}), (13, "uint8", "columns", {}), (13, "int8", "rows", {}),
    (17, "uint8", "rows", {"domain": MS, "scale": "float16"}), (17, "int8", "one", {"domain": MS, "scale": "float16"}),
    (17, "uint4", "rows", {"domain": MS}), (19, "int8", "columns", {"scale": "float16"}),
]  # fmt: skip


@pytest.mark.parametrize(("opset", "element", "scales", "more"), OPSETS)
@pytest.mark.parametrize("indices", [[4], [2, 2]])
def test_models_of_old_opsets(opset: int, element: str, scales: str, more: dict[str, Any], indices: list[int]) -> None:
    given = {"zero": "random", "scale": "float", **more}
    zero, scale = given.pop("zero"), given.pop("scale")
    if opset < 13:
        given = {"block": PER_TENSOR, "axis": 0, **given}
    model = bytes(
        table(element, scales, zero, indices, (60, 33), opset=opset, scale=scale, **given).model().SerializeToString()
    )
    session, feeds = ours(model), {"i": some_indices(indices, 60)}
    np.testing.assert_array_equal(session.run(None, feeds)[0], unoptimized(model).run(None, feeds)[0])
    assert made_report(session).fused


@pytest.mark.parametrize("element", ["uint8", "int8"])
@pytest.mark.parametrize("scales", ["one", "rows", "columns", "blocks"])
@pytest.mark.parametrize("zero", ["none", "random"])
@pytest.mark.parametrize("scale", ["float", "float16"])
def test_every_form_that_takes_a_table_gives_the_same_bits(
    element: str, scales: str, zero: Zero, scale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those too that are not the first choice."""
    taken = []
    for indices in ([7], [2, 3]) if zero == "random" else ([2, 3],):
        model = bytes(table(element, scales, zero, indices, (60, 64), scale=scale).model().SerializeToString())
        feeds = {"i": some_indices(indices, 60)}
        (expected,) = unoptimized(model).run(None, feeds)
        for form in Form:
            key = (CODES[scale], True, Scales[scales.upper()])
            monkeypatch.setitem(CHOICES, key, Choice((form,), whole=1, row=0, looked_up=0))
            session = ours(model)
            np.testing.assert_array_equal(session.run(None, feeds)[0], expected)
            taken += [form] * len(made_report(session).fused)
    assert len(taken) >= 2


# Indices out of range

FORMS: dict[str, tuple[str, str, Zero]] = {
    "GatherBlockQuantized": ("uint4", "blocks", "random"), "DequantizeLinear": ("int8", "one", "none"),
    "Cast, Mul": ("int8", "columns", "none"), "Cast, Sub, Mul": ("uint8", "columns", "random"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("wrong", [60, -61, 2**31, 2**32, -(2**63)])
@pytest.mark.parametrize("indices", [[], [2, 2]])
def test_indices_out_of_range_are_refused_as_stock_refuses_them(name: str, wrong: int, indices: list[int]) -> None:
    element, scales, zero = FORMS[name]
    model = bytes(table(element, scales, zero, indices, (60, 64), scale="float").model().SerializeToString())
    given = np.ravel(some_indices(indices, 60)).copy()
    given[-1] = wrong
    session = ours(model)
    assert made_report(session).fused
    told = [raised(partial(made.run, None, {"i": given.reshape(indices)})) for made in (stock(model), session)]
    problems = [text.split("indices element out of data bounds")[-1] for _, text in filter(None, told)]
    assert len(problems) == 2
    assert problems[0] == problems[1]
    # It goes on.
    fine = {"i": some_indices(indices, 60)}
    np.testing.assert_array_equal(session.run(None, fine)[0], stock(model).run(None, fine)[0])


def test_int32_indices() -> None:
    for element, scales, zero in FORMS.values():
        draft = table(element, scales, zero, [5], (60, 64), scale="float")
        draft.inputs[0].type.tensor_type.elem_type = TensorProto.INT32
        model = bytes(draft.model().SerializeToString())
        feeds = {"i": np.array([0, -1, 59, -60, 7], np.int32)}
        np.testing.assert_array_equal(ours(model).run(None, feeds)[0], unoptimized(model).run(None, feeds)[0])


# Where the lookup is


def outer_and_inner(element: str, scales: str, zero: Zero) -> Draft:
    """A lookup in a branch, of a table outside, and one of a table in the branch itself."""
    draft = Draft("branches")
    draft.input("i", [2, 2], "int64")
    draft.input("c", [], "bool")
    draft.dequantize("w", (60, 64), element=element, zero=zero, **SCALES[scales])
    branches = {}
    for name in ("then", "else"):
        branch = Draft(parent=draft)
        taken = "w_d" if name == "then" else branch.dequantize("v", (60, 64), element=element, zero=zero, **SCALES[scales])
        branch.node("Gather", [taken, "i"], f"{name}_y")
        branch.output(f"{name}_y", [2, 2, 64])
        branches[f"{name}_branch"] = branch.graph(name)
    draft.node("If", ["c"], "y", **branches)
    draft.output("y", [2, 2, 64])
    return draft


@pytest.mark.parametrize("name", FORMS)
def test_lookups_in_branches(name: str) -> None:
    model = bytes(outer_and_inner(*FORMS[name]).model().SerializeToString())
    session = ours(model)
    assert len(made_report(session).fused) == 2
    assert not made_report(session).unfused
    for taken in (True, False):
        feeds = {"i": some_indices([2, 2], 60), "c": np.array(taken)}
        np.testing.assert_array_equal(session.run(None, feeds)[0], unoptimized(model).run(None, feeds)[0])
        feeds["i"][0, 0] = 60
        assert raised(partial(session.run, None, feeds)) is not None


WHOLE = "(w, s, i) => (y) { d = DequantizeLinear <axis = 0> (w, s)  y = Gather(d, i) }"
LOOKUP_ALONE = "(d, i) => (y) { y = Gather(d, i) }"


@pytest.mark.parametrize(
    ("body", "call"),
    [
        (WHOLE, "y = local.Table(w, w_s, i)"),
        (LOOKUP_ALONE, "d = DequantizeLinear <axis = 0> (w, w_s)  y = local.Table(d, i)"),
    ],
)
@pytest.mark.parametrize("scales", ["one", "rows"])
def test_lookups_in_functions(body: str, call: str, scales: str) -> None:
    draft = table("int8", scales, "none", [2, 2], (60, 64), opset=21, scale="float")
    draft.nodes.clear()
    imports = '<domain: "local", opset_import: ["" : 21]>'
    draft.functions.append(onnx.parser.parse_function(f"{imports} Table {body}"))
    draft.write(call)
    model = bytes(draft.model().SerializeToString())
    session, feeds = ours(model), {"i": some_indices([2, 2], 60)}
    assert len(made_report(session).fused) == 1
    np.testing.assert_array_equal(session.run(None, feeds)[0], unoptimized(model).run(None, feeds)[0])


# What ONNX Runtime's own optimizer makes of it


@pytest.mark.parametrize("scales", ["one", "rows", "columns", "blocks"])
@pytest.mark.parametrize("along", [0, 1])
@pytest.mark.parametrize("transposed", [False, True])
def test_rows_that_are_multiplied_by_a_dequantized_weight(scales: str, along: int, transposed: bool) -> None:
    """ONNX Runtime makes an integer product of two dequantized operands, and refuses scales that it then does not take."""
    draft = table("uint8", scales, "random", [64], (2000, 64), opset=21, scale="float")
    draft.nodes[-1].output[0] = draft.nodes[-1].name = "e"
    draft.dequantize("v", (64, 32), axis=along, block=PER_CHANNEL, element="int8", zero="none")
    rows = draft.node("Transpose", ["e"], "t", perm=[1, 0]) if transposed else "e"
    draft.node("MatMul", [rows, "v_d"], "y")
    model = bytes(draft.model().SerializeToString())
    session, feeds = (
        create_session(model, quiet(), providers=CPU, options=Options(accuracy_level=0)),
        {"i": np.arange(64)},
    )
    expected = unoptimized(model).run(None, feeds)[0]
    assert any(entry.kind == "Gather" for entry in made_report(session).fused)
    np.testing.assert_allclose(session.run(None, feeds)[0], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_table_that_is_an_output_head_too_is_packed_once() -> None:
    draft = table("int4", "blocks", "none", [4], (64, 64), opset=21, scale="float", block=32)
    draft.outputs.clear()
    draft.node("MatMul", ["y", draft.node("Transpose", ["w_d"], "t", perm=[1, 0])], "z")
    draft.output("z", [4, 64])
    model = bytes(draft.model().SerializeToString())
    session = ours(model)
    lookup, product = made_report(session).fused
    assert lookup.packed_bytes == product.packed_bytes == 64 * 32
    assert made_report(session).packed_bytes == 64 * 32
    assert session.run(None, {"i": np.arange(4)})[0].shape == (4, 64)
