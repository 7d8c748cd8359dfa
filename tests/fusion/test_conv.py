"""Which convolutions become products, and that the products give what the convolutions do."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.drawing.draft import Draft
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR
from ort_qdq_plugin import Options, Reason, create_session, inspect
from ort_qdq_plugin.fusion.conv import fuse
from ort_qdq_plugin.fusion.matmul import MatMulFusion
from tests.fusion.support import SETTINGS, emitted, integers_of, locate, read, refused, scope_and_site
from tests.support import CPU, made_report, quiet, saved_nodes, stock

K, N = 512, 128  # of 64 Ki elements, from which on a product is worth it
ALL = SETTINGS._replace(once_bytes=lambda: sys.maxsize)


def convolution(
    x: Sequence[int | str] | None = ("b", K, 1, 1),
    kernel: Sequence[int] = (1, 1),
    before: Sequence[int] | None = None,
    behind: Sequence[int] | None = None,
    bias: str = "",
    n: int = N,
    k: int = K,
    weight: dict[str, Any] | None = None,
    **attributes: Any,
) -> Draft:
    """y = Conv(x, w_d, bias), between Transpose nodes with these permutations, and with the Conv as the last node."""
    draft = Draft("convolution")
    value = draft.input("x", x)
    if before is not None:
        value = draft.node("Transpose", [value], "first", perm=before)
    draft.dequantize("w", (n, k, *kernel), **{"axis": 1, **(weight or {})})
    inputs = [value, "w_d"]
    if bias == "row":
        inputs.append(draft.floats("bias", [n], low=-1, high=1))
    elif bias == "column":
        inputs.append(draft.floats("bias", [1, n]))
    elif bias == "input":
        inputs.append(draft.input("bias", [n]))
    elif bias == "integers":
        inputs.append(draft.dequantize("bias", [n], axis=0, block=PER_TENSOR, element="int32", zero="none"))
    if behind is not None:
        draft.node("Transpose", ["c"], "y", perm=behind)
        draft.output("y", None)
    draft.node("Conv", inputs, "c" if behind is not None else "y", **attributes)
    if behind is None:
        draft.output("y", None)
    return draft


def fused(draft: Draft, settings: Any = ALL) -> MatMulFusion:
    scope, site = scope_and_site(draft)
    dequantized = read(scope)
    return fuse(site, dequantized, dequantized.view, settings, locate)


LAST, FRONT = (0, 2, 3, 1), (0, 3, 1, 2)
WIDE = ("b", "h", "w", K)
TAKEN: dict[str, dict[str, Any]] = {
    "one-position": {},
    "one-position-of-a-row": {"x": ("b", K, 1), "kernel": (1,)},
    "one-position-of-a-volume": {"x": ("b", K, 1, 1, 1), "kernel": (1, 1, 1)},
    "bias": {"bias": "row"},
    "bias-of-integers": {"bias": "integers"},
    "all-said": {"kernel_shape": [1, 1], "strides": [1, 1], "pads": [0] * 4, "dilations": [2, 2], "group": 1},
    **{padding: {"auto_pad": padding} for padding in ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")},
    "channels": {"weight": {"axis": 0, "block": PER_CHANNEL}},
    "one-scale": {"weight": {"block": PER_TENSOR}},
    "two-bits": {"weight": {"element": "uint2"}},
    "behind-a-transpose": {"x": WIDE, "before": FRONT},
    "before-a-transpose": {"x": ("b", K, "h", "w"), "behind": LAST},
    "before-a-transpose-of-an-unknown-input": {"x": None, "behind": LAST},
    "between-transposes": {"x": ("b", "h", "w", 128), "k": 128, "n": 512, "before": FRONT, "behind": LAST},
}  # fmt: skip
LEFT: dict[str, tuple[dict[str, Any], Reason]] = {
    "many-positions": ({"x": ("b", K, 7, 7)}, Reason.CONVOLUTION),
    "unknown-positions": ({"x": ("b", K, "h", 1)}, Reason.CONVOLUTION),
    "unknown-input": ({"x": None}, Reason.CONVOLUTION),
    "small": ({"n": N - 1}, Reason.CONVOLUTION),
    "bytes": ({"weight": {"element": "uint8"}}, Reason.CONVOLUTION),
    "float16": ({"weight": {"scale": "float16"}}, Reason.CONVOLUTION),
    "few-channels": ({"x": ("b", "h", "w", 480), "k": 480, "n": 512, "before": FRONT}, Reason.CONVOLUTION),
    "behind-another-transpose": ({"x": ("b", "h", "w", K), "before": (0, 3, 2, 1)}, Reason.CONVOLUTION),
    "before-another-transpose": ({"x": ("b", K, "h", "w"), "behind": (0, 3, 2, 1)}, Reason.CONVOLUTION),
    "bias-of-another-shape": ({"bias": "column"}, Reason.CONVOLUTION),
    "bias-of-the-caller": ({"bias": "input"}, Reason.CONVOLUTION),
    "kernel": ({"x": ("b", K, 3, 3), "kernel": (3, 3)}, Reason.CONSUMER),
    "patches": ({"kernel": (2, 2), "strides": [2, 2]}, Reason.CONSUMER),
    "strides": ({"strides": [2, 1]}, Reason.CONSUMER),
    "pads": ({"pads": [0, 0, 1, 0]}, Reason.CONSUMER),
    "groups": ({"x": ("b", 2 * K, 1, 1), "group": 2}, Reason.CONSUMER),
    "too-many-strides": ({"strides": [1, 1, 1]}, Reason.CONSUMER),
    "too-many-dilations": ({"dilations": [1, 1, 1]}, Reason.CONSUMER),
    "no-dilation": ({"dilations": [1, 0]}, Reason.CONSUMER),
    "another-kernel-shape": ({"kernel_shape": [1, 3]}, Reason.CONSUMER),
    "another-padding": ({"auto_pad": "SAME"}, Reason.CONSUMER),
    "a-matrix": ({"x": ("b", K), "kernel": ()}, Reason.CONSUMER),
    "other-channels": ({"x": ("b", K + 1, 1, 1)}, Reason.INVALID),
    "another-rank": ({"x": ("b", K, 1)}, Reason.INVALID),
    "blocks-along-n": ({"weight": {"axis": 0}}, Reason.BLOCKS_ALONG_N),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_what_becomes_a_product(name: str) -> None:
    fusion = fused(convolution(**TAKEN[name]))
    node = next(node for node in emitted(fusion)[0] if node.op_type == "MatMulNBits")
    k, n = TAKEN[name].get("k", K), TAKEN[name].get("n", N)
    assert integers_of(node) == {"K": k, "N": n, "bits": 4, "block_size": 32, "accuracy_level": 0}
    assert fusion.entry().kind == "Conv"
    assert fusion.entry().has_bias == ("bias" in TAKEN[name])


@pytest.mark.parametrize("name", LEFT)
def test_what_stays_a_convolution(name: str) -> None:
    given, reason = LEFT[name]
    with refused(reason):
        fused(convolution(**given))


def test_a_weight_that_is_not_read_as_one_stays() -> None:
    for inputs in (["w_d", "x"], ["x", "w_d", "w_d"]):
        draft = convolution()
        draft.nodes[-1].input[:] = inputs
        with refused(Reason.CONSUMER):
            fused(draft)


@pytest.mark.parametrize(("positions", "taken"), [((8, K, 7, 7), True), ((1, K, 20, 20), True), ((1, K, 20, 21), False),
                                                  (("b", K, 2, 2), False)])  # fmt: skip
def test_where_nothing_is_dequantized_once(positions: tuple[Any, ...], taken: bool) -> None:
    """A product is slower than the weight in float, and faster than one that is dequantized on every run."""
    with refused(None if taken else Reason.CONVOLUTION):
        fused(convolution(positions), SETTINGS)
    with refused(Reason.CONVOLUTION):
        fused(convolution(positions), ALL)


def test_the_weight_may_be_stored_as_a_matrix() -> None:
    draft = Draft("reshaped")
    draft.input("x", ["b", K, 1, 1])
    draft.dequantize("w", (N, K), axis=1)
    kernel = draft.node("Reshape", ["w_d", draft.ints("shape", [N, K, 1, 1])], "kernel")
    draft.output(draft.node("Conv", ["x", kernel], "y"), None)
    (entry,) = inspect(draft.model().SerializeToString()).fused
    assert (entry.kind, entry.k, entry.n, entry.layout) == ("Conv", K, N, "N-major")


def run(model: onnx.ModelProto, x: Any, level: int) -> tuple[Any, Any]:
    """The results of unoptimized ONNX Runtime and of this package, at an accuracy level for products."""
    options = quiet()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model.SerializeToString()
    (wanted,) = stock(data, options).run(None, {"x": x})
    session = create_session(data, quiet(), CPU, options=Options(strict=True, accuracy_level=level))
    assert [entry.kind for entry in made_report(session).fused] == ["Conv"]
    (found,) = session.run(None, {"x": x})
    return wanted, found


_SIZES = st.integers(1, 6)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(_SIZES, min_size=1, max_size=3), batch=st.integers(0, 3), before=st.booleans(), behind=st.booleans(),
    k=st.sampled_from([512, 513, 640]), n=st.sampled_from([128, 131]), bias=st.sampled_from(["", "row", "integers"]),
    weight=st.sampled_from([{}, {"axis": 0, "block": PER_CHANNEL}, {"block": PER_TENSOR, "element": "int4"},
                            {"element": "uint2", "block": 64}, {"element": "int4", "zero": "none", "block": 16}]),
    level=st.sampled_from([0, 4]),
)  # fmt: skip
def test_results_are_those_of_the_convolution(
    sizes: list[int], batch: int, before: bool, behind: bool, k: int, n: int, bias: str, weight: dict[str, Any], level: int
) -> None:
    """Within 1e-5, whatever the accuracy level."""
    rank = len(sizes) + 2
    to_last, to_front = (0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1))
    if not before and not behind:
        sizes = [1] * len(sizes)
    known: list[int | str] = [size if size == 1 and not before else f"d{axis}" for axis, size in enumerate(sizes)]
    draft = convolution(
        ("b", *known, k) if before else ("b", k, *known), [1] * len(sizes), to_front if before else None,
        to_last if behind else None, bias, n, k, weight,
    )  # fmt: skip
    if behind:
        draft.nodes.append(draft.nodes.pop(-2))  # the Transpose that reads the result
    shape = (batch, *sizes, k) if before else (batch, k, *sizes)
    x = np.random.default_rng(math.prod(shape)).standard_normal(shape).astype(np.float32)
    wanted, found = run(draft.model(), x, level)
    assert wanted.shape == found.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * max(1.0, float(np.abs(wanted).max(initial=0))))


def test_transposes_around_it_are_gone(tmp_path: Path) -> None:
    """In the graph that ONNX Runtime makes of what it is given."""
    draft = convolution(("b", "h", K), [1], (0, 2, 1), (0, 2, 1))
    draft.nodes.append(draft.nodes.pop(-2))
    options = quiet()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    create_session(draft.model().SerializeToString(), options, CPU, options=Options(strict=True))
    assert list(saved_nodes(tmp_path / "optimized.onnx")) == ["MatMulNBits"]
