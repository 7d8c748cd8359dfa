"""Products with a matrix that is chosen at run time: which are fused, and that the branch of the matrix is run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from conformance.drawing.draft import Draft
from conformance.drawing.elements import MS
from conformance.drawing.weight import PER_TENSOR
from ort_qdq_plugin import Options, create_session
from ort_qdq_plugin.fusion.chosen import ChosenFusion, chosen_product
from ort_qdq_plugin.fusion.kind import FusionSettings, Site
from ort_qdq_plugin.model.elements import FLOAT16
from ort_qdq_plugin.model.graph import model_scope
from ort_qdq_plugin.report.weights import Reason
from tests.fusion.support import SETTINGS, drawn, emitted, locate, read, refused
from tests.packing.plain import packed_lines
from tests.support import CPU, made_report, quiet, stock

E, K, N = 3, 64, 32
SQUEEZE: list[tuple[Any, ...]] = [("ints", "0", "first"), ("Squeeze", "g first", "s")]
PRODUCT: list[tuple[Any, ...]] = [*SQUEEZE, ("MatMul", "x s", "y")]
IN_FLOAT = FusionSettings(block_size=0, accuracy_level=0)


def looked_up(
    *nodes: tuple[Any, ...],
    indices: Sequence[int | str] = (1,),
    shape: Sequence[int] = (E, K, N),
    opset: int = 21,
    **how: Any,
) -> Draft:
    """A matrix `g` that is looked up, and what makes of it the product `y` with `x`."""
    draft = Draft("chosen", opset=opset)
    draft.dequantize("w", shape, **{"axis": 1, **how})
    draft.input("e", indices, "int64")
    draft.input("x", ["m", K])
    draft.node("Gather", ["w_d", "e"], "g")
    drawn(draft, *nodes)
    draft.output("y", ["m", N])
    return draft


def fused(
    draft: Draft, settings: FusionSettings = SETTINGS, perm: Sequence[int] = (0, 1, 2), data_type: int | None = None
) -> ChosenFusion:
    scope = model_scope(draft.model())
    index = next(index for index, node in enumerate(scope.nodes) if node.op_type == "Gather")
    found = read(scope)
    view = found.view.transposed(perm)
    view = view if data_type is None else view._replace(data_type=data_type)
    return chosen_product(Site("w_d_node", "Gather", "g_node", "w_d", "g", ((scope, index),)), found, view, settings, locate)


def test_each_matrix_has_a_branch_and_the_last_one_gives_the_result() -> None:
    fusion = fused(looked_up(*PRODUCT))
    nodes, _ = emitted(fusion)
    assert [node.op_type for node in nodes] == ["Gather", *["Equal", "If"] * E]
    assert nodes[-1].output[0] == fusion.site.output == "y"
    assert [index for _, index in fusion.site.replaced] == [1, 2, 3]
    for at, node in enumerate(nodes[2::2]):
        chosen, other = (attr.g for attr in node.attribute)
        (product,), (passed,) = chosen.node, other.node
        assert list(product.input) == ["x", f"B.{at}", f"scales.{at}", f"zero_points.{at}"]
        assert passed.op_type == "Identity"
        assert passed.input[0] == (nodes[2 * at].output[0] if at else "y_node.none")
    graphs = [attr.g for node in nodes[2::2] for attr in node.attribute]
    names = [name for graph in graphs for node in graph.node for name in (node.name, *node.output)]
    assert len(set(names)) == len(names)


def test_operands_are_those_of_the_matrices() -> None:
    draft = looked_up(*PRODUCT, element="uint8")
    fusion = fused(draft)
    stored = np.frombuffer(draft.initializers[0].raw_data, np.uint8).reshape(E, K, N)
    for at in range(E):
        np.testing.assert_array_equal(packed_lines(fusion.operands[f"B.{at}"]), stored[at].T)
        assert fusion.products[at].operands["B"] == fusion.operands[f"B.{at}"]


WAYS: dict[str, tuple[Draft, Sequence[int]]] = {
    "a-scalar": (looked_up(("MatMul", "x g", "y"), indices=()), ()),
    "squeezed": (looked_up(*PRODUCT), (1,)),
    "twice": (looked_up(("ints", "0 1", "first"), *PRODUCT[1:], indices=(1, 1)), (1, 1)),
    "in-rows": (
        looked_up(*SQUEEZE, ("Transpose", "s", "t", {"perm": [1, 0]}), ("MatMul", "x t", "y"), shape=(E, N, K), axis=2),
        (1,),
    ),
    "by-gemm": (looked_up(*SQUEEZE, ("Gemm", "x s", "y", {"transB": 1}), shape=(E, N, K), axis=2), (1,)),
    "with-a-bias": (looked_up(("floats", str(N), "b"), *SQUEEZE, ("Gemm", "x s b", "y", {"alpha": 0.5})), (1,)),
    "and-a-bias-behind": (looked_up(("floats", str(N), "b"), *SQUEEZE, ("MatMul", "x s", "h"), ("Add", "h b", "y")), (1,)),
    "an-activation-that-a-view-makes": (
        looked_up(("Reshape", "x shape", "v"), ("ints", "-1 64", "shape"), *SQUEEZE, ("MatMul", "v s", "y")), (1,),
    ),
    "per-tensor": (looked_up(*PRODUCT, block=PER_TENSOR), (1,)),
    "8-bits": (looked_up(*PRODUCT, element="int8"), (1,)),
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("level", [0, 4])
def test_the_matrix_is_the_one_that_is_asked_for(name: str, level: int) -> None:
    draft, indices = WAYS[name]
    draft.nodes.sort(key=lambda node: node.op_type != "Reshape" and node.op_type != "DequantizeLinear")
    model, plain = bytes(draft.model().SerializeToString()), quiet()
    plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session, reference = (
        create_session(model, quiet(), CPU, options=Options(accuracy_level=level, strict=True)),
        stock(model, plain),
    )
    assert len(made_report(session).fused) == 1
    x = np.random.default_rng(0).standard_normal((5, K)).astype(np.float32)
    for number in range(-E, E):
        feeds = {"x": x, "e": np.full(indices, number)}
        (wanted,), (given,) = reference.run(None, feeds), session.run(None, feeds)
        np.testing.assert_allclose(given, wanted, rtol=0, atol=(2e-2 if level else 1e-5) * np.abs(wanted).max())
    for number in (E, -E - 1):
        with pytest.raises(Exception, match="out of data bounds"):
            session.run(None, {"x": x, "e": np.full(indices, number)})


def test_a_table_may_be_seen_transposed() -> None:
    draft = looked_up(*PRODUCT, shape=(E, N, K), axis=2)
    assert not fused(draft, perm=(0, 2, 1)).products[0].matrix.k_major
    with refused(Reason.GATHER):
        fused(draft, perm=(2, 1, 0))


def test_the_result_has_the_type_of_the_product() -> None:
    fusion = fused(looked_up(*PRODUCT), data_type=FLOAT16)
    nodes, constants = emitted(fusion)
    assert {attr.g.output[0].type.tensor_type.elem_type for node in nodes[2::2] for attr in node.attribute} == {FLOAT16}
    assert next(tensor for tensor in constants if tensor.name.endswith(".none")).data_type == FLOAT16


def test_8_bits_below_level_4_stay_a_lookup() -> None:
    with refused(Reason.SLOWER):
        fused(looked_up(*PRODUCT, element="uint8", block=PER_TENSOR), IN_FLOAT)
    assert fused(looked_up(*PRODUCT), IN_FLOAT).products[0].accuracy_level == 0


def test_what_the_report_says() -> None:
    entry = fused(looked_up(*PRODUCT)).entry()
    assert (entry.kind, entry.k, entry.n, entry.bits, entry.layout) == ("Gather", K, E * N, 4, "K-major")
    assert (entry.node, entry.has_bias, entry.block_size) == ("y_node", False, 32)
    assert fused(looked_up(*PRODUCT)).operator == "MatMulNBits"


_STACK_OF_STACKS: dict[str, Any] = {"shape": (2, E, K, N), "axis": 2}
REFUSED: dict[str, tuple[Draft, Reason]] = {
    "several-matrices": (looked_up(("MatMul", "x g", "y"), indices=(2,)), Reason.GATHER),
    "any-number-of-matrices": (looked_up(("MatMul", "x g", "y"), indices=("s",)), Reason.GATHER),
    "many-matrices": (looked_up(*PRODUCT, shape=(65, 32, 8)), Reason.GATHER),
    "before-equal-broadcasts": (looked_up(*PRODUCT, opset=6, block=PER_TENSOR), Reason.GATHER),
    "no-product": (looked_up(*SQUEEZE, ("Relu", "s", "y")), Reason.CONSUMER),
    "a-product-of-something-else": (looked_up(*SQUEEZE, ("Relu", "s", "r"), ("MatMul", "x r", "y")), Reason.CONSUMER),
    "two-products": (looked_up(*SQUEEZE, ("MatMul", "x s", "y"), ("MatMul", "x s", "z")), Reason.CONSUMER),
    "an-output-besides": (looked_up(*PRODUCT, ("output", f"1 {K} {N}", "g")), Reason.CONSUMER),
    "a-shape-of-it": (looked_up(("Reshape", "x g", "y")), Reason.CONSUMER),
    "a-product-that-is-refused": (looked_up(*SQUEEZE, ("MatMul", "s s", "y")), Reason.CONSUMER),
    "blocks-along-n": (looked_up(*PRODUCT, axis=2), Reason.BLOCKS_ALONG_N),
    "stacks-of-stacks": (looked_up(*PRODUCT, **_STACK_OF_STACKS), Reason.GATHER),
    "half-bytes": (looked_up(*PRODUCT, shape=(E, 33, 31)), Reason.BATCHED),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_fused_is_refused(name: str) -> None:
    draft, reason = REFUSED[name]
    with refused(reason):
        fused(draft, perm=range(4 if name == "stacks-of-stacks" else 3))


def test_a_batch_of_matrices_is_no_choice() -> None:
    """FusedMatMul of a stack, of which one is looked up: an axis of indices stays."""
    draft = looked_up(("FusedMatMul", "x g", "y"), indices=(1,))
    draft.nodes[-1].domain = MS
    fusion = fused(draft)
    assert fusion.products[0].outer.new_axes == 1


def test_branches_of_branches_are_left() -> None:
    draft = looked_up(*PRODUCT)
    inner = drawn(Draft(parent=draft), ("Gather", "w_d e", "h"), ("MatMul", "x h", "z"))
    inner.output("z", None)
    draft.input("c", [], "bool")
    draft.node("If", ["c"], "v", then_branch=inner.graph("then"), else_branch=inner.graph("else"))
    scope = model_scope(draft.model())
    branch, found = scope.children[0], read(scope)
    with refused(Reason.GATHER):
        chosen_product(Site("w_d_node", "Gather", "h", "w_d", "h", ((branch, 0),)), found, found.view, SETTINGS, locate)
