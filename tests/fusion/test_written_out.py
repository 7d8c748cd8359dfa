"""Dequantizing written out as Cast, Sub and Mul, against unoptimized ONNX Runtime and against the same weight behind a
DequantizeLinear.
"""

from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from conformance.drawing.draft import Draft
from conformance.drawing.elements import TYPES
from conformance.tolerances import largest_error
from ort_qdq_plugin import FusedWeight, Options, Reason, Report, create_session, inspect
from tests.support import CPU, made_report, quiet, result, stock

K, N, BLOCK = 64, 48, 16


class Form(NamedTuple):
    """How a weight [K, N] is stored and written out."""

    element: str = "int8"
    scale: str = "float"
    n_major: bool = True
    shares: str = "blocks"  # "tensor", "channel" or "blocks"
    zeros: str = "none"  # "none", "integers" (behind a Cast), "floats", "one" of them, or "early" (subtracted as int32)
    scale_first: bool = False  # the order of Mul's operands
    reshape_late: bool = False  # behind the Cast, not in front of it
    k: int = K
    n: int = N
    block: int = BLOCK

    @property
    def stored(self) -> tuple[int, int]:
        return (self.n, self.k) if self.n_major else (self.k, self.n)

    @property
    def in_blocks(self) -> tuple[int, ...]:
        """The weight as the Mul sees it, before any Transpose."""
        if self.shares != "blocks":
            return self.stored
        blocks = self.k // self.block
        return (self.n, blocks, self.block) if self.n_major else (blocks, self.block, self.n)

    @property
    def of_scales(self) -> tuple[int, ...]:
        if self.shares == "tensor":
            return ()
        if self.shares == "channel":
            return (self.n, 1) if self.n_major else (self.n,)
        blocks = self.k // self.block
        return (self.n, blocks, 1) if self.n_major else (blocks, 1, self.n)


def draft_of(form: Form) -> tuple[Draft, str]:
    """A draft with the weight's constants w, s and z, its input x and the opset that its type needs; and the zero points."""
    draft = Draft(repr(form), opset=25 if "2" in form.element else 21)
    draft.input("x", ["m", form.k], form.scale)
    draft.output("y", ["m", form.n], form.scale)
    draft.quantized("w", form.element, form.stored)
    draft.floats("s", form.of_scales, form.scale)
    if form.zeros != "none":
        draft.quantized("z", form.element, () if form.zeros == "one" else form.of_scales)
    return draft, "" if form.zeros == "none" else "z"


def written(form: Form) -> onnx.ModelProto:
    """x times the weight, written out."""
    draft, zeros = draft_of(form)
    node, target = draft.node, TYPES[form.scale]

    def reshaped(name: str) -> str:
        return node("Reshape", [name, draft.ints("blocks", form.in_blocks)]) if form.in_blocks != form.stored else name

    value = "w" if form.reshape_late else reshaped("w")
    if form.zeros == "early":
        value = node("Cast", [value], to=TensorProto.INT32)
        value = reshaped(value) if form.reshape_late else value
        value = node("Sub", [value, node("Cast", [zeros], to=TensorProto.INT32)])
        value = node("Cast", [value], to=target)
    else:
        value = node("Cast", [value], to=target)
        value = reshaped(value) if form.reshape_late else value
    if form.zeros in ("integers", "one"):
        value = node("Sub", [value, node("Cast", [zeros], to=target)])
    elif form.zeros == "floats":
        at = next(at for at, tensor in enumerate(draft.initializers) if tensor.name == zeros)
        numbers = onnx.numpy_helper.to_array(draft.initializers.pop(at)).astype(np.float32)
        draft.constant(onnx.numpy_helper.from_array(numbers.astype("f4" if form.scale == "float" else "f2"), "z"))
        value = node("Sub", [value, "z"])
    value = node("Mul", ["s", value] if form.scale_first else [value, "s"], "w_d")
    if form.shares == "blocks":
        value = node("Reshape", [value, draft.ints("back", form.stored)])
    if form.n_major:
        value = node("Transpose", [value], perm=[1, 0])
    node("MatMul", ["x", value], "y")
    return draft.model()


def twin(form: Form) -> onnx.ModelProto:
    """The same with a DequantizeLinear."""
    draft, zeros = draft_of(form)
    initializers = {tensor.name: tensor for tensor in draft.initializers}
    axis = {"blocks": 1 if form.n_major else 0, "channel": 0 if form.n_major else 1, "tensor": None}[form.shares]
    shape = {"channel": [form.n], "tensor": [], "blocks": [*filter(lambda size: size != 1, form.of_scales)]}[form.shares]
    del initializers["s"].dims[:]
    initializers["s"].dims.extend(shape)
    if zeros and form.zeros == "one":
        value = int(onnx.numpy_helper.to_array(initializers["z"]))
        filled = [value] * int(np.prod(shape))
        initializers["z"].CopyFrom(onnx.helper.make_tensor("z", TYPES[form.element], shape, filled))
    elif zeros:
        del initializers["z"].dims[:]
        initializers["z"].dims.extend(shape)
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    if form.shares == "blocks":
        attributes["block_size"] = form.block
    weight = draft.node("DequantizeLinear", ["w", "s", *([zeros] if zeros else [])], "w_d", **attributes)
    if form.n_major:
        weight = draft.node("Transpose", [weight], perm=[1, 0])
    draft.node("MatMul", ["x", weight], "y")
    return draft.model()


def unoptimized(model: onnx.ModelProto) -> ort.InferenceSession:
    options = quiet()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return stock(model.SerializeToString(), options)


def ours(model: onnx.ModelProto, level: int = 4) -> ort.InferenceSession:
    return create_session(model.SerializeToString(), quiet(), CPU, options=Options(strict=True, accuracy_level=level))


def shown(fusion: FusedWeight) -> tuple[Any, ...]:
    return fusion.k, fusion.n, fusion.bits, fusion.block_size, fusion.layout, fusion.stored_bits


# ONNX Runtime has no Reshape of elements of less than a byte.
forms = st.builds(
    Form,
    element=st.sampled_from(["int8", "uint8", "int4", "uint4", "int2", "uint2"]),
    scale=st.sampled_from(["float", "float", "float16"]),
    n_major=st.booleans(),
    shares=st.sampled_from(["tensor", "channel", "blocks"]),
    zeros=st.sampled_from(["none", "integers", "floats", "one", "early"]),
    scale_first=st.booleans(),
    reshape_late=st.booleans(),
    k=st.sampled_from([64, 96, 160]),
    n=st.integers(2, 40),
    block=st.sampled_from([16, 32]),
).filter(lambda form: form.element in ("int8", "uint8") or form.reshape_late)


@settings(max_examples=25, deadline=None)
@given(form=forms)
def test_is_what_a_dequantize_linear_is(form: Form) -> None:
    model, other = written(form), twin(form)
    session, expected = ours(model), ours(other)
    (fusion,), (theirs,) = made_report(session).fused, made_report(expected).fused
    assert shown(fusion) == shown(theirs)
    np.testing.assert_array_equal(result(session), result(expected))
    near = largest_error(form.scale, 0)
    exact = result(unoptimized(model)).astype(np.float64)
    assert np.abs(result(ours(model, 0)).astype(np.float64) - exact).max() <= near * np.abs(exact).max()


@pytest.mark.parametrize("n_major", [True, False])
@pytest.mark.parametrize("shares", ["tensor", "channel", "blocks"])
def test_transposes_in_front_of_the_mul(n_major: bool, shares: str) -> None:
    """The weight stays as it is stored: [N, K] or [K, N], in any case seen as [K, N] or in blocks of it."""
    form = Form(n_major=n_major, shares=shares)
    draft, _ = draft_of(form)
    value = draft.node("Cast", ["w"], to=TensorProto.FLOAT)
    if shares == "blocks":
        value = draft.node("Reshape", [value, draft.ints("blocks", form.in_blocks)])
    perm = list(range(len(form.in_blocks)))[::-1]
    scales = draft.node("Transpose", ["s"], perm=perm) if form.of_scales[1:] else "s"
    scales = draft.node("Reshape", [scales, draft.ints("row", [N, 1])]) if scales == "s" and shares == "channel" else scales
    value = draft.node("Mul", [draft.node("Transpose", [value], perm=perm), scales])
    value = draft.node("Transpose", [value], perm=perm)
    if shares == "blocks":
        value = draft.node("Reshape", [value, draft.ints("back", form.stored)])
    draft.node("MatMul", ["x", draft.node("Transpose", [value], perm=[1, 0]) if n_major else value], "y")
    model = draft.model()
    session = ours(model)
    (fusion,) = made_report(session).fused
    assert fusion.layout == ("N-major" if n_major else "K-major")
    np.testing.assert_allclose(result(session), result(unoptimized(model)), rtol=0.02, atol=0.2)
    np.testing.assert_array_equal(result(session), result(ours(twin(form))))


def table(rows: int, shares: str, kind: str = "int8", width: int = 64) -> onnx.ModelProto:
    """A lookup in a table that is written out."""
    draft = Draft("table")
    draft.input("x", [4], "int64")
    draft.output("y", [4, width])
    draft.quantized("w", kind, (rows, width))
    draft.floats("s", {"tensor": (), "rows": (rows, 1), "columns": (width,)}[shares])
    draft.node("Gather", [draft.node("Mul", [draft.node("Cast", ["w"], to=TensorProto.FLOAT), "s"]), "x"], "y")
    return draft.model()


@pytest.mark.parametrize(("shares", "kind"), [("tensor", "int8"), ("rows", "uint8"), ("columns", "int8"), ("rows", "uint4")])
def test_lookups_are_exact(shares: str, kind: str) -> None:
    model = table(30000, shares, kind)
    session = ours(model)
    assert [fusion.kind for fusion in made_report(session).fused] == ["Gather"]
    feeds = {"x": np.array([0, 29999, 17, -1], np.int64)}
    np.testing.assert_array_equal(session.run(None, feeds)[0], unoptimized(model).run(None, feeds)[0])


@pytest.mark.parametrize("level", [0, 4])
def test_8_bits_are_left_where_floats_are_faster(level: int) -> None:
    report = made_report(ours(written(Form(n_major=False)), level))
    assert [entry.reason for entry in report.unfused] == [Reason.SLOWER_THAN_FLOAT] * (level == 0)
    assert len(report.fused) == (level == 4)
    assert len(made_report(ours(written(Form("int4", reshape_late=True)), level)).fused) == 1


def other(draft: Draft, kind: str) -> None:
    """Cast and Mul of integers that are no weight."""
    if kind == "vector":
        draft.quantized("w", "int8", (N,))
    elif kind == "int32":
        draft.quantized("w", "int32", (K, N))
    elif kind == "input":
        draft.input("w", [K, N], "int8")
    else:
        draft.quantized("w", "int8", (K, N))
    scales = draft.input("t", [N]) if kind == "scaled at run time" else draft.floats("s", (N,))
    value = draft.node("Mul", [draft.node("Cast", ["w"], to=TensorProto.FLOAT), scales])
    draft.output(draft.node("Add" if kind == "added" else "MatMul", ["x", value], "y"), None)


@pytest.mark.parametrize("kind", ["vector", "int32", "input", "scaled at run time", "added"])
def test_what_is_no_weight_is_not_listed(kind: str) -> None:
    draft = Draft("other")
    draft.input("x", [K, K] if kind != "added" else [K, N])
    other(draft, kind)
    seen = inspect(draft.model().SerializeToString())
    assert (seen.fused, seen.unfused) == ((), ())


@pytest.mark.parametrize(
    "nodes",
    [
        "w_d = Div(c, s)",
        "m = Mul(c, s)  w_d = Mul(m, s)",
        "m = Mul(c, s)  w_d = Sub(m, s)",
        "m = Mul(c, s)  w_d = Add(s, m)",
        "m = Sub(c, s)  o = Sub(m, s)  w_d = Mul(o, s)",
    ],
)
def test_other_steps_are_told(nodes: str) -> None:
    draft = Draft("steps")
    draft.input("x", ["m", K])
    draft.output("y", ["m", N])
    draft.quantized("w", "int8", (K, N))
    draft.floats("s", (N,))
    draft.write(f"c = Cast <to = 1> (w)  {nodes}  y = MatMul(x, w_d)")
    seen = inspect(draft.model().SerializeToString())
    assert [entry.reason for entry in seen.unfused] == [Reason.OTHER_STEPS]
    assert (seen.unfused[0].bytes_per_run, seen.unfused[0].bytes_folded) == (0, 4 * K * N)
    assert made_report(ours(draft.model())).fused == ()


@pytest.mark.parametrize("shape", [(0, N), (K, 0)])
def test_weights_of_no_elements_are_left(shape: tuple[int, int]) -> None:
    draft = Draft("empty")
    draft.input("x", ["m", shape[0]])
    draft.quantized("w", "int8", shape)
    draft.scalar("s", 0.1)
    draft.write("c = Cast <to = 1> (w)  w_d = Mul(c, s)  y = MatMul(x, w_d)")
    draft.output("y", ["m", shape[1]])
    model = draft.model()
    session = ours(model)
    assert made_report(session).fused == ()
    feeds = {"x": np.ones((2, shape[0]), np.float32)}
    np.testing.assert_array_equal(session.run(None, feeds)[0], unoptimized(model).run(None, feeds)[0])


def test_types_that_do_not_fit_are_left_to_stock() -> None:
    model = written(Form())
    scales = next(tensor for tensor in model.graph.initializer if tensor.name == "s")
    scales.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scales).astype(np.float16), "s"))
    seen = inspect(model.SerializeToString(), check=False)
    assert [entry.reason for entry in seen.unfused] == [Reason.COMPUTED]


def test_an_overridable_scale_is_left_alone() -> None:
    model = written(Form())
    scales = next(tensor for tensor in model.graph.initializer if tensor.name == "s")
    model.graph.input.append(onnx.helper.make_tensor_value_info("s", TensorProto.FLOAT, scales.dims))
    assert inspect(model.SerializeToString()).fused == ()


def test_zero_points_are_read_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ort_qdq_plugin.fusion.written_out._MAX_READ_BYTES", 100)
    seen: Report = inspect(written(Form(zeros="floats")).SerializeToString())
    assert [entry.reason for entry in seen.unfused] == [Reason.COMPUTED]
    assert len(inspect(written(Form(zeros="integers")).SerializeToString()).fused) == 1
