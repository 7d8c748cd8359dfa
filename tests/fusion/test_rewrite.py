"""Fused nodes put into a model: what takes whose place, what goes with it, and what stays because something reads it."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper
from onnx.parser import parse_graph

from conformance.drawing.draft import Draft
from conformance.drawing.weight import Weight
from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.fusion.emit import FreshNames
from ort_qdq_plugin.fusion.match import match
from ort_qdq_plugin.fusion.rewrite import Rewriter, lift_from_subgraphs
from ort_qdq_plugin.fusion.validity import newest_opset
from ort_qdq_plugin.model.graph import Scope, model_scope
from tests.fusion.support import SETTINGS, drawn, locate


def rewritten(model: ModelProto) -> tuple[GraphProto, list[TensorProto]]:
    """The graph with everything fused that can be, and the new constants. Fused nodes read B, scales and zero_points."""
    scope = model_scope(model)
    matches = match(scope, locate, SETTINGS)
    rewriter = Rewriter(model, scope, FreshNames(scope), matches.folded)
    for fusion in matches.fusions:
        rewriter.put(fusion, {name: name for name in fusion.operands})
    constants = rewriter.finish()
    return model.graph, constants


def draft_of(opset: int = 21) -> Draft:
    """Inputs x [m, 128], z [128, 3] and k, and a dequantized weight w_d [128, 64]."""
    draft = Draft("rewrite", opset=opset)
    draft.input("x", ["m", 128])
    draft.input("z", [128, 3])
    draft.input("k", [], "bool")
    draft.weight(Weight())
    return draft


def ops(nodes: Sequence[NodeProto]) -> list[str]:
    return [node.op_type for node in nodes]


def initializers(graph: GraphProto) -> set[str]:
    return {tensor.name for tensor in graph.initializer}


# What goes


def test_what_takes_parts_goes_with_the_last_of_them() -> None:
    draft = draft_of()
    draft.node("Split", ["w_d"], "p", axis=1, num_outputs=2)
    draft.nodes[-1].output.append("q")
    draft.node("Gather", ["q", draft.ints("i", [3, 1])], "g", axis=1)
    for name, part in (("a", "p"), ("b", "g")):
        draft.node("MatMul", ["x", part], name)
    graph, _ = rewritten(draft.model())
    assert ops(graph.node) == ["MatMulNBits"] * 2
    assert not initializers(graph)
    draft.node("Neg", ["q"], "c")
    graph, _ = rewritten(draft.model())
    assert ops(graph.node) == ["DequantizeLinear", "Split", "MatMulNBits", "MatMulNBits", "Neg"]
    assert initializers(graph) == {"w", "w_s", "w_z"}
    draft.output("p", [128, 32])
    draft.nodes.pop()
    graph, _ = rewritten(draft.model())
    assert ops(graph.node) == ["DequantizeLinear", "Split", "MatMulNBits", "MatMulNBits"]


def test_what_joins_weights_goes_with_all_of_them() -> None:
    draft = draft_of()
    draft.weight(Weight(), "v")
    draft.node("Mul", ["v_d", draft.floats("f", [64])], "m")
    draft.node("Concat", ["w_d", "v_d"], "c", axis=1)
    for name, weight in (("a", "c"), ("b", "m")):
        draft.node("MatMul", ["x", weight], name)
    graph, _ = rewritten(draft.model())
    assert ops(graph.node) == ["MatMulNBits"] * 2
    assert not initializers(graph)


def test_a_product_and_its_weight_become_one_node() -> None:
    draft = draft_of()
    draft.declare("w_d", [128, 64])
    draft.node("Relu", ["x"], "before")
    draft.node("MatMul", ["before", "w_d"], "y")
    draft.node("Relu", ["y"], "z")
    graph, constants = rewritten(draft.model())
    assert ops(graph.node) == ["Relu", "MatMulNBits", "Relu"]
    assert list(graph.node[1].input) == ["before", "B", "scales", "zero_points"]
    assert not graph.initializer
    assert not graph.value_info
    assert not constants


def with_constant_nodes() -> ModelProto:
    draft = Draft("rewrite")
    draft.constant_nodes = True
    draft.input("x", ["m", 128])
    draft.node("MatMul", ["x", draft.weight(Weight())], "y")
    return draft.model()


def test_constant_nodes_go_as_initializers_do() -> None:
    assert ops(rewritten(with_constant_nodes())[0].node) == ["MatMulNBits"]


def test_an_add_that_became_a_bias_goes_and_its_constant_stays() -> None:
    draft = draft_of()
    draft.node("MatMul", ["x", "w_d"], "p")
    draft.node("Relu", ["x"], "between")
    draft.node("Add", [draft.floats("bias", [64]), "p"], "y")
    graph, _ = rewritten(draft.model())
    assert ops(graph.node) == ["Relu", "MatMulNBits"]
    assert (graph.node[1].input[5], graph.node[1].output[0]) == ("bias", "y")
    assert initializers(graph) == {"bias"}


# What is drawn behind a weight, which nodes are left, and which initializers.
PRODUCT = ("MatMul", "x w_d", "y")
READS_THE_WEIGHT = helper.make_graph([helper.make_node("Mul", ["x", "w_d"], ["a"], "inside")], "branch", [], [])
LEFT: dict[str, tuple[list[tuple[Any, ...]], str, str]] = {
    "everything that only brought the weight goes": (
        [("Transpose", "w_d", "t", {"perm": [1, 0]}), ("ints", "1 64 128", "to"), ("Reshape", "t to", "r"),
         ("ints", "0", "axes"), ("Squeeze", "r axes", "s"), ("Cast", "s", "c", {"to": TensorProto.FLOAT}),
         ("Identity", "c", "i"), ("Gemm", "x i", "y", {"transB": 1})],
        "MatMulNBits", "",
    ),
    "a bias times 0 goes unless it is computed": (
        [("floats", "64", "bias"), ("Gemm", "x w_d bias", "y", {"beta": 0.0}),
         ("floats", "64", "a"), ("floats", "64", "b"), ("Add", "a b", "computed"),
         ("Gemm", "x w_d computed", "z", {"beta": 0.0})],
        "MatMulNBits Add MatMulNBits", "a b",
    ),
    "another reader": ([PRODUCT, ("Mul", "z w_d", "o")], "DequantizeLinear MatMulNBits Mul", "w w_s w_z"),
    "a reader of the scales": ([PRODUCT, ("Relu", "w_s", "o")], "MatMulNBits Relu", "w_s"),
    "zero points that are an output": ([PRODUCT, ("output", "4 64", "w_z", {"kind": "uint4"})], "MatMulNBits", "w_z"),
    "a result that is an output": ([PRODUCT, ("output", "128 64", "w_d")], "DequantizeLinear MatMulNBits", "w w_s w_z"),
    "a reader of a view": (
        [("Identity", "w_d", "i"), ("Identity", "i", "j"), ("MatMul", "x j", "y"), ("Mul", "z i", "o")],
        "DequantizeLinear Identity MatMulNBits Mul", "w w_s w_z",
    ),
    "a reader in a branch": (
        [("If", "k", "o", {"then_branch": READS_THE_WEIGHT}), PRODUCT], "DequantizeLinear If MatMulNBits", "w w_s w_z",
    ),
    # The activation is made by a node that could have brought a weight as well.
    "what the fused node reads": ([("Transpose", "z", "t"), ("MatMul", "t w_d", "y")], "Transpose MatMulNBits", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left(name: str) -> None:
    nodes, left, constants = LEFT[name]
    graph, _ = rewritten(drawn(draft_of(), *nodes).model())
    assert ops(graph.node) == left.split()
    assert initializers(graph) == {*constants.split()}


def test_scales_of_two_weights_go_with_the_last_of_them() -> None:
    draft = draft_of()
    draft.quantized("v", "uint4", [128, 64])
    draft.node("DequantizeLinear", ["v", "w_s"], "v_d", axis=0, block_size=32)
    graph, _ = rewritten(drawn(draft, ("MatMul", "x w_d", "y"), ("MatMul", "x v_d", "z")).model())
    assert ops(graph.node) == ["MatMulNBits", "MatMulNBits"]
    assert not graph.initializer


def fused_model(opset: int = 21) -> ModelProto:
    return drawn(draft_of(opset), PRODUCT).model()


def test_an_initializer_that_is_an_input_stays() -> None:
    """Before IR version 4 every initializer is an input as well, which the caller may still name."""
    model = fused_model()
    model.ir_version = 3
    model.graph.input.add(name="w")
    graph, _ = rewritten(model)
    assert ops(graph.node) == ["MatMulNBits"]
    assert initializers(graph) == {"w"}


# Models


@pytest.mark.parametrize("imported", [False, True])
def test_the_operators_domain_is_imported_once(imported: bool) -> None:
    model = fused_model()
    if imported:
        model.opset_import.add(domain="com.microsoft", version=1)
    rewritten(model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 21), ("com.microsoft", 1)]


def test_a_model_without_fusions_stays_as_it_is() -> None:
    model = draft_of().model()
    before = model.SerializeToString()
    assert rewritten(model)[1] == []
    assert model.SerializeToString() == before


@pytest.mark.parametrize(("imported", "refused"), [
    ([("", 21), ("ai.onnx", 21)], ""), ([("", 21), ("ai.onnx", 20)], r"opsets \[20, 21\] at once"),
    ([("ai.onnx", newest_opset())], ""), ([("ai.onnx", newest_opset() + 1)], f"opset {newest_opset() + 1}"),
    ([("", newest_opset() + 1)], ""),
])  # fmt: skip
def test_opsets_that_onnx_runtime_would_refuse(imported: list[tuple[str, int]], refused: str) -> None:
    model = fused_model()
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*entry) for entry in imported)
    with pytest.raises(ModelError, match=refused) if refused else nullcontext():
        rewritten(model)


@pytest.mark.parametrize("at", [0, 1])
def test_a_node_that_is_not_as_its_opset_has_it_does_not_disappear(at: int) -> None:
    model = fused_model()
    model.graph.node[at].attribute.append(helper.make_attribute("unknown", 1))
    graph, _ = rewritten(model)
    assert ops(graph.node) == ["DequantizeLinear", "MatMul"]
    assert initializers(graph) == {"w", "w_s", "w_z"}


def test_a_constant_that_is_not_as_its_opset_has_it_does_not_disappear() -> None:
    model = with_constant_nodes()
    scales = next(node for node in model.graph.node if node.output[0] == "w_s")
    scales.attribute.append(helper.make_attribute("unknown", 1))
    assert ops(rewritten(model)[0].node) == ["Constant", "MatMulNBits"]


@pytest.mark.parametrize(("opset", "constants"), [(12, []), (13, ["axes"])])
def test_new_nodes_are_of_the_models_opset(opset: int, constants: list[str]) -> None:
    """A vector times a weight of four axes needs an Unsqueeze, whose axes are an input since opset 13."""
    draft = Draft("rewrite", opset=opset)
    draft.dequantize("w", [1, 1, 64, 32], axis=3, block=-1, element="uint8")
    draft.node("MatMul", [draft.input("x", [3, 64]), "w_d"], "y")
    graph, made = rewritten(draft.model())
    assert ops(graph.node) == ["MatMulNBits", "Unsqueeze"]
    assert [tensor.name for tensor in made] == constants


# Branches


def test_a_weight_outside_goes_when_no_branch_reads_it() -> None:
    inside = Draft("inside")
    inside.weight(Weight(), "v")
    inside.node("MatMul", ["x", "w_d"], "a")
    inside.node("MatMul", ["x", "v_d"], "b")
    inside.output("a", ["m", 64])
    draft = draft_of()
    draft.node("If", ["k"], "y", then_branch=inside.graph("branch"), else_branch=inside.graph("branch"))
    draft.node("MatMul", ["x", "w_d"], "z")
    graph, _ = rewritten(draft.model())
    assert ops(graph.node) == ["If", "MatMulNBits"]
    assert not graph.initializer
    for attribute in graph.node[0].attribute:
        assert ops(attribute.g.node) == ["MatMulNBits", "MatMulNBits"]
        assert not attribute.g.initializer
        names = [node.name for node in attribute.g.node]
        assert len(names) == len(set(names))


# External initializers of branches


def lifted(nodes: str) -> GraphProto:
    """A graph of these nodes, in whose text %s is what says that a tensor lies elsewhere, and of a tensor of its own."""
    main = parse_graph(f"main () => () <float[3] own = %s> {{ {nodes} }}".replace("%s", '["location": "w.data"]'))
    lift_from_subgraphs(main, FreshNames(Scope(main, None, 10)))
    return main


def branch_of(node: NodeProto) -> GraphProto:
    graph: GraphProto = node.attribute[0].g
    return graph


def test_external_initializers_of_branches_move_into_the_main_graph() -> None:
    main = lifted("""y = If (k) <then_branch = outer () => () <float[3] w = %s, float small = {1}> {
        b = Mul (w, w)
        c = If (k) <then_branch = inner () => () <float[3] v = %s> { i = Add (w, v) }>
    }>""")
    assert initializers(main) == {"own", "w.lifted", "v.lifted"}
    assert all(tensor.external_data[0].value == "w.data" for tensor in main.initializer)
    outer = branch_of(main.node[0])
    assert initializers(outer) == {"small"}
    assert list(outer.node[0].input) == ["w.lifted", "w.lifted"]
    inner = branch_of(outer.node[1])
    assert not inner.initializer
    assert list(inner.node[0].input) == ["w.lifted", "v.lifted"]


def test_branches_with_initializers_of_the_same_name_get_different_ones() -> None:
    main = lifted(
        " ".join(f"y{at} = If (k) <then_branch = b () => () <float[3] w = %s> {{ n{at} = Neg (w) }}>" for at in "01")
    )
    assert initializers(main) == {"own", "w.lifted", "w.lifted.1"}
    assert [branch_of(node).node[0].input[0] for node in main.node] == ["w.lifted", "w.lifted.1"]


def test_an_initializer_that_a_branch_returns_keeps_its_name_there() -> None:
    main = lifted("y = If (k) <then_branch = b () => (w) <float[3] w = %s> {}>")
    (node,) = branch_of(main.node[0]).node
    assert (node.op_type, list(node.input), list(node.output)) == ("Identity", ["w.lifted"], ["w"])
    assert node.name


# Weights of branches that are dequantized once


def test_what_a_fused_node_leaves_unread_goes_when_the_weight_is_dequantized_once_for_others() -> None:
    inside = Draft("inside")
    inside.weight(Weight(), "v")
    inside.node("Gather", ["v_d", inside.ints("i", [3, 1])], "g", axis=1)
    inside.node("MatMul", ["x", "g"], "a")
    inside.node("Neg", ["v_d"], "n")
    for name in ("a", "n"):
        inside.output(name, None)
    draft = draft_of()
    draft.node("If", ["k"], "y", then_branch=inside.graph("branch"), else_branch=inside.graph("branch"))
    draft.nodes[-1].output.append("z")
    model = draft.model()
    scope = model_scope(model)
    matches = match(scope, locate, SETTINGS._replace(once_bytes=lambda: 1 << 20))
    rewriter = Rewriter(model, scope, FreshNames(scope), matches.folded)
    for fusion in matches.fusions:
        rewriter.put(fusion, {name: name for name in fusion.operands})
    names = [rewriter.put_constant(once.node_ref) for once in matches.once]
    rewriter.finish()
    branches = [attribute.g for node in model.graph.node for attribute in node.attribute if attribute.HasField("g")]
    assert [ops(branch.node) for branch in branches] == [["MatMulNBits", "Neg"]] * 2
    assert [branch.node[1].input[0] for branch in branches] == names
