"""A graph and its subgraphs: who makes, who reads and what is constant under a name, and which graphs are refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.graph import Scope, check_imports, domains, model_scope, scopes
from ort_qdq_plugin.model.messages import is_standard

FIRST_IR_WITH_OVERRIDES = 4


def floats(name: str, *shape: int | str | None) -> ValueInfoProto:
    made: ValueInfoProto = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    return made


def tensor(name: str, value: float = 1.0) -> TensorProto:
    made: TensorProto = helper.make_tensor(name, TensorProto.FLOAT, [1], [value])
    return made


def graph(
    nodes: Iterable[NodeProto],
    inputs: Iterable[str] = (),
    outputs: Iterable[str] = (),
    initializers: Iterable[TensorProto] = (),
    name: str = "g",
) -> GraphProto:
    made: GraphProto = helper.make_graph(
        list(nodes), name, [floats(name, 1) for name in inputs], [floats(name, 1) for name in outputs], list(initializers)
    )
    return made


def node(op: str, inputs: Iterable[str], outputs: Iterable[str], name: str = "", domain: str = "") -> NodeProto:
    made: NodeProto = helper.make_node(op, list(inputs), list(outputs), name=name, domain=domain)
    return made


def branching(then: GraphProto, otherwise: GraphProto, output: str = "y", condition: str = "c") -> NodeProto:
    made: NodeProto = helper.make_node("If", [condition], [output], then_branch=then, else_branch=otherwise)
    return made


def scope_of(made: GraphProto, ir_version: int = 10) -> Scope:
    return Scope(made, None, ir_version)


def nested() -> GraphProto:
    """x -> h; a branch that reads h, x and w; in the other one a branch that has a w of its own beside it."""
    innermost = graph([node("Add", ["h", "v"], ["i"])], outputs=["i"], initializers=[tensor("v")], name="innermost")
    other = graph([node("Neg", ["i0"], ["i1"])], ["i0"], ["i1"], name="other")
    then = graph([node("Add", ["h", "h"], ["t0"]), node("Mul", ["t0", "w"], ["t1"])], outputs=["t1"], name="then")
    otherwise = graph(
        [node("Sub", ["x", "w"], ["e0"]), branching(innermost, other, "e1", "e0")], outputs=["e1"], name="else"
    )
    nodes = [node("Relu", ["x"], ["h"]), branching(then, otherwise), node("Neg", ["y"], ["z"])]
    return graph(nodes, ["x", "c"], ["z", "h"], [tensor("w")], name="main")


# Scopes


def test_scopes_come_outermost_first_and_in_order() -> None:
    main = scope_of(nested())
    assert [scope.graph.name for scope in scopes(main)] == ["main", "else", "other", "innermost", "then"]
    assert {scope.graph.name: scope.parent.graph.name for scope in scopes(main) if scope.parent} == {
        "then": "main",
        "else": "main",
        "innermost": "else",
        "other": "else",
    }
    assert all(scope.root is main for scope in scopes(main))


def by_name(main: Scope) -> dict[str, Scope]:
    return {scope.graph.name: scope for scope in scopes(main)}


def test_a_name_means_what_is_nearest() -> None:
    found = by_name(scope_of(nested()))
    assert found["innermost"].definer("v") is found["innermost"]
    assert found["innermost"].definer("e0") is found["else"]
    assert found["innermost"].definer("h") is found["main"]
    assert found["other"].definer("i0") is found["other"]
    assert found["innermost"].definer("nothing") is found["main"]


def test_producers() -> None:
    found = by_name(scope_of(nested()))
    produced = found["innermost"].producer("h")
    assert produced is not None
    assert (produced[0], produced[1], produced[2].op_type) == (found["main"], 0, "Relu")
    produced = found["innermost"].producer("e0")
    assert produced is not None
    assert (produced[0], produced[1]) == (found["else"], 0)
    for name in ("x", "w", "nothing"):
        assert found["innermost"].producer(name) is None


def test_consumers_are_counted_once_for_each_input_wherever_they_are() -> None:
    found = by_name(scope_of(nested()))
    uses = {
        name: Counter((scope.graph.name, index) for scope, index in found["main"].uses(name))
        for name in ("x", "h", "w", "y")
    }
    assert uses == {
        "x": {("main", 0): 1, ("else", 0): 1},
        "h": {("then", 0): 2, ("innermost", 0): 1},
        "w": {("then", 1): 1, ("else", 0): 1},
        "y": {("main", 2): 1},
    }
    assert found["then"].uses("h") == found["main"].uses("h")
    assert found["main"].uses("z") == []


@settings(deadline=None)
@given(
    reads=st.lists(st.lists(st.sampled_from(["x", "w", "o0", "o1", "o2", ""]), max_size=3), max_size=5),
    within=st.lists(st.lists(st.sampled_from(["x", "o0", "b0", "i"]), max_size=3), max_size=4),
)
def test_consumers_are_those_that_a_walk_over_all_inputs_finds(reads: list[list[str]], within: list[list[str]]) -> None:
    """A branch behind the nodes has an input of its own, `i`, and values b0, b1, ... of its own."""
    inner = graph([node("Op", names, [f"b{at}"]) for at, names in enumerate(within)], ["i"], name="inner")
    nodes = [node("Op", names, [f"o{at}"]) for at, names in enumerate(reads)]
    main = scope_of(graph([*nodes, branching(inner, graph([], name="empty"))], ["x", "c"], initializers=[tensor("w")]))
    for name in ("x", "w", "o0", "o1", "o2"):
        outside = [("g", at) for at, names in enumerate(reads) for read in names if read == name]
        inside = [("inner", at) for at, names in enumerate(within) for read in names if read == name]
        assert Counter((scope.graph.name, at) for scope, at in main.uses(name)) == Counter(outside + inside)
    branch = by_name(main)["inner"]
    for name in {"b0", "i"}:
        assert [at for _, at in branch.uses(name)] == [
            at for at, names in enumerate(within) for read in names if read == name
        ]
        assert bool(branch.definer(name).consumers.get(name)) == any(name in names for names in within)


def test_what_leaves_a_graph() -> None:
    """An outer value may leave a branch as it is."""
    branch = graph([], outputs=["h"], name="branch")
    nodes = [node("Relu", ["x"], ["h"]), node("Neg", ["h"], ["n"]), branching(branch, branch)]
    main = scope_of(graph(nodes, ["x", "c"], ["y"]))
    assert main.is_output("y")
    assert main.is_output("h"), "by a branch"
    assert not main.is_output("n")
    assert not main.is_output("x")


def test_inputs() -> None:
    found = by_name(scope_of(nested()))
    assert found["innermost"].is_input("x")
    assert found["other"].is_input("i0")
    assert not found["main"].is_input("w")
    assert not found["main"].is_input("h")


@pytest.mark.parametrize(
    ("scope", "index", "readable", "not_readable"),
    [
        ("main", 0, "x w c", "h y z"),
        ("main", 1, "x w c h", "y z t0 e0"),
        ("then", 0, "x w h", "t0 t1 y z e0"),
        ("then", 1, "h t0", "t1 y"),
        ("else", 1, "h e0", "e1 t0 y i"),
        ("innermost", 0, "v e0 h x w", "i e1 y z"),
        ("other", 0, "i0 e0", "v i1 y"),
    ],
)
def test_what_a_node_can_read(scope: str, index: int, readable: str, not_readable: str) -> None:
    """What comes before it, in its own graph and those around it."""
    found = by_name(scope_of(nested()))[scope]
    assert [name for name in readable.split() if not found.has_before(name, index)] == []
    assert [name for name in not_readable.split() if found.has_before(name, index)] == []


# Constants


def value_of(found: TensorProto | None) -> float | None:
    return None if found is None else float(numpy_helper.to_array(found).reshape(-1)[0])


def constant_node(name: str, value: float, domain: str = "") -> NodeProto:
    made: NodeProto = helper.make_node("Constant", [], [name], domain=domain, value=tensor(name, value))
    return made


def test_constants() -> None:
    scalar = helper.make_node("Constant", [], ["s"], value_float=3.0)
    ints = helper.make_node("Constant", [], ["i"], value_ints=[1, 2])
    other = constant_node("other", 4.0, "local")
    nodes = [constant_node("k", 2.0), scalar, ints, other, node("Relu", ["w"], ["r"])]
    scope = scope_of(graph(nodes, ["x"], [], [tensor("w", 1.0)]))
    values = {name: value_of(scope.constant(name)) for name in ("w", "k", "s", "i", "other", "r", "x", "nothing")}
    assert values == {"w": 1.0, "k": 2.0, "s": 3.0, "i": None, "other": None, "r": None, "x": None, "nothing": None}
    found = scope.constant("s")
    assert found is not None
    assert (found.data_type, list(found.dims)) == (TensorProto.FLOAT, [])


def test_constants_are_found_through_identities_wherever_they_are() -> None:
    inner = graph(
        [node("Identity", ["j"], ["l"]), constant_node("own", 5.0), node("Identity", ["own"], ["m"])], name="inner"
    )
    nodes = [
        node("Identity", ["w"], ["i"]),
        node("Identity", ["i"], ["j"], domain="ai.onnx"),
        node("Identity", ["x"], ["of the input"]),
        node("Identity", ["w"], ["foreign"], domain="local"),
        node("Identity", [], ["of nothing"]),
        branching(inner, graph([], name="empty")),
    ]
    main = scope_of(graph(nodes, ["x", "c"], [], [tensor("w", 7.0)]))
    branch = by_name(main)["inner"]
    assert [value_of(branch.constant(name)) for name in ("l", "m", "j", "i", "w")] == [7.0, 5.0, 7.0, 7.0, 7.0]
    assert [main.constant(name) for name in ("of the input", "foreign", "of nothing")] == [None] * 3
    assert [value_of(main.constant(name)) for name in ("j", "i", "w")] == [7.0, 7.0, 7.0]


@pytest.mark.parametrize("asked", ["a", "b", "c"])
def test_identities_in_a_circle_are_no_constants(asked: str) -> None:
    circle = [node("Identity", [source], [target]) for source, target in ("ab", "bc", "ca")]
    scope = scope_of(graph(circle))
    assert scope.constant(asked) is None
    assert [scope.constant(name) for name in "abc"] == [None] * 3


def test_long_chains_of_identities_cost_no_recursion() -> None:
    count = 20_000
    chain = [node("Identity", [f"i{at}" if at else "w"], [f"i{at + 1}"]) for at in range(count)]
    scope = scope_of(graph(chain, initializers=[tensor("w", 7.0)]))
    assert value_of(scope.constant(f"i{count}")) == 7.0
    assert value_of(scope.constant("i1")) == 7.0


@pytest.mark.parametrize("ir_version", [3, FIRST_IR_WITH_OVERRIDES, 10])
def test_initializers_that_the_caller_may_replace_are_no_constants(ir_version: int) -> None:
    """Before IR version 4 every initializer had to be an input, and none could be replaced."""
    made = graph([node("Identity", ["w"], ["i"])], ["x", "w"], ["i"], [tensor("w"), tensor("v")])
    scope = scope_of(made, ir_version)
    overridable = ir_version >= FIRST_IR_WITH_OVERRIDES
    assert scope.is_overridable("w") == overridable
    assert (scope.constant("w") is None) == overridable
    assert (scope.constant("i") is None) == overridable
    assert not any(scope.is_overridable(name) for name in ("v", "x", "i"))
    assert scope.constant("v") is not None


# Names


def duplicated(**parts: list[str]) -> GraphProto:
    """A graph whose nodes have these names and outputs, and that has initializers of these names."""
    names, outputs = parts.get("names", ["", ""]), parts.get("outputs", ["p", "q"])
    nodes = [node("Neg", ["x"], [output], name) for name, output in zip(names, outputs, strict=True)]
    return graph(nodes, ["x"], [], [tensor(name) for name in parts.get("initializers", [])])


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (duplicated(outputs=["p", "p"]), "output of the same name"),
        (duplicated(names=["n", "n"]), "nodes have the same name"),
        (duplicated(initializers=["w", "w"]), "initializers have the same name"),
        (graph([node("Split", ["x"], ["p", "p"])], ["x"]), "output of the same name"),
        (duplicated(outputs=["p", "q" * 1025]), "1024 characters"),
        (duplicated(names=["n", "m" * 1025]), "1024 characters"),
        (duplicated(initializers=["w" * 1025]), "1024 characters"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_names_that_stand_for_two_things_or_are_very_long_are_refused(made: GraphProto, problem: str, inside: bool) -> None:
    if inside:
        made.ClearField("input")
        made = graph([branching(made, graph([], name="empty"))], ["x", "c"])
    with pytest.raises(ModelError, match=problem):
        scope_of(made)


def test_names_that_are_not_there_and_just_as_long_as_they_may_be_are_taken() -> None:
    made = duplicated(names=["", "n" * 1024], outputs=["", "o" * 1024], initializers=["w" * 1024])
    made.node.append(node("Neg", ["x"], [""]))
    assert len(scope_of(made).nodes) == 3


@pytest.mark.parametrize("name", ["x", "w", "before", "later", "y"])
@pytest.mark.parametrize("kind", ["output", "initializer"])
def test_values_of_a_branch_with_the_name_of_one_outside_are_refused(name: str, kind: str) -> None:
    """An input, an initializer, values of nodes before and after the branch, and that of its own node."""
    own = graph([node("Neg", ["x"], [name])]) if kind == "output" else graph([], initializers=[tensor(name)])
    empty = graph([], name="empty")
    inner = graph([branching(own, empty, "inner")], name="inner")
    for branch in (own, inner):
        nodes = [node("Neg", ["x"], ["before"]), branching(branch, empty), node("Neg", ["x"], ["later"])]
        with pytest.raises(ModelError, match="same name as one outside"):
            scope_of(graph(nodes, ["x", "c"], ["y"], [tensor("w")]))


def test_two_branches_may_use_the_same_names() -> None:
    branch = graph([node("Neg", ["x"], ["same"], "node")], outputs=["same"], initializers=[tensor("own")])
    scope = scope_of(graph([branching(branch, branch)], ["x", "c"], ["y"]))
    assert [child.definer("same") for child in scope.children] == scope.children


# Shapes and types


def model_of(made: GraphProto) -> ModelProto:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    model: ModelProto = helper.make_model(made, ir_version=10, opset_imports=opsets)
    return model


def test_shapes_that_are_stated_or_can_be_inferred() -> None:
    branch = graph([node("Transpose", ["h"], ["inside"])], name="branch")
    branch.output.append(helper.make_tensor_value_info("inside", TensorProto.FLOAT, None))
    made = graph(
        [node("Relu", ["x"], ["h"]), branching(branch, branch), node("Custom", ["x"], ["u"], domain="local")], ["c"]
    )
    made.input.append(floats("x", "m", 3))
    made.input.append(helper.make_tensor_value_info("without", TensorProto.FLOAT, None))
    made.value_info.append(floats("stated", 5, None))
    scope = model_scope(model_of(made))
    assert scope.shape("x") == (None, 3)
    assert scope.shape("stated") == (5, None)
    assert scope.shape("h") == (None, 3)
    assert [child.shape("inside") for child in scope.children] == [(3, None)] * 2
    assert [child.shape(name) for child in scope.children for name in ("x", "h")] == [(None, 3)] * 4
    assert [scope.shape(name) for name in ("u", "without", "nothing")] == [None] * 3


def test_what_is_stated_counts_before_what_would_be_inferred() -> None:
    made = graph([node("Relu", ["x"], ["h"])], ["x"])
    made.value_info.append(floats("h", None))
    assert model_scope(model_of(made)).shape("h") == (None,)


def test_types_that_are_stated() -> None:
    made = graph([node("Relu", ["x"], ["h"]), node("Neg", ["h"], ["n"])], ["x"], ["n"])
    made.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT16, None))
    made.value_info.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, []))
    scope = scope_of(made)
    stated = {name: scope.stated_type(name) for name in ("x", "h", "n", "s", "nothing")}
    assert stated == {"x": TensorProto.FLOAT, "h": TensorProto.FLOAT16, "n": TensorProto.FLOAT, "s": None, "nothing": None}


# Domains


def test_domains_of_all_operators() -> None:
    branch = graph([node("Neg", ["x"], ["b"], domain="ai.onnx"), node("Op", [], [], domain="local")], name="branch")
    main = scope_of(graph([node("Relu", ["x"], ["h"]), branching(branch, graph([], name="empty"))], ["x", "c"]))
    assert domains(main) == {"", "ai.onnx", "local"}
    assert [is_standard(made) for made in by_name(main)["branch"].nodes] == [True, False]


@pytest.mark.parametrize(
    ("imported", "used", "refused"),
    [
        (["", "local"], {"", "local"}, False),
        (["", "local"], {"ai.onnx"}, True),
        (["ai.onnx"], {"ai.onnx"}, False),
        (["ai.onnx"], {""}, False),
        (["", "ai.onnx"], {"", "ai.onnx"}, False),
        (["local"], {"", "ai.onnx"}, True),
    ],
)
def test_the_long_domain_name_has_to_be_imported_as_such(imported: list[str], used: set[str], refused: bool) -> None:
    model = ModelProto(opset_import=[helper.make_opsetid(domain, 21) for domain in imported])
    if refused:
        with pytest.raises(ModelError, match=r"ai\.onnx"):
            check_imports(model, used)
    else:
        check_imports(model, used)
