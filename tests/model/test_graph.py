"""A graph and its subgraphs: who makes, who reads and what is constant under a name, and which graphs are refused."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper
from onnx.parser import parse_graph, parse_model

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.graph import Scope, check_imports, domains, model_scope, scopes
from ort_qdq_plugin.model.messages import is_standard
from tests.support import refusing

FIRST_IR_WITH_OVERRIDES = 4

# x -> h; a branch that reads h, x and w; in the other one a branch that has a w of its own beside it.
NESTED = """main (x, c) => (z, h) <float[1] w = {1}> {
  h = Relu (x)
  y = If (c) <
    else_branch = else () => (e1) {
      e0 = Sub (x, w)
      e1 = If (e0) <
        else_branch = other (i0) => (i1) { i1 = Neg (i0) },
        then_branch = innermost () => (i) <float[1] v = {1}> { i = Add (h, v) }
      >
    },
    then_branch = then () => (t1, w) { t0 = Add (h, h)  t1 = Mul (t0, w) }
  >
  z = Neg (y)
}"""


def scope_of(graph: str | GraphProto, ir_version: int = 10) -> Scope:
    return Scope(parse_graph(graph) if isinstance(graph, str) else graph, None, ir_version)


def by_name(main: Scope) -> dict[str, Scope]:
    return {scope.graph.name: scope for scope in scopes(main)}


# Scopes


def test_scopes_come_outermost_first_and_in_order() -> None:
    main = scope_of(NESTED)
    assert [scope.graph.name for scope in scopes(main)] == ["main", "else", "other", "innermost", "then"]
    parents = {scope.graph.name: scope.parent.graph.name for scope in scopes(main) if scope.parent}
    assert parents == {"then": "main", "else": "main", "innermost": "else", "other": "else"}
    assert all(scope.root is main for scope in scopes(main))


@pytest.mark.parametrize(("scope", "name", "definer", "producer", "leaves"), [
    ("innermost", "v", "innermost", None, False), ("innermost", "e0", "else", 0, False), ("innermost", "h", "main", 0, True),
    ("innermost", "x", "main", "input", False), ("innermost", "nothing", "main", None, False),
    ("innermost", "w", "main", None, True),  # an outer value may leave a branch as it is
    ("other", "i0", "other", "input", False), ("other", "i1", "other", 0, True), ("main", "y", "main", 1, False),
])  # fmt: skip
def test_a_name_means_what_is_nearest(scope: str, name: str, definer: str, producer: Any, leaves: bool) -> None:
    found = by_name(scope_of(NESTED))
    assert found[scope].definer(name) is found[definer]
    at = None if producer == "input" else producer
    made = None if at is None else (found[definer], at, found[definer].nodes[at])
    assert found[scope].producer(name) == made
    assert (found[scope].is_input(name), found[scope].is_output(name)) == (producer == "input", leaves)


def test_consumers_are_counted_once_for_each_input_wherever_they_are() -> None:
    found = by_name(scope_of(NESTED))
    uses = {name: Counter((scope.graph.name, at) for scope, at in found["main"].uses(name)) for name in "xhwy"}
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
    graph = parse_graph("g (x, c) => () <float[1] w = {1}> { y = If (c) <then_branch = inner (i) => () {}> }")
    branch = graph.node[0].attribute[0].g
    branch.node.extend(helper.make_node("Op", names, [f"b{at}"]) for at, names in enumerate(within))
    behind = graph.node.pop()
    graph.node.extend([*(helper.make_node("Op", names, [f"o{at}"]) for at, names in enumerate(reads)), behind])
    main = scope_of(graph)
    for name in ("x", "w", "o0", "o1", "o2"):
        outside = [("g", at) for at, names in enumerate(reads) for read in names if read == name]
        inside = [("inner", at) for at, names in enumerate(within) for read in names if read == name]
        assert Counter((scope.graph.name, at) for scope, at in main.uses(name)) == Counter(outside + inside)
    inner = by_name(main)["inner"]
    for name in {"b0", "i"}:
        uses = [at for at, names in enumerate(within) for read in names if read == name]
        assert [at for _, at in inner.uses(name)] == uses
        assert bool(inner.definer(name).consumers.get(name)) == bool(uses)


@pytest.mark.parametrize(("scope", "index", "readable", "not_readable"), [
    ("main", 0, "x w c", "h y z"), ("main", 1, "x w c h", "y z t0 e0"), ("then", 0, "x w h", "t0 t1 y z e0"),
    ("then", 1, "h t0", "t1 y"), ("else", 1, "h e0", "e1 t0 y i"), ("innermost", 0, "v e0 h x w", "i e1 y z"),
    ("other", 0, "i0 e0", "v i1 y"),
])  # fmt: skip
def test_what_a_node_can_read(scope: str, index: int, readable: str, not_readable: str) -> None:
    """What comes before it, in its own graph and those around it."""
    found = by_name(scope_of(NESTED))[scope]
    assert [name for name in readable.split() if not found.has_before(name, index)] == []
    assert [name for name in not_readable.split() if found.has_before(name, index)] == []


# Constants


def values_of(scope: Scope, names: str) -> list[float | None]:
    """The first number of each constant; None for what is none."""
    found = [scope.constant(name) for name in names.split()]
    return [None if tensor is None else float(numpy_helper.to_array(tensor).reshape(-1)[0]) for tensor in found]


def test_constants() -> None:
    scope = scope_of("""g (x) => () <float[1] w = {1}> {
        k = Constant <value = float[1] {2.0}> ()
        s = Constant <value_float = 3.0> ()
        i = Constant <value_ints = [5, 2]> ()
        u = Constant <value_string = "u"> ()
        other = local.Constant <value = float[1] {4.0}> ()
        r = Relu (w)
    }""")
    assert values_of(scope, "w k s i u other r x nothing") == [1.0, 2.0, 3.0, 5.0, *[None] * 5]
    found = scope.constant("s")
    assert found is not None
    assert (found.data_type, list(found.dims)) == (TensorProto.FLOAT, [])


def test_constants_are_found_through_identities_wherever_they_are() -> None:
    main = scope_of("""g (x, c) => () <float[1] w = {7}> {
        i = Identity (w)
        j = ai.onnx.Identity (i)
        of_input = Identity (x)
        foreign = local.Identity (w)
        of_nothing = Identity ()
        y = If (c) <then_branch = inner () => () {
            l = Identity (j)  own = Constant <value = float[1] {5.0}> ()  m = Identity (own)
        }>
    }""")
    assert values_of(by_name(main)["inner"], "l m j i w") == [7.0, 5.0, 7.0, 7.0, 7.0]
    assert values_of(main, "of_input foreign of_nothing j i w") == [None, None, None, 7.0, 7.0, 7.0]


@pytest.mark.parametrize("asked", ["a", "b", "c"])
def test_identities_in_a_circle_are_no_constants(asked: str) -> None:
    scope = scope_of("g () => () { b = Identity (a)  c = Identity (b)  a = Identity (c) }")
    assert scope.constant(asked) is None
    assert values_of(scope, "a b c") == [None] * 3


def test_long_chains_of_identities_cost_no_recursion() -> None:
    graph = parse_graph("g () => () <float[1] i0 = {7}> {}")
    graph.node.extend(helper.make_node("Identity", [f"i{at}"], [f"i{at + 1}"]) for at in range(20_000))
    assert values_of(scope_of(graph), "i20000 i1") == [7.0, 7.0]


@pytest.mark.parametrize("ir_version", [3, FIRST_IR_WITH_OVERRIDES, 10])
def test_initializers_that_the_caller_may_replace_are_no_constants(ir_version: int) -> None:
    """Before IR version 4 every initializer had to be an input, and none could be replaced."""
    scope = scope_of("g (x, w) => (i) <float[1] w = {1}, float[1] v = {1}> { i = Identity (w) }", ir_version)
    overridable = ir_version >= FIRST_IR_WITH_OVERRIDES
    assert scope.is_overridable("w") == overridable
    assert not any(scope.is_overridable(name) for name in "vxi")
    assert values_of(scope, "w i v") == [*[None if overridable else 1.0] * 2, 1.0]


# Names


def named(nodes: dict[str, str], initializers: tuple[str, ...] = ()) -> GraphProto:
    """A graph of nodes with these outputs, and their names, and of initializers of these names."""
    graph = parse_graph("g (x) => () {}")
    graph.node.extend(helper.make_node("Neg", ["x"], output.split(), name) for output, name in nodes.items())
    graph.initializer.extend(helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0]) for name in initializers)
    return graph


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (parse_graph("g (x) => () { p = Neg (x)  p = Neg (x) }"), "output of the same name"),
        (named({"p p": ""}), "output of the same name"),
        (named({"p": "n", "q": "n"}), "nodes have the same name"),
        (named({}, ("w", "w")), "initializers have the same name"),
        (parse_graph("g (x) => () <float w = {1}> { w = Neg (x) }"), "the name of a node's output"),
        (named({"p": "", "q" * 1025: ""}), "1024 characters"),
        (named({"p": "n", "q": "m" * 1025}), "1024 characters"),
        (named({}, ("w" * 1025,)), "1024 characters"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_names_that_stand_for_two_things_or_are_very_long_are_refused(made: GraphProto, problem: str, inside: bool) -> None:
    if inside:
        outer = parse_graph("g (x, c) => () { y = If (c) <then_branch = empty () => () {}> }")
        outer.node[0].attribute[0].g.CopyFrom(made)
        outer.node[0].attribute[0].g.ClearField("input")
        made = outer
    with pytest.raises(ModelError, match=problem):
        scope_of(made)


def test_names_that_are_not_there_and_just_as_long_as_they_may_be_are_taken() -> None:
    made = named({"": "", "o" * 1024: "n" * 1024}, ("w" * 1024,))
    made.node.add(op_type="Neg", input=["x"], output=[""])
    made.node.add(op_type="Neg", input=["x"], output=[""])
    assert len(scope_of(made).nodes) == 4


@pytest.mark.parametrize("name", ["x", "w", "before", "later", "y"])
@pytest.mark.parametrize("kind", ["output", "initializer"])
@pytest.mark.parametrize("deeper", [False, True])
def test_values_of_a_branch_with_the_name_of_one_outside_are_refused(name: str, kind: str, deeper: bool) -> None:
    """An input, an initializer, values of nodes before and after the branch, and that of its own node."""
    own = f"{{ {name} = Neg (x) }}" if kind == "output" else f"<float[1] {name} = {{1}}> {{}}"
    branch = f"own () => () {own}"
    if deeper:
        branch = f"inner () => () {{ inner = If (c) <then_branch = {branch}> }}"
    with pytest.raises(ModelError, match="same name as one outside"):
        scope_of(f"""g (x, c) => (y) <float[1] w = {{1}}> {{
            before = Neg (x)  y = If (c) <then_branch = {branch}>  later = Neg (x)
        }}""")


def test_two_branches_may_use_the_same_names() -> None:
    branch = "branch () => (same) <float[1] own = {1}> { same = Neg (x) }"
    graph = parse_graph(f"g (x, c) => (y) {{ y = If (c) <then_branch = {branch}, else_branch = {branch}> }}")
    for attribute in graph.node[0].attribute:
        attribute.g.node[0].name = "node"
    scope = scope_of(graph)
    assert [child.definer("same") for child in scope.children] == scope.children


# Shapes and types


def test_shapes_that_are_stated_or_can_be_inferred() -> None:
    """What is stated counts before what would be inferred."""
    branch = "branch () => (float[] inside) { inside = Transpose (h) }"
    scope = model_scope(
        parse_model(f"""<ir_version: 10, opset_import: ["": 21, "local": 1]>
        g (bool[1] c, float[m, 3] x, float[] without) => () <float[5, ?] alone, float[7, k] stated> {{
            h = Relu (x)  stated = Relu (x)
            y = If (c) <then_branch = {branch}, else_branch = {branch}>
            u = local.Custom (x)
        }}""")
    )
    assert [scope.shape(name) for name in ("x", "alone", "h", "stated")] == [(None, 3), (5, None), (None, 3), (7, None)]
    assert [child.shape("inside") for child in scope.children] == [(3, None)] * 2
    assert [child.shape(name) for child in scope.children for name in ("x", "h")] == [(None, 3)] * 4
    assert [scope.shape(name) for name in ("u", "without", "nothing")] == [None] * 3
    assert [scope.stated_shape(name) for name in ("x", "stated", "h", "nothing")] == [(None, 3), (7, None), None, None]
    assert [child.stated_shape(name) for child in scope.children for name in ("x", "inside")] == [(None, 3), None] * 2


def test_types_that_are_stated() -> None:
    scope = scope_of("g (float[1] x) => (float[1] n) <float16[] h, seq(float[1]) s> { h = Relu (x)  n = Neg (h) }")
    stated = [scope.stated_type(name) for name in ("x", "h", "n", "s", "nothing")]
    assert stated == [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.FLOAT, None, None]


# Domains


def test_domains_of_all_operators() -> None:
    branch = "branch () => () { b = ai.onnx.Neg (x)  o = local.Op () }"
    main = scope_of(f"g (x, c) => () {{ h = Relu (x)  y = If (c) <then_branch = {branch}> }}")
    assert domains(main) == {"", "ai.onnx", "local"}
    assert [is_standard(made) for made in by_name(main)["branch"].nodes] == [True, False]


@pytest.mark.parametrize(("imported", "used", "refused"), [
    (["", "local"], {"", "local"}, False), (["", "local"], {"ai.onnx"}, True), (["ai.onnx"], {"ai.onnx"}, False),
    (["ai.onnx"], {""}, False), (["", "ai.onnx"], {"", "ai.onnx"}, False), (["local"], {"", "ai.onnx"}, True),
])  # fmt: skip
def test_the_long_domain_name_has_to_be_imported_as_such(imported: list[str], used: set[str], refused: bool) -> None:
    model = ModelProto(opset_import=[helper.make_opsetid(domain, 21) for domain in imported])
    with refusing(r"ai\.onnx" if refused else None):
        check_imports(model, used)
