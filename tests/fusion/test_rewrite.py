"""Fused nodes put into a model: what takes whose place, what goes with it, and what stays because something reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from conformance.drawing.draft import Draft
from conformance.drawing.weight import Weight
from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.fusion.emit import FreshNames
from ort_qdq_plugin.fusion.match import match
from ort_qdq_plugin.fusion.rewrite import Rewriter, lift_from_subgraphs
from ort_qdq_plugin.fusion.validity import newest_opset
from ort_qdq_plugin.model.graph import Scope, model_scope
from ort_qdq_plugin.model.messages import refer
from tests.fusion.support import SETTINGS, locate


def rewritten(model: ModelProto) -> tuple[GraphProto, list[TensorProto]]:
    """The graph with everything fused that can be, and the new constants. Fused nodes read B, scales and zero_points."""
    scope = model_scope(model)
    rewriter = Rewriter(model, scope, FreshNames(scope))
    for fusion in match(scope, locate, SETTINGS).fusions:
        rewriter.put(fusion, {name: name for name in fusion.operands})
    constants = rewriter.finish()
    return model.graph, constants


def draft_of(opset: int = 21) -> Draft:
    """An input x [m, 128] and a dequantized weight w_d [128, 64]."""
    draft = Draft("rewrite", opset=opset)
    draft.input("x", ["m", 128])
    draft.weight(Weight())
    return draft


def ops(nodes: Sequence[NodeProto]) -> list[str]:
    return [node.op_type for node in nodes]


def initializers(graph: GraphProto) -> set[str]:
    return {tensor.name for tensor in graph.initializer}


# What goes


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


def test_everything_that_only_brought_the_weight_goes() -> None:
    draft = draft_of()
    value = draft.node("Transpose", ["w_d"], "t", perm=[1, 0])
    value = draft.node("Reshape", [value, draft.ints("shape", [1, 64, 128])], "r")
    value = draft.node("Squeeze", [value, draft.ints("axes", [0])], "s")
    value = draft.node("Identity", [draft.node("Cast", [value], "c", to=TensorProto.FLOAT)], "i")
    draft.node("Gemm", ["x", value], "y", transB=1)
    graph, _ = rewritten(draft.model())
    assert ops(graph.node) == ["MatMulNBits"]
    assert not graph.initializer


def test_constant_nodes_go_as_initializers_do() -> None:
    draft = Draft("rewrite")
    draft.constant_nodes = True
    draft.input("x", ["m", 128])
    draft.node("MatMul", ["x", draft.weight(Weight())], "y")
    assert ops(rewritten(draft.model())[0].node) == ["MatMulNBits"]


def test_an_add_that_became_a_bias_goes_and_its_constant_stays() -> None:
    draft = draft_of()
    draft.node("MatMul", ["x", "w_d"], "p")
    draft.node("Relu", ["x"], "between")
    draft.node("Add", [draft.floats("bias", [64]), "p"], "y")
    graph, _ = rewritten(draft.model())
    assert ops(graph.node) == ["Relu", "MatMulNBits"]
    assert (graph.node[1].input[5], graph.node[1].output[0]) == ("bias", "y")
    assert initializers(graph) == {"bias"}


def test_a_bias_times_0_goes_unless_it_is_computed() -> None:
    draft = draft_of()
    draft.node("Gemm", ["x", "w_d", draft.floats("bias", [64])], "y", beta=0.0)
    draft.node("Relu", [draft.floats("r", [64])], "computed")
    draft.node("Gemm", ["x", "w_d", "computed"], "z", beta=0.0)
    graph, _ = rewritten(draft.model())
    assert ops(graph.node) == ["MatMulNBits", "Relu", "MatMulNBits"]
    assert initializers(graph) == {"r"}


# What stays


def two_products(draft: Draft) -> None:
    draft.node("MatMul", ["x", "w_d"], "y")
    draft.node("Mul", ["z", "w_d"], "other")


def scales_read(draft: Draft) -> None:
    draft.node("MatMul", ["x", "w_d"], "y")
    draft.node("Relu", ["w_s"], "other")


def weight_is_output(draft: Draft) -> None:
    draft.node("MatMul", ["x", "w_d"], "y")
    draft.output("w_z", [4, 64], "uint4")


def dequantized_is_output(draft: Draft) -> None:
    draft.node("MatMul", ["x", "w_d"], "y")
    draft.output("w_d", [128, 64])


def view_read(draft: Draft) -> None:
    draft.node("MatMul", ["x", draft.node("Identity", [draft.node("Identity", ["w_d"], "i")], "j")], "y")
    draft.node("Mul", ["z", "i"], "other")


STAYS: dict[str, tuple[Callable[[Draft], None], list[str], set[str]]] = {
    "another reader": (two_products, ["DequantizeLinear", "MatMulNBits", "Mul"], {"w", "w_s", "w_z"}),
    "a reader of the scales": (scales_read, ["MatMulNBits", "Relu"], {"w_s"}),
    "zero points that are an output": (weight_is_output, ["MatMulNBits"], {"w_z"}),
    "a result that is an output": (dequantized_is_output, ["DequantizeLinear", "MatMulNBits"], {"w", "w_s", "w_z"}),
    "a reader of a view": (view_read, ["DequantizeLinear", "Identity", "MatMulNBits", "Mul"], {"w", "w_s", "w_z"}),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_something_else_reads_stays(name: str) -> None:
    change, left, constants = STAYS[name]
    draft = draft_of()
    draft.input("z", [1])
    change(draft)
    graph, _ = rewritten(draft.model())
    assert ops(graph.node) == left
    assert initializers(graph) == constants


def test_scales_of_two_weights_go_with_the_last_of_them() -> None:
    draft = draft_of()
    draft.quantized("v", "uint4", [128, 64])
    draft.node("DequantizeLinear", ["v", "w_s"], "v_d", axis=0, block_size=32)
    for weight in ("w_d", "v_d"):
        draft.node("MatMul", ["x", weight], f"of_{weight}")
    graph, _ = rewritten(draft.model())
    assert ops(graph.node) == ["MatMulNBits", "MatMulNBits"]
    assert not graph.initializer


def test_an_initializer_that_is_an_input_stays() -> None:
    """Before IR version 4 every initializer is an input as well, which the caller may still name."""
    draft = draft_of()
    draft.input("w", [128, 64], "uint4")
    draft.node("MatMul", ["x", "w_d"], "y")
    model = draft.model()
    model.ir_version = 3
    graph, _ = rewritten(model)
    assert ops(graph.node) == ["MatMulNBits"]
    assert initializers(graph) == {"w"}


def test_what_the_fused_node_reads_stays() -> None:
    """The activation is made by a node that could have brought a weight as well."""
    draft = draft_of()
    draft.node("MatMul", [draft.node("Transpose", [draft.input("xt", [128, 3])], "t"), "w_d"], "y")
    assert ops(rewritten(draft.model())[0].node) == ["Transpose", "MatMulNBits"]


# Models


def fused_model(opset: int = 21) -> ModelProto:
    draft = draft_of(opset)
    draft.node("MatMul", ["x", "w_d"], "y")
    return draft.model()


def test_the_operators_domain_is_imported_once() -> None:
    for imported in (False, True):
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


@pytest.mark.parametrize(
    ("imported", "refused"),
    [
        ([("", 21), ("ai.onnx", 21)], ""),
        ([("", 21), ("ai.onnx", 20)], r"opsets \[20, 21\] at once"),
        ([("ai.onnx", newest_opset())], ""),
        ([("ai.onnx", newest_opset() + 1)], f"opset {newest_opset() + 1}"),
        ([("", newest_opset() + 1)], ""),
    ],
)
def test_opsets_that_onnx_runtime_would_refuse(imported: list[tuple[str, int]], refused: str) -> None:
    model = fused_model()
    del model.opset_import[:]
    for domain, version in imported:
        model.opset_import.add(domain=domain, version=version)
    if not refused:
        rewritten(model)
        return
    with pytest.raises(ModelError, match=refused):
        rewritten(model)


@pytest.mark.parametrize("at", [0, 1])
def test_a_node_that_is_not_as_its_opset_has_it_does_not_disappear(at: int) -> None:
    model = fused_model()
    model.graph.node[at].attribute.append(helper.make_attribute("unknown", 1))
    graph, _ = rewritten(model)
    assert ops(graph.node) == ["DequantizeLinear", "MatMul"]
    assert initializers(graph) == {"w", "w_s", "w_z"}


def test_a_constant_that_is_not_as_its_opset_has_it_does_not_disappear() -> None:
    draft = Draft("rewrite")
    draft.constant_nodes = True
    draft.input("x", ["m", 128])
    draft.node("MatMul", ["x", draft.weight(Weight())], "y")
    model = draft.model()
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
    draft.input("k", [], "bool")
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


def test_a_weight_that_a_branch_reads_stays() -> None:
    inside = Draft("inside")
    inside.node("Mul", ["x", "w_d"], "a")
    draft = draft_of()
    draft.input("k", [], "bool")
    draft.node("If", ["k"], "y", then_branch=inside.graph("branch"))
    draft.node("MatMul", ["x", "w_d"], "z")
    graph, _ = rewritten(draft.model())
    assert ops(graph.node) == ["DequantizeLinear", "If", "MatMulNBits"]


# External initializers of branches


def external(name: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), name)
    refer(tensor, "w.data", 0, 12)
    return tensor


def branch(name: str, nodes: Sequence[NodeProto], tensors: Sequence[TensorProto], outputs: Sequence[str] = ()) -> GraphProto:
    made: GraphProto = helper.make_graph(
        list(nodes), name, [], [helper.make_empty_tensor_value_info(output) for output in outputs], list(tensors)
    )
    return made


def lifted(*branches: GraphProto) -> GraphProto:
    nodes = [helper.make_node("If", ["k"], [f"y{at}"], then_branch=graph) for at, graph in enumerate(branches)]
    main: GraphProto = helper.make_graph(nodes, "main", [], [], [external("own")])
    lift_from_subgraphs(main, FreshNames(Scope(main, None, 10)))
    return main


def test_external_initializers_of_branches_move_into_the_main_graph() -> None:
    inner = branch("inner", [helper.make_node("Add", ["w", "v"], ["i"])], [external("v")])
    nodes = [helper.make_node("Mul", ["w", "w"], ["b"]), helper.make_node("If", ["k"], ["c"], then_branch=inner)]
    small = numpy_helper.from_array(np.array(1, np.float32), "small")
    main = lifted(branch("outer", nodes, [external("w"), small]))
    assert initializers(main) == {"own", "w.lifted", "v.lifted"}
    assert all(tensor.external_data[0].value == "w.data" for tensor in main.initializer)
    outer = main.node[0].attribute[0].g
    assert initializers(outer) == {"small"}
    assert list(outer.node[0].input) == ["w.lifted", "w.lifted"]
    inner = outer.node[1].attribute[0].g
    assert not inner.initializer
    assert list(inner.node[0].input) == ["w.lifted", "v.lifted"]


def test_branches_with_initializers_of_the_same_name_get_different_ones() -> None:
    main = lifted(*(branch("b", [helper.make_node("Neg", ["w"], [f"n{at}"])], [external("w")]) for at in range(2)))
    assert initializers(main) == {"own", "w.lifted", "w.lifted.1"}
    assert [node.attribute[0].g.node[0].input[0] for node in main.node] == ["w.lifted", "w.lifted.1"]


def test_an_initializer_that_a_branch_returns_keeps_its_name_there() -> None:
    main = lifted(branch("b", [], [external("w")], ["w"]))
    (node,) = main.node[0].attribute[0].g.node
    assert (node.op_type, list(node.input), list(node.output)) == ("Identity", ["w.lifted"], ["w"])
    assert node.name
