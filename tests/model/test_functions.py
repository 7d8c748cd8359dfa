"""Model-local functions: what is refused before inlining, and that what is let through is what ONNX's inliner can take."""

from collections.abc import Iterable
from itertools import pairwise

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper
from onnx.inliner import inline_local_functions
from onnx.parser import parse_model

from ort_qdq_plugin.model import functions as functions_module
from ort_qdq_plugin.model.functions import check_functions
from tests.support import refusing

OPSETS = '"": 21, "local": 1'
CALL = "y = local.f (x)"


def function(name: str, body: str = "b = Neg (a)", inputs: str = "a", opsets: str = OPSETS, overload: str = "") -> str:
    """A function `local.name` with the output `b`, in ONNX's text format."""
    return f'<domain: "local", overload: "{overload}", opset_import: [{opsets}]> {name} ({inputs}) => (b) {{ {body} }}'


def model_of(*functions: str, nodes: str = CALL, opsets: str = OPSETS) -> ModelProto:
    """y = f(x), unless other nodes are given."""
    graph = f"<ir_version: 10, opset_import: [{opsets}]> g (float[1] x) => (float[1] y) {{ {nodes} }}"
    return parse_model("\n".join([graph, *functions]))


def calls_in_a_row(names: Iterable[str]) -> str:
    """A body that gives `a` to the first function, its result to the next one, and so on."""
    named = list(names)
    values = ["a", *(f"v{at}" for at in range(len(named) - 1)), "b"]
    steps = zip(named, pairwise(values), strict=True)
    return " ".join(f"{target} = local.{name} ({source})" for name, (source, target) in steps)


def test_functions_that_are_as_they_should_be() -> None:
    model = model_of(function("f", "c = local.g (a) b = Neg (c)"), function("g"))
    check_functions(model)
    assert [node.op_type for node in inline_local_functions(model).graph.node] == ["Neg", "Neg"]


# What is not as the specification has it

FUSED = "b = com.microsoft.FusedMatMul (a)"
CHECKED: dict[str, tuple[ModelProto, str | None]] = {
    "domain-not-imported": (model_of(function("f"), opsets='"": 21'), "domain is not imported"),
    "domain-of-an-unused-function-not-imported": (
        model_of(function("f"), nodes="y = Neg (x)", opsets='"": 21'), "domain is not imported",
    ),
    "one-domain-of-two-not-imported": (
        model_of(function("f"), function("g").replace('domain: "local"', 'domain: "other"')), "domain is not imported",
    ),
    "another-opset": (model_of(function("f", opsets='"": 20')), "another opset"),
    "another-version-of-its-own-domain": (model_of(function("f", opsets='"": 21, "local": 2')), "another opset"),
    "domain-of-an-operator-not-imported": (model_of(function("f", FUSED)), "does not import"),
    "own-domain-not-imported": (
        model_of(function("f", "b = local.g (a)", opsets='"": 21'), function("g")), "does not import",
    ),
    "long-name-not-imported": (model_of(function("f", "b = ai.onnx.Neg (a)")), "does not import"),
    "the-same-twice": (model_of(function("f"), function("f")), "two functions"),
    "the-same-overload-twice": (model_of(*[function("f", overload="2")] * 2), "two functions"),
    "calls-itself": (model_of(function("f", "b = local.f (a)")), "calls itself"),
    "calls-itself-through-another": (
        model_of(function("f", "b = local.g (a)"), function("g", "b = local.f (a)")), "calls itself",
    ),
    "an-opset-that-only-the-function-imports": (
        model_of(function("f", FUSED, opsets=f'{OPSETS}, "com.microsoft": 1')), None,
    ),
    "no-functions": (ModelProto(), None),
    "a-constant-with-an-input": (
        model_of(function("f", "c = Constant <value = float {1}> (a)  b = Neg (c)")), "with inputs",
    ),
    "given-a-graph": (
        model_of(function("f"), nodes="y = local.f <g = branch () => () { own = Neg (x) }> (x)"), "given a graph",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKED)
def test_what_is_refused(name: str) -> None:
    model, problem = CHECKED[name]
    with refusing(problem):
        check_functions(model)


def test_nodes_of_one_name_are_refused() -> None:
    model = model_of(function("f"), nodes=f"{CALL} z = local.f (x)")
    for node in model.graph.node:
        node.name = "n"
    with refusing("the same name"):
        check_functions(model)


def test_overloads_are_functions_of_their_own() -> None:
    """One that calls the other overload does not call itself."""
    model = model_of(function("f", "b = local.f (a)"), function("f", overload="2"))
    model.functions[0].node[0].overload = "2"
    check_functions(model)


# Depth


def chain(length: int, nodes: str = CALL) -> ModelProto:
    """f calls f1, which calls f2, and so on: a number of functions, each in the body of the one before it."""
    names = ["f", *(f"f{at}" for at in range(1, length))]
    made = [function(name, f"b = local.{called} (a)") for name, called in pairwise(names)]
    return model_of(*made, function(names[-1]), nodes=nodes)


@pytest.mark.parametrize("order", [1, -1])
def test_a_hundred_levels_are_the_most(order: int) -> None:
    """In whatever order the functions are stored: those that were counted already are not counted as less deep."""
    for length, problem in ((100, None), (101, "more than 100")):
        model = chain(length)
        functions = list(model.functions)[::order]
        del model.functions[:]
        model.functions.extend(functions)
        with refusing(problem):
            check_functions(model)
            assert [node.op_type for node in inline_local_functions(model).graph.node] == ["Neg"]


def test_a_function_that_is_counted_at_one_depth_is_judged_at_the_next() -> None:
    """The main graph calls the last 60 of 100 functions first, then all of them from within 10 more."""
    first = "h = local.f40 (x)"
    others = [function(f"o{at}", f"b = local.{f'o{at + 1}' if at < 9 else 'f'} (a)") for at in range(10)]
    for nodes, problem in ((first, None), (f"{first} y = local.o0 (h)", "more than 100")):
        model = chain(100, nodes)
        model.functions.extend(model_of(*others).functions)
        with refusing(problem):
            check_functions(model)


@pytest.mark.parametrize(("length", "problem"), [(99, None), (100, "more than 100")])
def test_a_branch_is_a_level_too(length: int, problem: str | None) -> None:
    branch = "branch () => (float[] inside) { inside = local.f (x) }"
    model = chain(
        length, f"c = Constant <value = bool {{1}}> () y = If (c) <then_branch = {branch}, else_branch = {branch}>"
    )
    with refusing(problem):
        check_functions(model)


# Size


def doubling(levels: int) -> ModelProto:
    """Each function calls the next one twice: 2**levels nodes."""
    names = ["f", *(f"f{at}" for at in range(1, levels)), "last"]
    made = [function(name, calls_in_a_row([called, called])) for name, called in pairwise(names)]
    return model_of(*made, function("last"))


def test_functions_that_double_are_refused_before_they_are_huge() -> None:
    assert len(inline_local_functions(doubling(10)).graph.node) == 2**10
    check_functions(doubling(10))
    for levels in (20, 60):
        with refusing("once they are inlined"):
            check_functions(doubling(levels))


def test_attributes_that_are_repeated_count() -> None:
    """100 KB that the function's body refers to 1000 times."""
    model = model_of(function("f"))
    model.functions[0].attribute.append("given")
    for at in range(1000):
        node = model.functions[0].node.add(op_type="Constant", output=[f"c{at}"])
        node.attribute.add(name="value_ints", ref_attr_name="given", type=onnx.AttributeProto.INTS)
    check_functions(model)
    model.graph.node[0].attribute.append(helper.make_attribute("given", [1] * 100_000))
    with refusing("once they are inlined"):
        check_functions(model)


def test_names_that_are_repeated_count() -> None:
    """A name of 100 KB that a function's 2000 nodes read."""
    body = " ".join(f"n{at} = Neg (a)" for at in range(2000)) + " b = Neg (a)"
    check_functions(model_of(function("f", body)))
    with refusing("once they are inlined"):
        check_functions(model_of(function("f", body), nodes=f"y = local.f ({'x' * 100_000})"))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(1, 6), max_size=4), min_size=1, max_size=7), st.integers(1, 40))
def test_the_bound_is_never_below_what_inlining_gives(steps: list[list[int]], length: int) -> None:
    """Function number n calls those that are some numbers further on, or has a node where there are none."""
    names = ["f", *(f"f{at}" for at in range(1, len(steps)))]
    bodies = [[names[at + step] for step in further if at + step < len(names)] for at, further in enumerate(steps)]
    made = [
        function(name, calls_in_a_row(body) if body else "b = Neg (a)") for name, body in zip(names, bodies, strict=True)
    ]
    model = model_of(*made, nodes=f"y = local.f ({'x' * length})")
    model.graph.input[0].name = "x" * length
    check_functions(model)
    inlined = sum(node.ByteSize() for node in inline_local_functions(model).graph.node)
    with pytest.MonkeyPatch.context() as patch, refusing("once they are inlined"):
        patch.setattr(functions_module, "_MAX_INLINED_BYTES", inlined - 1)
        check_functions(model)


# Elements of less than a byte

NODES = {
    "read-by-an-operator": [function("f", "b = DequantizeLinear (c, a)", "a, c")],
    "read-by-nothing": [function("f", inputs="a, c")],
    "handed-on": [function("f", "b = local.g (c)", "a, c"), function("g")],
    "read-and-handed-on": [function("f", "d = Neg (c) b = local.g (c)", "a, c"), function("g")],
    "beyond-its-inputs": [function("f")],
}


@pytest.mark.parametrize("element", [TensorProto.UINT4, TensorProto.INT4, TensorProto.UINT2, TensorProto.UINT8])
@pytest.mark.parametrize("name", NODES)
def test_elements_below_a_byte_go_to_functions_whose_operators_read_them(name: str, element: int) -> None:
    """By operators alone ONNX Runtime knows which types a function takes; whole bytes it does not mind."""
    model = model_of(*NODES[name], nodes="y = local.f (x, w)")
    model.graph.initializer.append(TensorProto(name="w", data_type=element, dims=[2], raw_data=bytes(2)))
    taken = name in ("read-by-an-operator", "beyond-its-inputs") or element == TensorProto.UINT8
    with refusing(None if taken else "less than a byte"):
        check_functions(model)
