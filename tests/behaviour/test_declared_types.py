"""A product is computed in no narrower type than the model declares: scales, output_dtype and Casts of every type."""

from itertools import product
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from conformance.drawing.draft import Draft
from conformance.drawing.elements import FLOATS, TYPES, unpack
from ort_qdq_plugin import Options, Report, create_session
from ort_qdq_plugin.system.platform import host
from tests.support import CPU, Array, made_report, quiet, stock

K, N, ROWS, BLOCK = 64, 24, 3, 32
# The largest relative error of a value that is rounded to a type.
ROUNDS = {"float": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
CASTS = ["", *FLOATS, "double float", *(f"{one} {two}" for one, two in product(FLOATS, FLOATS) if one != two)]

# Scales, and what the activations are multiplied by, so that results are some ten. The second are below what float16 holds
# with all of its bits, the third make of a scale times an element what float16 does not hold at all.
SIZES = {"usual": (0.01, 0.1, 1.0), "small": (1e-7, 1e-6, 1e4), "large": (1e4, 2e4, 1e-4)}


def drawn(scale: str, output: str, casts: str, size: str, *more: str, n_major: bool = False) -> Draft:
    """y = x @ W in the type that W comes in; x and y are float."""
    draft = Draft("types", opset=23)
    low, high, _ = SIZES[size]
    attributes: dict[str, Any] = {"output_dtype": TYPES[output]} if output else {}
    weight = draft.dequantize(
        "w", (N, K) if n_major else (K, N), axis=int(n_major), block=BLOCK, zero="none", scale=scale,
        scale_range=(low, high), **attributes,
    )  # fmt: skip
    types = [scale, *filter(None, [output]), *casts.split(), *more]
    for kind in [*casts.split(), *more]:
        weight = draft.node("Cast", [weight], to={**TYPES, "double": 11, "float8e4m3fn": 17}[kind])
    x = draft.node("Cast", [draft.input("x", (ROWS, K))], "x_c", to=TYPES[types[-1]])
    result = draft.node("Gemm", [x, weight], transB=1) if n_major else draft.node("MatMul", [x, weight])
    draft.node("Cast", [result], "y", to=TYPES["float"])
    draft.output("y", (ROWS, N))
    return draft


def true_weight(draft: Draft, scale: str, n_major: bool) -> Array:
    """W[K, N] as it is stored, in float64."""
    stored = {tensor.name: tensor.raw_data for tensor in draft.initializers}
    shape = (N, K) if n_major else (K, N)
    elements = unpack(np.frombuffer(stored["w"], np.uint8), 4).reshape(shape).astype(np.float64)
    bits = np.frombuffer(stored["w_s"], np.uint32 if scale == "float" else np.uint16)
    scales = (bits.astype(np.uint32) << 16).view(np.float32) if scale == "bfloat16" else bits.view(f"f{bits.itemsize}")
    scales = scales.astype(np.float64).reshape((N, -1) if n_major else (-1, N)).repeat(BLOCK, axis=int(n_major))
    weight: Array = elements * scales
    return weight.T if n_major else weight


def run(draft: Draft, x: Array) -> tuple[Report, Array]:
    """The report, and the result at level 0."""
    session = create_session(draft.model().SerializeToString(), quiet(), CPU, options=Options(accuracy_level=0))
    return made_report(session), session.run(None, {"x": x})[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("output", ["", *FLOATS])
@pytest.mark.parametrize("scale", FLOATS)
@pytest.mark.parametrize("n_major", [False, True])
def test_no_type_is_narrower_than_declared(scale: str, output: str, size: str, n_major: bool) -> None:
    x = (np.random.default_rng(0).standard_normal((ROWS, K)) * SIZES[size][2]).astype(np.float16).astype(np.float32)
    # By turns: each is tried for both layouts, for one at every size.
    for casts in CASTS[(list(SIZES).index(size) + n_major) % 2 :: 2]:
        draft = drawn(scale, output, casts, size, n_major=n_major)
        final = (casts or output or scale).split()[-1]
        report, result = run(draft, x)
        assert len(report.fused) == 1, (casts, report)
        weight = true_weight(draft, scale, n_major)
        wanted, summed = x.astype(np.float64) @ weight, np.abs(x).astype(np.float64) @ np.abs(weight)
        # x is rounded to the product's type, and so is the result.
        allowed = 1e-6 * summed + ROUNDS[final] * (np.abs(wanted) + (summed if final == "bfloat16" else 0)) + 1e-6
        if host.is_arm() and (scale, final) == ("float16", "float16"):
            # ONNX Runtime's kernels dequantize to float16 there, and add in it, stock's unfused ones too.
            if size == "large":
                continue
            allowed += 2 * ROUNDS[final] * summed
        assert (np.abs(result - wanted) <= allowed).all(), casts


@pytest.mark.parametrize("cast", ["int32", "int64", "int8", "bool", "float8e4m3fn"])
@pytest.mark.parametrize("scale", ["float", "float16"])
def test_casts_that_make_other_values_are_not_left_out(cast: str, scale: str) -> None:
    draft = drawn(scale, "", cast, "usual", "float")
    x = np.random.default_rng(0).standard_normal((ROWS, K)).astype(np.float32)
    report, result = run(draft, x)
    unoptimized = quiet()
    unoptimized.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    reference = stock(draft.model().SerializeToString(), unoptimized)
    assert [left.reason.name for left in report.unfused] == ["ROUNDED"]
    np.testing.assert_array_equal(result, reference.run(None, {"x": x})[0])


def test_an_output_type_that_no_kernel_has_is_onnx_runtimes_error() -> None:
    draft: Any = drawn("float", "", "float", "usual")
    next(node for node in draft.nodes if node.op_type == "DequantizeLinear").attribute.add(name="output_dtype", i=6, type=2)
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        create_session(draft.model().SerializeToString(), quiet(), CPU)
