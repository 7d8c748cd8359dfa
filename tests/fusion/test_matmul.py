"""Products: which are fused, and what the nodes that take their place compute, against NumPy."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from conformance.drawing.draft import Draft
from conformance.drawing.elements import MS, unpack
from conformance.drawing.weight import PER_TENSOR
from ort_qdq_plugin.fusion.bias import Bias
from ort_qdq_plugin.fusion.kind import FusionSettings
from ort_qdq_plugin.fusion.matmul import MatMulFusion, fuse
from ort_qdq_plugin.model.elements import BFLOAT16, FLOAT, FLOAT16
from ort_qdq_plugin.report.weights import Reason
from tests.fusion.support import SETTINGS, emitted, evaluated, integers_of, locate, read, refused, scope_and_site
from tests.support import Array

BITS = 4


def product_of(
    op: str = "MatMul",
    inputs: Sequence[str] = ("x", "w_d"),
    *,
    x: Sequence[int | str] | None = ("m", 64),
    shape: Sequence[int] = (64, 32),
    c: Sequence[int] | None = None,
    outputs: int = 1,
    draft: Draft | None = None,
    weight: dict[str, Any] | None = None,
    **attributes: Any,
) -> Draft:
    """A product of x and a weight, with a bias where its shape is given. Without a shape of x, nothing is known of it."""
    draft = draft or Draft("product")
    if c is not None:
        inputs = [*inputs, draft.floats("c", c)]
    draft.dequantize("w", shape, **{"axis": 0, **(weight or {})})
    if x is None:
        draft.node("Custom", [draft.input("unknown", [1])], "x", domain="local")
    else:
        draft.input("x", x)
    draft.node(op, list(inputs), "y", domain=MS if op == "FusedMatMul" else "", **attributes)
    if not outputs:
        del draft.nodes[-1].output[:]
    return draft


def fused(draft: Draft, settings: FusionSettings = SETTINGS, data_type: int | None = None) -> MatMulFusion:
    """The fusion of a product that is computed in its weight's type, or in another one."""
    scope, site = scope_and_site(draft)
    found = read(scope)
    view = found.view if data_type is None else found.view._replace(data_type=data_type)
    fusion = fuse(site, found, view, settings, locate)
    assert isinstance(fusion, MatMulFusion)
    return fusion


# What is computed


def swapped(value: Array, swap: bool) -> Array:
    """With its last two axes exchanged; a vector stays as it is."""
    return np.swapaxes(value, -1, -2) if swap and value.ndim >= 2 else value


def whole_numbers(draft: Draft, shape: Sequence[int]) -> Array:
    return draft.rng.integers(-4, 5, tuple(shape)).astype(np.float32)


def integers(draft: Draft, shape: Sequence[int]) -> Array:
    """The stored integers of the weight."""
    raw = next(tensor.raw_data for tensor in draft.initializers if tensor.name == "w")
    stored = unpack(np.frombuffer(raw, np.uint8), BITS)[: math.prod(shape)]
    return stored.astype(np.float32).reshape(tuple(shape))


def check_product(
    op: str, draft: Draft, shape: Sequence[int], on_left: bool, turns: Sequence[bool], values: dict[str, Array],
    alpha: float, beta: float = 1.0,
) -> MatMulFusion:  # fmt: skip
    """Compare y = alpha * (x @ w) + beta * c. The weight's only scale is taken for 1, so that its values are integers."""
    inputs = [*(["w_d", "x"] if on_left else ["x", "w_d"]), *(["c"] if "c" in values else [])]
    turned = {} if op == "MatMul" else {"transA": int(turns[0]), "transB": int(turns[1]), "alpha": alpha}
    attributes: dict[str, Any] = turned | ({"beta": beta} if op == "Gemm" else {})
    weight_of_one_scale = {"block": PER_TENSOR, "zero": "none"}
    product_of(op, inputs, x=values["x"].shape, shape=shape, draft=draft, weight=weight_of_one_scale, **attributes)
    weight = integers(draft, shape)
    left, right = (weight, values["x"]) if on_left else (values["x"], weight)
    wanted: Array = np.float32(alpha) * np.matmul(swapped(left, turns[0]), swapped(right, turns[1]))
    wanted = wanted + np.float32(beta) * values.get("c", np.float32(0))
    fusion = fused(draft)
    k, n = fusion.matrix.k, fusion.matrix.n
    matrix = integers(draft, (k, n)) if fusion.matrix.k_major else integers(draft, (n, k)).T
    nodes, constants = emitted(fusion)
    of_model = {tensor.name: numpy_helper.to_array(tensor) for tensor in draft.initializers if tensor.data_type == FLOAT}
    result = evaluated(nodes, constants, {**of_model, **values, "B": matrix}, nodes[-1].output[0])
    assert result.shape == wanted.shape
    np.testing.assert_array_equal(result, wanted)
    return fusion


@settings(max_examples=200, deadline=None)
@given(
    op=st.sampled_from(["MatMul", "FusedMatMul"]),
    on_left=st.booleans(),
    turns=st.tuples(st.booleans(), st.booleans()),
    batch=st.lists(st.integers(1, 3), max_size=2),
    vector=st.booleans(),
    leading=st.integers(0, 3),
    alpha=st.sampled_from([1.0, 0.5, -2.0, 0.0]),
)
def test_products_of_any_ranks_on_either_side(
    op: str, on_left: bool, turns: tuple[bool, bool], batch: list[int], vector: bool, leading: int, alpha: float
) -> None:
    if op == "MatMul":
        turns, alpha = (False, False), 1.0
    vector = vector and not any(turns)
    weight_turns, x_turns = turns if on_left else reversed(turns)
    rows, inner, others = 6, 5, 3  # of the weight on its side of the product, and of x
    weight_shape = (rows, inner) if on_left else (inner, rows)
    x_shape = (inner,) if vector else (inner, others) if on_left else (others, inner)
    draft = Draft("products")
    x = whole_numbers(draft, [*([] if vector else batch), *(reversed(x_shape) if x_turns else x_shape)])
    shape = [*[1] * leading, *(reversed(weight_shape) if weight_turns else weight_shape)]
    check_product(op, draft, shape, on_left, turns, {"x": x}, alpha)


@settings(max_examples=200, deadline=None)
@given(
    on_left=st.booleans(),
    turns=st.tuples(st.booleans(), st.booleans()),
    bias=st.sampled_from([None, (), (1,), (1, 1), "columns", "row", "rows", "whole"]),
    constant=st.booleans(),
    alpha=st.sampled_from([1.0, 0.5]),
    beta=st.sampled_from([1.0, -0.25, 0.0]),
)
def test_gemm(on_left: bool, turns: tuple[bool, bool], bias: Any, constant: bool, alpha: float, beta: float) -> None:
    rows, inner, columns = (6, 5, 3) if on_left else (3, 5, 6)
    left_shape = (inner, rows) if turns[0] else (rows, inner)
    right_shape = (columns, inner) if turns[1] else (inner, columns)
    x_shape, weight_shape = (right_shape, left_shape) if on_left else (left_shape, right_shape)
    named = {"columns": (columns,), "row": (1, columns), "rows": (rows, 1), "whole": (rows, columns)}
    draft = Draft("gemm")
    values = {"x": whole_numbers(draft, x_shape)}
    if bias is not None:
        values["c"] = whole_numbers(draft, named.get(bias, bias))
        if constant:
            draft.constant(numpy_helper.from_array(values["c"], "c"))
        else:
            draft.input("c", values["c"].shape)
    fusion = check_product("Gemm", draft, weight_shape, on_left, turns, values, alpha, beta)
    if constant and not on_left and bias in ((), (1,), (1, 1), "columns", "row") and beta and alpha == 1.0:
        assert fusion.bias.own is not None


# What is written


@pytest.mark.parametrize("x", [("m", 64), ("a", "b", "m", 64), None])
def test_a_plain_product_is_one_node_and_needs_no_shape(x: Sequence[str | int] | None) -> None:
    fusion = fused(product_of(x=x, weight={"block": 16}), FusionSettings(block_size=0, accuracy_level=2))
    (node,), constants = emitted(fusion)
    assert (node.op_type, node.domain, node.name) == ("MatMulNBits", "com.microsoft", "y_node")
    assert list(node.input) == ["x", "B", "scales", "zero_points"]
    assert list(node.output) == ["y"]
    assert integers_of(node) == {"K": 64, "N": 32, "bits": 4, "block_size": 16, "accuracy_level": 2}
    assert not constants
    assert fusion.operator == "MatMulNBits"


@pytest.mark.parametrize(("beta", "bias"), [(0.0, []), (1.0, ["", "", "c"])])
def test_inputs_at_the_end_are_left_out_and_others_left_empty(beta: float, bias: list[str]) -> None:
    """A bias times 0 is none."""
    fusion = fused(product_of("Gemm", c=[32], weight={"zero": "default"}, beta=beta))
    assert list(emitted(fusion)[0][0].input) == ["x", "B", "scales", *bias]
    assert fusion.bias == Bias(own="c" if beta else None)


def test_a_bias_that_is_made_anew_is_a_constant_of_its_own() -> None:
    fusion = fused(product_of("Gemm", c=[1]))
    (node,), (constant,) = emitted(fusion)
    assert (constant.name, list(constant.dims)) == ("y_node.bias", [32])
    assert node.input[5] == "y_node.bias"
    assert fusion.entry().has_bias


@pytest.mark.parametrize(
    ("product", "scale", "alpha", "beta"),
    [(FLOAT16, "float", 1.0, 0.5), (BFLOAT16, "bfloat16", 0.1, 0.3), (FLOAT16, "bfloat16", 1e8, 1.0),
     (FLOAT16, "float16", 0.5, 1.0), (FLOAT16, "float16", 1.0, 0.3)],
)  # fmt: skip
def test_a_gemm_is_computed_in_float_and_rounded_once(product: int, scale: str, alpha: float, beta: float) -> None:
    """Where the kernel does not take its type, and where float16 would round what is multiplied or added."""
    fusion = fused(product_of("Gemm", c=[32], weight={"scale": scale}, alpha=alpha, beta=beta), data_type=product)
    nodes, constants = emitted(fusion)
    scaled, added = ["Mul"] * (alpha != 1), ["Cast", *["Mul"] * (beta != 1), "Add"]
    assert [node.op_type for node in nodes] == ["Cast", "MatMulNBits", *scaled, *added, "Cast"]
    casts = [node for node in nodes if node.op_type == "Cast"]
    assert [(node.input[0] in ("x", "c"), integers_of(node)["to"]) for node in casts] == [
        (True, FLOAT), (True, FLOAT), (False, product),
    ]  # fmt: skip
    factors = {f"y_node.{name}": np.float32(value) for name, value in (("alpha", alpha), ("beta", beta)) if value != 1}
    assert {tensor.name: numpy_helper.to_array(tensor) for tensor in constants} == factors
    assert fusion.operands["scales"].data_type == FLOAT


@pytest.mark.parametrize(
    ("c", "beta", "input_names"), [([32], 1.0, ["c"]), ([1, 32], 1.0, ["y_node.bias"]), (None, 1.0, [])]
)
def test_a_gemm_of_float16_that_the_kernel_computes_whole_stays_in_float16(
    c: list[int] | None, beta: float, input_names: list[str]
) -> None:
    draft = Draft("halves")
    inputs = ["x", "w_d"] if c is None else ["x", "w_d", draft.floats("c", c, "float16")]
    fusion = fused(product_of("Gemm", inputs, draft=draft, weight={"scale": "float16"}, beta=beta))
    (node,), _ = emitted(fusion)
    assert list(node.input[5:]) == input_names
    assert fusion.kernel_type == fusion.operands["scales"].data_type == FLOAT16


def test_what_the_report_says() -> None:
    entry = fused(product_of(shape=(32, 64), weight={"axis": 1}, op="Gemm", transB=1)).entry()
    assert (entry.node, entry.dequantize, entry.kind) == ("y_node", "w_d_node", "Gemm")
    assert (entry.k, entry.n, entry.bits, entry.block_size, entry.layout) == (64, 32, 4, 32, "N-major")
    assert (entry.packed_bytes, entry.borrowed_bytes, entry.has_bias) == (0, 32 * 32 + 4 * 64 + 32, False)
    assert fused(product_of()).entry().layout == "K-major"
    assert fused(product_of()).entry().packed_bytes == 32 * 32 + 4 * 64 + 32


@pytest.mark.parametrize("zero", ["none", "random", "default"])
@pytest.mark.parametrize(("element", "axis"), [("uint2", 0), ("int2", 1)])
def test_weights_of_2_bits_that_become_4(element: str, axis: int, zero: str) -> None:
    """In blocks of 32. The report knows both."""
    weight = {"element": element, "axis": axis, "zero": zero}
    fusion = fused(product_of("Gemm", shape=(32, 64) if axis else (64, 32), weight=weight, transB=axis))
    (node,), _ = emitted(fusion)
    assert integers_of(node) == {"K": 64, "N": 32, "bits": 4, "block_size": 32, "accuracy_level": 4}
    entry = fusion.entry()
    assert (entry.bits, entry.stored_bits, entry.block_size) == (4, 2, 32)
    zero_points = 32 if "zero_points" in fusion.operands else 0
    assert entry.packed_bytes + entry.borrowed_bytes == 32 * 32 + 4 * 64 + zero_points
    assert fused(product_of()).entry().stored_bits == 4


@pytest.mark.parametrize(("k", "block", "element", "size"), [
    (64, 64, "uint4", 64), (96, 48, "uint4", 16),  # the second has two blocks
    # No size that the kernel takes: the size that is asked for.
    (48, 48, "uint4", 64), (64, 100, "uint4", 64), (48, 49, "uint8", 64), (48, 512, "uint2", 64),
    # The shortest with the same result.
    (16, 32, "uint4", 32), (16, 64, "int4", 64), (16, 256, "uint4", 128), (100, 256, "uint8", 128), (128, 256, "int8", 128),
    (129, 256, "uint4", 256), (16, 128, "uint2", 128), (16, 256, "int2", 128),
])  # fmt: skip
def test_one_block_for_all_of_k_is_a_scale_for_each_column(k: int, block: int, element: str, size: int) -> None:
    draft = product_of(x=("m", k), shape=(k, 32), weight={"block": block, "element": element})
    fusion = fused(draft, FusionSettings(block_size=64, accuracy_level=4))
    assert (fusion.block_size, fusion.operands["scales"].shape) == (size, (32 * -(-k // size),))


@pytest.mark.parametrize(
    ("k", "block", "size"), [(72, 4096, 128), (300, 512, 512), (300, 4096, 512), (513, 1 << 20, 1024), (512, 512, 512)]
)
def test_long_blocks_are_padded_to_a_power_of_two(k: int, block: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """18 KB of K=72 and N=512 would become 1 MB in blocks of 4096."""
    draft = product_of(x=("m", k), shape=(k, 512), weight={"block": block})
    for version, wanted in (("1.32.0", size), ("1.31.2", 32)):
        monkeypatch.setattr("onnxruntime.__version__", version)
        fusion = fused(draft)
        assert fusion.block_size == wanted
        assert fusion.operands["B"].nbytes == 512 * -(-k // wanted) * wanted // 2


# What is refused

REFUSED: dict[str, tuple[Draft, Reason]] = {
    "one-input": (product_of(inputs=["w_d"]), Reason.INVALID),
    "no-output": (product_of(outputs=0), Reason.INVALID),
    "the-weight-twice": (product_of(inputs=["w_d", "w_d"]), Reason.CONSUMER),
    "the-weight-as-bias": (product_of("Gemm", ["x", "z", "w_d"]), Reason.CONSUMER),
    "transA-of-2": (product_of("Gemm", transA=2), Reason.INVALID),
    "transB-of-minus-1": (product_of("Gemm", transB=-1), Reason.INVALID),
    "batches-transposed-on-the-left": (product_of("FusedMatMul", transBatchA=1), Reason.TRANSPOSED_ACTIVATION),
    "batches-transposed-on-the-right": (product_of("FusedMatMul", transBatchB=1), Reason.TRANSPOSED_ACTIVATION),
    "bias-that-does-not-fit": (product_of("Gemm", c=[5]), Reason.INVALID),
    "activation-of-unknown-rank-transposed": (product_of("FusedMatMul", x=None, transA=1), Reason.TRANSPOSED_ACTIVATION),
    "activation-of-unknown-rank-on-the-right": (
        product_of(inputs=["w_d", "x"], x=None, weight={"axis": 1}), Reason.LEFT_OPERAND,
    ),
    "activation-of-unknown-rank-on-the-right-transposed": (
        product_of("FusedMatMul", ["w_d", "x"], x=None, weight={"axis": 1}, transB=1), Reason.LEFT_OPERAND,
    ),
    "activation-of-unknown-rank-and-leading-axes": (
        product_of(x=None, shape=(1, 64, 32), weight={"axis": 1}), Reason.ACTIVATION_RANK,
    ),
    "activation-without-axes": (product_of(inputs=["w_d", "x"], x=(), weight={"block": PER_TENSOR}), Reason.INVALID),
    "a-batch-of-weights-on-the-left": (
        product_of(inputs=["w_d", "x"], shape=(2, 32, 64), weight={"axis": 2}), Reason.BATCHED,
    ),
    "a-vector": (product_of(shape=(64,)), Reason.RANK),
    "blocks-along-n": (product_of(weight={"axis": 1}), Reason.BLOCKS_ALONG_N),
    "blocks-that-the-product-has-along-n": (product_of("Gemm", transB=1), Reason.BLOCKS_ALONG_N),
    "blocks-of-8": (product_of(weight={"block": 8}), Reason.BLOCK_SIZE),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_fused_is_refused(name: str) -> None:
    draft, reason = REFUSED[name]
    with refused(reason):
        fused(draft)
