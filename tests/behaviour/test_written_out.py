"""Weights that are written out as Cast, Sub and Mul: what is left and told, what is shared, and ways to load them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from conformance.drawing.draft import Draft
from conformance.drawing.elements import TYPES
from conformance.tolerances import largest_error
from ort_qdq_plugin import Options, Reason, create_session, export, inspect
from tests.fusion.test_written_out import Form, K, N, ours, unoptimized, written
from tests.support import CPU, made_report, quiet, result, stock

# What is left to stock ONNX Runtime: the scales' shape, zero points or None, what reads it; and why.
LEFT: dict[str, tuple[Sequence[int], Any, str, Reason]] = {
    "a scale for each element": ((K, N), None, "MatMul", Reason.SCALE_SHAPE),
    "a scale for each index of K, and zero points": ((K, 1), 3.0, "MatMul", Reason.BLOCKS_ALONG_N),
    "zero points that are fractions": ((N,), 7.5, "MatMul", Reason.FRACTIONAL),
    "zero points out of range": ((N,), 128.0, "MatMul", Reason.FRACTIONAL),
    "zero points that are no numbers": ((N,), np.nan, "MatMul", Reason.FRACTIONAL),
    "a reader that is no product": ((N,), None, "Einsum", Reason.EINSUM),
    "a table that is small": ((N,), None, "Gather", Reason.SMALL_TABLE),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_is_told(name: str) -> None:
    shape, zero, op, reason = LEFT[name]
    draft = Draft("left")
    draft.input("x", ["m", K] if op != "Gather" else ["m"], "float" if op != "Gather" else "int64")
    draft.output("y", None)
    draft.quantized("w", "int8", (K, N))
    draft.floats("s", shape)
    value = draft.node("Cast", ["w"], to=TensorProto.FLOAT)
    if zero is not None:
        value = draft.node("Sub", [value, draft.scalar("z", zero)])
    value = draft.node("Mul", [value, "s"], "w_d")
    attributes: dict[str, Any] = {"equation": "mk,jn->mn"} if op == "Einsum" else {}
    draft.node(op, ["w_d", "x"] if op == "Gather" else ["x", "w_d"], "y", **attributes)
    model = draft.model()
    seen = inspect(model.SerializeToString())
    assert not seen.fused
    (entry,) = seen.unfused
    assert (entry.reason, entry.dequantize, entry.weight, entry.shape, entry.bits) == (reason, "w_d_node", "w", (K, N), 8)
    assert (entry.bytes_per_run, entry.bytes_added, entry.bytes_folded) == (0, 0, 4 * K * N)
    assert f"int8 [{K}, {N}]" in entry.form
    assert "written out as Cast," in entry.form
    session = ours(model)
    assert made_report(session).unfused == (entry,)
    feeds = {"x": np.arange(5)} if op == "Gather" else {"x": np.ones((2, K), np.float32)}
    if not np.isnan(zero or 0):
        np.testing.assert_allclose(session.run(None, feeds)[0], unoptimized(model).run(None, feeds)[0], rtol=1e-4, atol=1e-4)


def shared(what: str) -> onnx.ModelProto:
    """A written-out weight a part of which something else needs, too."""
    draft = Draft("shared")
    draft.input("x", ["m", K])
    draft.output("y", ["m", N])
    draft.quantized("w", "int8", (K, N))
    draft.floats("s", (N,))
    value = draft.node("Mul", [draft.node("Cast", ["w"], "c", to=TensorProto.FLOAT), "s"], "w_d")
    draft.node("MatMul", ["x", value], "y")
    if what in ("c", "w_d"):
        draft.output(what, [K, N])
    elif what == "another reader":
        draft.output(draft.node("Relu", ["c"], "r"), [K, N])
    elif what == "another product":
        draft.output(draft.node("MatMul", ["x", "w_d"], "v"), ["m", N])
    else:
        draft.output(draft.node("Relu", ["w_d"], "r"), [K, N])
    return draft.model()


@pytest.mark.parametrize("what", ["c", "w_d", "another reader", "another product", "another reader of the weight"])
def test_what_is_shared_stays_right(what: str) -> None:
    model = shared(what)
    session = ours(model)
    assert len(made_report(session).fused) == (2 if what == "another product" else 1)
    feeds = {"x": np.ones((3, K), np.float32)}
    for mine, theirs in zip(session.run(None, feeds), unoptimized(model).run(None, feeds), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0.02, atol=0.02)


# Scales behind the product


class Behind(NamedTuple):
    """A weight [K, N] without scales, which stand behind the product."""

    element: str
    scale: str
    n_major: bool
    zeros: str  # "none", "floats" (behind a Cast), or "early" (subtracted as int32)
    k: int
    n: int


def behind(form: Behind) -> onnx.ModelProto:
    draft = Draft(repr(form), opset=25 if "2" in form.element else 21)
    draft.input("x", ["m", form.k], form.scale)
    draft.output("y", ["m", form.n], form.scale)
    draft.quantized("w", form.element, (form.n, form.k) if form.n_major else (form.k, form.n))
    draft.floats("s", (form.n,), form.scale)
    node, target = draft.node, TYPES[form.scale]
    first = TensorProto.INT32 if form.zeros == "early" else target
    value = node("Cast", ["w"], to=first)
    if form.zeros != "none":
        draft.quantized("z", form.element, (form.n, 1) if form.n_major else (form.n,))
        value = node("Sub", [value, node("Cast", ["z"], to=first)])
    value = node("Cast", [value], to=target) if form.zeros == "early" else value
    value = node("Transpose", [value], perm=[1, 0]) if form.n_major else value
    node("Mul", [node("MatMul", ["x", value]), "s"], "y")
    return draft.model()


@settings(max_examples=40, deadline=None)
@given(
    form=st.builds(
        Behind,
        element=st.sampled_from(["int8", "uint8", "int4", "uint4", "int2", "uint2"]),
        scale=st.sampled_from(["float", "float", "float16"]),
        n_major=st.booleans(),
        zeros=st.sampled_from(["none", "floats", "early"]),
        k=st.integers(16, 100),
        n=st.integers(2, 40),
    )
)
def test_scales_may_stand_behind_the_product(form: Behind) -> None:
    model = behind(form)
    is_8_bits = form.element.endswith("8")
    (fused,) = made_report(ours(model, 4)).fused
    assert (fused.k, fused.n, fused.stored_bits) == (form.k, form.n, int(form.element.lstrip("uint")))
    report = made_report(ours(model, 0))
    assert [entry.reason for entry in report.unfused] == [Reason.SLOWER_THAN_FLOAT] * is_8_bits
    near = largest_error(form.scale, 0)
    exact = result(unoptimized(model)).astype(np.float64)
    assert np.abs(result(ours(model, 0)).astype(np.float64) - exact).max() <= near * np.abs(exact).max()


@pytest.mark.parametrize("nodes", [
    "c = Cast <to = 7> (w)  y = MatMul(x, c)",  # a product of integers
    "c = Cast <to = 11> (w)  d = Cast <to = 11> (x)  m = MatMul(d, c)  y = Cast <to = 1> (m)",  # of double
    "c = Cast <to = 1> (w)  a = Add(c, o)  y = MatMul(x, a)",
    "c = Cast <to = 1> (w)  y = Add(x, c)",
    "c = Cast <to = 6> (w)  i = Sub(c, j)  f = Cast <to = 7> (i)  y = MatMul(x, f)",
])  # fmt: skip
def test_what_is_no_weight_without_a_scale_stays(nodes: str) -> None:
    draft = Draft("stays")
    kind = "int64" if "to = 7" in nodes else "float"
    draft.input("x", [N, K] if "Add(x" not in nodes else [K, N], kind)
    draft.quantized("w", "int8", (K, N))
    draft.scalar("o", 1)
    draft.constant(onnx.numpy_helper.from_array(np.array(3, np.int32), "j"))
    draft.write(nodes)
    draft.output("y", None, kind)
    session = ours(draft.model())
    report = made_report(session)
    assert not report.fused
    assert {entry.reason for entry in report.unfused} <= {Reason.OTHER_STEPS, Reason.SCALE_TYPE}
    if report.unfused:
        assert "written out as Cast" in report.unfused[0].form


def test_in_branches() -> None:
    """A weight outside them that both read, and one inside."""
    draft = Draft("branches")
    draft.input("x", ["m", K])
    draft.input("c", [], "bool")
    draft.output("y", ["m", N])
    draft.quantized("w", "int8", (K, N))
    draft.floats("s", (N,))
    draft.write("f = Cast <to = 1> (w)  w_d = Mul(f, s)")
    inside = "g = Cast <to = 1> (w)  e = Mul(g, t)  else_y = MatMul(x, e)"
    branches = {}
    for name, nodes in (("then", "then_y = MatMul(x, w_d)"), ("else", inside)):
        branch = Draft(parent=draft)
        branch.floats("t" if name == "else" else "unused", (N,))
        branch.write(nodes)
        branch.output(f"{name}_y", ["m", N])
        branches[f"{name}_branch"] = branch.graph(name)
    draft.node("If", ["c"], "y", **branches)
    model = draft.model()
    session = ours(model)
    assert len(made_report(session).fused) == 2
    for way in (True, False):
        feeds = {"x": np.ones((3, K), np.float32), "c": np.array(way)}
        np.testing.assert_allclose(session.run(None, feeds)[0], unoptimized(model).run(None, feeds)[0], rtol=0.02, atol=0.02)


def test_from_the_cache_and_exported(tmp_path: Path) -> None:
    stored = tmp_path / "model.onnx"
    stored.write_bytes(written(Form(zeros="floats")).SerializeToString())
    reports, results = [], []
    for _ in range(2):
        session = create_session(stored, quiet(), CPU, options=Options(strict=True, cache_dir=tmp_path / "cache"))
        reports.append(made_report(session))
        results.append(result(session))
    assert [report.cache for report in reports] == ["made", "used"]
    assert reports[0].fused == reports[1].fused
    assert "written out as Reshape, Cast, Sub, Mul" in reports[0].fused[0].form
    export(str(stored), tmp_path / "fused.onnx")
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], result(stock(str(tmp_path / "fused.onnx"))))
