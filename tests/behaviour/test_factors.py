"""Products with factors: what alpha and beta make of them, against NumPy in float64 and unoptimized ONNX Runtime."""

from itertools import product
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from conformance.drawing.draft import Draft
from conformance.drawing.elements import MS, TYPES, unpack
from ort_qdq_plugin import Options, create_session
from ort_qdq_plugin.system.platform import host
from tests.support import CPU, Array, made_report, quiet, stock

K, N, ROWS, BLOCK = 96, 24, 3, 32
DTYPES: dict[str, Any] = {"float": np.float32, "float16": np.float16}

# Among them those that leave a scale of float16 no bits, and those that float16 does not hold.
ALPHAS = (1.0, 0.3, -1.0, 0.0, 2.0**-14, 2.0**-16, 2.0**-30, 6e4, -65530.0, 1e9)
BETAS = (0.3, 2.0**-16, 65530.0, -1e9)
PAIRS = [*((alpha, 1.0) for alpha in ALPHAS), *product((1.0, 2.0**-14, -65530.0), BETAS)]
SHAPES: dict[str, tuple[int, ...] | None] = {
    "none": None, "row": (N,), "one row": (1, N), "scalar": (), "whole": (ROWS, N), "computed": (N,),
}  # fmt: skip


def drawn(kind: str, scale: str, bias: str, op: str = "Gemm", **attributes: Any) -> Draft:
    """y = alpha * (x @ W') + beta * c, computed in `kind`, of a weight with scales of another type maybe."""
    draft = Draft(f"{kind} {scale} {bias}")
    draft.input("x", (ROWS, K), kind)
    draft.output("y", (ROWS, N), kind)
    inputs = ["x", draft.dequantize("w", (N, K), axis=1, block=BLOCK, zero="none", scale=scale)]
    if scale != kind:
        inputs[1] = draft.node("Cast", inputs[1:], "w_c", to=TYPES[kind])
    shape = SHAPES[bias]
    if bias == "computed":
        inputs.append(draft.input("c", [N], kind))
    elif shape is not None:
        inputs.append(draft.floats("c", shape, kind, low=-1, high=1))
    draft.node(op, inputs, "y", domain=MS if op == "FusedMatMul" else "", transB=1, **attributes)
    return draft


def values_of(draft: Draft, scale: str) -> tuple[Array, Array | None]:
    """W' as it is before any rounding, and the bias if the model holds it, in float64."""
    stored = {tensor.name: tensor for tensor in draft.initializers}
    elements = unpack(np.frombuffer(stored["w"].raw_data, np.uint8), 4).reshape(N, K).astype(np.float64)
    scales = np.frombuffer(stored["w_s"].raw_data, DTYPES[scale]).reshape(N, K // BLOCK).astype(np.float64)
    weight = elements * scales.repeat(BLOCK, axis=1)
    if "c" not in stored:
        return weight, None
    bias = np.frombuffer(stored["c"].raw_data, DTYPES[{v: k for k, v in TYPES.items()}[stored["c"].data_type]])
    return weight, bias.astype(np.float64).reshape(tuple(stored["c"].dims))


def ours(model: bytes, level: int) -> ort.InferenceSession:
    session = create_session(model, quiet(), CPU, options=Options(accuracy_level=level))
    assert len(made_report(session).fused) == 1, made_report(session)
    return session


def unoptimized(model: bytes) -> ort.InferenceSession:
    options = quiet()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return stock(model, options)


def check(draft: Draft, kind: str, scale: str, alpha: float, beta: float, size: float = 1.0) -> None:
    """Run it: what comes is the true result, rounded to the result's type, but for what the sums round at either level."""
    rng, model, dtype = np.random.default_rng(1), draft.model().SerializeToString(), DTYPES[kind]
    feeds = {"x": (rng.standard_normal((ROWS, K)) * size).astype(dtype)}
    weight, bias = values_of(draft, scale)
    if any(value.name == "c" for value in draft.inputs):
        feeds["c"] = rng.uniform(-1, 1, N).astype(dtype)
        bias = feeds["c"].astype(np.float64)
    x, added = feeds["x"].astype(np.float64), 0.0 if bias is None else float(np.float32(beta)) * bias
    wanted = float(np.float32(alpha)) * (x @ weight.T) + added
    # A weight that is rounded to float16 before it is multiplied may differ by half a bit there.
    summed = abs(float(np.float32(alpha))) * (np.abs(x) @ np.abs(weight.T)) + np.abs(added)
    exactness = 1e-6 if kind == scale == "float" else 2.0**-11
    adds_in_float16 = kind == "float16" and host.is_arm()  # in ONNX Runtime's kernels
    if adds_in_float16:
        exactness *= 4
    limits = np.finfo(dtype)
    allowed = exactness * summed + 2 * float(limits.eps) * np.abs(wanted) + float(limits.smallest_subnormal)

    # Level 4 rounds x by a 254th of the largest of its block.
    coarse = allowed + abs(float(np.float32(alpha))) * np.abs(x).max() / 254 * np.abs(weight.T).sum(axis=0)
    results = [ours(model, level).run(None, feeds)[0] for level in (0, 4)]
    if not adds_in_float16:
        # There, its own Gemm rounds alpha and beta to float16 as well, some of them to infinity.
        results.append(unoptimized(model).run(None, feeds)[0])
    for result, limit in zip(results, (allowed, coarse, allowed), strict=False):
        assert result.dtype == dtype
        assert not np.isnan(result).any()
        surely_finite = np.abs(wanted) + limit < float(limits.max)
        assert np.isfinite(result[surely_finite]).all()
        assert (np.abs(result.astype(np.float64) - wanted) <= limit)[surely_finite].all()


@pytest.mark.parametrize("bias", SHAPES)
@pytest.mark.parametrize(("kind", "scale"), [*product(DTYPES, DTYPES)])
def test_any_alpha_and_beta_of_a_gemm(kind: str, scale: str, bias: str) -> None:
    pairs = {"none": PAIRS[: len(ALPHAS)], "row": PAIRS}.get(bias, PAIRS[::2])
    for alpha, beta in pairs:
        # Results that float16 can hold, however large alpha is.
        check(drawn(kind, scale, bias, alpha=alpha, beta=beta), kind, scale, alpha, beta, 1 / max(1.0, abs(alpha) / 64))


@pytest.mark.parametrize(("kind", "scale"), [*product(DTYPES, DTYPES)])
def test_any_alpha_of_a_fused_product(kind: str, scale: str) -> None:
    for alpha in ALPHAS:
        draft = drawn(kind, scale, "none", "FusedMatMul", alpha=alpha)
        check(draft, kind, scale, alpha, 1.0, 1 / max(1.0, abs(alpha) / 64))


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("bias", ["none", "row", "whole"])
def test_factors_that_are_no_numbers(kind: str, bias: str) -> None:
    """The same results are infinite, and the same are NaN, as in unoptimized ONNX Runtime; a beta of 0 hides a bias."""
    x = np.random.default_rng(2).standard_normal((ROWS, K)).astype(DTYPES[kind])
    x[1] = 0
    special = (0.0, 1.0, -np.inf, np.nan)
    for alpha, beta in product(special, special):
        model = drawn(kind, kind, bias, alpha=alpha, beta=beta).model().SerializeToString()
        result, reference = (session.run(None, {"x": x})[0] for session in (ours(model, 0), unoptimized(model)))
        for looks in (np.isnan, np.isposinf, np.isneginf):
            np.testing.assert_array_equal(looks(result), looks(reference), f"{alpha} {beta}")
