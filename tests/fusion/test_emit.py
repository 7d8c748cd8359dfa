"""Names that nothing has yet, and nodes one after another."""

import numpy as np
import pytest
from onnx import GraphProto, TensorProto, helper

from conformance.drawing.draft import Draft
from ort_qdq_plugin.fusion.emit import FreshNames, NodeEmitter
from ort_qdq_plugin.model.graph import Scope
from tests.fusion.support import evaluated

UNSQUEEZE_AXES_INPUT = 13


def names_of(graph: GraphProto | None = None) -> FreshNames:
    return FreshNames(Scope(graph or helper.make_graph([], "g", [], []), None, 10))


def emitter_of(opset: int = 21, names: FreshNames | None = None) -> NodeEmitter:
    return NodeEmitter("y", "product", names or names_of(), opset)


# Names


def everything(suffix: str = "") -> Draft:
    """A graph with a name of every kind."""
    draft = Draft("names")
    draft.floats(f"initializer{suffix}", [1])
    draft.node("Neg", [draft.input(f"input{suffix}", [])], f"value{suffix}")
    draft.nodes[0].name = f"node{suffix}"
    return draft


@pytest.mark.parametrize("kind", ["input", "initializer", "value", "node"])
@pytest.mark.parametrize("where", ["", "_inside"])
def test_no_name_of_any_graph_is_given_again(kind: str, where: str) -> None:
    draft = everything()
    draft.node("If", ["c"], "y", then_branch=everything("_inside").graph("branch"))
    names = names_of(draft.graph("g"))
    assert names.fresh(kind + where) == f"{kind}{where}.1"
    assert names.fresh(kind + where) == f"{kind}{where}.2"


def test_a_name_that_is_free_is_given_as_it_is_and_once() -> None:
    names = names_of(helper.make_graph([helper.make_node("Neg", ["x"], ["b"], name="b.2")], "g", [], []))
    assert [names.fresh("a") for _ in range(3)] == ["a", "a.1", "a.2"]
    assert [names.fresh("a.1") for _ in range(2)] == ["a.1.1", "a.1.2"]
    assert [names.fresh("b") for _ in range(3)] == ["b.1", "b.3", "b.4"]


# Chains


@pytest.mark.parametrize("opset", [11, 17, 18, 21])
def test_equal_parts_of_an_axis(opset: int) -> None:
    emitter, values = emitter_of(opset), np.arange(24.0).reshape(2, 6, 2)
    parts = emitter.split("x", 3, 1)
    emitter.node("Concat", [parts[2], parts[0], parts[1]], axis=1)
    given = evaluated(emitter.finished(), emitter.constants, {"x": values}, "y", opset)
    np.testing.assert_array_equal(given, np.roll(values, 2, axis=1))


def test_the_first_fused_node_alone_has_the_name_of_what_it_replaces() -> None:
    emitter = emitter_of()
    emitter.node("Add", [emitter.fused("MatMulNBits", ["x", "b"]), emitter.fused("MatMulNBits", ["x", "c"])])
    names = [node.name for node in emitter.finished()]
    assert names[0] == "product"
    assert len(set(names)) == 3


def test_the_last_node_gives_the_output_and_the_others_have_new_names() -> None:
    emitter = emitter_of()
    cast = emitter.node("Cast", ["x"], to=TensorProto.FLOAT)
    product = emitter.fused("MatMulNBits", [cast, "b", "s", "", "", "bias"], K=64, N=32, bits=4, block_size=16)
    emitter.node("Transpose", [product], perm=(1, 0))
    first, fused, last = emitter.finished()
    assert first == helper.make_node("Cast", ["x"], ["y.Cast"], name="y.Cast", domain="", to=TensorProto.FLOAT)
    assert fused == helper.make_node(
        "MatMulNBits", ["y.Cast", "b", "s", "", "", "bias"], ["y.MatMulNBits"], name="product", domain="com.microsoft",
        K=64, N=32, bits=4, block_size=16,
    )  # fmt: skip
    assert last == helper.make_node("Transpose", ["y.MatMulNBits"], ["y"], name="y.Transpose", domain="", perm=[1, 0])


def test_nodes_and_constants_of_one_model_share_no_name() -> None:
    names = names_of()
    one, other = emitter_of(names=names), emitter_of(names=names)
    assert one.node("Cast", [one.node("Cast", ["x"], to=1)], to=10) == "y.Cast.1"
    assert [(node.name, list(node.output)) for node in one.finished()] == [("y.Cast", ["y.Cast"]), ("y.Cast.1", ["y"])]
    assert other.node("Cast", ["x"], to=1) == "y.Cast.2"
    assert [emitter.constant(TensorProto(), "beta") for emitter in (one, other)] == ["beta", "beta.1"]
    assert [[tensor.name for tensor in emitter.constants] for emitter in (one, other)] == [["beta"], ["beta.1"]]


@pytest.mark.parametrize("opset", [11, UNSQUEEZE_AXES_INPUT - 1, UNSQUEEZE_AXES_INPUT, 21])
@pytest.mark.parametrize("count", [1, 3])
def test_leading_axes(opset: int, count: int) -> None:
    emitter = emitter_of(opset)
    emitter.unsqueezed("x", count)
    (node,) = emitter.finished()
    assert (node.op_type, bool(node.attribute)) == ("Unsqueeze", opset < UNSQUEEZE_AXES_INPUT)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    result = evaluated([node], emitter.constants, {"x": x}, "y", opset)
    np.testing.assert_array_equal(result, x.reshape([1] * count + [2, 3]))


@pytest.mark.parametrize("shape", [(7,), (2, 7), (2, 1, 7)])
def test_a_last_axis_that_is_cut(shape: tuple[int, ...]) -> None:
    emitter = emitter_of(10)
    emitter.cut("x", 5)
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    result = evaluated(emitter.finished(), emitter.constants, {"x": x}, "y", 10)
    np.testing.assert_array_equal(result, x[..., :5])
