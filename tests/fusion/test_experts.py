"""Products with stacks of matrices: which are fused, and what the nodes that take their place compute, against NumPy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from conformance.drawing.draft import Draft
from conformance.drawing.elements import MS
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR
from ort_qdq_plugin.fusion.experts import StackFusion, fused_stack, is_stack
from ort_qdq_plugin.fusion.kind import FusionSettings
from ort_qdq_plugin.fusion.matmul_nbits import operands_of
from ort_qdq_plugin.fusion.view import View
from ort_qdq_plugin.model.elements import FLOAT, FLOAT16
from ort_qdq_plugin.report.weights import Reason
from tests.fusion.support import SETTINGS, emitted, evaluated, integers_of, read, refused, scope_and_site
from tests.packing.plain import packed_lines
from tests.support import Array

E, K, N = 3, 64, 32
ROWS: dict[str, Any] = {"shape": (E, N, K), "axis": 2}
COLUMNS: dict[str, Any] = {"shape": (E, K, N), "axis": 1}
SWAPPED = (0, 2, 1)


def product_of(
    x: Sequence[int | str] | None = (E, "m", K),
    inputs: Sequence[str] = ("x", "w_d"),
    op: str = "MatMul",
    opset: int = 21,
    attributes: dict[str, Any] | None = None,
    **weight: Any,
) -> Draft:
    draft = Draft("experts", opset=opset)
    weight = {**COLUMNS, **weight}
    draft.dequantize("w", weight.pop("shape"), **weight)
    if x is None:
        draft.node("Custom", [draft.input("unknown", [1])], "x", domain="local")
    else:
        draft.input("x", x)
    draft.node(op, list(inputs), "y", domain=MS if op == "FusedMatMul" else "", **(attributes or {}))
    return draft


def fused(draft: Draft, settings: FusionSettings = SETTINGS, perm: Sequence[int] = (0, 1, 2), **seen: Any) -> StackFusion:
    scope, site = scope_and_site(draft)
    found = read(scope)
    return fused_stack(site, found, found.view.transposed(perm)._replace(**seen), settings)


def computed(fusion: StackFusion, x: Array, weights: Array, opset: int = 21) -> Array:
    """What the nodes give, where the operands are what they stand for."""
    nodes, constants = emitted(fusion, opset)
    values = {"x": x, **{f"B.{at}": weight for at, weight in enumerate(weights)}}
    rest = {name: np.zeros(1) for name in fusion.operands if name not in values}
    return evaluated(nodes, constants, {**values, **rest}, "y", opset)


@pytest.mark.parametrize("x", [(E, 5, K), (1, 5, K), (5, K), (2, E, 5, K), (2, 1, 5, K), (E, 1, K)])
@pytest.mark.parametrize("opset", [21, 17, 12])
def test_each_matrix_is_multiplied_by_its_part_of_the_activation(x: tuple[int, ...], opset: int) -> None:
    rng = np.random.default_rng(0)
    activation, weights = rng.standard_normal(x), rng.standard_normal((E, K, N))
    fusion = fused(product_of(x))
    np.testing.assert_allclose(computed(fusion, activation, weights, opset), activation @ weights, rtol=1e-12)


def test_every_matrix_has_a_node_of_the_form_that_a_product_with_it_would_have() -> None:
    nodes, _ = emitted(fused(product_of()))
    assert [node.op_type for node in nodes] == ["Split", *["MatMulNBits"] * E, "Concat"]
    assert len({node.name for node in nodes}) == len(nodes)
    assert nodes[1].name == "y_node"
    for at, node in enumerate(nodes[1:-1]):
        assert integers_of(node) == {"K": K, "N": N, "bits": 4, "block_size": 32, "accuracy_level": 4}
        assert list(node.input[1:]) == [f"B.{at}", f"scales.{at}", f"zero_points.{at}"]
    assert integers_of(emitted(fused(product_of(element="uint2", opset=25)))[0][1])["bits"] == 4


@pytest.mark.parametrize("layout", [ROWS, COLUMNS])
@pytest.mark.parametrize("element", ["uint4", "int4", "uint8"])
def test_operands_are_those_of_the_matrices_one_by_one(layout: dict[str, Any], element: str) -> None:
    draft = product_of(element=element, **layout)
    fusion = fused(draft, perm=SWAPPED if layout is ROWS else (0, 1, 2))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in draft.initializers}
    for at in range(E):
        alone = product_of(("m", K), element=element, shape=layout["shape"][1:], axis=layout["axis"] - 1)
        for tensor in alone.initializers:
            raw = stored[tensor.name][at]
            tensor.CopyFrom(numpy_helper.from_array(raw, tensor.name))
        matrix = read(scope_and_site(alone)[0])
        wanted = operands_of(matrix.matrix(matrix.view, layout is ROWS), fusion.bits, fusion.block_size, FLOAT)
        assert {f"{name}.{at}" for name in wanted} == {name for name in fusion.operands if name.endswith(f".{at}")}
        for name, operand in wanted.items():
            np.testing.assert_array_equal(packed_lines(fusion.operands[f"{name}.{at}"]), packed_lines(operand))
    borrowed = [name for name, operand in fusion.operands.items() if operand.in_place is not None]
    assert (f"B.{E - 1}" in borrowed) == (layout is ROWS and element != "int4")


@pytest.mark.parametrize(
    ("how", "differ"),
    [({"block": PER_TENSOR}, False), ({"axis": 2, "block": PER_CHANNEL}, False),
     ({"axis": 0, "block": PER_CHANNEL, "element": "uint8"}, True)],
)  # fmt: skip
def test_scales_belong_to_a_matrix_or_to_all(how: dict[str, Any], differ: bool) -> None:
    fusion = fused(product_of(**how))
    scales = [packed_lines(fusion.operands[f"scales.{at}"]).tobytes() for at in range(E)]
    assert len(set(scales)) == (E if differ else 1)
    assert (fusion.operands["scales.0"].key == fusion.operands["scales.1"].key) != differ


@pytest.mark.parametrize(("seen", "computed_in", "ends"), [(FLOAT, FLOAT, 0), (FLOAT16, FLOAT, 2)])
def test_casts_go_around_what_no_kernel_computes(seen: int, computed_in: int, ends: int) -> None:
    fusion = fused(product_of(), data_type=seen)
    nodes, _ = emitted(fusion)
    assert fusion.operands["scales.0"].data_type == computed_in
    assert [node.op_type for node in nodes].count("Cast") == ends


def test_8_bits_in_float_are_left_in_either_order() -> None:
    in_float = FusionSettings(block_size=0, accuracy_level=0)
    for layout, perm in ((ROWS, SWAPPED), (COLUMNS, (0, 1, 2))):
        draft = product_of(
            (E, "m", 48),
            **{**layout, "element": "uint8", "shape": tuple(48 if size == K else size for size in layout["shape"])},
        )
        with refused(Reason.SLOWER):
            fused(draft, in_float, perm)


def test_what_the_report_says() -> None:
    entry = fused(product_of()).entry()
    assert (entry.node, entry.kind, entry.k, entry.n, entry.bits) == ("y_node", "MatMul", K, E * N, 4)
    assert (entry.layout, entry.block_size, entry.stored_bits) == ("K-major", 32, 4)
    assert fused(product_of(**ROWS), perm=SWAPPED).entry().layout == "N-major"
    assert fused(product_of()).operator == "MatMulNBits"


def test_a_stack_has_several_matrices() -> None:
    assert is_stack(View((2, 3, 4), ((0,), (1,), (2,)), FLOAT))
    assert not is_stack(View((1, 3, 4), ((), (1,), (2,)), FLOAT))
    assert not is_stack(View((3, 4), ((0,), (1,)), FLOAT))
    assert not is_stack(View((2,), ((0,),), FLOAT))


_FUSED = "FusedMatMul"
REFUSED: dict[str, tuple[Draft, Reason]] = {
    "an-activation-of-unknown-shape": (product_of(None), Reason.BATCHED),
    "a-vector": (product_of((K,)), Reason.BATCHED),
    "parts-of-any-number": (product_of(("b", "m", K)), Reason.BATCHED),
    "other-parts": (product_of((2, "m", K)), Reason.BATCHED),
    "more-matrices-than-nodes": (product_of((257, "m", 16), shape=(257, 16, 8), block=16), Reason.BATCHED),
    "stacks-of-stacks": (product_of(shape=(2, E, K, N), axis=2), Reason.BATCHED),
    "on-the-left": (product_of(inputs=("w_d", "x")), Reason.BATCHED),
    "on-both-sides": (product_of(inputs=("w_d", "w_d")), Reason.BATCHED),
    "one-input": (product_of(inputs=("w_d",)), Reason.BATCHED),
    "transposed-activations": (product_of(op=_FUSED, attributes={"transA": 1}), Reason.BATCHED),
    "transposed-batches": (product_of(op=_FUSED, attributes={"transBatchA": 1}), Reason.BATCHED),
    "transposed-batches-of-weights": (product_of(op=_FUSED, attributes={"transBatchB": 1}), Reason.BATCHED),
    "scaled": (product_of(op=_FUSED, attributes={"alpha": 0.5}), Reason.BATCHED),
    "blocks-of-matrices": (product_of(axis=0, block=2), Reason.BLOCKS_ALONG_N),
    "blocks-along-n": (product_of(axis=2), Reason.BLOCKS_ALONG_N),
    "half-bytes": (product_of((E, "m", 33), shape=(E, 33, 31)), Reason.BATCHED),
    "zero-points-of-half-a-byte": (product_of(axis=0, block=PER_CHANNEL), Reason.BATCHED),
    "blocks-of-8": (product_of(block=8), Reason.BLOCK_SIZE),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_fused_is_refused(name: str) -> None:
    draft, reason = REFUSED[name]
    scope, _ = scope_and_site(draft)
    rank = len(read(scope).weight.shape)
    with refused(reason):
        fused(draft, perm=range(rank))


def test_matrices_have_to_be_the_first_axis() -> None:
    with refused(Reason.BATCHED):
        fused(product_of(), perm=(1, 0, 2))
    with refused(Reason.BATCHED):
        fused(product_of(), perm=(2, 1, 0))


def test_the_product_itself_may_transpose_them() -> None:
    fusion = fused(product_of(op=_FUSED, attributes={"transB": 1}, **ROWS))
    assert (fusion.matrix.k, fusion.matrix.n, fusion.matrix.k_major) == (K, N, False)
