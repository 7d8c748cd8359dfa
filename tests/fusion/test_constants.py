"""Constants: which values are, in whichever graph; what bounds them; and what goes with them."""

import time
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, helper, numpy_helper

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.fusion.constants import Constants, ReadersGo, bytes_stored
from ort_qdq_plugin.model.graph import Scope, model_scope
from ort_qdq_plugin.model.sources import MemorySource
from ort_qdq_plugin.report.weights import Reason
from tests.folding.support import all_elements, code_of, constant, expression_of, folding
from tests.fusion.support import locate, missing
from tests.support import SLOWER

node = helper.make_node


def model(nodes: list[NodeProto], inputs: list[str] = [], outputs: list[str] = ["y"]) -> ModelProto:  # noqa: B006
    """With a constant `a` of [2, 3] floats, an initializer `o` that is overridable, and inputs of floats."""
    tensors = [constant("a", np.ones((2, 3)), "float"), constant("o", np.ones((2, 3)), "float")]
    infos = [helper.make_tensor_value_info(name, code_of("float"), [2, 3]) for name in ("o", *inputs)]
    made = helper.make_graph(nodes, "g", infos, [helper.make_empty_tensor_value_info(name) for name in outputs], tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def reason_of(nodes: list[NodeProto], name: str = "y") -> Reason | None:
    try:
        Constants(locate).expression(model_scope(model(nodes, ["x"])), name)
    except NotFusable as refusal:
        return refusal.reason
    return None


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([node("Neg", ["a"], ["y"])], None),
        ([node("Neg", ["x"], ["y"])], Reason.NOT_CONSTANT),
        ([node("Neg", ["o"], ["y"])], Reason.OVERRIDABLE),
        ([node("Neg", ["nowhere"], ["y"])], Reason.NOT_CONSTANT),
        ([node("Add", ["o", "x"], ["y"])], Reason.NOT_CONSTANT),
        ([node("Exp", ["x"], ["e"]), node("Add", ["e", "a"], ["y"])], Reason.NOT_CONSTANT),
        ([node("Exp", ["a"], ["e"]), node("Add", ["e", "a"], ["y"])], Reason.COMPUTED),
        ([node("Exp", ["a"], ["e"]), node("Add", ["e", "x"], ["y"])], Reason.NOT_CONSTANT),
        ([node("RandomNormalLike", ["a"], ["y"])], Reason.NOT_CONSTANT),
        ([node("RandomNormal", [], ["y"], shape=[2])], Reason.NOT_CONSTANT),
        ([node("Neg", ["a"], ["y"], domain="local")], Reason.COMPUTED),
        ([node("Neg", ["a"], ["y"], unknown=1)], Reason.COMPUTED),
        ([node("Neg", ["y"], ["y"])], Reason.NOT_CONSTANT),
        ([node("Neg", ["z"], ["y"]), node("Neg", ["y"], ["z"])], Reason.NOT_CONSTANT),
        ([node("Neg", ["z"], ["y"]), node("Neg", ["a"], ["z"])], Reason.COMPUTED),  # before it is there
    ],
)
def test_which_values_are_constant(nodes: list[NodeProto], reason: Reason | None) -> None:
    assert reason_of(nodes) is reason


def test_what_is_made_at_run_time_is_seen_at_once() -> None:
    nodes = [node("Exp", ["x"], ["e"]), node("Add", ["e", "a"], ["y"]), node("Neg", ["a"], ["n"])]
    scope, constants = model_scope(model(nodes, ["x"])), Constants(locate)
    assert [name for name in "xeyano" if constants.is_made_at_run_time(scope, name)] == ["x", "e", "y"]
    assert not constants.folded  # nothing was followed


def test_what_cannot_be_found_is_invalid() -> None:
    with pytest.raises(NotFusable) as caught:
        Constants(missing).expression(model_scope(model([node("Neg", ["a"], ["y"])])), "y")
    assert caught.value.reason is Reason.INVALID


def test_graphs_inside_graphs() -> None:
    def branch(name: str) -> Any:
        nodes = [node("Add", ["n", "a"], [name])]
        return helper.make_graph(nodes, name, [], [helper.make_empty_tensor_value_info(name)])

    outer = model(
        [
            node("Neg", ["a"], ["n"]),
            node("Cast", ["x"], ["k"], to=9),
            node("If", ["k"], ["y"], then_branch=branch("t"), else_branch=branch("e")),
        ],
        ["x"],
    )
    scope = model_scope(outer)
    constants = Constants(locate)
    for inner in scope.children:
        name = inner.graph.output[0].name
        np.testing.assert_array_equal(all_elements(constants.expression(inner, name)), np.zeros((2, 3)))
        assert (inner, 0) in constants.folded
    assert not constants.is_constant(scope, "y")
    assert (scope, 0) in constants.folded


def test_the_type_that_the_model_states() -> None:
    for kind, reason in (("float", None), ("float16", Reason.COMPUTED)):
        made = model([node("Neg", ["a"], ["y"])])
        made.graph.value_info.append(helper.make_tensor_value_info("y", code_of(kind), None))
        found = expression_of(made)
        assert (found if isinstance(found, Reason) else None) is reason


def test_what_is_said_of_a_constant() -> None:
    scope = model_scope(model([node("Cast", ["a"], ["y"], to=code_of("int8"))], ["x"]))
    constants = Constants(locate)
    for name, kind, stored in (("a", "float", 24), ("y", "int8", 24)):
        outline = constants.outline(scope, name)
        assert outline is not None
        assert (outline.data_type, list(outline.dims), constants.stored_bytes(scope, [name])) == (
            code_of(kind),
            [2, 3],
            stored,
        )
    assert constants.outline(scope, "x") is None
    assert constants.stored_bytes(scope, ["x"]) == 0
    # What is used twice is stored once, and something where its bytes are not there.
    assert constants.stored_bytes(scope, ["a", "y", "a"]) == Constants(missing).stored_bytes(scope, ["a"]) == 24
    assert constants.tensor(scope, "a").name == "a"
    assert constants.tensor(scope, "y").nbytes == 6


def test_bytes_that_overlap_count_once() -> None:
    one = locate(numpy_helper.from_array(np.arange(8, dtype=np.float32), "a"))
    parts = [one._replace(offset=at, nbytes=nbytes) for at, nbytes in ((0, 8), (4, 12), (20, 4), (20, 12))]
    assert bytes_stored([*parts, parts[0]]) == 16 + 12
    assert bytes_stored([one, one._replace(source=MemorySource(b"another"), nbytes=7)]) == one.nbytes + 7
    assert bytes_stored([]) == 0


# Bounds


def chain(op: str, count: int, *, twice: bool = False, **attributes: Any) -> list[NodeProto]:
    """Each reads what the one before makes, the first one `a`."""
    names = ["a", *(f"v{at}" for at in range(count - 1)), "y"]
    return [node(op, [names[at]] * (1 + twice), [names[at + 1]], **attributes) for at in range(count)]


@pytest.mark.parametrize(
    ("nodes", "is_folded"),
    [
        (chain("Neg", 60), True),
        (chain("Neg", 70), False),
        (chain("Add", 7, twice=True), True),
        (chain("Add", 60, twice=True), False),
        (chain("Concat", 10, twice=True, axis=0), True),
        (chain("Concat", 60, twice=True, axis=0), False),
    ],
)
def test_many_nodes(nodes: list[NodeProto], is_folded: bool) -> None:
    assert reason_of(nodes) is (None if is_folded else Reason.COMPUTED)


def test_long_chains_take_no_time() -> None:
    start = time.perf_counter()
    for nodes in (chain("Neg", 20_000), chain("Add", 20_000, twice=True), chain("Reshape", 20_000, twice=True)):
        assert reason_of(nodes) is Reason.COMPUTED
    assert time.perf_counter() - start < 10 * SLOWER


@pytest.mark.parametrize(("count", "is_folded"), [(1 << 20, True), (1 << 24, True), (1 << 25, False)])
def test_what_is_made_of_a_few_bytes_is_bounded(count: int, is_folded: bool) -> None:
    expression = expression_of(folding([node("Expand", ["a", "n"], ["y"])], {"a": ("float", 1.0), "n": ("int64", [count])}))
    assert isinstance(expression, Reason) != is_folded


# What goes


def test_what_goes_when_all_its_readers_go() -> None:
    nodes = [
        node("Neg", ["a"], ["y"]),
        node("Abs", ["y"], ["b"]),
        node("Abs", ["y"], ["c"]),
        node("Neg", ["b"], ["d"]),
        node("Neg", ["c"], ["e"]),
    ]

    def goes(at: int, ended: set[int], folded: set[int], outputs: list[str]) -> bool:
        scope: Scope = model_scope(model(nodes, outputs=outputs))
        return ReadersGo({(scope, one) for one in folded}, {(scope, one) for one in ended})((scope, at))

    assert goes(0, {3, 4}, {1, 2}, ["z"])
    assert goes(0, {1, 2}, set(), ["z"])
    assert goes(0, {1, 4}, {2}, ["z"])
    assert not goes(0, {3}, {1, 2}, ["z"])  # another one reads it
    assert not goes(0, {3, 4}, {1}, ["z"])
    assert not goes(0, {3, 4}, {1, 2}, ["c"])  # it leaves the graph
    assert not goes(0, set(), {1, 2, 3, 4}, ["z"])  # what nothing reads stays
    assert not goes(3, {3, 4}, {1, 2}, ["z"])
